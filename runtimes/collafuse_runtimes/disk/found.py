"""What stands at a path, known by what it says of itself, and whether a command may replace it."""

import json
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collafuse_runtimes.disk.regular_file import open_regular
from collafuse_runtimes.errors import ArtefactError, InputError

METADATA_KEY = "collafuse"
MOST_JSON, MOST_HEADER = 256 << 20, 64 << 20
"""Bytes of a JSON file, and of a safetensors header, beyond which nobody looks."""

NOUNS = {
    "collafuse-plan": "a plan file",
    "collafuse-shard": "a shard",
    "collafuse-handover": "a hand-over file",
    "collafuse-resume": "a resume state",
    "collafuse-weights": "weights of a checkpoint",
    "collafuse-head": "a head bundle",
    "collafuse-training": "a checkpoint",
    "collafuse-bench": "a bench report",
    "images": "a folder that infer wrote",
}
_MAGIC = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"PK\x03\x04", "a zip archive, such as .npz"),
    (b"\x1f\x8b", "a gzip file"),
    (b"collafuse-upload-key", "an upload key"),
    (b"collafuse-engine-key", "an engine key"),
)
_BARE_KEY = re.compile(rb"\s*[0-9a-fA-F]{64}\s*")


@dataclass(frozen=True)
class FolderKind:
    """A kind of folder: its seal, and the other names that may be in it.

    Attributes:
        marker: the sealed JSON file that says what the folder is.
        format_name: of that file.
        others: pattern of further names; what the marker lists under ``files`` belongs to the folder as well.
    """

    marker: str
    format_name: str
    others: str


FOLDERS = (
    FolderKind("manifest.json", "collafuse-head", r"(?!)"),
    FolderKind("training.json", "collafuse-training", r"(?!)"),
    FolderKind("report.json", "collafuse-bench", r"report\.(md|html)|\.report\.\w+\.[0-9a-f]{12}\.partial"),
)
_IMAGES = re.compile(r"\d{5,}\.png|contact_sheet\.png|images\.(npz|json)")


def require_replaceable(path: Path, kind: str, *, overwrite: bool, remedy: str | None = None) -> None:
    """Do nothing where nothing, or an empty folder for a folder, stands at ``path``, or what ``overwrite`` may replace.

    Args:
        kind: a key of ``NOUNS``: what is to be written.
        remedy: what to do about one of the same kind; default: another --out, or --overwrite.

    Raises:
        InputError: one of the same kind is there, and ``overwrite`` is False.
        ArtefactError: something else is there.
    """
    found, words = what_is(path)
    if found is None and words == "":
        return
    if found != kind:
        raise ArtefactError(f"cannot write {path}: {words} is there, not {_words(kind)}; choose another name")
    if not overwrite:
        raise InputError(f"{path} exists already; {remedy or 'choose another --out, or replace it with --overwrite'}")


def replaces_own(kind: str) -> Callable[[Path], None]:
    """``require_replaceable`` for the moment of the rename: whatever came there meanwhile must be of that kind."""
    return lambda path: require_replaceable(path, kind, overwrite=True)


def what_is(path: Path) -> tuple[str | None, str]:
    """The kind (a key of ``NOUNS``, or another format name) and words for it; (None, "") for nothing."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None, ""
    except OSError as error:
        raise ArtefactError(f"cannot write {path}: {error.strerror}; choose another name") from error
    if stat.S_ISDIR(status.st_mode):
        return _what_folder(path)
    if not stat.S_ISREG(status.st_mode):
        return None, "a device or pipe"
    kind = format_of(path)
    return kind, _words(kind) if kind is not None else _what_file(path)


def format_of(path: Path) -> str | None:
    """The format name in a sealed file's own words, nothing checked, no tensor read; None where it has none."""
    try:
        payload = peek(path)
        name = payload["format"] if isinstance(payload, dict) else None
    except (ArtefactError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return name if isinstance(name, str) else None


def peek(path: Path) -> Any:
    """The payload of a sealed file, nothing checked, no tensor read.

    Raises:
        ArtefactError, OSError, ValueError, LookupError, TypeError, RecursionError: there is none.
    """
    with open_regular(path) as file:
        start = file.read(8)
        if start.lstrip()[:1] == b"{":
            return json.loads(start + (file.read(MOST_JSON) or b""))
        length = int.from_bytes(start, "little")
        if length > MOST_HEADER:
            return None
        return json.loads(json.loads(file.read(length) or b"")["__metadata__"][METADATA_KEY])


def _what_folder(path: Path) -> tuple[str | None, str]:
    names = {entry.name for entry in path.iterdir()}
    if not names:
        return None, ""
    for kind in FOLDERS:
        if kind.marker in names and format_of(path / kind.marker) == kind.format_name:
            listed = peek(path / kind.marker).get("files")
            own = {kind.marker, *(listed if isinstance(listed, dict) else ())}
            foreign = sorted(name for name in names - own if not re.fullmatch(kind.others, name))
            if not foreign:
                return kind.format_name, NOUNS[kind.format_name]
            return None, f"{NOUNS[kind.format_name]} with something else in it ({foreign[0]!r})"
    if "images.npz" in names and all(_IMAGES.fullmatch(name) for name in names):
        return "images", NOUNS["images"]
    return None, "a folder of other files"


def _what_file(path: Path) -> str:
    try:
        with open_regular(path) as file:
            start = file.read(200) or b""
    except ArtefactError:
        return "a file that cannot be read"
    if not start:
        return "an empty file"
    if _BARE_KEY.fullmatch(start):
        return "a secret key"
    return next((words for magic, words in _MAGIC if start.startswith(magic)), "a file of another kind")


def _words(kind: str) -> str:
    return NOUNS.get(kind, f"a {kind[:60]!r} file")
