"""This machine's secret for signing the engines it builds: made on first use, readable by its owner alone."""

import hashlib
import hmac
from pathlib import Path
from typing import Any

from collafuse_runtimes.files.sealed import canonical
from collafuse_runtimes.files.secret_file import config_folder, load_or_create_key


def default_key_path() -> Path:
    """``$XDG_CONFIG_HOME/collafuse-edge/engine.key``, with ~/.config where that variable is unset."""
    return config_folder() / "engine.key"


def sign(body: dict[str, Any]) -> str:
    """HMAC-SHA256 of the body's canonical JSON under the machine's key, hex.

    Raises:
        ArtefactError: the key cannot be read or made.
    """
    secret = load_or_create_key(
        default_key_path(),
        "engine key",
        elsewhere="set XDG_CONFIG_HOME",
        mend="delete it, and engines will be built again",
    )
    return hmac.new(secret.key, canonical(body), hashlib.sha256).hexdigest()


def is_signed(body: dict[str, Any], stated: object) -> bool:
    """Whether ``stated`` is this machine's signature of the body."""
    return isinstance(stated, str) and hmac.compare_digest(stated.encode(), sign(body).encode())
