"""A machine's own secret in a file: 32 random bytes as hex, made on first use, readable by its owner alone."""

import os
import secrets
from pathlib import Path

from collafuse_runtimes.atomic import write_bytes
from collafuse_runtimes.errors import ArtefactError
from collafuse_runtimes.home import user_folder
from collafuse_runtimes.sealed import read_bytes

KEY_BYTES = 32


def config_folder(option: str | None = None) -> Path:
    """``$XDG_CONFIG_HOME/collafuse-edge``, with ~/.config where that variable is unset.

    Raises:
        ArtefactError: there is neither that variable nor a home folder.
    """
    return user_folder("XDG_CONFIG_HOME", ".config", option)


def load_or_create_key(path: Path, name: str, *, elsewhere: str, mend: str) -> bytes:
    """Read the key, or create it.

    Args:
        name: what the key is, with its article, for errors.
        elsewhere: what to do where its folder cannot be made.
        mend: what to do where the file holds something else.

    Raises:
        ArtefactError: the file cannot be read or written, or does not hold a key.
    """
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ArtefactError(f"cannot create {path.parent}: {error.strerror}; {elsewhere}") from error
        _create_key(path)
    try:
        key = bytes.fromhex(read_bytes(path).decode().strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise ArtefactError(f"{path} does not hold {name} (valid: {2 * KEY_BYTES} hex digits); {mend}")
    return key


def _create_key(path: Path) -> None:
    """Of two first uses at once one makes the key and both use it: a link, unlike a rename, replaces nothing."""
    candidate = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    write_bytes(candidate, secrets.token_hex(KEY_BYTES).encode() + b"\n", mode=0o600)
    try:
        os.link(candidate, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        candidate.replace(path)
    finally:
        candidate.unlink(missing_ok=True)
