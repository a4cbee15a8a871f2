"""Scores of `evaluate --json`, put beside the cuts they belong to."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from collafuse_runtimes.errors import ArtefactError, InputError
from collafuse_runtimes.sealed import read_bytes

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
        values = {c: score[field] for c, score in scores.items()}
        if len(set(values.values())) > 1:
            listed = ", ".join(f"c = {c:g}: {value}" for c, value in values.items())
            raise InputError(f"--{option}: scores of different {field} cannot be compared ({listed}); evaluate again")
    return scores


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
    return c, Path(path)


def _read_score(path: Path) -> dict[str, Any]:
    try:
        score = json.loads(read_bytes(path))
        if not all(field in score for field in SAME) or not math.isfinite(score["kid_mean"]):
            raise ValueError("fields are missing")
    except (ValueError, KeyError, TypeError) as error:
        raise ArtefactError(f"{path} is not what `evaluate --json` prints ({error}); write it again") from None
    found: dict[str, Any] = score
    return found
