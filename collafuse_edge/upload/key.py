"""The client's key: what the noise of its uploads hangs on.

The noise of an upload is a function of (secret key, image): one Brownian path per image, read off at the level's time
(``brownian``). The same image gets the same path however often, in whatever order and at whatever levels it is
uploaded, so a second release tells the server nothing that the cleanest one did not. Without the key nobody can
compute that noise, so it cannot be subtracted; the key never leaves the client.
"""

import hashlib
import hmac
import struct
from pathlib import Path

from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.files.images import eight_bits
from collafuse_runtimes.files.secret_file import Secret, config_folder, load_or_create_key


def default_key_path() -> Path:
    """``$XDG_CONFIG_HOME/collafuse-edge/upload.key``, with ~/.config where that variable is unset.

    Raises:
        ArtefactError: there is neither that variable nor a home folder.
    """
    return config_folder("--key") / "upload.key"


def load_or_create_upload_key(path: Path) -> Secret:
    """Read the key, or create it; see ``secret_file``.

    Raises:
        ArtefactError: the file cannot be read or written, others can read it, or it does not hold an intact key.
    """
    return load_or_create_key(path, "upload key", elsewhere="give another --key", mend="restore it from a copy")


def image_digest(key: bytes, x_0: Float32Array) -> bytes:
    """HMAC-SHA256 of (shape, image at 8 bits), 32 bytes: the seed of the image's path, as secret as the key.

    Args:
        x_0: (C, H, W) in [-1, 1]. Eight bits, so that a last-bit difference of two resizers is still the same image.
    """
    pixels = eight_bits(x_0)
    message = b"collafuse path " + struct.pack("<3I", *x_0.shape) + pixels.tobytes()
    return hmac.new(key, message, hashlib.sha256).digest()
