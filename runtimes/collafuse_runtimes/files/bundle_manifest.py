"""The manifest of a head bundle, field by field as docs/formats.md promises it."""

import math
import re
from collections.abc import Callable
from typing import Any

from collafuse_runtimes.errors import InputError
from collafuse_runtimes.text import one_line

PRECISIONS = ("fp32", "fp16", "int8-cpu", "int8-trt")
OPSETS = (20, 17)
_HEX = re.compile("[0-9a-f]{64}")
_LONGEST_TEXT = 1000
_MOST_ENTRIES = 10_000


def check_manifest(manifest: dict[str, Any]) -> None:
    """Types and ranges of every field; what follows from other fields is the reader's to compare.

    Raises:
        InputError: a field is missing, unknown, or of another kind; names it.
    """
    if missing := sorted(FIELDS.keys() - OPTIONAL - manifest.keys()):
        raise InputError(f"it lacks {', '.join(missing)}; export the head again")
    if unknown := sorted(map(str, manifest.keys() - FIELDS.keys())):
        raise InputError(f"it has the unknown field {one_line(unknown[0], 80)!r}; export the head again")
    for field, value in manifest.items():
        holds, valid = FIELDS[field]
        if not holds(value):
            raise InputError(f"{field} is {one_line(repr(value), 80)}; valid: {valid}; export the head again")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _LONGEST_TEXT


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and _HEX.fullmatch(value) is not None


def _is_count(value: Any, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _list_of(holds: Callable[[Any], bool], least: int = 0) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and least <= len(value) <= _MOST_ENTRIES and all(map(holds, value))


def _mapping_of(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(_is_text, value)) and all(map(holds, value.values()))


def _record(**fields: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, dict)
        and value.keys() == fields.keys()
        and all(holds(value[name]) for name, holds in fields.items())
    )


def _or_null(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or holds(value)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_sampler(value: Any) -> bool:
    kinds = {"levels": _is_text, "fitted": _is_flag}
    return isinstance(value, dict) and _record(
        name=_is_text, eta=_is_number, **{k: kinds[k] for k in kinds if k in value}
    )(value)


def _is_row(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 7 and all(map(_is_number, value))


_is_agreement = _record(cosine=_is_number, max_abs=_or_null(_is_number), max_rel=_or_null(_is_number))
_is_parity = _record(
    engine=_is_text,
    precision=lambda value: value in (*PRECISIONS, "bf16"),
    tolerance=_record(cosine=_is_number, max_abs=_is_number, max_rel=_is_number),
    ranges=_list_of(
        _record(
            steps=lambda value: _is_count(value, 1),
            worst_step=_is_count,
            worst=_is_agreement,
            final=_is_agreement,
            passed=_is_flag,
        ),
        1,
    ),
    passed=_is_flag,
)
_is_row_range = _record(steps=lambda value: _is_count(value, 1), first_row=_is_count, timesteps=_list_of(_is_count, 1))
_is_tensor = _record(name=_is_text, dtype=_is_text, shape=_list_of(lambda n: n == "batch" or _is_count(n, 1)))
_is_network = _record(
    preset=_is_text,
    parameters=lambda value: _is_count(value, 1),
    flops_per_step=_is_count,
    weights_sha256=_is_digest,
)

_are_fitted_ranges = _list_of(
    _record(
        steps=lambda value: _is_count(value, 1),
        rmse=_is_number,
        rmse_unfitted=_is_number,
        sharpness=_is_number,
        sharpness_unfitted=_is_number,
    ),
    1,
)
_is_server = _record(tensors=lambda value: _is_count(value, 1), ranges=_are_fitted_ranges)


def _is_fit(value: Any) -> bool:
    return isinstance(value, dict) and _record(
        source=lambda found: found in ("hand-over", "images"),
        tensors=lambda found: _is_count(found, 1),
        held_out=lambda found: _is_count(found, 1),
        teacher_steps=lambda found: _is_count(found, 1),
        ranges=_are_fitted_ranges,
        **({"server": _is_server} if "server" in value else {}),
    )(value)


OPTIONAL = frozenset({"class_names", "rows", "fit", "distilled"})
FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "plan": (lambda value: isinstance(value, dict), "the plan"),
    "fingerprint": (_is_digest, "64 hex digits"),
    "sampler": (_is_sampler, "name, eta and, where there is more to say, levels and fitted"),
    "row_ranges": (_list_of(_is_row_range, 1), "a list of steps, first_row and timesteps"),
    "inputs": (_list_of(_is_tensor, 2), "a list of name, dtype and shape"),
    "outputs": (_list_of(_is_tensor, 1), "a list of name, dtype and shape"),
    "precision": (lambda value: value in PRECISIONS, ", ".join(PRECISIONS)),
    "opset": (lambda value: _is_count(value) and value in OPSETS, " or ".join(map(str, OPSETS))),
    "num_classes": (_or_null(lambda value: _is_count(value, 1)), "a count of classes, or null"),
    "class_names": (_or_null(_list_of(lambda value: isinstance(value, str), 1)), "a list of names, or null"),
    "network": (_is_network, "preset, parameters, flops_per_step and weights_sha256"),
    "parity": (_is_parity, "the report of the check at export"),
    "tools": (_mapping_of(_or_null(_is_text)), "names of tools to versions"),
    "float_layers": (_list_of(_is_text), "a list of names of nodes"),
    "engines": (_mapping_of(_mapping_of(lambda value: isinstance(value, str))), "names of engine files to their keys"),
    "files": (_mapping_of(_is_digest), "names of files to their sha256"),
    "rows": (_list_of(_is_row, 1), "a list of 7 numbers for every row"),
    "fit": (_is_fit, "the report of the fit"),
    "distilled": (lambda value: isinstance(value, dict), "what the head was distilled for"),
}
"""Field to (what holds of it, the same in words)."""
