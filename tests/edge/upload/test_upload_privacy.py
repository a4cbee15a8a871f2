"""A shard holds each image once, noised to the hand-over level, and not a byte more."""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from command_line import done
from PIL import Image

from collafuse_edge.upload import make_shard
from collafuse_edge.upload.brownian import level_time, path_value, path_weights
from collafuse_edge.upload.key import image_digest
from collafuse_edge.upload.shard import write_shard
from collafuse_runtimes.diffusion.noise import gaussian_noise
from collafuse_runtimes.diffusion.plan import SplitPlan

KEY = bytes(range(32))
SHAPE = (1, 16, 16)
PIXELS = 256


def images(count: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-1, 1, (count, *SHAPE)).astype(np.float32)


def rows_of(x_0: npt.NDArray[np.float32], plan: SplitPlan, key: bytes = KEY) -> npt.NDArray[np.float32]:
    """x_n in the order of ``x_0``: one image at a time, since one image is always noised alike."""
    return np.concatenate([make_shard(x_0[i : i + 1], plan, key).images for i in range(len(x_0))])


def noise_of(x_0: npt.NDArray[np.float32], plan: SplitPlan, key: bytes = KEY) -> npt.NDArray[np.float64]:
    """z of x_n = sqrt(alpha_bar_n) x_0 + sqrt(1 - alpha_bar_n) z."""
    alpha_bar_n = plan.alpha_bar_at(plan.handover_level)
    x_n = rows_of(x_0, plan, key).astype(np.float64)
    return (x_n - alpha_bar_n**0.5 * x_0) / (1 - alpha_bar_n) ** 0.5


