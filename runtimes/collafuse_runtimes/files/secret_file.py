"""A machine's own secret in a file: 32 random bytes with a checksum, made on first use, its owner's alone."""

import hashlib
import os
import re
import secrets
import shlex
import stat
from dataclasses import dataclass, field
from pathlib import Path

from collafuse_runtimes.disk.atomic import write_bytes
from collafuse_runtimes.disk.home import user_folder
from collafuse_runtimes.errors import ArtefactError
from collafuse_runtimes.files.sealed import read_bytes

KEY_BYTES = 32
FORM_VERSION = 2
CHECKSUM_DIGITS = 16
MAX_BYTES = 4096

_BARE = re.compile(rb"\s*([0-9a-fA-F]{64})\s*")
_FORM = re.compile(rb"collafuse-([a-z]+-key) ([0-9]+) ([0-9a-f]{64}) ([0-9a-f]{16})\n")


@dataclass(frozen=True)
class Secret:
    """A key and what its file tells about it.

    Attributes:
        key: 32 bytes.
        created: this call made the file.
        has_checksum: False for the 64 bare hex digits that earlier releases wrote.
    """

    key: bytes = field(repr=False)
    created: bool = False
    has_checksum: bool = True


def config_folder(option: str | None = None) -> Path:
    """``$XDG_CONFIG_HOME/collafuse-edge``, with ~/.config where that variable is unset.

    Raises:
        ArtefactError: there is neither that variable nor a home folder.
    """
    return user_folder("XDG_CONFIG_HOME", ".config", option)


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/collafuse-edge``, with ~/.cache where that variable is unset.

    Raises:
        ArtefactError: there is neither that variable nor a home folder.
    """
    return user_folder("XDG_CACHE_HOME", ".cache", "--cache")


def load_or_create_key(path: Path, kind: str, *, elsewhere: str, mend: str) -> Secret:
    """Read the key, or create it.

    Args:
        kind: "upload key" or "engine key"; the file says it, so that one is not taken for the other.
        elsewhere: what to do where its folder cannot be made.
        mend: what to do where the file holds something else.

    Raises:
        ArtefactError: the file cannot be read or written, others can read it, or it does not hold an intact key.
    """
    if path.is_symlink() and not path.exists():
        raise ArtefactError(f"{path} is a link to a file that is not there; {mend}")
    created = False
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ArtefactError(f"cannot create {path.parent}: {error.strerror}; {elsewhere}") from error
        created = _create_key(path, kind)
    _require_private(path, mend)
    key, has_checksum = _parse(path, read_bytes(path), kind, mend)
    return Secret(key, created, has_checksum)


def key_text(key: bytes, kind: str) -> bytes:
    """The file's content: kind, version, the key in hex, and the first 16 hex digits of the sha256 of all that."""
    body = f"collafuse-{kind.replace(' ', '-')} {FORM_VERSION} {key.hex()}".encode()
    return body + b" " + hashlib.sha256(body).hexdigest()[:CHECKSUM_DIGITS].encode() + b"\n"


def _parse(path: Path, text: bytes, kind: str, mend: str) -> tuple[bytes, bool]:
    if bare := _BARE.fullmatch(text):
        return bytes.fromhex(bare[1].decode()), False
    found = _FORM.fullmatch(text)
    if found is None:
        raise ArtefactError(f"{path} does not hold an {kind} (it is damaged, or another file); {mend}")
    if found[1].decode() != kind.replace(" ", "-"):
        raise ArtefactError(f"{path} holds an {found[1].decode().replace('-', ' ')}, not an {kind}; {mend}")
    if found[2] != str(FORM_VERSION).encode():
        raise ArtefactError(
            f"{path} has key version {found[2].decode()[:9]}; this release reads {FORM_VERSION}; {mend}"
        )
    key = bytes.fromhex(found[3].decode())
    if text != key_text(key, kind):
        raise ArtefactError(f"{path} does not match its own checksum: this {kind} was damaged or edited; {mend}")
    return key, True


def _require_private(path: Path, mend: str) -> None:
    """Refuse a file of one's own that group or others can use, as ssh's ``sshkey_perm_ok``; and pipes and devices.

    Raises:
        ArtefactError: see above; it names the command that mends it.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise ArtefactError(f"cannot read {path}: {error.strerror}; check the path") from error
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
        raise ArtefactError(f"cannot read {path}: it is no file, or too large, for a key; {mend}")
    if not hasattr(os, "getuid"):  # Windows has no such modes
        return
    if status.st_uid == os.getuid() and status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise ArtefactError(
            f"{path} has mode {mode:04o}: others could read or change this secret, so it is not used; "
            f"run chmod 600 {shlex.quote(str(path))}"
        )


def _create_key(path: Path, kind: str) -> bool:
    """Of two first uses at once one makes the key and both use it: a link, unlike a rename, replaces nothing."""
    candidate = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    write_bytes(candidate, key_text(secrets.token_bytes(KEY_BYTES), kind), mode=0o600)
    try:
        os.link(candidate, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        candidate.replace(path)
    finally:
        candidate.unlink(missing_ok=True)
    return True
