"""A wall meter's file is matched with the run by time, or refused by line, range and remedy."""

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_clock import VirtualClock

from collafuse_benchmarks.energy.measurement import EnergyResult, measure_energy, with_meter
from collafuse_benchmarks.energy.sensors.meter import MeterLog, read_meter
from collafuse_benchmarks.energy.settings import EnergySettings
from collafuse_runtimes.errors import ArtefactError, InputError

START = datetime(2026, 11, 24, 9, 30, tzinfo=timezone.utc).timestamp()


def written(folder: Path, rows: list[tuple[object, object]], *, header: str = "time,watts") -> Path:
    path = folder / "meter.csv"
    path.write_text("\n".join([header, *(f"{time},{watts}" for time, watts in rows)]) + "\n")
    return path


def steady(folder: Path, *, seconds: int = 60, watts: float = 30.0) -> MeterLog:
    return read_meter(written(folder, [(START + k, watts) for k in range(seconds + 1)]))


def refusal(folder: Path, rows: list[tuple[object, object]], *, header: str = "time,watts") -> str:
    path = written(folder, rows, header=header)
    with pytest.raises(ArtefactError) as caught:
        read_meter(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and str(path) in message
    return message


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("2026-11-24T09:30:00Z", "2026-11-24T09:30:00.5Z"),
        ("2026-11-24T10:30:00+01:00", "2026-11-24 04:30:00.500000123-05:00"),
        (f"{START:.0f}", f"{START + 0.5}"),
        (f"{START / 1e9:.9f}e9", START + 0.5),
    ],
)
def test_times_are_iso_with_a_zone_or_unix_seconds(tmp_path: Path, first: object, second: object) -> None:
    log = read_meter(written(tmp_path, [(first, 10), (second, 20)]))
    assert log.samples.times.tolist() == pytest.approx([START, START + 0.5], abs=1e-6)
    assert log.samples.values.tolist() == [10.0, 20.0]


@settings(max_examples=80, deadline=None)
@given(st.datetimes(datetime(2001, 1, 1), datetime(2100, 1, 1)), st.integers(-14 * 60, 14 * 60))
def test_every_iso_time_is_the_instant_it_names(
    tmp_path_factory: pytest.TempPathFactory, naive: datetime, minutes: int
) -> None:
    instant = naive.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    rows: list[tuple[object, object]] = [
        (instant.isoformat(), 1.0),
        ((instant + timedelta(seconds=9)).isoformat(), 2.0),
    ]
    log = read_meter(written(tmp_path_factory.mktemp("meter"), rows))
    assert log.samples.times[0] == pytest.approx(instant.timestamp(), abs=1e-5)


def test_energy_is_the_trapezoid_with_interpolated_ends(tmp_path: Path) -> None:
    ramp = read_meter(written(tmp_path, [(START + k, 2.0 * k) for k in range(61)]))
    figure = ramp.energy(START + 10.25, START + 40.75)
    assert figure.joules == pytest.approx(40.75**2 - 10.25**2)
    assert (figure.updates, figure.reason) == (30, None)


def test_other_columns_and_a_byte_order_mark_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "meter.csv"
    path.write_text(f"\ufeffvolts,time,watts\n230,{START},5\n231,{START + 1},6\n", encoding="utf-8")
    assert read_meter(path).samples.values.tolist() == [5.0, 6.0]


def test_gaps_are_reported_and_windows_over_them_have_no_figure(tmp_path: Path) -> None:
    times = [START + k for k in range(61) if not 20 < k < 30]
    log = read_meter(written(tmp_path, [(time, 30.0) for time in times]))
    assert log.gaps == ((START + 20, START + 30),)
    assert log.info.detail == "meter.csv: 52 readings, one in 1 s; 1 pauses of more than 5 s"
    assert log.energy(START + 5, START + 15).joules == pytest.approx(300.0)
    assert log.energy(START + 15, START + 25).reason == "no reading for 10 s; at most 5 s are bridged"
    assert steady(tmp_path).gaps == ()


def test_a_window_the_file_does_not_cover_is_refused_with_both_ranges(tmp_path: Path) -> None:
    log = steady(tmp_path)
    with pytest.raises(InputError) as caught:
        log.energy(START + 50, START + 70.5)
    assert str(caught.value).startswith(
        f"{log.path} covers 2026-11-24T09:30:00.000Z to 2026-11-24T09:31:00.000Z, not the window "
        "2026-11-24T09:30:50.000Z to 2026-11-24T09:31:10.500Z: let the meter log before, during and after"
    )
    with pytest.raises(InputError, match="covers"):
        log.energy(START - 0.1, START + 10)


