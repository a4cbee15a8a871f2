"""Figures are given where the samples carry them, and say so where they do not."""

import math
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collafuse_benchmarks.measure import timing
from collafuse_benchmarks.measure.summary import summarise
from collafuse_benchmarks.measure.timing import (
    MODES,
    QUICK,
    REPORT,
    Mode,
    collect,
    collect_in_turns,
    host_timed,
    median_ratio,
    mode_named,
    time_rounds,
)
from collafuse_benchmarks.pages.document import figure
from collafuse_runtimes.errors import InputError

SHORT = Mode("short", warmup=2, runs=10, seconds=0.0, cold_starts=1)


@pytest.mark.parametrize(("count", "given_percentiles"), [(63, 0), (64, 1), (129, 1), (130, 2), (661, 2), (662, 3)])
def test_percentiles_need_the_samples_mlperf_asks_for(count: int, given_percentiles: int) -> None:
    summary = summarise(np.arange(count, dtype=float))
    assert summary is not None
    values = list(summary.percentiles.values())
    assert [value is not None for value in values] == [True] * given_percentiles + [False] * (3 - given_percentiles)
    expected = [np.percentile(np.arange(count), p) for p in (90, 95, 99)]
    assert values[:given_percentiles] == expected[:given_percentiles]


@given(st.lists(st.floats(0.01, 1e6), min_size=2, max_size=200))
def test_summary_agrees_with_the_samples(samples: list[float]) -> None:
    summary = summarise(samples)
    assert summary is not None
    assert summary.minimum <= summary.median <= summary.maximum
    assert summary.mean == pytest.approx(sum(samples) / len(samples))
    assert summary.std is not None
    assert summary.std == pytest.approx(np.std(samples, ddof=1), rel=1e-9, abs=1e-9)
    assert (summary.interval is None) == (len(samples) < 10)
    if summary.interval is not None:
        assert 0 <= summary.interval[0] <= summary.median <= summary.interval[1]


def test_no_samples_no_figure() -> None:
    assert summarise([]) is None
    one = summarise([3.0])
    assert one is not None
    assert (one.median, one.std, one.cv, one.is_steady, one.interval) == (3.0, None, None, None, None)


@pytest.mark.parametrize(("spread", "is_steady"), [(0.02, True), (0.04, False)])
def test_a_variation_above_two_and_a_half_percent_is_flagged(spread: float, is_steady: bool) -> None:
    samples = [10 * (1 + spread * sign) for sign in (-1, 1)] * 20
    summary = summarise(samples)
    assert summary is not None
    assert summary.cv == pytest.approx(spread, rel=0.02)
    assert summary.is_steady is is_steady


def test_the_interval_holds_the_median_of_another_run_nineteen_times_in_twenty() -> None:
    """Runs with a drift between their parts, which an interval from the samples' own spread would miss."""
    draw = np.random.default_rng(0)
    hits, runs = 0, 400

    def part() -> np.ndarray:
        return 10 + 0.3 * draw.standard_normal() + 0.05 * draw.standard_normal(50)

    for _ in range(runs):
        summary = summarise(np.concatenate([part() for _ in range(10)]).tolist())
        assert summary is not None and summary.interval is not None
        hits += summary.interval[0] <= np.median(part()) <= summary.interval[1]
    assert 0.92 <= hits / runs <= 0.98


def test_modes_are_the_stated_ones() -> None:
    assert (QUICK.warmup, QUICK.runs, QUICK.seconds) == (10, 10, 10.0)
    assert REPORT.seconds == 60.0
    assert mode_named("report") is REPORT
    with pytest.raises(InputError, match="unknown mode 'fast'; valid: quick, report"):
        mode_named("fast")
    assert list(MODES) == ["quick", "report"]


def test_warm_up_runs_are_not_samples() -> None:
    seen: list[int] = []
    samples = collect(lambda i: seen.append(i) or (float(i),), SHORT)
    assert seen == list(range(12))
    assert samples == [float(i) for i in range(2, 12)]


def test_runs_go_on_until_the_seconds_are_over() -> None:
    """On a clock of its own: every run takes 0.25 s."""
    now = 0.0

    def run(_: int) -> tuple[float]:
        nonlocal now
        now += 0.25
        return (250.0,)

    mode = Mode("test", warmup=1, runs=3, seconds=6.0, cold_starts=0)
    assert len(collect(run, mode, clock=lambda: now)) == 24


def test_a_sleep_of_known_length_is_timed_to_one_percent() -> None:
    samples = collect(host_timed(lambda _: time.sleep(0.05)), Mode("test", 1, 15, 0.0, 0))
    assert min(samples) == pytest.approx(50, rel=0.01)
    assert min(samples) >= 50


def test_an_interrupted_measurement_hands_over_what_it_has() -> None:
    kept: list[float] = []

    def run(i: int) -> tuple[float]:
        if i == 7:
            raise KeyboardInterrupt
        return (float(i),)

    with pytest.raises(KeyboardInterrupt):
        collect(run, SHORT, kept.extend)
    assert kept == [2.0, 3.0, 4.0, 5.0, 6.0]


def test_all_have_ten_turns_in_changing_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SETTLE_S", 0.0)
    monkeypatch.setattr(timing.gc, "collect", lambda: 0)  # torch in the same process makes it slow
    order: list[str] = []

    def measure(name: str):  # type: ignore[no-untyped-def]
        return lambda _: order.append(name) or (1.0,)

    turns = Mode("test", warmup=0, runs=20, seconds=0.0, cold_starts=0)
    samples = collect_in_turns({name: measure(name) for name in "abc"}, turns)
    assert samples == {name: [[1.0, 1.0]] * 10 for name in "abc"}
    rounds = ["".join(order[i : i + 9 : 3]) for i in range(0, 90, 9)]  # a turn is one run that does not count, and two
    assert all(sorted(text) == ["a", "b", "c"] for text in rounds)
    assert len(set(rounds)) > 3


def test_rounds_time_everything_once_in_a_fresh_order_and_ratios_hold_while_the_machine_drifts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, order, seen = 0.0, list[str](), list[tuple[int, str, int]]()

    def runner(name: str, ms: float) -> Callable[[int], int]:
        def run(k: int) -> int:
            nonlocal now
            order.append(name)
            now += ms * (1 + k) / 1e3  # the machine gets slower from round to round
            return k

        return run

    def look(k: int, name: str, result: int) -> None:
        nonlocal now
        now += 1.0
        seen.append((k, name, result))

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    runs = {"a": runner("a", 2.0), "b": runner("b", 3.0), "c": runner("c", 5.0)}
    samples = time_rounds(runs, 6, warmup=2, on_result=look)
    assert samples["a"] == pytest.approx([2.0 * k for k in range(3, 9)]), "two rounds of warm-up are left out"
    assert median_ratio(samples["b"], samples["a"]) == pytest.approx(1.5)
    rounds = ["".join(order[i : i + 3]) for i in range(0, 24, 3)]
    assert all(sorted(text) == ["a", "b", "c"] for text in rounds) and len(set(rounds)) > 2
    assert seen == [(i // 3, name, i // 3) for i, name in enumerate(order)]


@given(st.floats(1e-6, 1e5))
def test_printed_figures_are_the_measured_ones(value: float) -> None:
    assert float(figure(value, 4)) == pytest.approx(value, rel=6e-4)
    assert "e" not in figure(value, 4)


def test_what_was_not_measured_is_no_number() -> None:
    assert figure(None) == "not measured"
    assert figure(0.0) == "0"
    assert not math.isnan(float(figure(123.456)))
