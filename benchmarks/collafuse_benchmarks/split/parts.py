"""One side of a split, measured on one machine: what a part of a split report holds."""

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from collafuse_benchmarks.measure.summary import summarise
from collafuse_runtimes.diffusion.plan import SplitPlan, require_same_plan
from collafuse_runtimes.diffusion.samplers import Sampler
from collafuse_runtimes.disk.scratch import scratch_folder
from collafuse_runtimes.errors import InputError, PlanMismatch
from collafuse_runtimes.files.bundle import HeadBundle
from collafuse_runtimes.files.golden import read_golden
from collafuse_runtimes.files.handover import Handover, write_handover

SIDES = ("server", "edge")


@dataclass(frozen=True)
class Row:
    """One way to do one side's steps, one image at a time.

    Attributes:
        cut_ratio: c.
        steps: denoising steps of this side.
        name: of the head bundle or the server.
        network: preset, parameters, sha256 of the weights.
        engine: what ran it; "torch" and the device for a server.
        precision: of the network.
        samples_ms: whole trajectories, host tensor to host tensor.
        turns: how many of the samples, in order, each round gave.
        energy: ``EnergyResult.to_dict``; None where energy was not asked for.
        note: why what it makes is no image; None where it is one.
        is_right: whether the check of its output, after the timing, passed; None where it was not reached.
        sampler: of a head, ``name`` and ``eta``.
    """

    cut_ratio: float
    steps: int
    name: str
    network: dict[str, Any]
    engine: str
    precision: str
    samples_ms: tuple[float, ...]
    turns: tuple[int, ...] = ()
    energy: dict[str, Any] | None = None
    note: str | None = None
    is_right: bool | None = None
    sampler: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with the summary."""
        summary = summarise(self.samples_ms)
        return {**asdict(self), "summary": None if summary is None else summary.to_dict()}


@dataclass(frozen=True)
class Part:
    """The rows of one side on one machine.

    Attributes:
        side: "server" or "edge".
        plan: the plan they share, but for the cut ratio.
        machine: its name, for tables.
        state_before, state_after, changes: of the machine.
        mode: how long was measured.
        rows: one per way.
        complete: whether the measurement came to its end.
    """

    side: str
    plan: SplitPlan
    machine: str
    state_before: dict[str, Any]
    state_after: dict[str, Any] | None
    changes: tuple[str, ...]
    mode: str
    rows: tuple[Row, ...]
    complete: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; ``family`` is the fingerprint of the plan at cut ratio 0, equal for all cuts of one plan."""
        rows = [row.to_dict() for row in self.rows]
        return {**asdict(self), "plan": self.plan.to_dict(), "family": family(self.plan).fingerprint, "rows": rows}


def family(plan: SplitPlan) -> SplitPlan:
    """The plan with cut ratio 0: what all cuts of one plan have in common."""
    return SplitPlan.from_dict({**plan.to_dict(), "cut_ratio": 0.0})


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


def with_cut(plan: SplitPlan, cut_ratio: float) -> SplitPlan:
    """The same plan, cut elsewhere."""
    return SplitPlan.from_dict({**plan.to_dict(), "cut_ratio": cut_ratio})


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


def machine_name(state: dict[str, Any]) -> str:
    """Board or processor, and GPUs, as far as the machine says."""
    machine = state["machine"]
    gpus = machine["gpus"] or ()
    return ", ".join([machine["board"] or state["cpu"] or machine["architecture"], *gpus])


def require_same_family(parts: dict[str, dict[str, Any]]) -> SplitPlan:
    """``require_one_family`` for parts read from files.

    Raises:
        PlanMismatch: as there.
    """
    plans = {name: SplitPlan.from_dict(part["plan"]) for name, part in parts.items()}
    shared = require_one_family(plans)
    for name, part in parts.items():
        if part["family"] != shared.fingerprint:
            raise PlanMismatch(f"{name} states another plan's fingerprint; measure it again")
    return shared
