"""The ledger knows what was released: second looks are warned of or refused, and nothing is released unrecorded."""

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from command_line import done, refusal

from collafuse_edge.data import load_images
from collafuse_edge.settings import UploadSettings
from collafuse_edge.upload import Uploaded, upload_images
from collafuse_edge.upload import release as releasing
from collafuse_edge.upload.key import image_digest, load_or_create_upload_key
from collafuse_edge.upload.ledger import Ledger, ledger_path, locked, read_ledger, write_ledger
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.errors import ArtefactError, CheckFailed, InputError
from collafuse_runtimes.files.sealed import sha256_file, write_json

SHAPE = (1, 32, 32)
PLAN = SplitPlan(SHAPE, cut_ratio=0.3)
IMAGES = load_images("phantom:0:24:5", SHAPE).images
Images = npt.NDArray[np.float32]


def one_pixel_off(images: Images) -> Images:
    changed = images.copy()
    changed[:, 0, 9, 9] += np.where(changed[:, 0, 9, 9] < 0, 1, -1).astype(np.float32) / 127.5
    return changed


def noisy(images: Images) -> Images:
    noise = np.random.default_rng(0).normal(0, 2 / 127.5, images.shape)
    return np.clip(images + noise, -1, 1).astype(np.float32)


class Site:
    def __init__(self, folder: Path) -> None:
        self.folder, self.key, self.count = folder, folder / "key", 0

    def upload(self, images: Images, plan: SplitPlan = PLAN, protocol: str = "upload", **options: bool) -> Uploaded:
        self.count += 1
        settings = UploadSettings(protocol=protocol, key=self.key, **options)
        return upload_images(self.folder / f"{self.count}.s", images, plan, settings)

    def kinds(self, images: Images, plan: SplitPlan = PLAN, protocol: str = "upload") -> dict[str, int]:
        found = self.upload(images, plan, protocol)
        return {finding.kind: finding.count for finding in (*found.warnings, *found.notes)}

    def releases(self) -> int:
        ledger = read_ledger(ledger_path(self.key), load_or_create_upload_key(self.key).key, self.key)
        assert ledger is not None
        return len(ledger.releases)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A site that released IMAGES[:12] once."""
    made = Site(tmp_path)
    assert made.kinds(IMAGES[:12]) == {"new-key": 0}
    return made


def test_what_was_released_is_no_news(site: Site) -> None:
    assert site.kinds(IMAGES[:12]) == {"same-level": 12}
    assert site.kinds(IMAGES[:12], PLAN.with_cut_ratio(0.6)) == {"noisier-level": 12}
    assert site.kinds(IMAGES[6:18]) == {"same-level": 6}
    assert site.kinds(IMAGES[18:]) == {}
    site.upload(IMAGES[:12], strict=True)


def test_a_cleaner_level_is_warned_of(site: Site) -> None:
    assert site.kinds(IMAGES[:16], PLAN.with_cut_ratio(0.2)) == {"cleaner-level": 12}
    assert site.kinds(IMAGES[:16], PLAN.with_cut_ratio(0.2)) == {"same-level": 16}
    assert site.kinds(IMAGES[:16], PLAN) == {"noisier-level": 16}
    assert site.kinds(IMAGES[:16], protocol="paper") == {"cleaner-level": 16}
    assert site.kinds(IMAGES[:16], protocol="paper") == {"same-level": 16}
    assert site.kinds(IMAGES[:16], PLAN.with_cut_ratio(0.1)) == {"noisier-level": 16}


@pytest.mark.parametrize("change", [one_pixel_off, noisy])
def test_near_copies_of_released_images_are_warned_of(site: Site, change: Callable[[Images], Images]) -> None:
    assert site.kinds(change(IMAGES[4:16])) == {"near-released": 8}


def test_near_copies_within_a_set_are_warned_of(site: Site) -> None:
    together = np.concatenate([IMAGES[12:], one_pixel_off(IMAGES[12:15]), IMAGES[12:15]])
    found = site.upload(together)
    assert [(w.kind, w.count) for w in found.warnings] == [("near-each-other", 6)]
    assert "6 of 15 images look like others of this set (first: images 0 and 12 of the data)" in found.warnings[0].text
    assert site.kinds(together) == {"same-level": 15}


def test_blank_images_are_counted_not_listed(site: Site) -> None:
    blank = np.linspace(-0.9, 0.9, 200, dtype=np.float32)[:, None, None, None] * np.ones((1, *SHAPE), np.float32)
    assert site.kinds(blank) == {"near-each-other": 200}


@pytest.mark.parametrize("side", [16, 64])
def test_another_size_of_a_released_image_is_recognised(site: Site, side: int) -> None:
    if side == 64:
        other = IMAGES.repeat(2, axis=2).repeat(2, axis=3)
    else:
        other = IMAGES.reshape(-1, 1, 16, 2, 16, 2).mean(axis=(3, 5))
    assert site.kinds(other[:12], SplitPlan((1, side, side), cut_ratio=0.3)) == {"near-released": 12}
    colour = np.repeat(IMAGES[:12], 3, axis=1)
    assert site.kinds(colour, SplitPlan((3, 32, 32), cut_ratio=0.3)) == {"near-released": 12}


@pytest.mark.parametrize(
    ("images", "plan", "reason"),
    [
        (one_pixel_off(IMAGES[:2]), PLAN, "2 of 2 images look like ones released before"),
        (np.concatenate([IMAGES[12:14], one_pixel_off(IMAGES[12:13])]), PLAN, "2 of 3 images look like others of this"),
        (IMAGES[:12], PLAN.with_cut_ratio(0.29), "12 of 12 images were released at a noisier level before"),
    ],
)
def test_strict_refuses_and_makes_nothing(site: Site, images: Images, plan: SplitPlan, reason: str) -> None:
    before = {path.name: path.read_bytes() for path in site.folder.iterdir()}
    with pytest.raises(CheckFailed, match=f"^refused by --strict: {reason}") as refused:
        site.upload(images, plan, strict=True)
    assert refused.value.exit_code == 1
    assert {path.name: path.read_bytes() for path in site.folder.iterdir()} == before


def test_strict_makes_no_key(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match=f"there is no key {tmp_path}/key; restore it"):
        Site(tmp_path).upload(IMAGES, strict=True)
    assert not any(tmp_path.iterdir())


def test_the_command_always_says_that_it_made_a_key(tmp_path: Path) -> None:
    done("init", "--size", 16, "--out", tmp_path / "plan.json")
    upload = ("upload", "--data", "phantom:0:3", "--plan", tmp_path / "plan.json", "--key")
    out = done(*upload, tmp_path / "a.key", "--out", tmp_path / "a")
    assert f"warning   new key {tmp_path}/a.key: an image uploaded before with another key gets a second look" in out
    assert "new key" not in done(*upload, tmp_path / "a.key", "--out", tmp_path / "b")
    found = json.loads(done(*upload, tmp_path / "c.key", "--out", tmp_path / "c", "--json"))
    assert (found["key_created"], [warning["kind"] for warning in found["warnings"]]) == (True, ["new-key"])
    assert "refused by --strict" in refusal(*upload, tmp_path / "d.key", "--out", tmp_path / "d", "--strict", code=1)


def test_a_key_that_lost_its_ledger_is_told(site: Site) -> None:
    ledger_path(site.key).unlink()
    with pytest.raises(CheckFailed, match="no ledger beside"):
        site.upload(IMAGES[:12], strict=True)
    assert site.kinds(IMAGES[:12]) == {"no-ledger": 0}
    assert site.kinds(IMAGES[:12]) == {"same-level": 12}


def test_a_foreign_ledger_is_refused_and_left_alone(site: Site, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Site(tmp_path / "other")
    other.upload(IMAGES)
    shutil.copy(ledger_path(other.key), ledger_path(site.key))
    before = ledger_path(site.key).read_bytes()
    with pytest.raises(ArtefactError, match=r"is not the key that .* was kept with: the key was changed, or"):
        site.upload(IMAGES)
    assert ledger_path(site.key).read_bytes() == before


def test_a_damaged_or_edited_ledger_is_refused(site: Site) -> None:
    path, key = ledger_path(site.key), load_or_create_upload_key(site.key).key
    whole = path.read_bytes()
    for position in range(5, len(whole) - 5, 97):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(ArtefactError, match=r"it is the ledger of what was uploaded|sha256"):
            site.upload(IMAGES)
    for length in (0, 1, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.raises(ArtefactError, match="or move it away to begin a new one"):
            site.upload(IMAGES)
    path.write_bytes(whole)
    ledger = read_ledger(path, key, site.key)
    assert ledger is not None
    write_ledger(path, b"another key".ljust(32), ledger)  # sealed again, by one who has not the key
    forged = json.loads(path.read_text())
    genuine = json.loads(whole)
    forged["key_check"] = genuine["key_check"]
    write_json(path, "collafuse-ledger", {k: forged[k] for k in ("key_check", "releases", "hmac")})
    with pytest.raises(ArtefactError, match="was edited: it is not signed with"):
        site.upload(IMAGES)


def test_the_record_stands_before_the_shard(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash between the two leaves an entry too many, never a shard unrecorded."""

    def crash_after(path: Path, key: bytes, ledger: Ledger) -> None:
        write_ledger(path, key, ledger)
        raise KeyboardInterrupt

    monkeypatch.setattr(releasing, "write_ledger", crash_after)
    with pytest.raises(KeyboardInterrupt):
        site.upload(IMAGES[12:])
    assert site.releases() == 2
    assert sorted(p.name for p in site.folder.iterdir()) == ["1.s", "key", "key.ledger.json"]
    monkeypatch.undo()
    assert site.kinds(IMAGES[12:]) == {"same-level": 12}
    entry = json.loads(ledger_path(site.key).read_text())["releases"][-1]
    assert entry["shard_sha256"] == sha256_file(site.folder / f"{site.count}.s")


