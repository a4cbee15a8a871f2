"""One side of a split, measured on one machine: what a part of a split report holds."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import ClassVar, Literal

from collafuse_benchmarks.energy.measurement import EnergyResult, in_words
from collafuse_benchmarks.energy.result import SensorEnergy
from collafuse_benchmarks.measure.record import Facts, Record
from collafuse_benchmarks.measure.summary import Summary, summarise
from collafuse_runtimes.device.state import DeviceState
from collafuse_runtimes.diffusion.plan import SplitPlan, require_same_plan
from collafuse_runtimes.diffusion.samplers import Sampler
from collafuse_runtimes.disk.scratch import scratch_folder
from collafuse_runtimes.errors import InputError, PlanMismatch
from collafuse_runtimes.files.bundle import HeadBundle
from collafuse_runtimes.files.golden import read_golden
from collafuse_runtimes.files.handover import Handover, write_handover

Name = Literal["server", "edge"]
"""Of a side."""


@dataclass(frozen=True)
class Weights(Record):
    """The network of one side; ``weights_sha256`` of its averaged weights."""

    preset: str
    parameters: int
    weights_sha256: str


@dataclass(frozen=True)
class NoEnergy(Record):
    """In place of an ``EnergyResult`` where there is no sensor: no time was spent on it, and the reasons are kept."""

    reason: str
    reasons: dict[str, str]
    energy: None = None

    @classmethod
    def because(cls, reasons: Mapping[str, str]) -> "NoEnergy":
        """Of the reasons of every kind of sensor."""
        return cls(in_words(reasons), dict(reasons))

    @property
    def sensors(self) -> tuple[SensorEnergy, ...]:
        """None."""
        return ()


@dataclass(frozen=True)
class Row(Record):
    """One way to do one side's steps, one image at a time.

    Attributes:
        cut_ratio: c, 0 to 1.
        steps: denoising steps of this side, at least 1.
        name: of the head bundle or the server.
        network: preset, parameters, sha256 of the weights.
        engine: what ran it; "torch" and the device for a server.
        precision: of the network.
        samples_ms: whole trajectories, host tensor to host tensor.
        turns: how many of the samples, in order, each round gave.
        energy: None where it was not reached.
        note: why what it makes is no image; None where it is one.
        is_right: whether the check of its output, after the timing, passed; None where it was not reached.
        sampler: of a head; None of a server, and of parts of earlier releases.
    """

    derived: ClassVar = ("summary",)
    cut_ratio: float
    steps: int
    name: str
    network: Weights
    engine: str
    precision: str
    samples_ms: tuple[float, ...]
    turns: tuple[int, ...] = ()
    energy: EnergyResult | NoEnergy | None = None
    note: str | None = None
    is_right: bool | None = None
    sampler: Sampler | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.cut_ratio <= 1:
            raise InputError(f"cut_ratio {self.cut_ratio:g} out of range: must be 0 to 1")
        if self.steps < 1:
            raise InputError(f"steps {self.steps} out of range: must be at least 1")

    @cached_property
    def summary(self) -> Summary | None:
        """Of the samples; None where there are none."""
        return summarise(self.samples_ms)


@dataclass(frozen=True)
class Part(Record):
    """The rows of one side on one machine.

    Attributes:
        side: "server" or "edge".
        plan: the plan they share, but for the cut ratio.
        family: fingerprint of the plan at cut ratio 0, equal for all cuts of one plan.
        machine: its name, for tables.
        state_before, state_after, changes: of the machine.
        mode: how long was measured.
        rows: one per way.
        complete: whether the measurement came to its end.
    """

    side: Name
    plan: SplitPlan
    family: str
    machine: str
    state_before: Facts
    state_after: Facts | None
    changes: tuple[str, ...]
    mode: str
    rows: tuple[Row, ...]
    complete: bool


def family(plan: SplitPlan) -> SplitPlan:
    """The plan with cut ratio 0: what all cuts of one plan have in common."""
    return plan.with_cut_ratio(0.0)


def require_one_family(plans: dict[str, SplitPlan]) -> SplitPlan:
    """The plan all share but for the cut ratio, as ``family``.

    Raises:
        InputError: there is none.
        PlanMismatch: names the two, the field and both values.
    """
    if not plans:
        raise InputError("nothing to measure: give head bundles, --server, or both")
    (first_name, first), *others = plans.items()
    for name, plan in others:
        require_same_plan(first, first_name, plan, name, except_cut=True)
    return family(first)


def golden_handover(bundle: HeadBundle) -> Handover:
    """The bundle's own test tensors as a hand-over: real images' stand-ins at the hand-over level, never zeros."""
    golden = read_golden(bundle)
    transitions = bundle.plan.server_transitions() if bundle.plan.t_c else ()
    return Handover(
        golden.x_tc, bundle.plan, golden.seed, 0, Sampler().to_dict(), tuple(t for t, _ in transitions), None
    )


@lru_cache
def handover_bytes(plan: SplitPlan, steps: int | None = None, dtype: str = "float32") -> int:
    """Size of a hand-over file with one tensor of this plan: tensor, seal and all. At c = 1 nothing is handed over.

    By ``dpm++2m`` on Karras levels; another sampler's name is some bytes shorter.

    Args:
        steps: of the server, whose timesteps the file lists; None is every step.
    """
    if plan.t_c == 0:
        return 0
    import numpy as np

    x_tc = np.ones((1, *plan.image_shape), np.float32)
    sampler = Sampler("dpm++2m", levels="karras")
    timesteps = tuple(t for t, _ in plan.server_transitions(steps, sampler.levels))
    with scratch_folder("bench") as folder:
        path = folder / "x.tc.safetensors"
        write_handover(path, Handover(x_tc, plan, 0, 0, sampler.to_dict(), timesteps, "0" * 64), dtype)
        return path.stat().st_size


def machine_name(state: DeviceState) -> str:
    """Board or processor, and GPUs, as far as the machine says."""
    machine = state.machine
    return ", ".join([machine.board or state.cpu or machine.architecture, *(machine.gpus or ())])


def require_same_family(parts: dict[str, Part]) -> SplitPlan:
    """``require_one_family`` for parts read from files.

    Raises:
        PlanMismatch: as there.
    """
    shared = require_one_family({name: part.plan for name, part in parts.items()})
    for name, part in parts.items():
        if part.family != shared.fingerprint:
            raise PlanMismatch(f"{name} states another plan's fingerprint; measure it again")
    return shared
