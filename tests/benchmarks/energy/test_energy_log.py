"""Sensors are read in the background without loss: samples stamped in the middle, failures counted, ends noted."""

import threading
import time

import pytest
from scripted_sensor import Curve, Scripted, constant
from virtual_clock import VirtualClock

from collafuse_benchmarks.energy.power_log import PowerLog
from collafuse_runtimes.errors import InputError

RAMP = Curve([1000.0, 1060.0], [2.0, 62.0])


def test_every_sensor_is_read_at_its_own_interval() -> None:
    clock = VirtualClock()
    fast = Scripted(constant(5.0), clock, name="fast", interval_s=0.05)
    slow = Scripted(constant(9.0), clock, "energy", name="slow", interval_s=0.5)
    with PowerLog([fast, slow], clock=clock) as log:
        clock.sleep(20.0)
    assert len(log.samples("fast").times) == pytest.approx(401, abs=1)
    assert len(log.samples("slow").times) == pytest.approx(41, abs=1)
    assert log.energy("fast", 1002.0, 1012.0).joules == pytest.approx(50.0)
    assert log.energy("slow", 1002.0, 1012.0).joules == pytest.approx(90.0)
    assert log.updates("fast", 1010.0) == pytest.approx(200, abs=2)
    assert log.updates("slow", 1010.0) == pytest.approx(20, abs=2)


def test_a_sample_belongs_to_the_middle_of_its_read() -> None:
    """Stamped at the end of reads of 80 ms, a ramp of 1 W/s would be wrong by 40 mW times 30 s."""
    clock = VirtualClock()
    sensor = Scripted(RAMP, clock, read_s=0.08)
    with PowerLog([sensor], clock=clock) as log:
        clock.sleep(40.0)
        sensor.end.set()
    assert log.energy("scripted", 1005.0, 1035.0).joules == pytest.approx(RAMP.energy(1005.0, 1035.0), rel=1e-6)


def test_a_reading_slower_than_its_interval_is_read_as_often_as_it_can_be() -> None:
    clock = VirtualClock()
    sensor = Scripted(RAMP, clock, interval_s=0.1, read_s=0.15)
    with PowerLog([sensor], clock=clock) as log:
        clock.sleep(30.0)
        sensor.end.set()
    assert len(log.samples("scripted").times) == pytest.approx(200, abs=2)


def test_failed_reads_are_counted_where_they_were() -> None:
    clock = VirtualClock()
    sensor = Scripted(constant(5.0), clock, fails=[(1005.05, 1005.35), (1012.05, 1014.05)])
    with PowerLog([sensor], clock=clock) as log:
        clock.sleep(30.0)
    bridged = log.energy("scripted", 1001.0, 1010.0)
    assert (bridged.joules, bridged.dropped) == (pytest.approx(45.0), 3)
    hole = log.energy("scripted", 1010.0, 1020.0)
    assert hole.joules is None and str(hole.reason).startswith("no reading for 2.1 s")
    assert hole.dropped == 20
    assert log.energy("scripted", 1015.0, 1025.0).joules == pytest.approx(50.0)


def test_readings_that_are_no_number_are_dropped() -> None:
    clock = VirtualClock()
    with PowerLog([Scripted(constant(float("nan")), clock)], clock=clock) as log:
        clock.sleep(2.0)
    figure = log.energy("scripted", 1000.45, 1001.55)
    assert (figure.joules, figure.updates, figure.dropped) == (None, 0, 11)
    assert figure.reason == "the sensor gave no reading at all"


def test_a_vanished_sensor_leaves_what_it_measured() -> None:
    clock = VirtualClock()
    gone, there = Scripted(constant(5.0), clock, lost=1015.0), Scripted(constant(2.0), clock, name="there")
    with PowerLog([gone, there], clock=clock) as log:
        clock.sleep(30.0)
    before = log.energy("scripted", 1002.0, 1012.0)
    assert before.joules == pytest.approx(50.0)
    after = log.energy("scripted", 1010.0, 1020.0)
    assert after.joules is None
    assert after.reason == "the sensor vanished 5 s before the window ended: the cable was pulled"
    vanished = log.vanished("scripted")
    assert vanished is not None and vanished.time == pytest.approx(1015.0, abs=0.11)
    assert log.energy("there", 1010.0, 1020.0).joules == pytest.approx(20.0)
    assert log.vanished("there") is None


def test_a_library_that_breaks_is_a_vanished_sensor_and_the_others_go_on() -> None:
    clock = VirtualClock()

    def breaks() -> None:
        raise RuntimeError("driver bug")

    bad = Scripted(constant(5.0), clock, name="bad", on_read=breaks)
    with PowerLog([bad, Scripted(constant(2.0), clock)], clock=clock) as log:
        clock.sleep(5.0)
    assert "RuntimeError: driver bug" in str(log.energy("bad", 1001.0, 1002.0).reason)
    assert log.energy("scripted", 1001.0, 1003.0).joules == pytest.approx(4.0)


def test_a_counter_that_stops_moving_is_told_from_one_that_is_gone() -> None:
    clock = VirtualClock()
    with PowerLog([Scripted(constant(5.0), clock, "energy", stuck=1010.0)], clock=clock) as log:
        clock.sleep(30.0)
    assert log.energy("scripted", 1002.0, 1009.0).joules == pytest.approx(35.0)
    assert log.energy("scripted", 1012.0, 1022.0).reason == "the counter did not move"


def test_names_are_unique_and_known() -> None:
    clock = VirtualClock()
    with pytest.raises(InputError, match="each needs a name of its own"):
        PowerLog([Scripted(constant(1.0), clock), Scripted(constant(2.0), clock)])
    with pytest.raises(InputError, match="no sensor 'gpu' in this log; valid: scripted"):
        PowerLog([Scripted(constant(1.0), clock)]).energy("gpu", 0.0, 1.0)


def test_on_the_real_clock_threads_start_read_and_end() -> None:
    from collafuse_benchmarks.measure.clock import SYSTEM_CLOCK

    sensor = Scripted(constant(5.0), SYSTEM_CLOCK, interval_s=0.01)
    with PowerLog([sensor]) as log:
        assert any(thread.name == "sensor scripted" for thread in threading.enumerate())
        begin = time.monotonic()
        time.sleep(0.5)
        end = time.monotonic()
        time.sleep(0.1)
    assert not any(thread.name == "sensor scripted" for thread in threading.enumerate())
    samples = log.samples("scripted")
    assert 20 <= len(samples.times) <= 62
    assert samples.times[0] <= begin < end <= samples.times[-1]
    assert not sensor.closed
