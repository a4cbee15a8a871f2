"""A head without a network: the exact denoiser of standard normal images. For tests and for the cost of the loop."""

import math

from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.diffusion.samplers import StepCoefficients, apply_step, denoise
from collafuse_runtimes.engines.base import Engine, Labels, Trajectory


class FakeEngine(Engine):
    """Where x_0 ~ N(0, I): E[epsilon | x_t] = sqrt(1 - alpha_bar_t) * x_t (Ho et al. 2020, eq. 4), E[v | x_t] = 0."""

    name = "fake"

    def _open(self) -> None:
        self._table = self.bundle.table.tolist()

    def _close(self) -> None:
        del self._table

    def _step(
        self, x: Float32Array, row: int, z: Float32Array | None, labels: Labels | None, x_0_old: Float32Array | None
    ) -> tuple[Float32Array, Float32Array | None]:
        out = self._predict(x, self.bundle.transitions[row][0])
        return apply_step(x, out, StepCoefficients(*self._table[row]), self.bundle.plan.value_range, z, x_0_old)

    def _denoise(self, trajectory: Trajectory) -> Float32Array:
        return denoise(
            trajectory.x_tc,
            self.bundle.plan,
            trajectory.rows.transitions,
            self.bundle.sampler,
            self._predict,
            table=self.bundle.table_of(trajectory.rows),
            noise=trajectory.noise,
            on_step=trajectory.on_step,
        )

    def _predict(self, x: Float32Array, t: int) -> Float32Array:
        plan = self.bundle.plan
        return (math.sqrt(1 - plan.alpha_bar_at(t)) if plan.prediction_at(t) == "epsilon" else 0.0) * x
