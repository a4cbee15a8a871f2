"""The whole of a split: parts, the table joined from them, and the choice."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from collafuse_benchmarks.measure.record import Facts, Record
from collafuse_benchmarks.pages.folder import read_fields, read_report
from collafuse_benchmarks.split.choice import Choice, choose
from collafuse_benchmarks.split.parts import Part, require_same_family
from collafuse_benchmarks.split.scores import Scores, with_scores
from collafuse_benchmarks.split.settings import Limits
from collafuse_benchmarks.split.table import Link, ShareCheck, SplitRow, join, share_checks
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.errors import InputError

KIND = "split"
NOISE_LEVEL_IS = (
    "standard deviation of the noise in the tensor that crosses beside an image in [-1, 1], "
    "sqrt((1 - alpha_bar) / alpha_bar), as `init` prints it"
)


@dataclass(frozen=True)
class SplitOptions:
    """What the table is made with.

    Attributes:
        link: between the sides; None leaves the transfer out of the totals.
        dtype: of the hand-over file.
        limits: that a way must keep.
        image_scores, handover_scores: c -> scores of `evaluate`, each of one way or more.
    """

    link: Link | None = None
    dtype: str = "float32"
    limits: Limits = field(default_factory=Limits)
    image_scores: Scores = field(default_factory=dict)
    handover_scores: Scores = field(default_factory=dict)


@dataclass(frozen=True)
class Printed(Record):
    """Scores by cut ratio, as `evaluate` printed them."""

    image: Facts
    handover: Facts


@dataclass(frozen=True)
class SplitReport(Record):
    """Parts, and what is made of them.

    Attributes:
        complete: whether every part came to its end.
        plan, family: what all cuts share, and its fingerprint.
        link, handover_dtype, limits, scores: what the table was made with.
        noise_level_is: what ``noise_level`` of a row means; None in reports of earlier releases.
        rows: one for every whole way.
        share_checks: whether times follow the step counts.
        choice: None where nothing was limited.
        parts: each side on each machine.
    """

    complete: bool
    plan: SplitPlan
    family: str
    link: Link | None
    handover_dtype: str
    noise_level_is: str | None = field(default=None, kw_only=True)
    rows: tuple[SplitRow, ...]
    share_checks: tuple[ShareCheck, ...]
    limits: Limits
    choice: Choice | None
    scores: Printed
    parts: tuple[Part, ...]


def split_report(parts: Sequence[Part], options: SplitOptions) -> SplitReport:
    """Parts joined.

    Raises:
        PlanMismatch: they are of plans that differ in more than the cut.
        InputError: there are none, or a score is of a way that they have not.
    """
    names = [f"part {i + 1} ({part.side}, {part.machine})" for i, part in enumerate(parts)]
    plan = require_same_family(dict(zip(names, parts, strict=True)))
    rows = join(plan, parts, options.link, options.dtype)
    rows = with_scores(rows, plan, options.image_scores, options.handover_scores)
    return SplitReport(
        complete=all(part.complete for part in parts),
        plan=plan,
        family=plan.fingerprint,
        link=options.link,
        handover_dtype=options.dtype,
        noise_level_is=NOISE_LEVEL_IS,
        rows=rows,
        share_checks=share_checks(parts),
        limits=options.limits,
        choice=None if options.limits.is_empty else choose(rows, options.limits),
        scores=Printed(_printed(options.image_scores), _printed(options.handover_scores)),
        parts=tuple(parts),
    )


def _printed(scores: Scores) -> Facts:
    return {str(c): [score.printed for score in found] for c, found in scores.items()}


def read_parts(paths: Sequence[Path]) -> list[Part]:
    """The parts of split reports, in order.

    Raises:
        InputError: none is given, or one is given twice.
        ArtefactError: a report is damaged, has an odd field or is of another kind.
    """
    if not paths:
        raise InputError("--merge needs split reports, for example: bench split --merge edge/ server/")
    parts = [part for path in paths for part in read_fields(path, read_report(path, KIND), SplitReport)[1].parts]
    for i, part in enumerate(parts):
        if part in parts[:i]:
            raise InputError(f"the {part.side} part of {part.machine} is given twice; give each report once")
    return parts
