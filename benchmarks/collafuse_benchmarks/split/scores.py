"""Scores of `evaluate --json`, put beside the ways whose images they judge, and beside no others."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from collafuse_benchmarks.split.parts import with_cut
from collafuse_benchmarks.split.table import SplitRow
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.disk.home import expand
from collafuse_runtimes.errors import ArtefactError, InputError
from collafuse_runtimes.files.sealed import canonical, read_bytes
from collafuse_runtimes.text import one_line

SAME = ("extractor_sha256", "real", "real_count", "estimator")
"""What must agree before two scores may stand in one column."""
MAKERS = ("fingerprint", "cut_ratio", "head_sha256", "precision", "sampler", "steps", "server_sha256", "server_steps")
OF_HEAD = {"head_sha256": "weights", "precision": "precision", "sampler": "sampler", "steps": "device steps"}
Scores = dict[float, list[dict[str, Any]]]
Mismatch = Callable[[SplitRow, dict[str, Any]], str]


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
        if score["fingerprint"] is None:
            raise InputError(
                f"--{option}: {path} does not say what made its images ({score.get('unknown')}), so no row is known to "
                "be theirs; run `infer` again and evaluate that"
            )
        if score["cut_ratio"] != c:
            raise InputError(f"--{option}: {path} is of c = {score['cut_ratio']:g}, not {c:g}; give it to its own cut")
        scores.setdefault(c, []).append(score)
    for field in SAME:
        values = {c: canonical(score[field]) for c, found in scores.items() for score in found}
        if len({canonical(score[field]) for found in scores.values() for score in found}) > 1:
            listed = ", ".join(f"c = {c:g}: {value.decode()}" for c, value in values.items())
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
        replace(
            row,
            image_kid=_figure(image, "kid_mean"),
            image_kid_error=_figure(image, "kid_error"),
            handover_kid=_figure(handover, "kid_mean"),
            handover_kid_error=_figure(handover, "kid_error"),
        )
        for row, image, handover in zip(rows, of_images, of_handovers, strict=True)
    )


def _assigned(
    option: str, rows: Sequence[SplitRow], plan: SplitPlan, scores: Scores, mismatch: Mismatch
) -> list[dict[str, Any] | None]:
    assigned: list[dict[str, Any] | None] = [None] * len(rows)
    cuts = {row.cut_ratio for row in rows}
    for c, found in scores.items():
        if c not in cuts:
            valid = ", ".join(f"{cut:g}" for cut in sorted(cuts))
            raise InputError(f"--{option} is given for c = {c:g}, which is not in this report; valid: {valid}")
        for score in found:
            whys = {i: mismatch(row, score) for i, row in enumerate(rows) if row.cut_ratio == c}
            if score["fingerprint"] != with_cut(plan, c).fingerprint:
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


def _image_mismatch(row: SplitRow, score: dict[str, Any]) -> str:
    """Why a score of images is not that of a way; empty where it is. What an older part does not say is not asked."""
    edge = row.edge
    if edge is None and row.cut:
        return "the device's side of this cut is not in the report"
    own: dict[str, Any] = dict.fromkeys(OF_HEAD)
    if edge is not None:
        own = {
            "head_sha256": edge["network"]["weights_sha256"],
            "precision": edge["precision"],
            "sampler": edge.get("sampler") or score["sampler"],
            "steps": edge["steps"],
        }
    for field, name in OF_HEAD.items():
        if own[field] != score[field]:
            return f"it has {name} {_shown(score[field])}, {row.title} has {_shown(own[field])}"
    return _server_mismatch(row, score)


def _server_mismatch(row: SplitRow, score: dict[str, Any]) -> str:
    """Why a score is not of what a way's server hands over; empty where it is, or where its server is not known."""
    if row.server is None:
        return ""
    own = {"server_sha256": row.server["network"]["weights_sha256"], "server_steps": row.server["steps"]}
    for field, name in (("server_sha256", "server"), ("server_steps", "server steps")):
        if own[field] != score[field]:
            return f"it has {name} {_shown(score[field])}, {row.title} has {_shown(own[field])}"
    return ""


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return f"{value.get('name')} (eta {value.get('eta')})"
    return "none" if value is None else str(value)[:16]


def _figure(score: dict[str, Any] | None, key: str) -> float | None:
    return None if score is None else score[key]


def _parse(option: str, text: str) -> tuple[float, Path]:
    before, found, path = text.partition("=")
    try:
        c = float(before)
    except ValueError:
        c = math.nan
    if not (found and path and 0 <= c <= 1):
        raise InputError(f"--{option} {text!r} is not C=FILE; valid: for example 0.2=score.json")
    return c, expand(path)


def _read_score(path: Path) -> dict[str, Any]:
    try:
        score: dict[str, Any] = json.loads(read_bytes(path))
        if "subsets" in score and "estimator" not in score:
            raise ValueError("it is an older release's mean over subsets, and does not say which steps made its images")
        if lacking := [field for field in (*SAME, *MAKERS, "kid_error") if field not in score]:
            raise ValueError(f"it lacks {', '.join(lacking)}")
        canonical(score)  # refuses NaN and infinity
        _require_kinds(score)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ArtefactError(
            f"{path} is not what `evaluate --json` prints ({one_line(error, 120)}); write it again"
        ) from None
    return score


def _require_kinds(score: dict[str, Any]) -> None:
    numbers = {"kid_mean": score["kid_mean"]}
    numbers |= {name: score[name] for name in ("kid_error", "cut_ratio") if score[name] is not None}
    for name, value in numbers.items():
        if isinstance(value, bool) or not math.isfinite(value):
            raise ValueError(f"{name} is {value}")
    if score["sampler"] is not None and not isinstance(score["sampler"]["name"], str):
        raise ValueError("its sampler has no name")
