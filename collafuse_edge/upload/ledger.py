"""The ledger beside an upload key: what was released with it (docs/formats.md, 'Ledger').

It stays at the site. It holds no image and nothing that noise could be computed from: images are known by a keyed
digest of their digest, and their perceptual hashes are encrypted under the key.
"""

import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from collafuse_edge.upload.similarity import HASH_BYTES, Hashes
from collafuse_runtimes.errors import ArtefactError
from collafuse_runtimes.files.sealed import canonical, read_json, write_json

FORMAT = "collafuse-ledger"
ID_BYTES = 16
LOCK_SECONDS = 60.0


@dataclass(frozen=True)
class Release:
    """One shard that was made.

    Attributes:
        when: UTC, ISO 8601.
        fingerprint: of the plan.
        size: (H, W) of its images.
        level: n; -1, the clean image, for the paper's protocol.
        alpha_bar: at that level, 1.0 for the clean image.
        shard_sha256: of the shard's bytes.
        images: one id per distinct image, sorted.
        nonce: hex, of the encryption of ``hashes``.
        hashes: of those images, encrypted, hex.
    """

    when: str
    protocol: str
    fingerprint: str
    size: tuple[int, int]
    level: int
    alpha_bar: float
    shard_sha256: str
    images: tuple[str, ...]
    nonce: str
    hashes: str


@dataclass(frozen=True)
class Ledger:
    """All releases of one key, oldest first."""

    releases: tuple[Release, ...] = ()

    def with_release(self, release: Release) -> "Ledger":
        """The ledger with one release more."""
        return replace(self, releases=(*self.releases, release))


def ledger_path(key_file: Path) -> Path:
    """``KEY.ledger.json`` beside the key's own file, wherever links to it lie."""
    real = Path(os.path.realpath(key_file))
    return real.with_name(f"{real.name}.ledger.json")


def image_id(key: bytes, digest: bytes) -> str:
    """Hex id of an image in the ledger: the digest itself would give away the noise."""
    return hmac.new(key, b"collafuse ledger image " + digest, hashlib.sha256).digest()[:ID_BYTES].hex()


def seal_hashes(key: bytes, nonce: bytes, hashes: bytes) -> bytes:
    """Encrypt or decrypt: exclusive or with SHAKE-256 of a key that belongs to this nonce alone."""
    stream_key = hmac.new(key, b"collafuse ledger hashes " + nonce, hashlib.sha256).digest()
    stream = hashlib.shake_256(stream_key).digest(len(hashes))
    return bytes(np.frombuffer(hashes, np.uint8) ^ np.frombuffer(stream, np.uint8))


def opened_hashes(key: bytes, release: Release) -> Hashes:
    """(N, 32) uint8: the perceptual hashes of a release's images."""
    plain = seal_hashes(key, bytes.fromhex(release.nonce), bytes.fromhex(release.hashes))
    return np.frombuffer(plain, np.uint8).reshape(-1, HASH_BYTES)


def new_nonce() -> bytes:
    """16 random bytes: two releases under one nonce would give away the difference of their hashes."""
    return secrets.token_bytes(16)


def write_ledger(path: Path, key: bytes, ledger: Ledger) -> None:
    """Write the ledger, readable by its owner alone.

    Raises:
        ArtefactError: the file cannot be written.
    """
    body = {"key_check": _key_check(key), "releases": [asdict(release) for release in ledger.releases]}
    write_json(path, FORMAT, {**body, "hmac": _hmac(key, body)}, mode=0o600)


def read_ledger(path: Path, key: bytes, key_file: Path) -> Ledger | None:
    """The ledger, or None where there is none.

    Raises:
        ArtefactError: it is damaged, was edited, is another key's, or the key is no longer the one it was kept with.
    """
    if not path.exists() and not path.is_symlink():
        return None
    mend = "restore it from a copy, or move it away to begin a new one, which knows nothing of earlier uploads"
    if not path.is_file():
        raise ArtefactError(f"{path} is no file; the ledger of what was uploaded belongs there: {mend}")
    try:
        payload = read_json(path, FORMAT)
    except ArtefactError as error:
        raise ArtefactError(f"{error}; it is the ledger of what was uploaded with {key_file}: {mend}") from None
    if payload.get("key_check") != _key_check(key):
        raise ArtefactError(
            f"{key_file} is not the key that {path} was kept with: the key was changed, or the ledger is another "
            f"key's; restore the key, or if the ledger is at fault {mend}"
        )
    if payload.pop("hmac", None) != _hmac(key, payload):
        raise ArtefactError(f"{path} was edited: it is not signed with {key_file}; {mend}")
    try:
        return Ledger(tuple(_release_from(entry) for entry in payload["releases"]))
    except (KeyError, TypeError, ValueError):
        raise ArtefactError(f"{path} has other fields than this release reads; {mend}") from None


@contextmanager
def locked(key_file: Path) -> Iterator[None]:
    """Hold the key's ledger: one upload at a time reads it and adds to it. The lock is on the key file itself.

    Raises:
        ArtefactError: another upload holds it for longer than a minute.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with key_file.open("r+b" if os.access(key_file, os.W_OK) else "rb") as handle:  # NFS locks what can be written
        given_up = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > given_up:
                    raise ArtefactError(
                        f"another upload has been using {key_file} for {LOCK_SECONDS:.0f} s; try again when it is done"
                    ) from None
                time.sleep(0.05)
            except OSError:  # a file system without locks
                break
        yield


def _release_from(entry: dict[str, Any]) -> Release:
    size, images = entry["size"], entry["images"]
    values = {**entry, "size": (int(size[0]), int(size[1])), "images": tuple(images)}
    release = Release(**values)
    if entry.keys() != {field.name for field in fields(Release)} or len(bytes.fromhex(release.hashes)) != (
        HASH_BYTES * len(images)
    ):
        raise ValueError
    return release


def _key_check(key: bytes) -> str:
    """Tells whether a key is the same without giving it away."""
    return hmac.new(key, b"collafuse key check", hashlib.sha256).hexdigest()[:32]


def _hmac(key: bytes, body: dict[str, Any]) -> str:
    return hmac.new(key, b"collafuse ledger " + canonical(body), hashlib.sha256).hexdigest()
