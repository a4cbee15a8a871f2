"""verify: figures that mean what they say, on any engine."""

import json

import numpy as np
import pytest
from heads import checkpoint_of, conditional_head, default_head, head, rgb_head
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from collafuse_runtimes.engines import EngineOptions
from collafuse_runtimes.errors import CheckFailed
from collafuse_runtimes.files.golden import read_golden
from collafuse_runtimes.verify import (
    TOLERANCES,
    Agreement,
    compare,
    compare_trajectories,
    describe_report,
    verify_bundle,
)  # fmt: skip

values = hnp.arrays(np.float32, (2, 3), elements=st.floats(-2, 2, width=32))


@pytest.mark.parametrize("make_head", [default_head, conditional_head, rgb_head])
def test_ort_and_torch_pass(make_head: object) -> None:
    bundle = make_head()  # type: ignore[operator]
    for name, source in (("ort-cpu", None), ("torch", checkpoint_of(bundle))):
        report = verify_bundle(bundle, name, EngineOptions(checkpoint=source))
        assert report.passed and [r.steps for r in report.ranges] == [r.steps for r in bundle.row_ranges]
        assert max(r.worst.max_abs or 0 for r in report.ranges) <= 1e-4
        report.require_passed("the head")


def test_torch_is_the_source_of_the_golden_trajectory() -> None:
    bundle = default_head()
    report = verify_bundle(bundle, "torch", EngineOptions(threads=1, checkpoint=checkpoint_of(bundle)))  # as at export
    assert [r.worst.max_abs for r in report.ranges] == pytest.approx([0, 0, 0], abs=2e-6)


def test_wrong_numbers_fail() -> None:
    report = verify_bundle(default_head(), "fake")
    assert not report.passed and not any(r.passed for r in report.ranges)
    with pytest.raises(CheckFailed, match=r"the head on fake differs .* after step \d+ of 20: cosine 0\.\d+, max-abs"):
        report.require_passed("the head")
    assert [line.split()[:3] for line in describe_report(report)] == [["FAILED", n, "steps"] for n in ("20", "7", "1")]


def test_report_is_json() -> None:
    report = verify_bundle(default_head())
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["passed"] is True and data["engine"] == "ort-cpu" and data["precision"] == "fp32"
    assert data["tolerance"] == {"cosine": 0.999, "max_abs": 1e-4, "max_rel": 1e-3}
    assert set(data["ranges"][0]) == {"steps", "worst_step", "worst", "final", "passed"}
    assert set(data["ranges"][0]["final"]) == {"cosine", "max_abs", "max_rel"}


def test_fp16_is_judged_by_its_own_tolerance() -> None:
    bundle = head(conditional=True, precision="fp16")
    report = verify_bundle(bundle)
    assert report.passed and report.tolerance == TOLERANCES["fp16"]
    assert 1e-6 < (report.ranges[0].worst.max_abs or 0) <= 1e-2


def test_golden_inputs_are_synthetic_and_at_the_hand_over_level() -> None:
    bundle = default_head()
    golden = read_golden(bundle)
    alpha_bar = bundle.plan.alpha_bar_at(bundle.plan.handover_level)
    assert golden.x_tc.shape == (2, 1, 16, 16) and golden.seed == 3
    clean = golden.x_tc.mean(axis=(2, 3)) / np.sqrt(alpha_bar)  # the noise averages out over 256 pixels
    assert np.abs(clean).max() < 1.2
    assert abs(golden.x_tc.var() - 1) < 0.6


@settings(deadline=None, max_examples=100)
@given(a=values, b=values)
def test_compare_is_what_it_says(a: np.ndarray, b: np.ndarray) -> None:
    agreement = compare(a, b)
    distance = np.abs(a.astype(np.float64) - b).max()
    assert agreement.max_abs == distance
    assert -1 - 1e-9 <= agreement.cosine <= 1 + 1e-9
    if np.abs(b).max() > 0:
        assert agreement.max_rel == pytest.approx(distance / np.abs(b).max())
    assert compare(a, a).meets(TOLERANCES["fp32"])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_never_passes(bad: float) -> None:
    a = np.ones((3, 1, 1, 2, 2), np.float32)
    b = a.copy()
    b[1, 0, 0, 0, 0] = bad
    for actual, expected in ((b, a), (a, b), (b, b)):
        report = compare_trajectories(3, actual, expected, TOLERANCES["fp16"])
        assert (report.passed, report.worst_step, report.worst) == (False, 1, Agreement(0.0, None, None))


@pytest.mark.parametrize(
    ("agreement", "meets"),
    [
        (Agreement(0.9995, 9e-5, 9e-1), True),  # absolute alone is enough
        (Agreement(0.9995, 9e-1, 9e-4), True),  # relative alone is enough
        (Agreement(0.9995, 2e-4, 2e-3), False),
        (Agreement(0.9985, 0.0, 0.0), False),  # the cosine is not optional
    ],
)
def test_cosine_and_absolute_or_relative(agreement: Agreement, meets: bool) -> None:
    assert agreement.meets(TOLERANCES["fp32"]) is meets
