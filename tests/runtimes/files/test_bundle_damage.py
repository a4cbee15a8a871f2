"""A head bundle that is damaged, mixed, incomplete or of another release is refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from heads import checkpoint, copy_of, default_head, rgb_head
from hypothesis import given, settings
from hypothesis import strategies as st

from collafuse_runtimes.errors import ArtefactError, InputError
from collafuse_runtimes.files.bundle import FORMAT, GOLDEN, MANIFEST, MODEL, read_bundle
from collafuse_runtimes.files.golden import Golden, read_golden, write_golden
from collafuse_runtimes.files.sealed import read_json, sha256_file, write_json

FILES = (MODEL, GOLDEN, MANIFEST)
Manifest = dict[str, Any]


@pytest.fixture
def bundle_dir(tmp_path: Path) -> Path:
    return copy_of(default_head(), tmp_path)


def reseal(folder: Path, change: Callable[[Manifest], object]) -> None:
    manifest = read_json(folder / MANIFEST, FORMAT)
    change(manifest)
    write_json(folder / MANIFEST, FORMAT, manifest)


def refusal(folder: Path) -> str:
    with pytest.raises(ArtefactError) as error:
        read_bundle(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", FILES)
def test_missing_file(bundle_dir: Path, name: str) -> None:
    (bundle_dir / name).unlink()
    assert f"cannot read {bundle_dir / name}" in refusal(bundle_dir)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_truncated_file(bundle_dir: Path, name: str, keep: float) -> None:
    data = (bundle_dir / name).read_bytes()
    (bundle_dir / name).write_bytes(data[: int(len(data) * keep)])
    assert str(bundle_dir / name) in refusal(bundle_dir)


@settings(deadline=None, max_examples=60)
@given(name=st.sampled_from(FILES), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit(tmp_path_factory: pytest.TempPathFactory, name: str, place: float, bit: int) -> None:
    folder = copy_of(default_head(), tmp_path_factory.mktemp("flip"))
    data = bytearray((folder / name).read_bytes())
    position = int(place * (len(data) - 1))  # the manifest's last byte is a line end, not content
    data[position] ^= 1 << bit
    (folder / name).write_bytes(data)
    try:
        read_bundle(folder)
    except ArtefactError as error:
        assert str(folder / name) in str(error)
    else:  # the same JSON in other letters: 1e-05 and 1E-05
        assert name == MANIFEST and json.loads(data) == json.loads((default_head().path / name).read_bytes())


def test_extra_file(bundle_dir: Path) -> None:
    (bundle_dir / "run_me.py").write_text("")
    assert "holds 'run_me.py', which is no part of a head bundle; remove it" in refusal(bundle_dir)


def test_file_of_another_bundle(bundle_dir: Path) -> None:
    (bundle_dir / MODEL).write_bytes((rgb_head().path / MODEL).read_bytes())
    assert "is not the file the manifest names" in refusal(bundle_dir)


def test_no_bundle_there(tmp_path: Path) -> None:
    assert "no head bundle at" in refusal(tmp_path / "none.head")
    assert "cannot read" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["plan"].update(cut_ratio=0.6), "fingerprint does not follow from the plan"),
        (lambda m: m["plan"].update(timesteps=1), "plan field timesteps is 1"),
        (lambda m: m["plan"].pop("schedule"), "the plan lacks schedule"),
        (lambda m: m["row_ranges"][1].update(first_row=0), "row_ranges does not follow from the plan"),
        (lambda m: m["row_ranges"][1].update(steps=8), "row_ranges does not follow from the plan"),
        (lambda m: m["row_ranges"][0]["timesteps"].reverse(), "row_ranges does not follow from the plan"),
        (lambda m: m["row_ranges"].clear(), "row_ranges is []"),
        (lambda m: m["inputs"][1].update(dtype="int64"), "inputs does not follow from the plan"),
        (lambda m: m["sampler"].update(name="ddpm"), "inputs does not follow from the plan"),
        (lambda m: m["sampler"].update(name="euler"), "unknown sampler 'euler'"),
        (lambda m: m.update(precision="int3"), "precision is 'int3'; valid: fp32, fp16"),
        (lambda m: m.update(opset=3), "opset is 3; valid: 20 or 17"),
        (lambda m: m.update(num_classes="3"), "num_classes is '3'; valid: a count of classes, or null"),
        (lambda m: m["network"].update(pickled="x"), "network is {"),
        (lambda m: m.pop("parity"), "it lacks parity"),
        (lambda m: m["files"].update({"../../etc/passwd": "0"}), f"does not name exactly {MODEL} and {GOLDEN}"),
        (lambda m: m["files"].pop(GOLDEN), f"does not name exactly {MODEL} and {GOLDEN}"),
    ],
)
def test_manifest_that_contradicts_itself(bundle_dir: Path, change: Callable[[Manifest], object], message: str) -> None:
    reseal(bundle_dir, change)
    assert message in refusal(bundle_dir)


def test_other_format_version(bundle_dir: Path) -> None:
    manifest = json.loads((bundle_dir / MANIFEST).read_text())
    (bundle_dir / MANIFEST).write_text(json.dumps({**manifest, "version": 99}))
    assert "has format version 99; this release reads 1" in refusal(bundle_dir)


def test_manifest_edited_by_hand(bundle_dir: Path) -> None:
    text = (bundle_dir / MANIFEST).read_text()
    (bundle_dir / MANIFEST).write_text(text.replace('"passed": true', '"passed": false'))
    assert "does not match its own sha256" in refusal(bundle_dir)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g.trajectories.pop(7), "lacks 'trajectory_7'"),
        (lambda g: g.trajectories.update({7: g.trajectories[1]}), r"trajectory_7 has shape \(1, 2, 1, 16, 16\)"),
        (lambda g: g.x_tc.fill(np.nan), "x_tc holds NaN"),
    ],
)
def test_golden_that_does_not_fit(bundle_dir: Path, change: Callable[[Golden], object], message: str) -> None:
    golden = read_golden(default_head())
    golden = Golden(golden.x_tc.copy(), dict(golden.trajectories), golden.labels, golden.seed)
    change(golden)
    write_golden(bundle_dir, golden)
    reseal(bundle_dir, lambda m: m["files"].update({GOLDEN: sha256_file(bundle_dir / GOLDEN)}))
    with pytest.raises(ArtefactError, match=message):
        read_golden(read_bundle(bundle_dir))


def test_row_ranges_follow_the_plan() -> None:
    bundle = default_head()
    assert [(r.steps, r.first_row) for r in bundle.row_ranges] == [(20, 0), (7, 20), (1, 27)]
    assert [r.transitions for r in bundle.row_ranges] == [bundle.plan.client_transitions(n) for n in (20, 7, 1)]
    assert bundle.row_range() == bundle.row_ranges[0]
    assert bundle.row_range(7) == bundle.row_ranges[1]
    with pytest.raises(InputError, match=r"8 steps are not baked into .*; valid: 20, 7, 1"):
        bundle.row_range(8)


def test_reading_gives_what_was_exported() -> None:
    bundle = default_head()
    assert read_bundle(bundle.path) == bundle
    assert bundle.network.weights_sha256 == sha256_file(checkpoint() / "diffusion_pytorch_model.safetensors")
    assert set(bundle.tools) == {"collafuse-edge", "torch", "diffusers", "onnx", "onnxscript", "onnxruntime", "numpy"}
    assert bundle.parity["passed"] is True and [r["steps"] for r in bundle.parity["ranges"]] == [20, 7, 1]
    golden = read_golden(bundle)
    assert {n: t.shape for n, t in golden.trajectories.items()} == {n: (n, 2, 1, 16, 16) for n in (20, 7, 1)}
