"""A lower precision is published when it is close to float32 and not slower; otherwise refused, with the figures."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import run_cli
from heads import PLAN, calibration, checkpoint, default_head, head

from collafuse_export import precision as module
from collafuse_export.precision import (
    PrecisionReport,
    Timing,
    compare_graphs,
    compare_precisions,
    describe_precision,
    judge_speed,
)
from collafuse_runtimes.errors import CheckFailed
from collafuse_runtimes.files.handover import write_handover
from collafuse_runtimes.verify import Agreement, RangeReport

NEAR, FAR = Agreement(0.999, 0.01, 0.01), Agreement(0.95, 0.9, 0.9)


def timing(engine: str, precision: str, ms: float, cosine: float = 1.0) -> Timing:
    return Timing(engine, precision, ms, 1.0, cosine)


def report(passed: bool, speed: str) -> PrecisionReport:
    agreement = NEAR if passed else FAR
    ranges = (RangeReport(20, 3, agreement, agreement, passed),)
    timings = (timing("ort-cpu", "fp32", 10.0), timing("ort-cpu", "int8-cpu", 12.5))
    return PrecisionReport("int8-cpu", {"fp32": 2.7, "int8-cpu": 0.8}, 8, "hand-over tensors", ranges, timings, speed)


@pytest.mark.parametrize("speed", ["faster", "not judged: no such engine here"])
def test_close_and_not_slower_is_worth_it(speed: str) -> None:
    report(True, speed).require_worth_it()


@pytest.mark.parametrize(
    ("passed", "speed", "says"),
    [
        (True, "slower", ["slower than float32", "fp32 on ort-cpu 10.0 ms", "int8-cpu on ort-cpu 12.5 ms"]),
        (False, "faster", ["too far from float32", "cosine 0.9500, max-abs 0.9 after step 4; valid: cosine >= 0.99"]),
        (False, "slower", ["too far from float32", "and slower than float32"]),
    ],
)
def test_a_refusal_names_the_figures_and_the_way_on(passed: bool, speed: str, says: list[str]) -> None:
    with pytest.raises(CheckFailed) as error:
        report(passed, speed).require_worth_it()
    for words in [*says, "nothing was written: use fp32, or --force"]:
        assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("precision", "timings", "verdict"),
    [
        ("int8-cpu", [("ort-cpu", "fp32", 10), ("ort-cpu", "int8-cpu", 6)], "faster"),
        ("int8-cpu", [("ort-cpu", "fp32", 10), ("ort-cpu", "int8-cpu", 10)], "slower"),
        # the fastest float32 engine counts, not the one int8 happens to beat
        (
            "int8-cpu",
            [("ort-cpu", "fp32", 10), ("ort-cpu", "int8-cpu", 8), ("openvino", "fp32", 5), ("openvino", "int8-cpu", 6)],
            "slower",
        ),
        ("fp16", [("ort-cpu", "fp32", 10), ("ort-cpu", "fp16", 30)], "not judged: made for tensorrt"),
        ("fp16", [("ort-cuda", "fp32", 10), ("ort-cuda", "fp16", 30)], "slower"),
        ("int8-trt", [("ort-cpu", "fp32", 10), ("ort-cpu", "int8-trt", 5)], "not judged: made for tensorrt"),
    ],
)
def test_speed_is_judged_on_the_engines_a_precision_is_made_for(
    precision: str, timings: list[tuple[str, str, float]], verdict: str
) -> None:
    assert judge_speed(precision, tuple(timing(*entry) for entry in timings)).startswith(verdict)


def test_a_fast_engine_that_computes_something_else_does_not_count() -> None:
    timings = (
        timing("ort-cpu", "fp32", 10),
        timing("ort-cpu", "int8-cpu", 12),
        timing("openvino", "fp32", 20),
        timing("openvino", "int8-cpu", 2, cosine=0.5),
    )
    assert judge_speed("int8-cpu", timings) == "slower"


def test_distance_is_that_of_another_graph_and_zero_for_the_same() -> None:
    bundle, tensors = default_head(), calibration(PLAN, 2)
    same = compare_graphs(bundle, bundle, tensors, range(2))
    assert [(r.steps, r.passed, r.worst.max_abs) for r in same] == [(20, True, 0), (7, True, 0), (1, True, 0)]
    other = head(precision="fp16")
    far = compare_graphs(other, bundle, tensors, range(2))
    assert all(1e-6 < (r.worst.max_abs or 0) < 1e-2 for r in far)


def test_what_was_timed_is_checked_and_every_precision_runs_in_the_same_rounds() -> None:
    bundle = default_head()
    half = head(precision="fp16")
    result = compare_precisions(half, {"fp32": bundle}, calibration(PLAN, 3), range(1, 3), source="tensors")
    found = {(t.engine, t.precision): t for t in result.timings}
    assert found.keys() == {("ort-cpu", "fp32"), ("ort-cpu", "fp16")}
    assert found["ort-cpu", "fp32"].against_fp32 == 1
    assert found["ort-cpu", "fp32"].cosine == pytest.approx(1, abs=1e-9)
    assert 0.99 < found["ort-cpu", "fp16"].cosine < 1
    assert all(t.median_ms > 0 for t in result.timings)
    assert result.megabytes["fp16"] < 0.8 * result.megabytes["fp32"]
    assert result.speed.startswith("not judged") and result.within_tolerance
    lines = describe_precision(result)
    assert any(line.startswith("size") and "fp16" in line for line in lines)


def test_the_command_refuses_a_slow_precision_and_force_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a head this small no int8 can be counted on to win or to lose: the clock is replaced, nothing else."""
    write_handover(tmp_path / "x.tc.safetensors", calibration(PLAN, 3))
    real = module._timed_trajectory

    def slow_int8(engine, handover, row):  # type: ignore[no-untyped-def]
        elapsed, images = real(engine, handover, row)
        return (100.0 if engine.bundle.precision == "int8-cpu" else min(elapsed, 50.0)), images

    monkeypatch.setattr(module, "_timed_trajectory", slow_int8)
    export = ("export", checkpoint(levels=1), "--out", tmp_path / "x.head", "--steps", "2", "--precision", "int8-cpu",
              "--calibration", tmp_path / "x.tc.safetensors")  # fmt: skip
    refused = run_cli(*export)
    assert refused.code == 1
    assert "int8-cpu is slower than float32 (" in refused.err and "int8-cpu on ort-cpu 100.0 ms" in refused.err
    assert not (tmp_path / "x.head").exists()
    kept = run_cli(*export, "--force")
    assert kept.code == 0
    assert "speed     int8-cpu: slower" in kept.out and "in float  " in kept.out
    assert (tmp_path / "x.head" / "manifest.json").exists()


def test_figures_are_in_the_json_form() -> None:
    data = replace(report(True, "faster"), float_layers=({"layer": "l", "rms": 0.1, "share": 0.9},)).to_dict()
    assert data["within_tolerance"] is True
    assert data["ranges"][0]["final"]["cosine"] == 0.999
    assert np.isclose(data["timings"][1]["median_ms"], 12.5)
