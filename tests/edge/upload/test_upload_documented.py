"""docs/formats.md on upload noise, key and ledger, followed by hand with hmac, struct and numpy alone."""

import hashlib
import hmac
import json
import math
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from places import ROOT

from collafuse_edge.settings import UploadSettings
from collafuse_edge.upload import upload_images
from collafuse_edge.upload.shard import NOISE_POLICY, read_shard
from collafuse_runtimes.diffusion.plan import SplitPlan

FORMATS = (ROOT / "docs" / "formats.md").read_text()
L = 128 * 2**16
X_0 = np.random.default_rng(0).integers(0, 256, (3, 3, 9, 12)).astype(np.float32) / 127.5 - 1


def section(name: str) -> str:
    return FORMATS.split(f"\n## {name}\n")[1].split("\n## ")[0]


def table(name: str, nth: int = 0) -> list[str]:
    rows = section(name).split("|---|---|\n")[nth + 1].split("\n\n")[0].splitlines()
    return sorted(row.split("|")[1].strip().strip("`") for row in rows)


def tau(index: int) -> float:
    o, r = divmod(index, 2**16)
    return 2.0 ** (o - 48) * (1 + r / 2**16) if o else 2.0**-47 * r / 2**16


def nodes(s: float) -> list[tuple[int, float]]:
    """By the section 'Upload noise', word by word; the grid index by bisection instead of float arithmetic."""
    low, high = 0, L
    while high - low > 1:
        low, high = (low, (low + high) // 2) if s < tau((low + high) // 2) else ((low + high) // 2, high)
    k = low if s - tau(low) < tau(high) - s else high
    found, lower, upper = [(L, tau(k) / tau(L) ** 0.5)], 0, L
    while k not in (lower, upper):
        m = (lower + upper) // 2
        a, b = tau(lower), tau(upper)
        weight = math.sqrt((tau(m) - a) * (b - tau(m)) / (b - a))
        weight *= (tau(k) - a) / (tau(m) - a) if k <= m else (b - tau(k)) / (b - tau(m))
        found.append((m, weight))
        lower, upper = (lower, m) if k <= m else (m, upper)
    return found


def digest_of(key: bytes, x_0: np.ndarray) -> bytes:
    pixels = np.round((x_0 + 1) * 127.5).astype(np.uint8)
    return hmac.new(key, b"collafuse path " + struct.pack("<III", *x_0.shape) + pixels.tobytes(), "sha256").digest()


def draw(digest: bytes, node: int, shape: tuple[int, ...]) -> np.ndarray:
    bits = np.random.Philox(0)
    state, words = bits.state, struct.unpack("<4Q", digest)
    state["state"]["key"][:], state["state"]["counter"][:] = words[:2], (0, node, *words[2:])  # type: ignore[index]
    state["buffer_pos"], state["has_uint32"] = 4, 0
    bits.state = state
    return np.random.Generator(bits).standard_normal(shape, dtype=np.float32)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    plan = SplitPlan(X_0.shape[1:], cut_ratio=0.2)
    upload_images(tmp_path / "s", X_0, plan, UploadSettings(key=tmp_path / "key", dtype="float32"))
    return tmp_path


def key_of(site: Path) -> bytes:
    """By the section 'Upload key'."""
    text = (site / "key").read_text()
    found = re.fullmatch(r"collafuse-upload-key 2 ([0-9a-f]{64}) ([0-9a-f]{16})\n", text)
    assert found
    assert found[2] == hashlib.sha256(text[:87].encode()).hexdigest()[:16]
    return bytes.fromhex(found[1])


def test_a_stranger_draws_the_same_noise(site: Path) -> None:
    key, shard = key_of(site), read_shard(site / "s")
    alpha_bar_n = shard.plan.alpha_bar_at(19)
    digests = sorted((digest_of(key, x), i) for i, x in enumerate(X_0))
    for row, (digest, i) in enumerate(digests):
        noise = np.zeros(X_0.shape[1:])
        for node, weight in nodes((1 - alpha_bar_n) / alpha_bar_n):
            noise += weight * draw(digest, node, noise.shape).astype(np.float64)
        x_n = (alpha_bar_n**0.5 * (X_0[i] + noise)).astype(np.float32)
        assert x_n == pytest.approx(shard.images[row], abs=1e-6)


def test_the_noise_policies_are_in_the_text() -> None:
    text = " ".join(section("Shard").split())
    assert all(f"`{policy}`" in text for policy in NOISE_POLICY.values())


def test_a_stranger_reads_the_ledger(site: Path) -> None:
    key, path = key_of(site), site / "key.ledger.json"
    ledger = json.loads(path.read_text())
    assert path.stat().st_mode & 0o777 == 0o600
    assert table("Ledger") == sorted(ledger.keys() - {"format", "version", "sha256"})
    (release,) = ledger["releases"]
    assert table("Ledger", 1) == sorted(release)
    assert ledger["format"] == "collafuse-ledger"

    def keyed(message: bytes) -> bytes:
        return hmac.new(key, message, "sha256").digest()

    assert ledger["key_check"] == keyed(b"collafuse key check").hex()[:32]
    body = {"key_check": ledger["key_check"], "releases": ledger["releases"]}
    text = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    assert ledger["hmac"] == keyed(b"collafuse ledger " + text).hex()
    assert release["shard_sha256"] == hashlib.sha256((site / "s").read_bytes()).hexdigest()
    assert (release["level"], release["size"], release["protocol"]) == (19, [9, 12], "upload")
    ids = {keyed(b"collafuse ledger image " + digest_of(key, x)).hex()[:32]: x for x in X_0}
    assert release["images"] == sorted(ids)
    hashes = bytes.fromhex(release["hashes"])
    stream_key = keyed(b"collafuse ledger hashes " + bytes.fromhex(release["nonce"]))
    stream = hashlib.shake_256(stream_key).digest(len(hashes))
    plain = bytes(a ^ b for a, b in zip(hashes, stream, strict=True))
    assert plain == b"".join(hash_of(ids[name]) for name in release["images"])


def hash_of(x_0: np.ndarray) -> bytes:
    """The 256 bits one by one."""
    grey, (height, width) = x_0.astype(np.float64).mean(axis=0) * 127.5, x_0.shape[1:]
    i, j = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    bits = 0
    for u in range(16):
        for v in range(16):
            coefficient = (np.outer(np.cos(math.pi * u * i), np.cos(math.pi * v * j)) * grey).mean()
            seen = u < height and v < width and (u, v) != (0, 0)
            bits = 2 * bits + int(seen and coefficient > 0.001)
    return bits.to_bytes(32, "big")
