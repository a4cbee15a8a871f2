"""Scores of `evaluate --json`, put beside the ways whose images they judge, and beside no others."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from collafuse_benchmarks.measure.record import Facts, Record
from collafuse_benchmarks.split.table import SplitRow
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.diffusion.samplers import Sampler
from collafuse_runtimes.disk.home import expand
from collafuse_runtimes.errors import ArtefactError, InputError
from collafuse_runtimes.files.sealed import canonical, read_bytes
from collafuse_runtimes.text import one_line

SAME = ("extractor_sha256", "real", "real_count", "estimator")
"""What must agree before two scores may stand in one column."""
OF_HEAD = {"head_sha256": "weights", "precision": "precision", "sampler": "sampler", "steps": "device steps"}
OF_SERVER = {"server_sha256": "server", "server_steps": "server steps"}


@dataclass(frozen=True)
class Score(Record):
    """What is used of a score: the distance, what it was measured with, and what made the images.

    Attributes:
        kid_mean, kid_error: distance from real images and its error; of few images no error is known.
        fingerprint, cut_ratio, head_sha256 to server_steps: of what made them; None where there is none, or unknown.
        extractor_sha256, real, real_count, estimator: what must agree before two scores are compared.
        printed: all that `evaluate` printed.
    """

    kid_mean: float
    kid_error: float | None
    fingerprint: str | None
    cut_ratio: float | None
    head_sha256: str | None
    precision: str | None
    sampler: Sampler | None
    steps: int | None
    server_sha256: str | None
    server_steps: int | None
    extractor_sha256: str
    real: str
    real_count: int
    estimator: str
    printed: Facts


Scores = dict[float, list[Score]]
Mismatch = Callable[[SplitRow, Score], str]


def read_scores(option: str, texts: Sequence[str]) -> Scores:
    """ "0.2=FILE" texts -> c -> its scores, one for each way that was judged.

    Raises:
        InputError: a text is not C=FILE, a score is of another cut or does not say what made its images, or scores
            cannot be compared.
        ArtefactError: a file is not what `evaluate --json` prints.
    """
    scores: Scores = {}
    for text in texts:
        c, path = _parse(option, text)
        score = _read_score(path)
        if score.fingerprint is None or score.cut_ratio is None:
            raise InputError(
                f"--{option}: {path} does not say what made its images ({score.printed.get('unknown')}), so no row is "
                "known to be theirs; run `infer` again and evaluate that"
            )
        if score.cut_ratio != c:
            raise InputError(f"--{option}: {path} is of c = {score.cut_ratio:g}, not {c:g}; give it to its own cut")
        scores.setdefault(c, []).append(score)
    for field in SAME:
        values = [(c, getattr(score, field)) for c, found in scores.items() for score in found]
        if len({value for _, value in values}) > 1:
            listed = ", ".join(f"c = {c:g}: {value}" for c, value in values)
            raise InputError(f"--{option}: scores of different {field} cannot be compared ({listed}); evaluate again")
    return scores


def with_scores(rows: Sequence[SplitRow], plan: SplitPlan, images: Scores, handovers: Scores) -> tuple[SplitRow, ...]:
    """The rows with the scores that judge what they make.

    Args:
        plan: of the rows, but for the cut.

    Raises:
        InputError: a score belongs to no row, or two of them to one.
    """
    of_images = _assigned("image-kid", rows, plan, images, _image_mismatch)
    of_handovers = _assigned("handover-kid", rows, plan, handovers, _server_mismatch)
    return tuple(
        replace(row, **_kid("image", image), **_kid("handover", handover))
        for row, image, handover in zip(rows, of_images, of_handovers, strict=True)
    )


def _kid(what: str, score: Score | None) -> dict[str, Any]:
    return {} if score is None else {f"{what}_kid": score.kid_mean, f"{what}_kid_error": score.kid_error}


def _assigned(
    option: str, rows: Sequence[SplitRow], plan: SplitPlan, scores: Scores, mismatch: Mismatch
) -> list[Score | None]:
    assigned: list[Score | None] = [None] * len(rows)
    cuts = {row.cut_ratio for row in rows}
    for c, found in scores.items():
        if c not in cuts:
            valid = ", ".join(f"{cut:g}" for cut in sorted(cuts))
            raise InputError(f"--{option} is given for c = {c:g}, which is not in this report; valid: {valid}")
        for score in found:
            whys = {i: mismatch(row, score) for i, row in enumerate(rows) if row.cut_ratio == c}
            if score.fingerprint != plan.with_cut_ratio(c).fingerprint:
                raise InputError(f"--{option}: the score for c = {c:g} is of another plan than this report's")
            if all(whys.values()):
                raise InputError(
                    f"--{option}: the score for c = {c:g} is of no way in this report: "
                    f"{'; '.join(dict.fromkeys(whys.values()))}"
                )
            for i in (i for i, why in whys.items() if not why):
                if assigned[i] is not None:
                    raise InputError(f"--{option} gives two scores for {rows[i].title}; give one for each way")
                assigned[i] = score
    return assigned


def _image_mismatch(row: SplitRow, score: Score) -> str:
    """Why a score of images is not that of a way; empty where it is. What an older part does not say is not asked."""
    edge = row.edge
    if edge is None and row.cut:
        return "the device's side of this cut is not in the report"
    own: dict[str, Any] = dict.fromkeys(OF_HEAD)
    if edge is not None:
        own = {
            "head_sha256": edge.network.weights_sha256,
            "precision": edge.precision,
            "sampler": edge.sampler or score.sampler,
            "steps": edge.steps,
        }
    return _first_difference(row, own, score, OF_HEAD) or _server_mismatch(row, score)


def _server_mismatch(row: SplitRow, score: Score) -> str:
    """Why a score is not of what a way's server hands over; empty where it is, or where its server is not known."""
    if row.server is None:
        return ""
    own = {"server_sha256": row.server.network.weights_sha256, "server_steps": row.server.steps}
    return _first_difference(row, own, score, OF_SERVER)


