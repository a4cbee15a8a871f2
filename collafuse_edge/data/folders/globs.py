"""Patterns that choose files of a folder: shell patterns on paths, with ``**`` for any number of folders."""

import re
from pathlib import PurePath

from collafuse_runtimes.errors import InputError

_FOLDERS = "(?:[^/]+/)*"


def matcher(option: str, pattern: str) -> "re.Pattern[str]":
    """A pattern that ``matches`` takes.

    ``*``, ``?`` and ``[...]`` are those of fnmatch and stay within one name; ``**`` crosses folders. A pattern without
    ``/`` is held against every name on the path, one with ``/`` against the path from the root. Case counts.

    Raises:
        InputError: the pattern is empty or has a bad range; names the option.
    """
    cleaned = pattern.strip().removeprefix("./").rstrip("/")
    anchored = "/" in cleaned
    cleaned = cleaned.lstrip("/")
    if not cleaned:
        raise InputError(f"--{option} {pattern!r} matches nothing; valid: a pattern such as '*.png' or 'train/**'")
    text = "/".join(_segment(part) for part in cleaned.split("/"))
    text = text.replace("\0/", _FOLDERS).replace("\0", ".+")
    try:
        return re.compile(text if anchored else _FOLDERS + text)
    except re.error as error:
        raise InputError(f"--{option} {pattern!r} is no pattern ({error}); valid: '*.png' or 'train/[ab]*'") from None


def matches(compiled: "re.Pattern[str]", path: PurePath) -> bool:
    """Whether a file, or a folder it lies in, matches; ``path`` is relative to the root."""
    parts = path.parts
    return any(compiled.fullmatch("/".join(parts[:end])) for end in range(len(parts), 0, -1))


def _segment(part: str) -> str:
    r"""One name as a regular expression; ``\0`` for ``**``."""
    if part == "**":
        return "\0"
    return "".join(_token(token) for token in re.findall(r"\[!?\]?[^\]]*\]|\*+|.", part, re.DOTALL))


def _token(token: str) -> str:
    if token.startswith("*"):
        return "[^/]*"
    if token == "?":
        return "[^/]"
    if len(token) > 2:
        inside = token[1:-1].replace("\\", "\\\\").replace("[", "\\[")
        return f"[^/{inside[1:]}]" if inside.startswith("!") else f"[{inside}]"
    return re.escape(token)
