"""This machine's secret for signing the engines it builds: made on first use, readable by its owner alone."""

import hashlib
import hmac
import os
import secrets
from pathlib import Path
from typing import Any

from collafuse_runtimes.atomic import write_bytes
from collafuse_runtimes.errors import ArtefactError
from collafuse_runtimes.sealed import canonical, read_bytes

KEY_BYTES = 32


def default_key_path() -> Path:
    """``$XDG_CONFIG_HOME/collafuse-edge/engine.key``, with ~/.config where that variable is unset."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "collafuse-edge" / "engine.key"


def sign(body: dict[str, Any]) -> str:
    """HMAC-SHA256 of the body's canonical JSON under the machine's key, hex.

    Raises:
        ArtefactError: the key cannot be read or made.
    """
    return hmac.new(_load_or_create(default_key_path()), canonical(body), hashlib.sha256).hexdigest()


def is_signed(body: dict[str, Any], stated: object) -> bool:
    """Whether ``stated`` is this machine's signature of the body."""
    return isinstance(stated, str) and hmac.compare_digest(stated.encode(), sign(body).encode())


def _load_or_create(path: Path) -> bytes:
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ArtefactError(f"cannot create {path.parent}: {error.strerror}; set XDG_CONFIG_HOME") from error
        _create(path)
    try:
        key = bytes.fromhex(read_bytes(path).decode().strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise ArtefactError(
            f"{path} does not hold an engine key (valid: {2 * KEY_BYTES} hex digits); "
            "delete it, and engines will be built again"
        )
    return key


def _create(path: Path) -> None:
    """Of two first builds at once one makes the key and both use it: a link, unlike a rename, replaces nothing."""
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
