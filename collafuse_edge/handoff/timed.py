"""The server's side of a split as work to be measured: noise in, hand-over tensor out, nothing written."""

from collections.abc import Callable
from pathlib import Path

from collafuse_benchmarks.split.parts import Weights
from collafuse_benchmarks.split.sweep import SplitServer
from collafuse_edge.handoff.server_steps import DEFAULT_SAMPLER, default_steps, open_predictor, start_noise
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.diffusion.samplers import denoise
from collafuse_runtimes.files.checkpoint import read_checkpoint


def open_server(path: Path, device: str | None = None) -> SplitServer:
    """Load a server's network; it runs the sampler of ``handoff``.

    Raises:
        ArtefactError, InputError, EngineUnavailable: as ``handoff.make_handover``; its ``work``: steps below 1.
    """
    checkpoint = read_checkpoint(path, "server")
    predict, device, parameters = open_predictor(checkpoint, device)

    def work(plan: SplitPlan, steps: int | None) -> tuple[int, Callable[[int], Float32Array]]:
        sampler = DEFAULT_SAMPLER
        count = default_steps(plan, sampler) if steps is None else min(steps, plan.t_c)
        transitions = plan.server_transitions(count, sampler.levels)

        def run(i: int) -> Float32Array:
            return denoise(start_noise(plan, 0, range(i, i + 1)), plan, transitions, sampler, predict)

        return len(transitions), run

    network = Weights(checkpoint.network.preset, parameters, checkpoint.weights_sha256)
    return SplitServer(path.name, str(path), checkpoint.plan, network, f"torch {device}", work)
