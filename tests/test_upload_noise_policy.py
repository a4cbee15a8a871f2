"""One image at one level is noised once, however often, in whatever order and company it is uploaded."""

import hmac
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collafuse_edge.upload import make_shard, upload_images
from collafuse_edge.upload_key import default_key_path, image_digest, load_or_create_upload_key, noise_from_digest
from collafuse_runtimes.errors import ArtefactError
from collafuse_runtimes.plan import SplitPlan

KEY = bytes(range(32))
SHAPE = (1, 8, 8)
PLAN = SplitPlan(SHAPE, cut_ratio=0.3)
IMAGES = np.random.default_rng(1).uniform(-1, 1, (12, *SHAPE)).astype(np.float32)


def row(image: npt.NDArray[np.float32], plan: SplitPlan = PLAN, key: bytes = KEY) -> bytes:
    return make_shard(image[None], plan, key).images.tobytes()


def noise(x_0: npt.NDArray[np.float32], plan: SplitPlan, key: bytes = KEY) -> npt.NDArray[np.float64]:
    alpha_bar_n = plan.alpha_bar_at(plan.handover_level)
    x_n = np.concatenate([make_shard(image[None], plan, key).images for image in x_0])
    return (x_n.astype(np.float64) - alpha_bar_n**0.5 * x_0) / (1 - alpha_bar_n) ** 0.5


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, len(IMAGES) - 1), min_size=1, max_size=30))
def test_any_order_subset_and_repetition_gives_the_same_rows(chosen: list[int]) -> None:
    shard = make_shard(IMAGES[chosen], PLAN, KEY)
    assert sorted(x_n.tobytes() for x_n in shard.images) == sorted(row(IMAGES[i]) for i in chosen)


def test_uploading_again_writes_the_same_file(tmp_path: Path) -> None:
    for name, order in (("first", slice(None)), ("again", slice(None)), ("reversed", slice(None, None, -1))):
        upload_images(tmp_path / name, IMAGES[order], PLAN, "upload", key=tmp_path / "key")
    first = (tmp_path / "first").read_bytes()
    assert (tmp_path / "again").read_bytes() == first
    assert (tmp_path / "reversed").read_bytes() == first


def test_a_rounding_error_of_a_resizer_is_the_same_image() -> None:
    eight_bits = (np.arange(64, dtype=np.float32).reshape(SHAPE) / 127.5) - 1
    x_n, again = (np.frombuffer(row(x), np.float32) for x in (eight_bits, eight_bits + np.float32(1e-6)))
    assert np.abs(x_n - again).max() < 2e-6


def independent(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> bool:
    return abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / a.size**0.5


def test_another_level_key_or_image_gets_independent_noise() -> None:
    here = noise(IMAGES, PLAN)
    for cut_ratio in (0.29, 0.31, 0.6):
        assert independent(here, noise(IMAGES, PLAN.with_cut_ratio(cut_ratio)))
    assert independent(here, noise(IMAGES, SplitPlan(SHAPE, timesteps=101, cut_ratio=0.3)))
    assert independent(here, noise(IMAGES, SplitPlan(SHAPE, schedule="linear", cut_ratio=0.3)))
    assert independent(here, noise(IMAGES, PLAN, key=KEY[:31] + b"\xff"))
    one_pixel_off = IMAGES.copy()
    one_pixel_off[:, 0, 0, 0] += np.where(one_pixel_off[:, 0, 0, 0] < 0, 0.01, -0.01)
    assert independent(here, noise(one_pixel_off, PLAN))


def test_a_level_is_what_counts_not_the_ratio_that_led_to_it() -> None:
    assert row(IMAGES[0], PLAN.with_cut_ratio(0.301)) == row(IMAGES[0])


def test_the_noise_is_the_same_on_every_machine_and_in_every_release() -> None:
    """Numbers that must never change: a client's second release of an image would be a second look at it."""
    x_0 = np.linspace(-1, 1, 6, dtype=np.float32).reshape(1, 2, 3)
    pixels = bytes([0, 51, 102, 153, 204, 255])
    message = b"collafuse upload 7.869105112e-01" + struct.pack("<3I", 1, 2, 3) + pixels
    alpha_bar_n = PLAN.alpha_bar_at(29)
    digest = image_digest(KEY, x_0, alpha_bar_n)
    assert digest == hmac.new(KEY, message, "sha256").digest()
    expected = [1.3845717, 0.8666418, 1.1747533, -0.16656174, -0.07356647, 0.14652997]
    assert noise_from_digest(digest, (1, 2, 3)).ravel().tolist() == pytest.approx(expected, rel=1e-6)
    for neighbour in (np.nextafter(alpha_bar_n, 0), np.nextafter(alpha_bar_n, 1)):  # another machine's cosine
        assert image_digest(KEY, x_0, float(neighbour)) == digest
    assert image_digest(KEY, x_0.reshape(1, 3, 2), alpha_bar_n) != digest


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_every_level_of_a_plan_has_noise_of_its_own(schedule: str) -> None:
    levels = SplitPlan((1, 1, 1), timesteps=1000, schedule=schedule).alpha_bar
    assert len({image_digest(KEY, IMAGES[0], float(level)) for level in levels}) == 1000


def test_the_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "config" / "upload.key"
    key = load_or_create_upload_key(path)
    assert len(key) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text() == key.hex() + "\n"
    before = path.stat().st_mtime_ns
    assert load_or_create_upload_key(path) == key
    assert path.stat().st_mtime_ns == before
    assert load_or_create_upload_key(tmp_path / "other.key") != key
    assert sorted(p.name for p in path.parent.iterdir()) == ["upload.key"]


def test_first_uploads_at_once_share_one_key(tmp_path: Path) -> None:
    for attempt in range(10):
        path, gate = tmp_path / f"{attempt}.key", Barrier(4)

        def first_upload(path: Path = path, gate: Barrier = gate) -> bytes:
            gate.wait()
            return load_or_create_upload_key(path)

        with ThreadPoolExecutor(4) as pool:
            keys = {future.result() for future in [pool.submit(first_upload) for _ in range(4)]}
        assert keys == {bytes.fromhex(path.read_text())}


@pytest.mark.parametrize(
    "damage", [b"", b"00" * 31, b"00" * 33, b"zz" * 32, b"\xff\xfe" * 16, bytes(range(32)), b"0" * 63 + b"\n"]
)
def test_a_damaged_key_is_refused_and_left_alone(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(damage)
    with pytest.raises(ArtefactError, match=r"does not hold an upload key \(valid: 64 hex digits\); restore it$"):
        load_or_create_upload_key(path)
    assert path.read_bytes() == damage


def test_a_folder_is_no_key(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="cannot read"):
        load_or_create_upload_key(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtefactError, match="give another --key"):
        load_or_create_upload_key(tmp_path / "file" / "upload.key")


def test_the_key_lives_in_the_users_configuration_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert default_key_path() == tmp_path / "xdg" / "collafuse-edge" / "upload.key"
    upload_images(tmp_path / "shard", IMAGES, PLAN, "upload")
    made = tmp_path / "xdg" / "collafuse-edge" / "upload.key"
    assert made.stat().st_mode & 0o777 == 0o600
    assert made.parent.stat().st_mode & 0o777 == 0o700
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_key_path() == tmp_path / "home" / ".config" / "collafuse-edge" / "upload.key"