def correlation(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def dissect(path: Path) -> tuple[dict[str, Any], bytes]:
    """A safetensors file by its specification: 8 bytes length, JSON header, tensors."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_every_byte_is_header_or_x_n(tmp_path: Path, dtype: str) -> None:
    plan, x_0 = SplitPlan(SHAPE, cut_ratio=0.3), images(5)
    shard = make_shard(x_0, plan, KEY)
    write_shard(tmp_path / "s", shard, dtype)
    header, rest = dissect(tmp_path / "s")
    assert rest == shard.images.astype(dtype).tobytes()
    assert set(header) == {"__metadata__", "x_n"}
    code = {"float16": "F16", "float32": "F32"}[dtype]
    assert header["x_n"] == {"dtype": code, "shape": [5, *SHAPE], "data_offsets": [0, len(rest)]}
    assert set(header["__metadata__"]) == {"collafuse"}
    payload = json.loads(header["__metadata__"]["collafuse"])
    stated = payload.pop("sha256")
    assert payload == {
        "format": "collafuse-shard",
        "version": 1,
        "plan": plan.to_dict(),
        "fingerprint": plan.fingerprint,
        "protocol": "upload",
        "level": 29,
        "count": 5,
        "noise_policy": "one Brownian path per image over s = (1 - alpha_bar) / alpha_bar, keyed by a client secret",
    }
    digest = hashlib.sha256(json.dumps(payload, sort_keys=True, separators=(",", ":")).encode())
    digest.update(json.dumps(["x_n", f"<f{2 if code == 'F16' else 4}", [5, *SHAPE]], separators=(",", ":")).encode())
    digest.update(rest)
    assert stated == digest.hexdigest()  # of what is in the file, so it says nothing about x_0


def test_the_command_lets_no_name_label_key_or_image_through(tmp_path: Path) -> None:
    for label in ("carcinoma", "healthy"):
        (tmp_path / "patients" / label).mkdir(parents=True)
        for i in range(3):
            pixels = np.random.default_rng(i).integers(0, 256, SHAPE[1:], dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "patients" / label / f"mrs-smith-{i}.png")
    done("init", "--size", 16, "--out", tmp_path / "plan.json")
    where = ("--key", tmp_path / "secret.key", "--out", tmp_path / "shard")
    done("upload", "--data", tmp_path / "patients", "--plan", tmp_path / "plan.json", *where)
    written = (tmp_path / "shard").read_bytes()
    key = (tmp_path / "secret.key").read_text().split()[2]
    for word in (b"smith", b"carcinoma", b"healthy", b"patients", b"png", key.encode(), bytes.fromhex(key)):
        assert word not in written
    header, rest = dissect(tmp_path / "shard")
    assert list(header["x_n"]["shape"]) == [6, *SHAPE]
    assert len(rest) == 6 * PIXELS * 2


@pytest.mark.parametrize("cut_ratio", [0.1, 0.5, 0.9])
def test_x_n_is_the_image_plus_white_unit_noise(cut_ratio: float) -> None:
    plan, x_0 = SplitPlan(SHAPE, cut_ratio=cut_ratio), images(200)
    z = noise_of(x_0, plan)
    n = z.size  # bounds: four standard errors
    assert abs(z.mean()) < 4 / n**0.5
    assert abs(z.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs((z**4).mean() - 3) < 4 * (96 / n) ** 0.5
    assert abs(correlation(z, x_0)) < 4 / n**0.5
    assert abs(correlation(z[:-1], z[1:])) < 4 / n**0.5
    assert abs(correlation(z[..., :-1], z[..., 1:])) < 4 / n**0.5
    assert abs(correlation(z[..., :-1, :], z[..., 1:, :])) < 4 / n**0.5


@pytest.mark.parametrize("cut_ratio", [0.2, 0.5, 0.8, 0.95])
def test_a_row_shows_no_more_of_its_image_than_alpha_bar_allows(cut_ratio: float) -> None:
    plan, x_0 = SplitPlan(SHAPE, cut_ratio=cut_ratio), images(100)
    alpha_bar_n = plan.alpha_bar_at(plan.handover_level)
    x_n = rows_of(x_0, plan)
    found = [correlation(a, b) for a, b in zip(x_n, x_0, strict=True)]
    signal = alpha_bar_n * x_0.var()
    allowed = (signal / (signal + 1 - alpha_bar_n)) ** 0.5
    spread = (1 - allowed**2) / PIXELS**0.5
    assert max(found) < allowed + 4.5 * spread
    assert abs(np.mean(found) - allowed) < 4.5 * spread / 10


def test_the_noise_cannot_be_computed_from_what_is_public() -> None:
    plan, x_0 = SplitPlan(SHAPE, cut_ratio=0.5), images(4)
    z = noise_of(x_0, plan)
    weights = path_weights(level_time(plan.alpha_bar_at(plan.handover_level)))
    public = [
        b"",
        bytes(32),
        bytes.fromhex(plan.fingerprint),
        b"collafuse upload",
        KEY[:31],
        KEY[::-1],
        KEY.hex().encode(),
    ]
    for i, image in enumerate(x_0):
        assert correlation(path_value(image_digest(KEY, image), weights, SHAPE), z[i]) > 0.9999
        guesses = [path_value(image_digest(key, image), weights, SHAPE) for key in public]
        guesses += [gaussian_noise(seed, i, plan.handover_level, SHAPE) for seed in range(20)]
        assert max(abs(correlation(guess, z[i])) for guess in guesses) < 5 / PIXELS**0.5


def test_the_order_of_rows_does_not_follow_the_folder() -> None:
    plan, count = SplitPlan(SHAPE, cut_ratio=0.2), 200
    x_0 = images(count) * 0.1
    x_0[: count // 2] -= 0.8  # a class of dark images first, then one of bright images
    x_0[count // 2 :] += 0.8
    shard = make_shard(x_0, plan, KEY)
    is_bright = shard.images.mean(axis=(1, 2, 3)) > 0
    assert is_bright.sum() == count // 2
    position = np.arange(count)
    assert abs(correlation(is_bright, position)) < 4 / count**0.5
    runs = 1 + np.count_nonzero(is_bright[1:] != is_bright[:-1])  # 101 expected, 7.1 standard deviation
    assert 70 < runs < 130
    assert np.array_equal(shard.images, make_shard(x_0, plan, KEY).images)
    assert not np.array_equal(shard.images, make_shard(x_0, plan, KEY[::-1]).images)


def test_the_images_given_are_not_changed() -> None:
    x_0 = images(3)
    before = x_0.copy()
    make_shard(x_0, SplitPlan(SHAPE, cut_ratio=0.5), KEY)
    assert np.array_equal(x_0, before)
