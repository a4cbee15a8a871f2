"""The server's part of a trajectory: noise in, hand-over tensors out."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from collafuse_runtimes.diffusion.levels import GIVEN
from collafuse_runtimes.diffusion.noise import Float32Array, check_seed, noise_batch
from collafuse_runtimes.diffusion.plan import SplitPlan, Transition
from collafuse_runtimes.diffusion.samplers import Sampler, denoise
from collafuse_runtimes.engines.torch_engine import predict_function
from collafuse_runtimes.errors import ArtefactError, InputError
from collafuse_runtimes.extras import needs
from collafuse_runtimes.files.checkpoint import Checkpoint, load_network, read_checkpoint, require_trained_for
from collafuse_runtimes.files.handover import Handover

DEFAULT_SAMPLER, DEFAULT_STEPS = Sampler("dpm++2m", levels="karras"), 20
"""What a server runs unless told: benchmarks/results/front.md."""


def default_steps(plan: SplitPlan, sampler: Sampler) -> int:
    """Few steps for the sampler made for them, every step for the others."""
    return min(DEFAULT_STEPS, plan.t_c) if sampler.name == DEFAULT_SAMPLER.name else plan.t_c


@dataclass(frozen=True)
class HandoverSettings:
    """What a server makes, and how.

    Attributes:
        count: images, at least 1.
        seed: of all noise, the device's too.
        first_index: number of the first image.
        steps: server steps; None is ``default_steps``.
        sampler: how they are taken.
        timesteps: to run in place of ``steps``, from T-1 down to at least cut.
        batch_size: images per network call.
        device: torch device; None takes a GPU where there is one.
    """

    count: int
    seed: int = 0
    first_index: int = 0
    steps: int | None = None
    sampler: Sampler = DEFAULT_SAMPLER
    timesteps: Sequence[int] | None = None
    batch_size: int = 32
    device: str | None = None

    def __post_init__(self) -> None:
        if self.count < 1 or self.batch_size < 1:
            raise InputError(f"count {self.count}, batch size {self.batch_size} out of range: must be at least 1")


def make_handover(
    plan: SplitPlan, server: Path | None, settings: HandoverSettings, on_step: Callable[[int], None] | None = None
) -> Handover:
    """Run timesteps T-1..cut of a plan.

    Args:
        server: checkpoint directory; None only where the plan leaves the server no step (c = 1).
        on_step: called after every step of a batch with the steps done so far, those of all batches added.

    Raises:
        InputError: seed, steps or device out of range, or a server is missing.
        PlanMismatch: the server was trained for another plan, or not down to this plan's cut.
        ArtefactError: the server's checkpoint is damaged, or predicts NaN or Inf.
        EngineUnavailable: torch or diffusers is not installed.
    """
    sampler, seed, first = settings.sampler, settings.seed, settings.first_index
    transitions = server_way(plan, settings.steps, sampler, settings.timesteps)
    if settings.timesteps is not None:
        sampler = replace(sampler, levels=GIVEN)
    check_seed(seed)
    checkpoint = _server_checkpoint(plan, server) if transitions else None
    predict = open_predictor(checkpoint, settings.device)[0] if checkpoint is not None else None
    x_tc = _room_for(settings.count, plan)
    for start in range(0, settings.count, settings.batch_size):
        rows = slice(start, min(start + settings.batch_size, settings.count))
        indices = range(first + rows.start, first + rows.stop)
        x = start_noise(plan, seed, indices)
        if predict is not None:
            noise = partial(_step_noise, seed, indices, plan)
            before = start // settings.batch_size * len(transitions)
            report = None if on_step is None else partial(_report_step, on_step, before)
            x = denoise(x, plan, transitions, sampler, predict, noise=noise, on_step=report)
        x_tc[rows] = x
    timesteps = tuple(t for t, _ in transitions)
    weights = checkpoint.weights_sha256 if checkpoint else None
    return Handover(x_tc, plan, seed, first, sampler.to_dict(), timesteps, weights)


def _room_for(count: int, plan: SplitPlan) -> Float32Array:
    try:
        return np.empty((count, *plan.image_shape), dtype=np.float32)
    except (MemoryError, ValueError):
        raise InputError(
            f"{count} images of {plan.image_shape} do not fit into memory; give a smaller --count"
        ) from None


def start_noise(plan: SplitPlan, seed: int, indices: range) -> Float32Array:
    """x_{T-1} of no image, sqrt(1 - alpha_bar_{T-1}) z: the noise that training met there, (B, C, H, W) float32."""
    scale: Float32Array = np.array(math.sqrt(1 - plan.alpha_bar_at(plan.timesteps - 1)), np.float32)
    return scale * noise_batch(seed, indices, plan.timesteps, plan.image_shape)


def server_way(
    plan: SplitPlan, steps: int | None, sampler: Sampler, timesteps: Sequence[int] | None = None
) -> tuple[Transition, ...]:
    """What a server runs: through ``timesteps`` where they are named, else ``steps`` on the sampler's levels.

    ``steps`` None is ``default_steps``.

    Raises:
        InputError: they do not fit the plan.
    """
    if timesteps is not None:
        return plan.server_transitions_at(timesteps)
    return plan.server_transitions(default_steps(plan, sampler) if steps is None else steps, sampler.levels)


def _report_step(on_step: Callable[[int], None], before: int, k: int, _: Float32Array) -> None:
    on_step(before + k + 1)


def _step_noise(seed: int, indices: range, plan: SplitPlan, t: int) -> Float32Array:
    return noise_batch(seed, indices, t, plan.image_shape)


def _server_checkpoint(plan: SplitPlan, server: Path | None) -> Checkpoint:
    if server is None:
        raise InputError(
            f"cut_ratio {plan.cut_ratio} gives the server {plan.t_c} steps; name its checkpoint with --server"
        )
    checkpoint = read_checkpoint(server, "server")
    require_trained_for(checkpoint, plan, "the plan")
    return checkpoint


def open_predictor(
    checkpoint: Checkpoint, device: str | None
) -> tuple[Callable[[Float32Array, int], Float32Array], str, int]:
    """(predict, torch device, number of weights) of a server.

    predict, (x_t, t) -> epsilon or v, is a function on numpy arrays, (B, C, H, W) float32; they cross to the device and
    back once a step.

    Args:
        device: torch device; None takes a GPU where there is one.

    Raises:
        InputError: the device cannot be used.
        EngineUnavailable: torch or diffusers is not installed.
        ArtefactError: the weights do not fit; ``predict``: they give NaN or Inf.
    """
    with needs("train"):
        import torch
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if torch.device(device).type not in ("cpu", "cuda"):
            raise RuntimeError("of no kind this command runs on")
        network = load_network(checkpoint, device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device {device!r} cannot be used: {str(error).splitlines()[0]}; valid: cpu, cuda, cuda:N"
        ) from None

    compute = predict_function(network)

    def predict(x_t: Float32Array, t: int) -> Float32Array:
        result = compute(x_t, t)
        if not np.isfinite(result).all():
            raise ArtefactError(f"{checkpoint.path} predicts NaN or Inf at timestep {t}; train again")
        return result

    return predict, device, sum(weight.numel() for weight in network.parameters())
