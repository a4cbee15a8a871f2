"""What a training run is, and what its output may be: fresh, unfinished or finished."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collafuse_edge.training.resume import require_identity, resume_path
from collafuse_edge.training.settings import TrainSettings
from collafuse_edge.training.tasks import Task
from collafuse_runtimes.diffusion.distilled import Distilled
from collafuse_runtimes.disk.lock import hold
from collafuse_runtimes.disk.partial import hidden
from collafuse_runtimes.errors import ArtefactError, InputError
from collafuse_runtimes.files.checkpoint import Checkpoint, NetworkConfig, read_checkpoint


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


@contextmanager
def hold_output(run: TrainRun) -> Iterator[None]:
    """Be the only one who trains into this output while the block runs.

    Of several processes of one run (`accelerate launch` numbers them in RANK) the first holds the lock for all.

    Raises:
        InputError: another process is training into it.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    with hold(run.out, hidden(run.out, "lock"), "is being trained"):
        yield


def require_output(run: TrainRun) -> None:
    """Do nothing where this run may be started, or continued, into its output.

    Raises:
        ArtefactError: there is no folder to write it to.
        InputError: it exists, or an unfinished run lies beside it and ``run.resume`` is not set.
    """
    if not run.out.parent.is_dir():
        raise ArtefactError(f"no folder {run.out.parent} to write {run.out.name} to; create it first")
    if run.out.exists():
        raise InputError(f"{run.out} exists already; choose another --out, or delete it to train anew")
    if not run.resume and resume_path(run.out).exists():
        raise InputError(f"{resume_path(run.out)} is an unfinished run: continue it with --resume, or delete it")


def finished_checkpoint(run: TrainRun) -> Checkpoint | None:
    """The checkpoint an earlier run left, if this run resumes; None where there is none yet.

    Raises:
        InputError: that run was another one; of its data only the number of images is known.
        ArtefactError: the checkpoint is damaged, or of the other role.
    """
    if not run.resume or not run.out.exists():
        return None
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
