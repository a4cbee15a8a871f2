"""Shard files read back as written, and anything that is not a whole, honest shard is refused in one line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collafuse_edge.training.tasks import ServerTask
from collafuse_edge.upload import make_paper_shard, make_shard
from collafuse_edge.upload.shard import Shard, read_shard, write_shard
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.errors import ArtefactError, InputError, PlanMismatch
from collafuse_runtimes.files.sealed import read_tensors, write_tensors

SHAPE = (1, 8, 8)
PLAN = SplitPlan(SHAPE, cut_ratio=0.3)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (5, *SHAPE)).astype(np.float32)
UPLOAD = make_shard(IMAGES, PLAN, bytes(32))
PAPER = make_paper_shard(IMAGES, PLAN, 2, seed=0)


@pytest.mark.parametrize("shard", [UPLOAD, PAPER], ids=["upload", "paper"])
def test_round_trip(tmp_path: Path, shard: Shard) -> None:
    write_shard(tmp_path / "s", shard, "float32")
    back = read_shard(tmp_path / "s")
    assert (back.plan, back.protocol, len(back)) == (shard.plan, shard.protocol, len(shard))
    assert np.array_equal(back.images, shard.images)
    for a, b in ((back.epsilon, shard.epsilon), (back.t, shard.t)):
        assert (a is None and b is None) or np.array_equal(a, b)
    write_shard(tmp_path / "half", shard)
    half = read_shard(tmp_path / "half")
    assert half.images.dtype == np.float32
    assert np.array_equal(half.images, shard.images.astype(np.float16).astype(np.float32))
    assert (tmp_path / "half").stat().st_size < 0.75 * (tmp_path / "s").stat().st_size


def test_every_changed_byte_and_every_cut_is_found(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write_shard(path, UPLOAD)
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(ArtefactError):
            read_shard(path)
    for length in range(0, len(whole), 13):
        path.write_bytes(whole[:length])
        with pytest.raises(ArtefactError):
            read_shard(path)


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="cannot read"):
        read_shard(tmp_path / "none")
    (tmp_path / "text").write_text("hello, world: no shard at all")
    with pytest.raises(ArtefactError, match="not a readable collafuse-shard file"):
        read_shard(tmp_path / "text")
    write_tensors(tmp_path / "tc", "collafuse-handover", {"x_n": IMAGES}, {})
    with pytest.raises(ArtefactError, match="not a collafuse-shard file: found 'collafuse-handover'"):
        read_shard(tmp_path / "tc")


def test_another_format_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as future:
        future.setattr("collafuse_runtimes.files.sealed.FORMAT_VERSION", 2)
        write_shard(tmp_path / "s", UPLOAD)
    with pytest.raises(ArtefactError, match="has format version 2; this release reads 1"):
        read_shard(tmp_path / "s")


def forged(tmp_path: Path, shard: Shard, tensors: dict[str, Any], **fields: Any) -> Path:
    """A shard with a valid seal but other contents; None takes a field or tensor away."""
    write_shard(tmp_path / "s", shard, "float32")
    old_tensors, payload = read_tensors(tmp_path / "s", "collafuse-shard")
    tensors, payload = {**old_tensors, **tensors}, {**payload, **fields}
    tensors = {k: v for k, v in tensors.items() if v is not None}
    write_tensors(tmp_path / "s", "collafuse-shard", tensors, {k: v for k, v in payload.items() if v is not None})
    return tmp_path / "s"


def with_nan() -> Any:
    x_n = UPLOAD.images.copy()
    x_n[3, 0, 0, 0] = np.nan
    return x_n


@pytest.mark.parametrize(
    ("tensors", "fields", "message"),
    [
        ({"x_n": with_nan()}, {}, "NaN or Inf in 1 of 5 samples"),
        ({"x_n": UPLOAD.images[:, :, :4]}, {}, r"shape \(5, 1, 4, 8\); valid: \(N >= 1, 1, 8, 8\)"),
        ({"x_n": UPLOAD.images[:0]}, {}, "valid: .N >= 1"),
        ({"x_n": UPLOAD.images.astype(np.float64)}, {}, "dtype float64"),
        ({"x_n": None}, {}, "lacks 'x_n'"),
        ({"x_0": IMAGES}, {}, r"upload shards hold x_n alone; found \['x_0'\]"),
        ({}, {"plan": None}, "a plan needs the fields"),
        ({}, {"plan": {**PLAN.to_dict(), "timesteps": 50}}, "the fingerprint is not that of the plan beside it"),
        ({}, {"fingerprint": None}, "the fingerprint is not that of the plan beside it"),
        ({}, {"protocol": "secret"}, "unknown protocol 'secret'; valid: upload, paper"),
        ({}, {"protocol": None}, "lacks 'protocol'"),
        ({}, {"protocol": "paper"}, r"paper shards hold x_t, epsilon, t alone; found \['x_n'\]"),
        ({}, {"count": 6}, "count is 6 but its plan and tensors give 5"),
        ({}, {"level": 3}, "level is 3 but its plan and tensors give 29"),
        ({}, {"noise_policy": None}, "lacks 'noise_policy'"),
    ],
)
def test_a_sealed_upload_shard_with_other_contents(
    tmp_path: Path, tensors: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    path = forged(tmp_path, UPLOAD, tensors, **fields)
    with pytest.raises(ArtefactError, match=message):
        read_shard(path)


@pytest.mark.parametrize("cut_ratio", [0.0, 1.0])
def test_a_sealed_shard_of_a_plan_that_cannot_be_uploaded(tmp_path: Path, cut_ratio: float) -> None:
    plan = PLAN.with_cut_ratio(cut_ratio)
    path = forged(tmp_path, UPLOAD, {}, plan=plan.to_dict(), fingerprint=plan.fingerprint)
    with pytest.raises(ArtefactError, match=f"cut_ratio {cut_ratio} leaves nothing to upload"):
        read_shard(path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"t": np.full(10, 29, np.int32)}, r"one timestep in 30\.\.99 per row"),
        ({"t": np.full(10, 100, np.int32)}, r"one timestep in 30\.\.99 per row"),
        ({"t": np.full(9, 40, np.int32)}, r"one timestep in 30\.\.99 per row"),
        ({"t": np.full(10, 40.5, np.float32)}, "t has dtype float32; valid: integers"),
        ({"epsilon": np.zeros((9, *SHAPE), np.float32)}, "one triple per row"),
        ({"epsilon": None}, "lacks 'epsilon'"),
    ],
)
def test_a_sealed_paper_shard_with_other_contents(tmp_path: Path, tensors: dict[str, Any], message: str) -> None:
    path = forged(tmp_path, PAPER, tensors)
    with pytest.raises(ArtefactError, match=message):
        read_shard(path)


def test_an_upload_shard_never_writes_its_noise(tmp_path: Path) -> None:
    write_shard(tmp_path / "s", Shard(PLAN, "upload", UPLOAD.images, PAPER.epsilon, PAPER.t))
    assert set(read_tensors(tmp_path / "s", "collafuse-shard")[0]) == {"x_n"}


def test_shards_of_two_protocols_or_plans_are_refused_together() -> None:
    with pytest.raises(InputError, match=r"shards mix the protocols \['paper', 'upload'\]"):
        ServerTask([UPLOAD, PAPER], ["a", "b"])
    with pytest.raises(InputError, match="no shard given"):
        ServerTask([], [])
    for other, message in (
        (SplitPlan(SHAPE, timesteps=50, cut_ratio=0.3), "timesteps: a.shard has 100, b.shard has 50"),
        (SplitPlan(SHAPE, schedule="linear", cut_ratio=0.3), "schedule: a.shard has cosine, b.shard has linear"),
        (SplitPlan((1, 4, 16), cut_ratio=0.3), r"image_shape: a.shard has \(1, 8, 8\), b.shard has \(1, 4, 16\)"),
    ):
        shard = make_shard(IMAGES.reshape(5, *other.image_shape), other, bytes(32))
        with pytest.raises(PlanMismatch, match=f"plans disagree on {message}"):
            ServerTask([UPLOAD, shard], ["a.shard", "b.shard"])
