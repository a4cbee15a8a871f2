"""What is timed: an engine on real hand-over tensors, a fresh batch in every run."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from collafuse_benchmarks.measure.subject import OutputCheck
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.diffusion.plan import require_same_plan
from collafuse_runtimes.disk.scratch import scratch_folder
from collafuse_runtimes.engines import Engine
from collafuse_runtimes.engines.base import Labels, OnStep
from collafuse_runtimes.errors import InputError
from collafuse_runtimes.files.bundle import HeadBundle
from collafuse_runtimes.files.handover import Handover, read_handover, write_handover
from collafuse_runtimes.files.images import encode_png
from collafuse_runtimes.verify import compare, tolerance_of, verify_engine

ROTATION = 4
"""Different batches, used in turn."""


@dataclass(frozen=True)
class Workload:
    """One bundle on the tensors of one hand-over file.

    Attributes:
        bundle: the head.
        handover: its tensors; used in turn, again from the first when they run out.
        steps: a baked step count.
        batch: images at once.
    """

    bundle: HeadBundle
    handover: Handover
    steps: int
    batch: int = 1

    def __post_init__(self) -> None:
        require_same_plan(self.bundle.plan, f"head {self.bundle.path}", self.handover.plan, "the hand-over file")
        self.bundle.row_range(self.steps)
        if not 1 <= self.batch <= 1024:
            raise InputError(f"batch {self.batch} out of range: must be 1 to 1024")

    def tensors(self, i: int) -> tuple[Float32Array, list[int]]:
        """Batch number i: (B, C, H, W) float32 and the sample index of each."""
        rows = (i % ROTATION * self.batch + np.arange(self.batch)) % len(self.handover)
        return self.handover.x_tc[rows], [self.handover.first_index + int(row) for row in rows]

    @property
    def labels(self) -> Labels | None:
        """Classes in turn, for conditional heads."""
        classes = self.bundle.num_classes
        return None if classes is None else (np.arange(self.batch) % classes).astype(np.int32)

    def denoise(self, engine: Engine, i: int, on_step: OnStep | None = None) -> Float32Array:
        """Finish batch number i."""
        x_tc, indices = self.tensors(i)
        return engine.denoise(
            x_tc, self.steps, seed=self.handover.seed, sample_indices=indices, labels=self.labels, on_step=on_step
        )

    @contextmanager
    def files(self) -> Iterator[list[Path]]:
        """Every batch as a hand-over file of its own, in a temporary folder."""
        with scratch_folder("bench") as folder:
            paths = [folder / f"{i}.tc.safetensors" for i in range(ROTATION)]
            for i, path in enumerate(paths):
                x_tc, _ = self.tensors(i)
                write_handover(path, replace(self.handover, x_tc=x_tc))
            yield paths

    def finish_file(self, engine: Engine, path: Path) -> int:
        """From a hand-over file to PNG images in memory; nothing is written. Their size in bytes."""
        handover = read_handover(path)
        indices = range(handover.first_index, handover.first_index + len(handover))
        images = engine.denoise(
            handover.x_tc, self.steps, seed=handover.seed, sample_indices=indices, labels=self.labels
        )
        return sum(len(encode_png(image)) for image in images)


def check_engine(workloads: Sequence[Workload], engine: Engine) -> OutputCheck:
    """Is what was timed right? The golden trajectories hold, a batch gives its own images, and the same ones again.

    Args:
        workloads: of that engine's bundle, one for each batch size that was timed.
    """
    report = verify_engine(engine)
    repeats, differ = [], []
    for workload in workloads:
        first, other, again = (workload.denoise(engine, i) for i in (0, 1, 0))
        repeats.append(compare(again, first))
        if not np.array_equal(workload.tensors(0)[0], workload.tensors(1)[0]):
            differ.append(not np.array_equal(first, other))
    distances = [repeat.max_abs for repeat in repeats]
    wanted = tolerance_of(engine)
    return OutputCheck(
        verify=report,
        repeat_max_abs=None if None in distances else max(d for d in distances if d is not None),
        batches_differ=all(differ) if differ else None,
        passed=report.passed and all(repeat.meets(wanted) for repeat in repeats) and all(differ),
    )
