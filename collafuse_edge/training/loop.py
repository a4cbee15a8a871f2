"""The training loop both sides share (torch, accelerate; EMA and learning-rate schedules from diffusers)."""

import hashlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from collafuse_edge.training.arithmetic import describe_arithmetic
from collafuse_edge.training.compiled import require_compiler, require_same_gradients
from collafuse_edge.training.resume import (
    Progress,
    TrainState,
    read_resume,
    require_identity,
    resume_path,
    write_resume,
)
from collafuse_edge.training.settings import TrainSettings
from collafuse_edge.training.tasks import Batch, IntArray, Task
from collafuse_runtimes.device.versions import git_commit, versions
from collafuse_runtimes.diffusion.distilled import Distilled
from collafuse_runtimes.disk.lock import hold
from collafuse_runtimes.disk.partial import hidden
from collafuse_runtimes.errors import ArtefactError, CheckFailed, InputError
from collafuse_runtimes.files.checkpoint import (
    Checkpoint,
    NetworkConfig,
    load_network,
    read_checkpoint,
    write_checkpoint,
)

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

LOSS_ENTRIES = 100
"""Entries of the loss curve kept in training.json."""


@dataclass(frozen=True)
class TrainRun:
    """One run: what to train, how, and where it goes.

    Attributes:
        out: checkpoint directory; the resume state lies beside it.
        checkpoint_minutes: how often the resume state is written.
        resume: whether to continue an unfinished run.
        cpu: whether to leave a GPU unused.
        class_names: of a conditional head's classes, kept in the checkpoint; None where they have none.
        start: whose averaged weights to begin with; None begins with fresh ones.
        distilled: what the checkpoint says of a head that is being distilled.
    """

    task: Task
    network: NetworkConfig
    settings: TrainSettings
    out: Path
    checkpoint_minutes: float = 5.0
    resume: bool = False
    cpu: bool = False
    class_names: tuple[str, ...] | None = None
    start: Checkpoint | None = None
    distilled: Distilled | None = None

    def identity(self) -> dict[str, Any]:
        """What must not change between a run and its resumption."""
        return {
            "settings": self.settings.to_dict(),
            "plan": self.task.plan.to_dict(),
            "network": self.network.to_dict(),
            "data": self.task.digest(),
            **({} if self.start is None else {"start": self.start.weights_sha256}),
        }


OnStep = Callable[[Progress, float], None]
"""Called after each optimizer step with the progress and the images per second since the start of this process."""


def train(run: TrainRun, on_step: OnStep | None = None) -> Checkpoint:
    """Train to the end and write the checkpoint directory.

    Raises:
        InputError: the output exists, settings the device or the process count cannot honour, or a resume state or
            finished checkpoint of another run; another process is training into this output.
        CheckFailed: loss or gradient became NaN or Inf, or the run was stopped by a signal (its state is saved).
    """
    with _alone(run):
        return _train(run, on_step)


@contextmanager
def _alone(run: TrainRun) -> Iterator[None]:
    """Of several processes of one run (`accelerate launch` numbers them in RANK) the first holds the lock for all."""
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    with hold(run.out, hidden(run.out, "lock"), "is being trained"):
        yield


def _train(run: TrainRun, on_step: OnStep | None) -> Checkpoint:
    _check_output(run)
    if run.resume and run.out.exists():
        return _finished(run)
    accelerator = _make_accelerator(run)
    state, model, optimizer, learning_rate = _prepare(run, accelerator)
    path, identity, progress = resume_path(run.out), run.identity(), Progress()
    if run.resume and path.exists():
        progress = read_resume(path, state, identity)
    with _stop_flag() as stopped:
        _steps(run, accelerator, state, model, optimizer, learning_rate, progress, stopped, on_step, identity)
    if accelerator.is_main_process:
        _publish(run, state, progress, accelerator)
        path.unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return read_checkpoint(run.out, run.task.role)


def _check_output(run: TrainRun) -> None:
    if not run.out.parent.is_dir():
        raise ArtefactError(f"no folder {run.out.parent} to write {run.out.name} to; create it first")
    if run.resume:
        return
    if run.out.exists():
        raise InputError(f"{run.out} exists already; choose another --out, or delete it to train anew")
    if resume_path(run.out).exists():
        raise InputError(f"{resume_path(run.out)} is an unfinished run: continue it with --resume, or delete it")


def _finished(run: TrainRun) -> Checkpoint:
    """The checkpoint an earlier run left, if that run was this one; of its data only the number of images is known."""
    checkpoint = read_checkpoint(run.out, run.task.role)
    stored = {
        "settings": checkpoint.training.get("settings"),
        "plan": checkpoint.plan.to_dict(),
        "network": checkpoint.network.to_dict(),
        "images": checkpoint.training.get("images"),
    }
    wanted = {**run.identity(), "images": len(run.task)}
    require_identity(run.out, stored, {part: wanted[part] for part in stored})
    try:
        [(int(step), float(loss)) for step, loss in checkpoint.training["losses"]][-1]
        float(checkpoint.training["seconds"])
    except (LookupError, TypeError, ValueError):
        raise ArtefactError(f"{run.out} lacks or garbles losses or seconds in training.json; train again") from None
    return checkpoint


