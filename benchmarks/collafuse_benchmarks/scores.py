"""Scores of `evaluate --json`, put beside the cuts they belong to."""

import json
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from collafuse_runtimes.errors import ArtefactError, InputError
from collafuse_runtimes.home import expand
from collafuse_runtimes.sealed import canonical, read_bytes
from collafuse_runtimes.text import one_line

SAME = ("extractor_sha256", "real", "real_count", "subset_size", "seed")
"""What must agree before two scores may stand in one column."""


def read_scores(option: str, texts: Sequence[str]) -> dict[float, dict[str, Any]]:
    """ "0.2=FILE" texts -> c -> score.

    Raises:
        InputError: a text is not C=FILE, a cut is given twice, or scores cannot be compared.
        ArtefactError: a file is not what `evaluate --json` prints.
    """
    scores: dict[float, dict[str, Any]] = {}
    for text in texts:
        c, path = _parse(option, text)
        if c in scores:
            raise InputError(f"--{option} gives c = {c:g} twice; give one file for each cut")
        scores[c] = _read_score(path)
    for field in SAME:
        values = {c: canonical(score[field]) for c, score in scores.items()}
        if len(set(values.values())) > 1:
            listed = ", ".join(f"c = {c:g}: {value.decode()}" for c, value in values.items())
            raise InputError(f"--{option}: scores of different {field} cannot be compared ({listed}); evaluate again")
    return scores


def require_cuts(option: str, scores: dict[float, dict[str, Any]], cuts: Collection[float]) -> None:
    """Do nothing, or refuse a score that no row would show.

    Raises:
        InputError: names the cut and those there are.
    """
    for c in scores:
        if c not in cuts:
            valid = ", ".join(f"{cut:g}" for cut in sorted(cuts))
            raise InputError(f"--{option} is given for c = {c:g}, which is not in this report; valid: {valid}")


def means(scores: dict[float, dict[str, Any]]) -> dict[float, float]:
    """c -> KID."""
    return {c: score["kid_mean"] for c, score in scores.items()}


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
        if lacking := [field for field in SAME if field not in score]:
            raise ValueError(f"it lacks {', '.join(lacking)}")
        canonical(score)  # refuses NaN and infinity
        kid = score["kid_mean"]
        if isinstance(kid, bool) or not math.isfinite(kid):
            raise ValueError(f"kid_mean is {kid}")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ArtefactError(
            f"{path} is not what `evaluate --json` prints ({one_line(error, 120)}); write it again"
        ) from None
    return score
