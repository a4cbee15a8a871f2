"""`export NAME.head --engine tensorrt...`: the engine of this machine, built ahead of its first use."""

import importlib.util
import json
from pathlib import Path

import pytest
from command_line import done, refusal, run_cli
from heads import checkpoint, copy_of, default_head, head

from collafuse_runtimes.engines import available_engines
from collafuse_runtimes.files.bundle import read_bundle

RTX = any(importlib.util.find_spec(name) for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"))
needs_rtx = pytest.mark.skipif(not RTX, reason="no TensorRT-RTX binding here (its wheels are for Linux on x86)")


@needs_rtx
@pytest.mark.parametrize("precision", ["fp32", "int8-trt"])
def test_builds_once_and_says_hit_or_miss_and_why(precision: str, tmp_path: Path) -> None:
    bundle = default_head() if precision == "fp32" else head(precision=precision)
    export = ("export", bundle.path, "--engine", "tensorrt-rtx", "--cache", tmp_path / "engines")
    first = json.loads(done(*export, "--json"))
    assert first["hit"] is False and first["reason"].startswith("miss: no engine of this model")
    assert Path(first["path"]).stat().st_size > 10_000
    lines = done(*export).splitlines()
    assert lines[0] == f"engine    {first['path']}"
    assert lines[1].startswith("cache     hit: ")
    assert lines[2].startswith("types     ")
    other = json.loads(done(*export, "--max-batch", 4, "--json"))
    assert other["hit"] is False and "profile" in other["reason"]
    assert other["path"] != first["path"]


@needs_rtx
def test_an_engine_that_no_device_runs_is_not_embedded(tmp_path: Path) -> None:
    """Where there is no GPU the builder works, for no device in particular."""
    if available_engines()["tensorrt-rtx"] is None:
        pytest.skip("there is a GPU here")
    bundle = copy_of(default_head(), tmp_path)
    result = run_cli("export", bundle, "--engine", "tensorrt-rtx", "--cache", tmp_path / "engines", "--embed")
    assert (result.code, result.out) == (2, "")
    assert "was built where there is no GPU; build and embed it on a machine that has the GPU" in result.err
    assert read_bundle(bundle).engines == ()


def test_options_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    bundle, engine = default_head().path, ("--engine", "tensorrt-rtx")
    for option in (("--out", tmp_path / "x"), ("--steps", 4), ("--precision", "fp16"), ("--opset", 20), ("--force",)):
        words = f"error: --engine builds from a finished bundle; leave out {option[0]}"
        assert refusal("export", bundle, *engine, *option) == words
    assert "export needs --out" in refusal("export", checkpoint())
    for option in (("--gpu", 0), ("--cache", tmp_path), ("--max-batch", 8), ("--embed",)):
        words = f"error: without --engine no TensorRT engine is built; leave out {option[0]}"
        assert refusal("export", checkpoint(), "--out", tmp_path / "x.head", *option) == words
    assert "unknown engine 'ort-cpu'; valid: tensorrt, tensorrt-rtx" in refusal("export", bundle, "--engine", "ort-cpu")
    assert "no head bundle at" in refusal("export", tmp_path / "none", *engine)


def test_a_head_for_other_engines_is_not_built(tmp_path: Path) -> None:
    bundle = head(precision="int8-cpu").path
    words = refusal("export", bundle, "--engine", "tensorrt-rtx", "--cache", tmp_path / "engines")
    assert "tensorrt-rtx runs no int8-cpu heads; valid: fp32, fp16, int8-trt" in words
