"""The whole of a split: parts, the table joined from them, and the choice."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from collafuse_benchmarks.pages.document import to_markdown
from collafuse_benchmarks.pages.folder import read_report, readable
from collafuse_benchmarks.split.choice import Limits, choose
from collafuse_benchmarks.split.page import split_document
from collafuse_benchmarks.split.parts import require_same_family
from collafuse_benchmarks.split.scores import Scores, with_scores
from collafuse_benchmarks.split.table import Link, join, share_checks
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


def split_payload(parts: Sequence[dict[str, Any]], options: SplitOptions) -> dict[str, Any]:
    """What a split report holds, JSON-ready.

    Args:
        parts: ``Part.to_dict``.

    Raises:
        PlanMismatch: they are of plans that differ in more than the cut.
        InputError: there are none, or a score is of a way that they have not.
    """
    names = [f"part {i + 1} ({part['side']}, {part['machine']})" for i, part in enumerate(parts)]
    plan = require_same_family(dict(zip(names, parts, strict=True)))
    rows = join(plan, parts, options.link, options.dtype)
    rows = with_scores(rows, plan, options.image_scores, options.handover_scores)
    choice = None if options.limits.is_empty else choose(rows, options.limits).to_dict()
    return {
        "complete": all(part["complete"] for part in parts),
        "plan": plan.to_dict(),
        "family": plan.fingerprint,
        "link": None if options.link is None else asdict(options.link),
        "handover_dtype": options.dtype,
        "noise_level_is": NOISE_LEVEL_IS,
        "rows": [{"title": row.title, **row.to_dict()} for row in rows],
        "share_checks": [asdict(check) for check in share_checks(parts)],
        "limits": asdict(options.limits),
        "choice": choice,
        "scores": {
            "image": {str(c): scores for c, scores in options.image_scores.items()},
            "handover": {str(c): scores for c, scores in options.handover_scores.items()},
        },
        "parts": list(parts),
    }


def read_parts(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The parts of split reports, in order.

    Raises:
        InputError: none is given, or one is given twice.
        ArtefactError: a report is damaged, lacks a field or is of another kind.
    """
    if not paths:
        raise InputError("--merge needs split reports, for example: bench split --merge edge/ server/")
    parts = [part for path in paths for part in _parts_of(path)]
    for i, part in enumerate(parts):
        if part in parts[:i]:
            raise InputError(f"the {part['side']} part of {part['machine']} is given twice; give each report once")
    return parts


def _parts_of(path: Path) -> list[dict[str, Any]]:
    """Its page is made from nothing but its parts, so that what a table needs is there."""
    payload = read_report(path, KIND)
    with readable(path):
        parts: list[dict[str, Any]] = payload["parts"]
        to_markdown(split_document({**payload, **split_payload(parts, SplitOptions())}))
    return parts
