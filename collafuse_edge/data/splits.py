"""Folders named like a split (Training/, test/, imagesTr/) are splits, not classes."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath

from collafuse_edge.data.notes import Notes, images
from collafuse_runtimes.errors import InputError

SPLITS = ("train", "val", "test")
EVERY = "all"
_SUBJECT = r"(?:images?|imgs?|data|dataset|sets?|split)"
_NAME = re.compile(
    rf"(?:{_SUBJECT}[-_ ]?)?(?P<split>train|training|val|valid|validation|test|testing)s?(?:[-_ ]?{_SUBJECT})?"
    r"[-_ ]?\d*",
    re.IGNORECASE,
)
_DECATHLON = {"imagestr": "train", "imagests": "test", "imagesval": "val"}


def split_of(name: str) -> str | None:
    """The split a folder's name stands for (any case, plural, ``train_images``, ``val2017``), or None."""
    code = _DECATHLON.get(name.strip().lower())
    found = _NAME.fullmatch(name.strip())
    return code or (next(split for split in SPLITS if found["split"].lower().startswith(split)) if found else None)


def is_split(folders: tuple[str, ...]) -> list[bool]:
    """Which folder of a path is its split: the first that is named like one."""
    named = [split_of(folder) is not None for folder in folders]
    return [is_one and not any(named[:depth]) for depth, is_one in enumerate(named)]


def choose_split(root: Path, files: Sequence[PurePath], wanted: str | None, notes: Notes) -> list[PurePath]:
    """The files of one split, or all where no folder is named like one.

    Args:
        wanted: "train", "val", "test", a spelling of these, or "all"; None takes train.

    Raises:
        InputError: there is no such split, or some images lie outside the splits and ``wanted`` does not decide.
    """
    found = [next((split for part in file.parts[:-1] if (split := split_of(part))), None) for file in files]
    counts = Counter(split for split in found if split is not None)
    if not counts:
        if wanted is not None:
            raise InputError(
                f"{root} has no folder named like a split, so split {wanted!r} cannot be selected; leave it out"
            )
        return list(files)
    outside = [file for file, split in zip(files, found, strict=True) if split is None]
    shown = ", ".join(f"{split} {counts[split]}" for split in SPLITS if split in counts)
    if wanted is None and outside:
        first, one = outside[0].as_posix(), next(split for split in SPLITS if split in counts)
        raise InputError(
            f"{root} holds folders named like splits ({shown}) beside {images(len(outside))} outside of them (first: "
            f"{first!r}); give --split {one}, or --split all, or rename what is a class"
        )
    if wanted == EVERY:
        notes.say(f"every split taken: {shown}" + (f", outside of them {len(outside)}" if outside else ""))
        return list(files)
    chosen = "train" if wanted is None else split_of(wanted) or wanted
    if chosen not in counts:
        raise InputError(f"{root} has no split {chosen!r}; valid: {', '.join(s for s in SPLITS if s in counts)}, all")
    _say(files, found, chosen, notes)
    return [file for file, split in zip(files, found, strict=True) if split == chosen]


def _say(files: Sequence[PurePath], found: list[str | None], chosen: str, notes: Notes) -> None:
    places: dict[str, Counter[str]] = {}
    for file, split in zip(files, found, strict=True):
        place = next((part for part in file.parts[:-1] if split_of(part)), "")
        places.setdefault(split or "outside the splits", Counter())[place] += 1
    taken = ", ".join(places.pop(chosen))
    left = [f"{name} ({images(sum(of.values()))}{_of(of)})" for name, of in sorted(places.items())]
    notes.say(f"split {chosen} taken (folder {taken}); left out: {', '.join(left) or 'nothing'}")


def _of(places: "Counter[str]") -> str:
    names = ", ".join(name for name in places if name)
    return f" of {names}" if names else ""
