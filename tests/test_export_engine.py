"""`export NAME.head --engine tensorrt...`: the engine of this machine, built ahead of its first use."""

import importlib.util
import json
from pathlib import Path

import pytest
from command_line import done, refusal
from heads import checkpoint, copy_of, default_head, head

RTX = any(importlib.util.find_spec(name) for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"))
needs_rtx = pytest.mark.skipif(not RTX, reason="no TensorRT-RTX binding here (its wheels are for Linux on x86)")


@needs_rtx
@pytest.mark.parametrize("precision", ["fp32", "int8-trt"])
def test_builds_once_and_says_hit_or_miss_and_why(precision: str, tmp_path: Path) -> None:
    bundle = default_head() if precision == "fp32" else head(step_counts=(10, 4), precision=precision)
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
def test_embed_puts_the_engine_into_the_bundle_for_those_who_trust_it(tmp_path: Path) -> None:
    from collafuse_runtimes.bundle import read_bundle

    bundle = copy_of(default_head(), tmp_path)
    done("export", bundle, "--engine", "tensorrt-rtx", "--cache", tmp_path / "engines", "--embed")
    (engine,) = read_bundle(bundle).engines
    assert (bundle / engine.name).stat().st_size > 10_000
    assert engine.key["library"].startswith("tensorrt-rtx")
    assert json.loads(done("verify", bundle, "--json"))["passed"] is True  # other engines run it as before


def test_options_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    bundle, engine = default_head().path, ("--engine", "tensorrt-rtx")
    assert "leave out --out, --steps and --calibration" in refusal("export", bundle, *engine, "--out", tmp_path / "x")
    assert "leave out --out, --steps and --calibration" in refusal("export", bundle, *engine, "--steps", "4")
    assert "export needs --out" in refusal("export", checkpoint())
    out = ("--out", tmp_path / "x.head")
    assert "--device, --cache and --embed are for --engine" in refusal("export", checkpoint(), *out, "--embed")
    assert "engine 'ort-cpu' is not built ahead; valid: tensorrt" in refusal("export", bundle, "--engine", "ort-cpu")
    assert "no head bundle at" in refusal("export", tmp_path / "none", *engine)


def test_a_head_for_other_engines_is_not_built(tmp_path: Path) -> None:
    bundle = head(step_counts=(10, 4), precision="int8-cpu").path
    words = refusal("export", bundle, "--engine", "tensorrt-rtx", "--cache", tmp_path / "engines")
    assert "tensorrt-rtx runs no int8-cpu heads; valid: fp32, fp16, int8-trt" in words
