"""A whole training: steps until the end, saves by the clock, and a stop by a signal that loses nothing."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from collafuse_edge.training.resume import Progress
from collafuse_edge.training.run import TrainRun, finished_checkpoint, hold_output
from collafuse_edge.training.trainer import Trainer
from collafuse_runtimes.errors import CheckFailed
from collafuse_runtimes.files.checkpoint import Checkpoint

__all__ = ("OnStep", "TrainRun", "train")

OnStep = Callable[[Progress, float], None]
"""Called after each optimizer step with the progress and the images per second since the start of this process."""


def train(run: TrainRun, on_step: OnStep | None = None) -> Checkpoint:
    """Train to the end and write the checkpoint directory.

    Raises:
        InputError: the output exists, settings the device or the process count cannot honour, or a resume state or
            finished checkpoint of another run; another process is training into this output.
        ArtefactError: there is no folder to write to, or the state or checkpoint to resume from is damaged.
        CheckFailed: loss or gradient became NaN or Inf, or the run was stopped by a signal (its state is saved).
    """
    with hold_output(run):
        finished = finished_checkpoint(run)
        if finished is not None:
            return finished
        trainer = Trainer.start(run)
        with _stop_flag() as stopped:
            _steps(trainer, stopped, on_step)
        return trainer.publish()


def _steps(trainer: Trainer, stopped: threading.Event, on_step: OnStep | None) -> None:
    run, last_saved = trainer.run, time.monotonic()
    while not trainer.done:
        trainer.step()
        if on_step is not None and trainer.is_first_process:
            on_step(trainer.progress, trainer.images_per_second)
        stop = trainer.any_process(stopped.is_set())
        if stop or time.monotonic() - last_saved >= 60 * run.checkpoint_minutes:
            last_saved = time.monotonic()
            trainer.save()
        if stop and not trainer.done:
            step = trainer.progress.step
            raise CheckFailed(f"stopped at step {step} of {run.settings.steps}; continue with --resume")


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
