"""The energy of a window is the integral of the power, to within 1 %, or it is null and says why."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_sensor import Curve

from collafuse_benchmarks.energy.integrate import EnergyFigure, Samples, window_energy
from collafuse_runtimes.errors import InputError

CONSTANT = Curve([0.0, 60.0], [7.5, 7.5])
RAMP = Curve([0.0, 60.0], [2.0, 62.0])
STEPS = Curve([0.0, 8.0, 8.0, 13.0, 13.0, 60.0], [3.0, 3.0, 25.0, 25.0, 5.0, 5.0])
DOWN = Curve([0.0, 10.0, 12.0, 60.0], [-0.4, -0.4, 15.0, 15.0])
curves = pytest.mark.parametrize("curve", [CONSTANT, RAMP, STEPS, DOWN])


def sampled(
    curve: Curve, interval: float, *, jitter: float = 0.0, quantity: str = "power", refresh: float = 0.0
) -> Samples:
    times = np.arange(0.0, 60.0, interval)
    times = times + jitter * interval * np.random.default_rng(0).uniform(-0.4, 0.4, times.size)
    if quantity == "power":
        values = [curve.power(t) for t in times]
    else:
        stamps = np.floor(times / refresh) * refresh if refresh else times
        values = [curve.energy(0.0, t) for t in stamps]
    return Samples(times, np.array(values), np.empty(0))


@curves
@pytest.mark.parametrize("jitter", [0.0, 1.0])
def test_power_integrates_to_within_one_percent(curve: Curve, jitter: float) -> None:
    figure = window_energy("power", sampled(curve, 0.1, jitter=jitter), 5.03, 17.77, interval_s=0.1)
    assert figure.joules == pytest.approx(curve.energy(5.03, 17.77), rel=0.01)
    assert figure.reason is None
    assert figure.updates == pytest.approx(127, abs=1)


@pytest.mark.parametrize("curve", [CONSTANT, RAMP, STEPS])
@pytest.mark.parametrize("refresh", [0.0, 0.02, 0.1, 0.3])
def test_counters_differ_to_within_one_percent(curve: Curve, refresh: float) -> None:
    """Also where the counter has a new value more seldom than it is read: stale readings are not used."""
    samples = sampled(curve, 0.05, quantity="energy", refresh=refresh)
    figure = window_energy("energy", samples, 5.03, 17.77, interval_s=0.05)
    assert figure.joules == pytest.approx(curve.energy(5.03, 17.77), rel=0.01)
    assert figure.updates == pytest.approx(12.74 / max(refresh, 0.05), abs=2)


def test_straight_lines_are_exact_and_ends_are_interpolated() -> None:
    for begin, end in ((0.5, 30.25), (1.01, 1.02), (3.0, 3.1)):
        for curve in (CONSTANT, RAMP):
            figure = window_energy("power", sampled(curve, 0.7), begin, end, interval_s=0.7, min_updates=0)
            assert figure.joules == pytest.approx(curve.energy(begin, end), rel=1e-9)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.02, 0.09), st.floats(-20, 200)), min_size=40, max_size=80),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_windows_add_up_and_match_an_independent_sum(
    steps: list[tuple[float, float]], a: float, b: float, c: float
) -> None:
    """Any samples, power linear in between: two neighbouring windows make one, and a fine sum gives the same."""
    times = np.cumsum([dt for dt, _ in steps])
    curve = Curve(times.tolist(), [watts for _, watts in steps])
    samples = Samples(times, np.array(curve.watts), np.empty(0))
    low, middle, high = (float(times[0] + share * (times[-1] - times[0])) for share in sorted((a, b, c)))

    def joules(begin: float, end: float) -> float:
        if end <= begin:
            return 0.0
        figure = window_energy("power", samples, begin, end, interval_s=0.09, min_updates=0)
        assert figure.joules is not None, figure
        return figure.joules

    scale = float(np.abs(samples.values).max()) * (high - low) + 1e-9
    assert joules(low, middle) + joules(middle, high) == pytest.approx(joules(low, high), abs=1e-9 * scale)
    assert joules(low, high) == pytest.approx(curve.energy(low, high), abs=1e-9 * scale)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 5), min_size=40, max_size=60), st.floats(0.05, 0.45), st.floats(0.55, 0.95))
def test_a_counter_gives_what_went_through_it(steps: list[float], a: float, b: float) -> None:
    times = np.arange(len(steps) + 1) * 0.1
    values = np.concatenate(([0.0], np.cumsum(steps)))
    begin, end = a * times[-1], b * times[-1]
    figure = window_energy("energy", Samples(times, values, np.empty(0)), begin, end, interval_s=0.1, min_updates=0)
    if figure.joules is None:
        assert figure.reason == "the counter did not move"
    else:
        assert -1e-9 <= figure.joules <= sum(steps) + 1e-9
        inside = values[(times >= begin) & (times <= end)]
        assert figure.joules >= inside[-1] - inside[0] - 1e-9 or figure.updates < len(inside)


def refused(
    samples: Samples, begin: float = 10.0, end: float = 20.0, *, quantity: str = "power", **options: int
) -> str:
    figure = window_energy(quantity, samples, begin, end, interval_s=0.1, **options)
    assert figure.joules is None and figure.reason is not None
    assert len(figure.reason.splitlines()) == 1
    return figure.reason


def test_a_window_that_is_not_covered_has_no_figure() -> None:
    samples = sampled(CONSTANT, 0.1)
    assert refused(samples, -1.0, 5.0) == "the first reading came 1 s after the window began"
    assert refused(samples, 55.0, 61.4) == "the last reading came 1.5 s before the window ended"
    assert refused(Samples(*[np.empty(0)] * 3)) == "the sensor gave no reading at all"


def test_a_hole_has_no_figure_and_a_small_one_is_bridged() -> None:
    samples = sampled(CONSTANT, 0.1)

    def without(begin: float, end: float) -> Samples:
        keep = (samples.times < begin) | (samples.times > end)
        return Samples(samples.times[keep], samples.values[keep], np.array([begin]))

    assert refused(without(14.05, 14.55)) == "no reading for 0.6 s; at most 0.5 s are bridged"
    assert "no reading for" in refused(without(9.0, 10.5)), "also over the edge"
    figure = window_energy("power", without(14.05, 14.35), 10.0, 20.0, interval_s=0.1)
    assert (figure.joules, figure.dropped) == (pytest.approx(75.0), 1)
    outside = window_energy("power", without(5.0, 9.0), 10.0, 20.0, interval_s=0.1)
    assert (outside.joules, outside.dropped) == (pytest.approx(75.0), 0)


def test_too_few_updates_have_no_figure() -> None:
    samples = sampled(CONSTANT, 0.1)
    reason = "only 101 new values in the window; 102 are needed: measure for longer"
    assert refused(samples, 9.95, 20.05, min_updates=102) == reason
    assert window_energy("power", samples, 9.95, 20.05, interval_s=0.1, min_updates=101).joules is not None
    slow = sampled(CONSTANT, 0.1, quantity="energy", refresh=2.0)
    assert refused(slow, 10.5, 20.5, quantity="energy", min_updates=6).startswith("only 5 new values")


def test_a_counter_that_does_not_move_or_falls_has_no_figure() -> None:
    moving = sampled(CONSTANT, 0.1, quantity="energy")
    stuck = Samples(moving.times, np.minimum(moving.values, 7.5 * 9.0), moving.dropped)
    assert refused(stuck, quantity="energy") == "the counter did not move"
    fell = Samples(moving.times, np.where(moving.times < 15.0, moving.values, 0.0), moving.dropped)
    assert refused(fell, quantity="energy") == "the counter fell: it was reset"
    assert window_energy("energy", fell, 2.0, 12.0, interval_s=0.1).joules == pytest.approx(75.0)


def test_power_below_zero_is_kept() -> None:
    figure = window_energy("power", sampled(Curve([0.0, 60.0], [-0.25, -0.25]), 0.1), 10.0, 20.0, interval_s=0.1)
    assert figure == EnergyFigure(pytest.approx(-2.5), None, 101, 0)


@pytest.mark.parametrize("end", [10.0, 9.0, math.nan])
def test_a_window_must_end_after_it_begins(end: float) -> None:
    with pytest.raises(InputError, match="must end after it begins"):
        window_energy("power", sampled(CONSTANT, 0.1), 10.0, end, interval_s=0.1)