def _make_accelerator(run: TrainRun) -> "Accelerator":
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import GradientAccumulationPlugin

    settings = run.settings
    plugin = GradientAccumulationPlugin(num_steps=settings.accumulation, sync_with_dataloader=False)
    AcceleratorState._reset_state()  # accelerate keeps the first run's precision for the whole process otherwise
    try:
        accelerator = Accelerator(
            mixed_precision=settings.mixed_precision, gradient_accumulation_plugin=plugin, cpu=run.cpu
        )
    except ValueError as error:
        raise InputError(f"mixed precision {settings.mixed_precision} cannot run here: {error}; use no") from None
    if settings.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise InputError("mixed precision fp16 needs a GPU; valid on a CPU: no, bf16")
    if settings.compile:
        require_compiler(accelerator.device.type)
    parts = accelerator.num_processes * settings.accumulation
    if settings.batch_size % parts:
        raise InputError(
            f"batch size {settings.batch_size} cannot be shared by {accelerator.num_processes} processes with "
            f"accumulation {settings.accumulation}; valid: multiples of {parts}"
        )
    return accelerator


def _prepare(
    run: TrainRun, accelerator: "Accelerator"
) -> tuple[TrainState, "torch.nn.Module", Any, Callable[[int], float]]:
    import torch
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    from collafuse_edge.training.presets import build_network

    settings = run.settings
    fresh = build_network(run.network, settings.seed) if run.start is None else load_network(run.start)
    network = fresh.train().requires_grad_(True).to(accelerator.device)
    if settings.channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = EMAModel(network.parameters(), decay=settings.ema_decay)
    ema.to(accelerator.device)
    adam = torch.optim.Adam(network.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99))
    name = "cosine" if settings.lr_schedule == "cosine" else "constant_with_warmup"
    schedule = get_scheduler(
        name, adam, num_warmup_steps=settings.warmup_steps, num_training_steps=max(settings.steps, 1)
    )
    factor = schedule.lr_lambdas[0]
    model, optimizer = accelerator.prepare(torch.compile(network) if settings.compile else network, adam)
    if settings.compile:
        with accelerator.no_sync(model):
            require_same_gradients(network, model, lambda module: _part_loss(run, accelerator, module))
    state = TrainState(network, ema, adam, accelerator.scaler)
    return state, model, optimizer, lambda step: settings.learning_rate * factor(step)


