"""The server's side of a split as work to be measured: noise in, hand-over tensor out, nothing written."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collafuse_edge.handoff.server_steps import DEFAULT_SAMPLER, default_steps, open_predictor, start_noise
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.diffusion.samplers import denoise
from collafuse_runtimes.files.checkpoint import read_checkpoint


@dataclass(frozen=True)
class SplitServer:
    """An opened server; ``work`` gives the steps above one cut.

    Attributes:
        path: of its checkpoint.
        plan: it was trained for; its cut is the lowest timestep that it knows.
        network: preset, parameters, sha256 of the weights.
        device: torch's name of it.
    """

    path: Path
    plan: SplitPlan
    network: dict[str, Any]
    device: str
    predict: Callable[[Float32Array, int], Float32Array]

    def work(self, plan: SplitPlan, steps: int | None) -> tuple[int, Callable[[int], Float32Array]]:
        """(steps, i -> x_{t_c} of sample i, (1, C, H, W) float32), by the sampler of ``handoff``.

        Args:
            plan: this server's, cut anywhere.
            steps: at most; None runs as many as ``handoff`` does.

        Raises:
            InputError: steps below 1.
        """
        sampler = DEFAULT_SAMPLER
        count = default_steps(plan, sampler) if steps is None else min(steps, plan.t_c)
        transitions = plan.server_transitions(count, sampler.levels)

        def run(i: int) -> Float32Array:
            x = start_noise(plan, 0, range(i, i + 1))
            return denoise(x, plan, transitions, sampler, self.predict)

        return len(transitions), run

    def knows(self, plan: SplitPlan) -> bool:
        """Whether it was trained for every timestep that it runs at this cut."""
        return plan.cut >= self.plan.cut


def open_server(path: Path, device: str | None = None) -> SplitServer:
    """Load a server's network.

    Raises:
        ArtefactError, InputError, EngineUnavailable: as ``handoff.make_handover``.
    """
    checkpoint = read_checkpoint(path, "server")
    predict, device, parameters = open_predictor(checkpoint, device)
    network = {
        "preset": checkpoint.network.preset,
        "parameters": parameters,
        "weights_sha256": checkpoint.weights_sha256,
    }
    return SplitServer(path, checkpoint.plan, network, device, predict)
