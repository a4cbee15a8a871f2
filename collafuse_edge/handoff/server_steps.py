"""The server's part of a trajectory: noise in, hand-over tensors out."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
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


def make_handover(
    plan: SplitPlan,
    server: Path | None,
    *,
    count: int,
    seed: int,
    first_index: int = 0,
    steps: int | None = None,
    sampler: Sampler | None = None,
    timesteps: Sequence[int] | None = None,
    batch_size: int = 32,
    device: str | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Handover:
    """Run timesteps T-1..cut of a plan.

    Args:
        server: checkpoint directory; None only where the plan leaves the server no step (c = 1).
        count: images, at least 1.
        steps: server steps; None is ``default_steps``.
        sampler: default ``DEFAULT_SAMPLER``.
        timesteps: to run in place of ``steps``, from T-1 down to at least cut.
        device: torch device; default a GPU where there is one.
        on_step: called after every step of a batch with the steps done so far, those of all batches added.

    Raises:
        InputError: count, seed, steps or device out of range, or a server is missing.
        PlanMismatch: the server was trained for another plan, or not down to this plan's cut.
        ArtefactError: the server's checkpoint is damaged, or predicts NaN or Inf.
        EngineUnavailable: torch or diffusers is not installed.
    """
    sampler = sampler or DEFAULT_SAMPLER
    if count < 1 or batch_size < 1:
        raise InputError(f"count {count}, batch size {batch_size} out of range: must be at least 1")
    transitions = server_way(plan, steps, sampler, timesteps)
    if timesteps is not None:
        sampler = replace(sampler, levels=GIVEN)
    check_seed(seed)
    checkpoint = _server_checkpoint(plan, server) if transitions else None
    predict = open_predictor(checkpoint, device)[0] if checkpoint is not None else None
    try:
        x_tc = np.empty((count, *plan.image_shape), dtype=np.float32)
    except (MemoryError, ValueError):
        raise InputError(
            f"{count} images of {plan.image_shape} do not fit into memory; give a smaller --count"
        ) from None
    for start in range(0, count, batch_size):
        rows = slice(start, min(start + batch_size, count))
        indices = range(first_index + rows.start, first_index + rows.stop)
        x = start_noise(plan, seed, indices)
        if predict is not None:
            noise = partial(_step_noise, seed, indices, plan)
            before = start // batch_size * len(transitions)
            report = None if on_step is None else partial(_report_step, on_step, before)
            x = denoise(x, plan, transitions, sampler, predict, noise=noise, on_step=report)
        x_tc[rows] = x
    return Handover(
        x_tc=x_tc,
        plan=plan,
        seed=seed,
        first_index=first_index,
        sampler=sampler.to_dict(),
        timesteps=tuple(t for t, _ in transitions),
        server_sha256=checkpoint.weights_sha256 if checkpoint else None,
    )


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