def _steps(
    run: TrainRun,
    accelerator: "Accelerator",
    state: TrainState,
    model: "torch.nn.Module",
    optimizer: Any,
    learning_rate: Callable[[int], float],
    progress: Progress,
    stopped: threading.Event,
    on_step: OnStep | None,
    identity: dict[str, Any],
) -> None:
    settings, path = run.settings, resume_path(run.out)
    every = max(settings.steps // LOSS_ENTRIES, 1)
    start = last_saved = time.monotonic()
    first_step, seconds_before = progress.step, progress.seconds
    while progress.step < settings.steps:
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(progress.step + 1)
        loss = _optimizer_step(run, accelerator, model, optimizer, progress.step)
        state.ema.step(state.network.parameters())
        progress.step += 1
        _log_loss(progress, loss, every)
        now = time.monotonic()
        progress.seconds = seconds_before + now - start
        if on_step is not None and accelerator.is_main_process:
            on_step(progress, (progress.step - first_step) * settings.batch_size / (now - start))
        stop = _any_process(accelerator, stopped.is_set())
        if stop or now - last_saved >= 60 * run.checkpoint_minutes:
            last_saved = now
            if accelerator.is_main_process:
                write_resume(path, state, progress, identity)
        if stop and progress.step < settings.steps:
            raise CheckFailed(f"stopped at step {progress.step} of {settings.steps}; continue with --resume")


def _optimizer_step(
    run: TrainRun, accelerator: "Accelerator", model: "torch.nn.Module", optimizer: Any, step: int
) -> float:
    """One optimizer step on this process's share of the global batch; returns the mean loss over all processes."""
    import torch

    settings = run.settings
    batch = _global_batch(run, accelerator, step)
    total, norm = torch.zeros((), device=accelerator.device), torch.zeros(())
    for part in range(settings.accumulation):
        with accelerator.accumulate(model):
            loss = _loss(model, accelerator, batch, _own(run, accelerator, part), settings.channels_last)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(model.parameters(), settings.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            total += loss.detach() / settings.accumulation
    mean = float(accelerator.reduce(total, reduction="mean"))
    _require_finite(run, "loss", mean, step)
    if accelerator.scaler is None:  # a gradient scaler skips the step itself and lowers its scale
        _require_finite(run, "gradient norm", float(norm), step)
    return mean


def _require_finite(run: TrainRun, name: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        saved = resume_path(run.out)
        hint = f"; the last saved state is {saved}" if saved.exists() else ""
        raise CheckFailed(f"the {name} became {value} at step {step + 1}: lower the learning rate and train anew{hint}")


def _global_batch(run: TrainRun, accelerator: "Accelerator", step: int) -> Batch:
    import torch

    indices = batch_indices(len(run.task), run.settings.batch_size, run.settings.seed, step)
    generator = torch.Generator(accelerator.device).manual_seed(_step_seed(run.settings.seed, step))
    return run.task.batch(indices, generator)


def _own(run: TrainRun, accelerator: "Accelerator", part: int) -> slice:
    """Rows of the global batch that are one accumulation part of this process."""
    parts = accelerator.num_processes * run.settings.accumulation
    return slice(accelerator.process_index * run.settings.accumulation + part, None, parts)


def _loss(
    model: "torch.nn.Module", accelerator: "Accelerator", batch: Batch, own: slice, channels_last: bool
) -> "torch.Tensor":
    import torch

    x_t = batch.x_t[own]
    if channels_last:
        x_t = x_t.to(memory_format=torch.channels_last)
    labels = None if batch.labels is None else batch.labels[own]
    with accelerator.autocast():
        predicted = model(x_t, batch.t[own], class_labels=labels, return_dict=False)[0]
    predicted = predicted.float() if batch.scale is None else batch.scale[own] * predicted.float()
    if batch.weight is None:
        return torch.nn.functional.mse_loss(predicted, batch.target[own])
    squares = torch.nn.functional.mse_loss(predicted, batch.target[own], reduction="none")
    return (batch.weight[own] * squares).mean()


def _part_loss(run: TrainRun, accelerator: "Accelerator", model: "torch.nn.Module") -> "torch.Tensor":
    """The loss of the first part of the first step."""
    batch = _global_batch(run, accelerator, 0)
    return _loss(model, accelerator, batch, _own(run, accelerator, 0), run.settings.channels_last)


def batch_indices(count: int, batch_size: int, seed: int, step: int) -> IntArray:
    """Images of one optimizer step: consecutive slices of one fresh permutation per epoch, so every image is seen
    once per epoch whatever the batch size.

    Returns:
        (batch_size,) int64 in 0..count-1.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    indices = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(positions // count):
        key = np.array([seed, epoch], np.uint64)  # numpy takes a list of large and small numbers through float64
        order = np.random.Generator(np.random.Philox(key=key)).permutation(count)
        here = positions // count == epoch
        indices[here] = order[positions[here] % count]
    return indices


def _step_seed(seed: int, step: int) -> int:
    return int.from_bytes(hashlib.sha256(f"collafuse step {seed} {step}".encode()).digest()[:8], "little", signed=True)


def _log_loss(progress: Progress, loss: float, every: int) -> None:
    progress.loss_sum += loss
    progress.loss_count += 1
    if progress.step % every == 0:
        progress.losses.append((progress.step, progress.loss_sum / progress.loss_count))
        progress.loss_sum, progress.loss_count = 0.0, 0


def _any_process(accelerator: "Accelerator", flag: bool) -> bool:
    if accelerator.num_processes == 1:
        return flag
    import torch

    votes = torch.tensor(float(flag), device=accelerator.device)
    return bool(accelerator.reduce(votes, reduction="sum") > 0)


def _publish(run: TrainRun, state: TrainState, progress: Progress, accelerator: "Accelerator") -> None:
    training = {
        "settings": run.settings.to_dict(),
        "steps": progress.step,
        "images": len(run.task),
        "losses": [list(pair) for pair in progress.losses],
        "seconds": round(progress.seconds, 3),
        "device": accelerator.device.type,
        "arithmetic": describe_arithmetic(accelerator.device.type),
        "processes": accelerator.num_processes,
        "versions": versions("collafuse-edge", "torch", "diffusers", "accelerate", "numpy"),
        "git_commit": git_commit(),
    }
    write_checkpoint(
        run.out,
        role=run.task.role,
        plan=run.task.plan,
        network=run.network,
        model=state.model_tensors(),
        ema=state.ema_tensors(),
        training=training,
        class_names=run.class_names,
        distilled=run.distilled,
    )


@contextmanager
def _stop_flag() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, so that a run ends after a whole step with its state saved."""
    event = threading.Event()
    previous: dict[signal.Signals, Any] = {}
    with suppress(ValueError):  # signals can be handled in the main thread only
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, lambda *_: event.set())
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
