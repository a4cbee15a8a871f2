"""The client's noise key: why one image is never noised twice.

The noise of an upload is a function of (secret key, hand-over level, image). The same image at the same level always
gets the same noise, however often and in whatever order it is uploaded, so repeated uploads tell the server nothing
new. Without the key nobody can compute that noise, so it cannot be subtracted; the key never leaves the client.
"""

import hashlib
import hmac
import struct
from pathlib import Path

import numpy as np

from collafuse_runtimes.noise import Float32Array
from collafuse_runtimes.secret_file import config_folder, load_or_create_key


def default_key_path() -> Path:
    """``$XDG_CONFIG_HOME/collafuse-edge/upload.key``, with ~/.config where that variable is unset."""
    return config_folder("--key") / "upload.key"


def load_or_create_upload_key(path: Path) -> bytes:
    """Read the key, or create it; see ``secret_file``.

    Raises:
        ArtefactError: the file cannot be read or written, or does not hold a key.
    """
    return load_or_create_key(path, "an upload key", elsewhere="give another --key", mend="restore it")


def image_digest(key: bytes, x_0: Float32Array, alpha_bar_n: float) -> bytes:
    """HMAC-SHA256 of (level, shape, image at 8 bits), 32 bytes.

    Args:
        x_0: (C, H, W) in [-1, 1]. Eight bits, so that a last-bit difference of two resizers is still the same image.
        alpha_bar_n: of the hand-over level. Part of the digest because the same noise at two levels would let both
            releases be solved for x_0; to ten digits, so that a last-bit difference of two machines' cosine is still
            the same level.
    """
    pixels = np.round((x_0 + 1) * 127.5).astype(np.uint8)
    message = f"collafuse upload {alpha_bar_n:.9e}".encode() + struct.pack("<3I", *x_0.shape) + pixels.tobytes()
    return hmac.new(key, message, hashlib.sha256).digest()


def noise_from_digest(digest: bytes, shape: tuple[int, ...]) -> Float32Array:
    """Standard normal float32 noise from a 32-byte digest (Philox key: its first half, counter: its second)."""
    words = np.frombuffer(digest, dtype="<u8").astype(np.uint64)
    bits = np.random.Philox(key=words[:2], counter=np.concatenate([np.zeros(2, np.uint64), words[2:]]))
    return np.random.Generator(bits).standard_normal(shape, dtype=np.float32)