def test_bad_files_are_refused_by_line(tmp_path: Path) -> None:
    good = (START, 5)
    assert "line 3: watts 'nan' is no finite number" in refusal(tmp_path, [good, (START + 1, "nan")])
    assert "line 3: watts 'inf' is no finite number" in refusal(tmp_path, [good, (START + 1, "inf")])
    assert "line 2: watts '' is no finite number" in refusal(tmp_path, [(START, "")])
    assert "line 3: time '2026-11-24T09:30:01' has no zone" in refusal(tmp_path, [good, ("2026-11-24T09:30:01", 5)])
    assert "line 2: time 'yesterday' is neither ISO 8601" in refusal(tmp_path, [("yesterday", 5)])
    assert "line 2: time '' is neither" in refusal(tmp_path, [("", 5)])
    twice = refusal(tmp_path, [good, (START + 1, 5), (START + 1, 5)])
    assert "reading 3 (2026-11-24T09:30:01.000Z) is not after the one before (2026-11-24T09:30:01.000Z)" in twice
    assert "must increase" in refusal(tmp_path, [(START + 1, 5), good])
    assert "holds 1 readings; must be at least 2" in refusal(tmp_path, [good])
    assert "has the columns when, power; its first line must name time and watts" in refusal(
        tmp_path, [good], header="when,power"
    )
    assert f"has the columns {START}, 5" in refusal(tmp_path, [(START + 1, 5)], header=f"{START},5"), "no header"
    with pytest.raises(ArtefactError, match=r"cannot read .*No such file"):
        read_meter(tmp_path / "missing.csv")
    (tmp_path / "meter.csv").write_bytes(b"time,watts\n\xff\xfe\n")
    with pytest.raises(ArtefactError, match="cannot read"):
        read_meter(tmp_path / "meter.csv")


def run(clock: VirtualClock, *, window_s: float = 100.0) -> EnergyResult:
    """Trials of 100 units of 1 s, 4 images each, with no sensor in the machine."""

    def work() -> int:
        clock.sleep(1.0)
        return 4

    return measure_energy(work, [], EnergySettings(window_s=window_s, idle_s=100.0, prolong_s=0.0), clock=clock)


def metered(
    folder: Path, clock: VirtualClock, result: EnergyResult, *, busy: float = 50.0, idle: float = 20.0
) -> MeterLog:
    """A reading a second that knows when the machine worked."""
    first, last = result.timeline.windows[0], result.timeline.windows[-1]
    times = np.arange(np.floor(first.begin_unix) - 3, last.end_unix + 3, 1.0) + 0.37
    trials = [trial.window for trial in result.timeline.trials]
    watts = [busy if any(t.begin_unix <= time < t.end_unix for t in trials) else idle for time in times]
    return read_meter(written(folder, list(zip(times, watts, strict=True))))


def test_a_run_gets_the_meters_gross_net_and_idle_power(tmp_path: Path) -> None:
    clock = VirtualClock()
    result = run(clock)
    added = with_meter(result, metered(tmp_path, clock, result))
    assert result.sensors == () and added.reason is None
    (wall,) = added.sensors
    assert (wall.info.name, wall.info.scope, wall.gross.label) == ("meter", "wall", "measured")
    assert wall.idle_before.watts == pytest.approx(20.0, rel=0.01)
    assert wall.idle_after.watts == pytest.approx(20.0, rel=0.01)
    assert wall.gross.mean == pytest.approx(50.0 / 4, rel=0.01)
    assert wall.net.mean == pytest.approx(30.0 / 4, rel=0.01)
    assert wall.gross.trials == 5
    assert wall.samples.clock == "unix" and 700 <= len(wall.samples.times) <= 703
    again = with_meter(added, metered(tmp_path, clock, result, busy=60.0))
    assert len(again.sensors) == 1
    assert again.sensors[0].gross.mean == pytest.approx(60.0 / 4, rel=0.01)


def test_a_slow_meter_needs_longer_windows(tmp_path: Path) -> None:
    clock = VirtualClock()
    result = run(clock, window_s=50.0)
    (wall,) = with_meter(result, metered(tmp_path, clock, result)).sensors
    assert wall.gross.label == "unavailable"
    assert wall.gross.reason == "trial 1 of 5: only 50 new values in the window; 100 are needed: measure for longer"
    assert wall.idle_w == pytest.approx(20.0, rel=0.01)


def test_a_file_that_misses_an_idle_window_is_refused(tmp_path: Path) -> None:
    clock = VirtualClock()
    result = run(clock)
    log = metered(tmp_path, clock, result)
    rows = list(zip(log.samples.times[150:], log.samples.values[150:], strict=True))
    with pytest.raises(InputError, match=r"covers .* not the window"):
        with_meter(result, read_meter(written(tmp_path, rows)))


def test_a_clock_that_was_set_during_the_run_is_refused(tmp_path: Path) -> None:
    clock = VirtualClock()
    result = run(clock)
    log = metered(tmp_path, clock, result)
    after = result.timeline.idle_after
    assert after is not None
    moved = replace(after, begin_unix=after.begin_unix + 2.0, end_unix=after.end_unix + 2.0)
    jumped = replace(result, timeline=replace(result.timeline, idle_after=moved))
    with pytest.raises(InputError, match=r"this machine's clock was set by 2 s during the run"):
        with_meter(jumped, log)


def test_a_run_without_a_finished_window_cannot_be_matched(tmp_path: Path) -> None:
    result = run(VirtualClock())
    empty = replace(result, timeline=replace(result.timeline, idle_before=None, trials=(), idle_after=None))
    with pytest.raises(InputError, match="stopped before its first window ended"):
        with_meter(empty, steady(tmp_path))
