"""What was measured, on which engine, and whether it was right, as every report of one head keeps it."""

from dataclasses import asdict, dataclass
from pathlib import Path

from collafuse_benchmarks.measure.record import Record
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.diffusion.samplers import Sampler
from collafuse_runtimes.engines import Engine, EngineOptions
from collafuse_runtimes.errors import CheckFailed
from collafuse_runtimes.files.bundle import HeadBundle, NetworkInfo
from collafuse_runtimes.files.handover import Handover
from collafuse_runtimes.verify import VerifyReport


@dataclass(frozen=True)
class Tensors(Record):
    """Of the hand-over file: how many, of which seed, from which sample on, by which server."""

    count: int
    seed: int
    first_index: int
    server_sha256: str | None


@dataclass(frozen=True)
class Subject(Record):
    """A head in one of its step counts, and the tensors it was run on.

    Attributes:
        bundle: the last part of its path.
        fingerprint: of the plan.
    """

    bundle: str
    model_sha256: str
    network: NetworkInfo
    plan: SplitPlan
    fingerprint: str
    precision: str
    opset: int
    sampler: Sampler
    steps: int
    handover: Tensors


@dataclass(frozen=True)
class EngineUse(Record):
    """An engine and what it was told.

    Attributes:
        options: those that were given; of paths the last part alone.
        arithmetic: what it computes in.
        tf32: what becomes of float32 on a GPU, in words; None where that means nothing.
    """

    name: str
    options: dict[str, bool | int | float | str]
    arithmetic: str
    tf32: str | None = None


@dataclass(frozen=True)
class OutputCheck(Record):
    """Is what was timed right?

    Attributes:
        verify: golden trajectories.
        repeat_max_abs: between two runs of one batch, the worst; None where a run gave NaN.
        batches_differ: whether two batches gave different images; None where there was one batch only.
        passed: all of it.
    """

    verify: VerifyReport
    repeat_max_abs: float | None
    batches_differ: bool | None
    passed: bool

    def require_passed(self, what: str) -> None:
        """Do nothing, or refuse the figures of an engine that computes something else.

        Raises:
            CheckFailed: says which check.
        """
        if self.passed:
            return
        if not self.verify.passed:
            why = "its golden trajectories do not hold"
        elif self.batches_differ is False:
            why = "two different batches gave the same images"
        else:
            why = f"the same batch gave images {self.repeat_max_abs} apart"
        raise CheckFailed(f"{what}: {why}, so its times mean nothing; run `collafuse-edge verify` on this head")


def describe_subject(bundle: HeadBundle, handover: Handover, steps: int) -> Subject:
    """What is measured."""
    return Subject(
        bundle=bundle.path.name,
        model_sha256=bundle.model_sha256,
        network=bundle.network,
        plan=bundle.plan,
        fingerprint=bundle.plan.fingerprint,
        precision=bundle.precision,
        opset=bundle.opset,
        sampler=bundle.sampler,
        steps=steps,
        handover=Tensors(len(handover), handover.seed, handover.first_index, handover.server_sha256),
    )


def describe_engine(engine: Engine, options: EngineOptions) -> EngineUse:
    """Which engine runs and what it was told."""
    stated = {name: v.name if isinstance(v, Path) else v for name, v in asdict(options).items() if v is not None}
    return EngineUse(engine.name, stated, engine.arithmetic or engine.bundle.precision, engine.tf32)
