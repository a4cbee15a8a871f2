"""From the classes that files are said to have to numbers and names."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import PurePath

from collafuse_edge.data.notes import Notes
from collafuse_edge.data.splits import is_split

_NEUTRAL = re.compile(r"(images?|imgs?|pictures?|data|images(tr|ts|val))", re.IGNORECASE)
"""Folders that hold everything and say nothing."""


class ClassNames:
    """The classes of a source, in order; names that differ only in case or Unicode form are one.

    Names that are all whole numbers are in the order of the numbers, others in that of their code points.

    Attributes:
        names: one spelling each, the first in order.
    """

    def __init__(self, spellings: Iterable[str], notes: Notes) -> None:
        found = sorted(set(spellings), key=lambda name: (unicodedata.normalize("NFC", name), name))
        if all(name.isascii() and name.isdigit() for name in found):
            found.sort(key=lambda name: (int(name), name))
        kept: dict[str, list[str]] = {}
        for name in found:
            kept.setdefault(_folded(name), []).append(name)
        self.names = tuple(same[0] for same in kept.values())
        self._numbers = {folded: number for number, folded in enumerate(kept)}
        for same in kept.values():
            if len(same) > 1:
                notes.say(f"one class, in spite of its spellings: {', '.join(same)}")

    def number(self, name: str) -> int:
        """Of one of the names the classes were made of."""
        return self._numbers[_folded(name)]


def class_paths(files: Sequence[PurePath]) -> list[tuple[str, ...]]:
    """The folders that may be classes of each file, the first of them being its class; () where it has none.

    Folders named like a split are none, nor are ``images`` and its like, nor those above the split where they are the
    same for all files.
    """
    above, below = [], []
    for file in files:
        splits = is_split(file.parts[:-1])
        depth = splits.index(True) if True in splits else -1
        above.append(_speaking(file.parts[: max(depth, 0)]))
        below.append(_speaking(file.parts[depth + 1 : -1]))
    if len(set(above)) == 1:
        return below
    return [(*first, *second) for first, second in zip(above, below, strict=True)]


def _speaking(folders: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(part for part in folders if not _NEUTRAL.fullmatch(part))


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold().strip()
