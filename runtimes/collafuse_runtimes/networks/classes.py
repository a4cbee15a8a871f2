"""The classes of a conditional head: their names, and how one asks for them."""

import csv
import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from collafuse_runtimes.errors import InputError

MAX_CLASSES = 10_000
MAX_NAME = 255
_SHOWN = 12


def read_class_names(stated: Any, num_classes: int | None) -> tuple[str, ...] | None:
    """``class_names`` of a checkpoint or bundle; None where it has none, as in those of earlier releases.

    Raises:
        InputError: not one name for every class, all different, printable, 1 to 255 characters.
    """
    if stated is None:
        return None
    names = stated if isinstance(stated, list) else []
    if num_classes is None or len(names) != num_classes or not all(_is_name(name) for name in names):
        raise InputError(
            f"class_names {reprlib.repr(stated)} are not one name of 1 to {MAX_NAME} printable characters for each of "
            f"{num_classes or 'no'} classes; rename the class and train again"
        )
    if len(set(names)) < len(names):
        raise InputError(f"class_names {reprlib.repr(stated)} repeat; valid: all different")
    return tuple(names)


def choose_classes(
    text: str, count: int, num_classes: int | None, names: Sequence[str] | None
) -> npt.NDArray[np.int64]:
    """Class numbers from names or numbers, separated by commas: one for all images, or one each.

    A text that is a name is that class, also where it looks like a number; then names in any case, then numbers. A name
    that holds a comma stands in double quotes.

    Returns:
        (count,) class numbers.

    Raises:
        InputError: the head has no classes, a name or number is unknown, or their number is neither 1 nor ``count``.
    """
    if num_classes is None:
        raise InputError("labels were given but this head is not class-conditional; leave them out")
    whole = [text.strip()] if names and text.strip() in names else None
    wanted = whole or [part.strip() for part in next(csv.reader([text], skipinitialspace=True), [])]
    numbers = [_number(part, num_classes, names or ()) for part in wanted]
    if len(numbers) not in (1, count):
        raise InputError(f"{len(numbers)} labels for {count} images; valid: one for all, or one for each")
    return np.array(numbers * (count if len(numbers) == 1 else 1), np.int64)


def shown(names: Sequence[str]) -> str:
    """Names in one line; of many the first."""
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest


def _number(wanted: str, num_classes: int, names: Sequence[str]) -> int:
    if wanted in names:
        return list(names).index(wanted)
    alike = [number for number, name in enumerate(names) if name.casefold() == wanted.casefold()]
    if len(alike) == 1:
        return alike[0]
    if wanted.isascii() and wanted.isdigit() and int(wanted[:9]) < num_classes:
        return int(wanted)
    numbers = f"numbers 0 to {num_classes - 1}"
    valid = f"{shown(names)}, or {numbers}" if names else f"{numbers} (this head's classes have no names)"
    raise InputError(f"label {wanted!r} is no class of this head; valid: {valid}")


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and 0 < len(name) <= MAX_NAME and not any(ord(letter) < 32 for letter in name)