def _first_difference(row: SplitRow, own: Mapping[str, Any], score: Score, names: Mapping[str, str]) -> str:
    for field, name in names.items():
        stated = getattr(score, field)
        if own[field] != stated:
            return f"it has {name} {_shown(stated)}, {row.title} has {_shown(own[field])}"
    return ""


def _shown(value: object) -> str:
    if isinstance(value, Sampler):
        return f"{value.name} (eta {value.eta})"
    return "none" if value is None else str(value)[:16]


def _parse(option: str, text: str) -> tuple[float, Path]:
    before, found, path = text.partition("=")
    try:
        c = float(before)
    except ValueError:
        c = math.nan
    if not (found and path and 0 <= c <= 1):
        raise InputError(f"--{option} {text!r} is not C=FILE; valid: for example 0.2=score.json")
    return c, expand(path)


def _read_score(path: Path) -> Score:
    data = read_bytes(path)
    try:
        printed = json.loads(data)
        canonical(printed)  # refuses NaN and infinity
    except (ValueError, RecursionError) as error:
        raise _no_score(path, error) from None
    if not isinstance(printed, dict):
        raise _no_score(path, f"it is no object, but {type(printed).__name__}")
    if "subsets" in printed and "estimator" not in printed:
        raise _no_score(
            path, "it is an older release's mean over subsets, and does not say which steps made its images"
        )
    used = {field.name: printed[field.name] for field in fields(Score) if field.name in printed}
    try:
        return Score.from_dict({**used, "printed": printed})
    except InputError as error:
        raise _no_score(path, error) from None


def _no_score(path: Path, why: object) -> ArtefactError:
    return ArtefactError(f"{path} is not what `evaluate --json` prints ({one_line(why, 120)}); write it again")
