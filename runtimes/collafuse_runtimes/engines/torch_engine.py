"""The reference: the head's own torch network and the sampler loop, no exported graph."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from collafuse_runtimes.device.cpus import threads_by_quota
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.diffusion.samplers import StepCoefficients, apply_step, denoise
from collafuse_runtimes.engines.base import Engine, Labels, Trajectory
from collafuse_runtimes.errors import ArtefactError
from collafuse_runtimes.files.checkpoint import load_network, read_checkpoint, require_trained_for

if TYPE_CHECKING:
    import torch


class TorchEngine(Engine):
    """Runs the checkpoint the bundle was exported from; refuses any other."""

    name = "torch"

    def _open(self) -> None:
        import torch

        assert self.options.checkpoint is not None
        checkpoint = read_checkpoint(self.options.checkpoint, role="client")
        require_trained_for(checkpoint, self.bundle.plan, str(self.bundle.path))
        if checkpoint.weights_sha256 != self.bundle.network.weights_sha256:
            raise ArtefactError(
                f"{checkpoint.path} holds other weights than {self.bundle.path} was exported from; "
                "give the checkpoint it was exported from, or export the head again"
            )
        self._network = load_network(checkpoint)
        self._threads_before = torch.get_num_threads()
        by_default = min(self._threads_before, threads_by_quota() or self._threads_before)
        torch.set_num_threads(self.options.threads or by_default)

    def _close(self) -> None:
        import torch

        torch.set_num_threads(self._threads_before)
        del self._network

    def _step(
        self, x: Float32Array, row: int, z: Float32Array | None, labels: Labels | None, x_0_old: Float32Array | None
    ) -> tuple[Float32Array, Float32Array | None]:
        bundle = self.bundle
        out = self._predict(labels)(x, bundle.transitions[row][0])
        return apply_step(x, out, StepCoefficients(*bundle.table[row].tolist()), bundle.plan.value_range, z, x_0_old)

    def _denoise(self, trajectory: Trajectory) -> Float32Array:
        return denoise(
            trajectory.x_tc,
            self.bundle.plan,
            trajectory.rows.transitions,
            self.bundle.sampler,
            self._predict(trajectory.labels),
            table=self.bundle.table_of(trajectory.rows),
            noise=trajectory.noise,
            on_step=trajectory.on_step,
        )

    def _predict(self, labels: Labels | None) -> Callable[[Float32Array, int], Float32Array]:
        return predict_function(self._network, labels)


def predict_function(
    network: "torch.nn.Module", labels: Labels | None = None
) -> Callable[[Float32Array, int], Float32Array]:
    """``predict`` for ``samplers.denoise`` on numpy arrays: (x_t, t) -> epsilon or v, (B, C, H, W) float32.

    They cross to the network's torch device and back once a step.
    """
    import torch

    device = next(network.parameters()).device
    conditions: dict[str, Any] = {} if labels is None else {"class_labels": torch.from_numpy(labels).to(device)}

    def predict(x: Float32Array, t: int) -> Float32Array:
        with torch.inference_mode():
            out: torch.Tensor = network(torch.from_numpy(x).to(device), t, return_dict=False, **conditions)[0]
        result: Float32Array = out.float().cpu().numpy()
        return result

    return predict