def test_a_record_that_cannot_be_written_releases_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise ArtefactError("cannot write the ledger: No space left on device")

    monkeypatch.setattr(releasing, "write_ledger", full)
    with pytest.raises(ArtefactError, match="No space left"):
        site.upload(IMAGES[12:])
    assert sorted(p.name for p in site.folder.iterdir()) == ["1.s", "key", "key.ledger.json"]


def test_uploads_at_once_are_all_recorded(site: Site) -> None:
    def upload(i: int) -> Uploaded:
        return upload_images(site.folder / f"p{i}", IMAGES[i : i + 4], PLAN, UploadSettings(key=site.key))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(upload, range(8)))
    assert site.releases() == 9


def test_a_ledger_held_too_long_is_one_line(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collafuse_edge.upload.ledger.LOCK_SECONDS", 0.1)
    with locked(site.key), pytest.raises(ArtefactError, match="another upload has been using"):
        site.upload(IMAGES)
    site.upload(IMAGES)


def test_links_to_one_key_share_its_ledger(site: Site, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    linked = Site(tmp_path / "elsewhere")
    linked.key.symlink_to(site.key)
    assert linked.kinds(IMAGES[:12]) == {"same-level": 12}
    assert site.releases() == 2


def test_neither_key_nor_ledger_is_a_shards_name(site: Site) -> None:
    for name in ("key", "key.ledger.json"):
        with pytest.raises(InputError, match="is the key or its ledger"):
            upload_images(site.folder / name, IMAGES, PLAN, UploadSettings(key=site.key))
    os.link(site.key, site.folder / "hard")
    assert site.releases() == 1


def test_the_ledger_gives_away_neither_noise_nor_hash(site: Site) -> None:
    text = ledger_path(site.key).read_text()
    key = load_or_create_upload_key(site.key).key
    secrets = [key.hex(), *(image_digest(key, x).hex()[:16] for x in IMAGES[:12])]
    assert not [secret for secret in secrets if secret in text]
    site.upload(IMAGES[:12])
    first, second = json.loads(ledger_path(site.key).read_text())["releases"]
    assert first["images"] == second["images"]
    apart = np.unpackbits(np.frombuffer(bytes.fromhex(first["hashes"]), np.uint8)) != np.unpackbits(
        np.frombuffer(bytes.fromhex(second["hashes"]), np.uint8)
    )
    assert abs(apart.mean() - 0.5) < 4 * 0.5 / apart.size**0.5
