"""What must not be uploaded is refused in one line; what discloses images says so."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import done, refusal, run_cli

from collafuse_edge.settings import UploadSettings
from collafuse_edge.upload import make_paper_shard, make_shard, upload_images
from collafuse_edge.upload.shard import Shard, read_shard, write_shard
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.errors import InputError

SHAPE = (1, 16, 16)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (6, *SHAPE)).astype(np.float32)
DATA = ("--data", "phantom:0:6")


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    done("init", "--size", 16, "--cut-ratio", 0.2, "--out", tmp_path / "plan.json")
    return tmp_path / "plan.json"


@pytest.mark.parametrize(
    ("cut_ratio", "reason"),
    [
        (0, "hands over at the clean level: an upload would be the images themselves; choose a larger cut_ratio"),
        (0.004, "hands over at the clean level"),
        (1, "leaves the server no step, so there is nothing to upload; choose a smaller one"),
        (0.996, "leaves the server no step"),
    ],
)
def test_cuts_that_leave_nothing_to_upload(tmp_path: Path, cut_ratio: float, reason: str) -> None:
    done("init", "--size", 16, "--cut-ratio", cut_ratio, "--out", tmp_path / "plan.json")
    where = ("--plan", tmp_path / "plan.json", "--out", tmp_path / "shard", "--key", tmp_path / "key")
    line = refusal("upload", *DATA, *where)
    assert f"cut_ratio {float(cut_ratio)} {reason}" in line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plan.json"]  # no shard, and no key made for nothing
    plan = SplitPlan(SHAPE, cut_ratio=cut_ratio)
    with pytest.raises(InputError, match=reason):
        make_shard(IMAGES, plan, bytes(32))
    with pytest.raises(InputError, match="leaves nothing to upload"):
        write_shard(tmp_path / "shard", Shard(plan, "upload", IMAGES))


def test_unknown_words_and_numbers_out_of_range(tmp_path: Path, plan_file: Path) -> None:
    upload = ("upload", *DATA, "--plan", plan_file, "--key", tmp_path / "key", "--out", tmp_path / "shard")
    assert "unknown protocol 'secret'; valid: upload, paper" in refusal(*upload, "--protocol", "secret")
    assert "unknown dtype 'float64'; valid: float16, float32" in refusal(*upload, "--dtype", "float64")
    assert "draws 0 out of range: must be at least 1" in refusal(*upload, "--protocol", "paper", "--draws", 0)
    assert "seed -1 out of range" in refusal(*upload, "--protocol", "paper", "--seed", -1)
    assert "cannot write" in refusal(*upload[:-1], tmp_path / "nowhere" / "shard")
    with pytest.raises(InputError, match=r"cut_ratio 1\.0 leaves the server no step"):
        make_paper_shard(IMAGES, SplitPlan(SHAPE, cut_ratio=1), 1, 0)


def test_images_that_are_not_finite_or_of_another_shape_are_refused(tmp_path: Path) -> None:
    broken = IMAGES.copy()
    broken[2, 0, 0, 0] = np.inf
    plan = SplitPlan(SHAPE, cut_ratio=0.2)
    with pytest.raises(InputError, match="NaN or Inf in 1 of 6"), np.errstate(invalid="ignore"):
        upload_images(tmp_path / "shard", broken, plan, UploadSettings(key=tmp_path / "key"))
    with pytest.raises(InputError, match=r"valid: \(N >= 1, 1, 16, 16\)"):
        upload_images(
            tmp_path / "shard", IMAGES[:, :, :8], plan, UploadSettings(protocol="paper", key=tmp_path / "key")
        )
    assert not (tmp_path / "shard").exists()


@pytest.mark.parametrize(("dtype", "accuracy"), [("float16", 4e-3), ("float32", 2e-6)])
def test_a_paper_shard_discloses_every_image(tmp_path: Path, dtype: str, accuracy: float) -> None:
    plan = SplitPlan(SHAPE, cut_ratio=0.2)
    upload_images(
        tmp_path / "shard",
        IMAGES,
        plan,
        UploadSettings(protocol="paper", key=tmp_path / "key", draws=40, seed=3, dtype=dtype),
    )
    shard = read_shard(tmp_path / "shard")
    assert shard.epsilon is not None
    assert shard.t is not None
    assert len(shard) == 240
    assert (shard.t.min(), shard.t.max()) == (20, 99)
    alpha_bar_t = plan.alpha_bar[shard.t][:, None, None, None]
    x_0 = (shard.images - (1 - alpha_bar_t) ** 0.5 * shard.epsilon) / alpha_bar_t**0.5
    error = np.abs(x_0[:, None] - IMAGES[None]).max(axis=(2, 3, 4))  # (240 rows, 6 images)
    assert (error.min(axis=1) * alpha_bar_t[:, 0, 0, 0] ** 0.5).max() < accuracy
    low = alpha_bar_t[:, 0, 0, 0] > 0.25
    assert error[low].min(axis=1).max() < 2 * accuracy
    assert set(error[low].argmin(axis=1)) == set(range(6))


def test_the_paper_protocol_warns_people_and_programs(tmp_path: Path, plan_file: Path) -> None:
    upload = ("upload", *DATA, "--plan", plan_file, "--key", tmp_path / "key")
    plain, paper = (*upload, "--out", tmp_path / "shard"), (*upload, "--protocol", "paper", "--draws", 2, "--out")
    out = done(*plain)
    assert "DISCLOSES" not in out
    assert "it is no proof of privacy" in out
    again = json.loads(done(*plain[:-1], tmp_path / "shard-again", "--json"))
    again["notes"] = [note for note in again["notes"] if note["kind"] != "data"]
    assert again == {
        "shard": str(tmp_path / "shard-again"), "count": 6, "protocol": "upload", "discloses_x_0": False, "level": 19,
        "key": str(tmp_path / "key"), "key_created": False, "ledger": str(tmp_path / "key.ledger.json"), "warnings": [],
        "notes": [{
            "kind": "same-level", "count": 6,
            "text": "6 of 6 images were released at this level before: nothing new",
        }],
    }  # fmt: skip
    out = done(*paper, tmp_path / "paper")
    assert "12 tensors, protocol paper" in out
    assert "warning   this shard DISCLOSES every image: x_0 follows from (x_t, epsilon, t)" in out
    assert "warning   6 of 6 images were released at a noisier level before" in out
    assert json.loads(done(*paper, tmp_path / "paper-again", "--json"))["discloses_x_0"] is True


def test_a_data_source_that_does_not_exist_is_one_line(tmp_path: Path, plan_file: Path) -> None:
    result = run_cli("upload", "--data", tmp_path / "none", "--plan", plan_file, "--out", tmp_path / "shard")
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
