"""A head without a network: the exact denoiser of standard normal images. For tests and for the cost of the loop."""

import math

from collafuse_runtimes.engines.base import Engine, Labels, Trajectory
from collafuse_runtimes.noise import Float32Array
from collafuse_runtimes.samplers import StepCoefficients, apply_step, denoise, step_table


class FakeEngine(Engine):
    """Where x_0 ~ N(0, I), E[eps | x_t] = sqrt(1 - alpha_bar_t) * x_t (Ho et al. 2020, eq. 4)."""

    name = "fake"

    def _open(self) -> None:
        bundle = self.bundle
        self._table = step_table(bundle.plan, bundle.transitions, bundle.sampler).tolist()

    def _close(self) -> None:
        del self._table

    def _step(self, x: Float32Array, row: int, z: Float32Array | None, labels: Labels | None) -> Float32Array:
        eps = self._predict_epsilon(x, self.bundle.transitions[row][0])
        return apply_step(x, eps, StepCoefficients(*self._table[row]), self.bundle.plan.value_range, z)

    def _denoise(self, trajectory: Trajectory) -> Float32Array:
        return denoise(
            trajectory.x_tc,
            self.bundle.plan,
            trajectory.rows.transitions,
            self.bundle.sampler,
            self._predict_epsilon,
            noise=trajectory.noise,
            on_step=trajectory.on_step,
        )

    def _predict_epsilon(self, x: Float32Array, t: int) -> Float32Array:
        return math.sqrt(1 - self.bundle.plan.alpha_bar_at(t)) * x
