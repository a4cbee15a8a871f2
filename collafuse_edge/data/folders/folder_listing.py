"""The files of a folder: found through links, each once, without what only computers put there."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath

from collafuse_edge.data.folders.globs import matcher, matches
from collafuse_edge.data.folders.masks import is_mask
from collafuse_edge.data.notes import Notes, images, listed
from collafuse_runtimes.errors import InputError

_JUNK = ("__MACOSX", "$RECYCLE.BIN", "System Volume Information", "@eaDir", "Thumbs.db", "desktop.ini")
"""Of archives made on a Mac, of Windows disks, and thumbnails of Synology's: copies or leftovers, never data."""


def list_files(root: Path, is_known: Callable[[Path], bool], notes: Notes) -> list[PurePath]:
    """Files below ``root`` of a known kind, relative to it, sorted by path.

    Links are followed, each real folder once. Hidden files and folders (leading dot) and those of ``_JUNK`` are left
    out, and noted where they could have been images; of files with other endings the endings are noted.

    Raises:
        InputError: a folder cannot be listed.
    """
    found: list[PurePath] = []
    others, hidden = set(), 0
    for path in sorted(_walk(root, notes), key=lambda path: path.parts):
        if path.name in _JUNK:
            continue
        if path.exists() and not path.is_file():  # a pipe would be waited for
            others.add("no regular file")
            continue
        known = is_known(path)
        if path.name.startswith("."):
            hidden += known
        elif known:
            found.append(path.relative_to(root))
        else:
            others.add(path.suffix.lower() or "without ending")
    if hidden:
        notes.say(f"left out: {images(hidden)} in hidden files (.name)")
    if others and found:
        notes.say(f"left out: files of other kinds ({listed(sorted(others))})")
    return found


def choose_files(
    root: Path, files: Sequence[PurePath], include: Sequence[str], exclude: Sequence[str], notes: Notes
) -> list[PurePath]:
    """What --include and --exclude leave, without masks.

    Masks (``masks.is_mask``) are taken only by an ``include`` pattern that matches nothing else.

    Raises:
        InputError: an include pattern matches nothing, or nothing is left.
    """
    masks = {file for file in files if is_mask(file)}
    chosen = set(files) - masks
    if include:
        wanted = [_matching(root, files, pattern) for pattern in include]
        chosen = set().union(*(hits if hits <= masks else hits - masks for hits in wanted))
        notes.say(f"included: {len(chosen)} of {images(len(files))}, by {listed(list(include))}")
    for pattern in exclude:
        hits = {file for file in chosen if matches(matcher("exclude", pattern), file)}
        notes.say(f"excluded: {images(len(hits))}, by {pattern}")
        chosen -= hits
    _say_masks([file for file in files if file in masks - chosen], bool(chosen), root, notes)
    if files and not chosen:
        raise InputError(f"{root} has no image left after --include and --exclude; choose less narrowly")
    return [file for file in files if file in chosen]


def _matching(root: Path, files: Sequence[PurePath], pattern: str) -> set[PurePath]:
    compiled = matcher("include", pattern)
    hits = {file for file in files if matches(compiled, file)}
    if not hits:
        raise InputError(
            f"--include {pattern!r} matches no image below {root}; the first there is {files[0].as_posix()!r}"
            if files
            else f"{root} holds no image that --include {pattern!r} could match"
        )
    return hits


def _say_masks(left_out: list[PurePath], any_left: bool, root: Path, notes: Notes) -> None:
    if not left_out:
        return
    first = left_out[0].as_posix()
    how = f"--include {first!r} or a pattern that matches masks alone takes them"
    if not any_left:
        raise InputError(f"{root} holds masks or labels alone by their names (first: {first!r}), no images; {how}")
    notes.say(f"left out as masks: {images(len(left_out))} (first: {first}); {how}")


def _walk(root: Path, notes: Notes) -> Iterator[Path]:
    """Files below ``root``, through links too, each real folder once."""

    def refuse(error: OSError) -> None:
        raise InputError(f"cannot list {error.filename}: {error.strerror}; make it readable or leave it out") from error

    seen: set[str] = set()
    for folder, children, names in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            notes.say(f"left out: {Path(folder).relative_to(root).as_posix()}, a link to a folder that is here already")
            children.clear()
            continue
        seen.add(real)
        for child in sorted(set(children) & set(_JUNK)):
            notes.say(f"left out: folder {child}")
        children[:] = sorted(child for child in children if not child.startswith(".") and child not in _JUNK)
        yield from (Path(folder, name) for name in names)
