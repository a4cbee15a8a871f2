"""Shards and keys of the release before the noise path are read; their noise was drawn otherwise, and that is said."""

from pathlib import Path

import numpy as np
import pytest
from places import DATA

from collafuse_edge.data import load_images
from collafuse_edge.settings import UploadSettings
from collafuse_edge.training.tasks import ServerTask
from collafuse_edge.upload import upload_images
from collafuse_edge.upload.key import load_or_create_upload_key
from collafuse_edge.upload.shard import NOISE_POLICY, OLDER_NOISE_POLICY, read_shard
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.errors import ArtefactError, CheckFailed
from collafuse_runtimes.files.sealed import read_tensors, write_tensors

OLD = DATA / "old_release"
PLAN = SplitPlan((1, 8, 8), timesteps=20, cut_ratio=0.3)
X_0 = load_images("phantom:0:4:7", (1, 8, 8)).images


@pytest.fixture
def old_key(tmp_path: Path) -> Path:
    path = tmp_path / "upload.key"
    path.touch(0o600)
    path.write_bytes((OLD / "upload.key").read_bytes())
    return path


def test_old_shards_are_read_and_trained_on() -> None:
    upload, paper = read_shard(OLD / "upload.shard.safetensors"), read_shard(OLD / "paper.shard.safetensors")
    assert (upload.plan, upload.protocol, upload.images.shape) == (PLAN, "upload", (4, 1, 8, 8))
    assert (paper.plan, paper.protocol, len(paper)) == (PLAN, "paper", 2)
    assert len(ServerTask.from_files([OLD / "upload.shard.safetensors"])) == 4


def test_a_noise_policy_nobody_wrote_is_refused(tmp_path: Path) -> None:
    for policy, protocol in (
        ("none", "upload"),
        (OLDER_NOISE_POLICY["upload"], "paper"),
        (NOISE_POLICY["paper"], "upload"),
    ):
        source = OLD / f"{protocol}.shard.safetensors"
        tensors, payload = read_tensors(source, "collafuse-shard")
        write_tensors(tmp_path / "s", "collafuse-shard", tensors, {**payload, "noise_policy": policy})
        with pytest.raises(ArtefactError, match="noise_policy is "):
            read_shard(tmp_path / "s")


def test_an_old_key_is_read_and_a_second_look_warned_of(tmp_path: Path, old_key: Path) -> None:
    secret = load_or_create_upload_key(old_key)
    assert (secret.key.hex(), secret.has_checksum) == (old_key.read_text().strip(), False)
    before = old_key.read_bytes()
    with pytest.raises(CheckFailed, match=r"refused by --strict: .* is a key of an older release"):
        upload_images(tmp_path / "s", X_0, PLAN, UploadSettings(key=old_key, strict=True))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["upload.key"]
    for kinds in (["old-key", "no-ledger"], ["old-key"]):
        done = upload_images(tmp_path / "s", X_0, PLAN, UploadSettings(key=old_key))
        assert [w.kind for w in done.warnings if w.count == 0] == kinds
        assert not done.key_created
    assert old_key.read_bytes() == before


def test_the_warning_is_true_old_and_new_noise_are_two_looks(tmp_path: Path, old_key: Path) -> None:
    upload_images(tmp_path / "s", X_0, PLAN, UploadSettings(key=old_key, dtype="float32"))
    alpha_bar_n = PLAN.alpha_bar_at(5)
    noise = []
    for path in (OLD / "upload.shard.safetensors", tmp_path / "s"):
        rows = read_shard(path).images / alpha_bar_n**0.5
        nearest = [int(((rows - x) ** 2).mean(axis=(1, 2, 3)).argmin()) for x in X_0]
        noise.append((rows[nearest] - X_0).ravel())
    assert abs(np.corrcoef(noise)[0, 1]) < 4 / noise[0].size ** 0.5


@pytest.mark.parametrize("position", [0, 31, 63])
def test_a_changed_digit_of_an_old_key_is_found_by_the_ledger(tmp_path: Path, old_key: Path, position: int) -> None:
    upload_images(tmp_path / "s", X_0, PLAN, UploadSettings(key=old_key))
    digits = bytearray(old_key.read_bytes())
    digits[position] = ord("0") if digits[position] != ord("0") else ord("1")
    old_key.write_bytes(bytes(digits))
    with pytest.raises(ArtefactError, match=r"is not the key that .*ledger\.json was kept with"):
        upload_images(tmp_path / "t", X_0, PLAN, UploadSettings(key=old_key))
    assert not (tmp_path / "t").exists()
