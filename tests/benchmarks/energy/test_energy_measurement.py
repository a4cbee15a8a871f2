"""Energy per image: gross and net, over trials between two idle windows; nothing measured is lost or made up."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_sysfs as sysfs
import numpy as np
import pytest
from scripted_sensor import Scripted, constant
from virtual_clock import VirtualClock

from collafuse_benchmarks.energy.measurement import EnergyInterrupted, EnergyResult, measure_energy
from collafuse_benchmarks.energy.sensors import find_sensors
from collafuse_benchmarks.energy.settings import EnergySettings
from collafuse_runtimes.errors import InputError

IDLE_W, BUSY_W = 4.0, 19.0
UNIT_S, BATCH = 0.4, 2


class Machine:
    """Its power is high while it works; work makes BATCH images in UNIT_S."""

    def __init__(self, clock: VirtualClock, busy_w: Callable[[int], float] = lambda _: BUSY_W) -> None:
        self.clock, self.busy_w = clock, busy_w
        self.units = 0
        self.working = False
        self.idle_w = IDLE_W
        self.stop_at: int | None = None

    def work(self) -> int:
        if self.units == self.stop_at:
            raise KeyboardInterrupt
        self.units += 1
        self.working = True
        self.clock.sleep(UNIT_S)
        self.working = False
        return BATCH

    def power(self, _: float = 0.0) -> float:
        return self.busy_w(self.units) if self.working else self.idle_w

    def sensor(self, **options: Any) -> Scripted:
        sensor = Scripted(constant(0.0), self.clock, interval_s=0.08, **options)
        sensor.curve = self  # type: ignore[assignment]
        return sensor


def test_gross_and_net_joules_per_image() -> None:
    clock = VirtualClock()
    machine = Machine(clock)
    result = measure_energy(machine.work, [machine.sensor()], clock=clock)
    (sensor,) = result.sensors
    assert result.complete and result.reason is None
    assert len(result.timeline.trials) == 5
    for trial in result.timeline.trials:
        assert trial.units * BATCH == trial.images == 50
        assert trial.window.seconds == pytest.approx(10.0)
    seconds_per_image = UNIT_S / BATCH
    assert sensor.gross.mean == pytest.approx(BUSY_W * seconds_per_image, rel=0.01)
    assert sensor.net.mean == pytest.approx((BUSY_W - IDLE_W) * seconds_per_image, rel=0.01)
    assert (sensor.gross.label, sensor.gross.trials, sensor.gross.reason) == ("measured", 5, None)
    assert (sensor.net.label, sensor.net.trials, sensor.net.reason) == ("measured", 5, None)
    assert sensor.idle_before.watts == pytest.approx(IDLE_W, rel=0.01)
    assert sensor.idle_after.watts == pytest.approx(IDLE_W, rel=0.01)
    assert sensor.idle_drift_w == pytest.approx(0.0, abs=0.05)
    assert sensor.idle_before.updates >= 300
    for before, after in zip(result.timeline.windows, result.timeline.windows[1:], strict=False):
        assert before.end <= after.begin
    first = result.timeline.windows[0]
    assert first.begin_unix - first.begin == clock.wall_offset
    assert first.seconds >= 30.0


def test_warm_up_comes_first_and_is_in_no_window() -> None:
    clock = VirtualClock()
    machine = Machine(clock)
    phases: list[tuple[str, float]] = []
    result = measure_energy(
        machine.work,
        [machine.sensor()],
        EnergySettings(warmup=7, trials=2),
        on_progress=lambda phase, share: phases.append((phase, share)),
        clock=clock,
    )
    assert machine.units == 7 + 50
    assert result.timeline.idle_before is not None
    assert result.timeline.idle_before.begin >= 1000.0 + 7 * UNIT_S
    assert list(dict.fromkeys(phase for phase, _ in phases)) == [
        "warm-up",
        "idle before",
        "trial 1 of 2",
        "trial 2 of 2",
        "idle after",
    ]
    for name in ("idle before", "trial 1 of 2", "idle after"):
        shares = [share for phase, share in phases if phase == name]
        assert shares == sorted(shares) and (shares[0], shares[-1]) == (0.0, 1.0)
        assert len(shares) > 20


def test_mean_and_spread_over_trials_and_drift_of_idle_power() -> None:
    clock = VirtualClock()
    watts = [10.0, 12.0, 11.0, 15.0]
    machine = Machine(clock, lambda units: watts[(units - 2) // 25] if units > 1 else BUSY_W)

    def told(phase: str, _: float) -> None:
        machine.idle_w = 6.0 if phase == "idle after" else IDLE_W

    settings = EnergySettings(trials=4)
    result = measure_energy(machine.work, [machine.sensor()], settings, on_progress=told, clock=clock)
    (sensor,) = result.sensors
    per_image = np.array(watts) * UNIT_S / BATCH
    assert [trial.gross_j_per_image for trial in sensor.trials] == pytest.approx(per_image.tolist(), rel=0.02)
    assert sensor.gross.mean == pytest.approx(per_image.mean(), rel=0.01)
    assert sensor.gross.std == pytest.approx(per_image.std(ddof=1), rel=0.05)
    assert sensor.idle_drift_w == pytest.approx(2.0, abs=0.05)
    assert sensor.idle_w == pytest.approx(5.0, rel=0.01)
    assert sensor.net.mean == pytest.approx(per_image.mean() - 5.0 * UNIT_S / BATCH, rel=0.02)


def test_a_window_lasts_until_the_slowest_sensor_has_moved_often_enough() -> None:
    clock = VirtualClock()
    machine = Machine(clock)
    sensors = [machine.sensor(), Scripted(constant(8.0), clock, "energy", name="slow", refresh_s=0.25)]
    result = measure_energy(machine.work, sensors, EnergySettings(trials=2), clock=clock)
    for window in result.timeline.windows:
        assert window.seconds >= 30.0 if window is result.timeline.windows[0] else window.seconds >= 24.5
        assert window.seconds <= 31.0
    assert [sensor.gross.label for sensor in result.sensors] == ["measured", "measured"]
    assert all(trial.energy.updates >= 100 for sensor in result.sensors for trial in sensor.trials)
    assert result.sensors[1].idle_before.watts == pytest.approx(8.0, rel=0.01)


def test_a_sensor_that_never_moves_cannot_hang_it_and_has_no_figure() -> None:
    clock = VirtualClock()
    machine = Machine(clock)
    stuck = Scripted(constant(8.0), clock, "energy", name="stuck", stuck=0.0)
    result = measure_energy(machine.work, [stuck, machine.sensor()], clock=clock)
    first, second = result.sensors
    assert result.timeline.windows[0].seconds == pytest.approx(80.0, abs=0.3)
    assert [trial.window.seconds for trial in result.timeline.trials] == pytest.approx([10.0] * 5, abs=0.5)
    assert (first.gross.label, first.gross.mean, first.gross.std) == ("unavailable", None, None)
    assert first.gross.reason == "trial 1 of 5: the counter did not move"
    assert first.idle_before.watts is None and first.net.label == "unavailable"
    assert second.gross.label == "measured"


def test_too_seldom_is_unavailable_after_the_longest_time() -> None:
    clock = VirtualClock()
    machine = Machine(clock)
    rare = Scripted(constant(8.0), clock, "energy", refresh_s=2.0)
    result = measure_energy(machine.work, [rare], EnergySettings(trials=1, prolong_s=30.0), clock=clock)
    (trial,) = result.timeline.trials
    assert trial.window.seconds == pytest.approx(40.0, abs=UNIT_S)
    reason = str(result.sensors[0].gross.reason)
    assert reason.startswith("trial 1 of 1: only ") and "100 are needed" in reason


def test_a_sensor_that_vanishes_keeps_its_first_trials() -> None:
    clock = VirtualClock()
    machine = Machine(clock)
    lost = 1000.0 + UNIT_S + 30.0 + 25.0
    result = measure_energy(machine.work, [machine.sensor(lost=lost), machine.sensor(name="other")], clock=clock)
    gone, other = result.sensors
    assert gone.gross.trials == 2 and gone.gross.label == "measured"
    assert gone.gross.mean == pytest.approx(BUSY_W * UNIT_S / BATCH, rel=0.01)
    assert str(gone.gross.reason).startswith("trial 3 of 5: the sensor vanished ")
    assert gone.net.label == "unavailable" and gone.idle_after.watts is None and gone.idle_drift_w is None
    assert [trial.gross_j_per_image is None for trial in gone.trials] == [False, False, True, True, True]
    assert gone.samples.vanished == pytest.approx(lost, abs=0.11)
    assert other.gross.trials == 5
    assert result.complete


def test_without_a_sensor_there_are_trials_and_the_reason() -> None:
    clock = VirtualClock()
    machine = Machine(clock)
    reasons = {"rapl": "no CPU package", "nvml": "not installed"}
    result = measure_energy(machine.work, [], EnergySettings(trials=2), reasons=reasons, clock=clock)
    assert [trial.images for trial in result.timeline.trials] == [50, 50]
    assert [trial.window.seconds for trial in result.timeline.trials] == pytest.approx([10.0, 10.0])
    assert result.reason == "rapl: no CPU package; nvml: not installed"
    found = result.to_dict()
    assert found["energy"] is None and found["reason"] == result.reason and found["reasons"] == reasons
    assert measure_energy(machine.work, [], clock=clock).reason == "no sensor was given"


def interrupted(machine: Machine, stop_at: int, **options: Any) -> EnergyResult:
    machine.stop_at = stop_at
    with pytest.raises(KeyboardInterrupt) as caught:
        measure_energy(machine.work, [machine.sensor()], clock=machine.clock, **options)
    assert isinstance(caught.value, EnergyInterrupted)
    assert not any(thread.name.startswith("sensor ") for thread in threading.enumerate())
    return caught.value.result


def test_ctrl_c_keeps_the_finished_trials() -> None:
    result = interrupted(Machine(VirtualClock()), stop_at=1 + 25 + 25 + 7)
    (sensor,) = result.sensors
    assert not result.complete and result.to_dict()["complete"] is False
    assert [trial.images for trial in result.timeline.trials] == [50, 50]
    assert sensor.gross.mean == pytest.approx(BUSY_W * UNIT_S / BATCH, rel=0.01)
    assert sensor.gross.trials == 2
    assert (sensor.net.label, sensor.net.mean) == ("unavailable", None)
    assert sensor.net.reason == "idle power: the run was stopped before this window ended"
    assert sensor.idle_before.watts == pytest.approx(IDLE_W, rel=0.01)
    assert result.timeline.idle_after is None and result.to_dict()["idle_after"] is None


def test_ctrl_c_right_after_a_trial_still_reads_to_its_end() -> None:
    result = interrupted(Machine(VirtualClock()), stop_at=1 + 25)
    assert [trial.energy.reason for trial in result.sensors[0].trials] == [None]


def test_ctrl_c_before_the_first_window_leaves_an_empty_result() -> None:
    result = interrupted(Machine(VirtualClock()), stop_at=0)
    assert result.timeline.windows == ()
    assert result.sensors[0].gross.reason == "no trial was finished"
    assert result.sensors[0].idle_before.watts is None


def test_the_record_is_json_and_holds_every_raw_sample() -> None:
    clock = VirtualClock()
    machine = Machine(clock)
    sensor = machine.sensor(fails=[(1010.05, 1010.12)])
    result = measure_energy(machine.work, [sensor], EnergySettings(trials=2), clock=clock)
    found = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert found["settings"]["window_s"] == 10.0 and found["complete"] is True
    assert found["trials"][0]["images"] == 50
    assert found["trials"][0]["window"]["seconds"] == pytest.approx(10.0)
    (energy,) = found["energy"]
    assert energy["info"] == {
        "name": "scripted",
        "quantity": "power",
        "scope": "board",
        "detail": "a known curve",
        "interval_s": 0.08,
    }
    samples = energy["samples"]
    assert samples["clock"] == "monotonic" and samples["vanished"] is None
    assert len(samples["times"]) == len(samples["values"]) == sensor.reads - 1
    assert samples["dropped"] == pytest.approx([1010.08])
    begin, end = found["trials"][0]["window"]["begin"], found["trials"][0]["window"]["end"]
    times, watts = np.array(samples["times"]), np.array(samples["values"])
    fine = np.linspace(begin, end, 20_001)
    again = np.interp(fine, times, watts).mean() * (end - begin)
    assert energy["trials"][0]["energy"]["joules"] == pytest.approx(again, rel=1e-3)
    assert energy["trials"][0]["gross_j_per_image"] == pytest.approx(again / 50, rel=1e-3)


@pytest.mark.parametrize("returned", [0, -1, None, 2.0, True, "4"])
def test_work_that_counts_no_images_is_refused(returned: Any) -> None:
    with pytest.raises(InputError, match=r"the work returned .*; valid is the number of images"):
        measure_energy(lambda: returned, [], clock=VirtualClock())


@pytest.mark.parametrize(
    ("name", "value", "valid"),
    [
        ("idle_s", 0.5, "at least 1"),
        ("window_s", 9.9, "at least 10"),
        ("min_updates", 1, "at least 2"),
        ("prolong_s", -0.1, "at least 0"),
        ("trials", 0, "at least 1"),
        ("warmup", -1, "at least 0"),
        ("window_s", float("nan"), "at least 10"),
        ("idle_s", float("inf"), "at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: Any, valid: str) -> None:
    with pytest.raises(InputError, match=f"^{name} {value} out of range: must be {valid}$"):
        EnergySettings(**{name: value})


def test_a_board_and_a_cpu_package_from_their_files(tmp_path: Path) -> None:
    """Sensors as found on a Jetson's and a PC's files; the board's monitor goes away before the last trial ends."""
    clock = VirtualClock()
    folder = sysfs.orin_nano(tmp_path)
    most = 20_000_000
    package = sysfs.rapl(tmp_path, {"intel-rapl:0": ("package-0", 0, most)}) / "intel-rapl:0" / "energy_uj"
    units = 0

    def draw(milliamperes: int) -> None:
        if units < 60:
            sysfs.put(folder / "curr1_input", milliamperes)
        else:
            (folder / "curr1_input").unlink(missing_ok=True)

    def work() -> int:
        nonlocal units
        units += 1
        draw(3000)
        for _ in range(4):
            clock.sleep(UNIT_S / 4)
            sysfs.put(package, int(2.0e6 * (clock.monotonic() - 1000.0)) % most)
        draw(1000)
        return BATCH

    found = find_sensors(tmp_path)
    sensors = [sensor for sensor in found.sensors if sensor.info.name in ("ina", "rapl")]
    settings = EnergySettings(trials=3, min_updates=50)
    result = measure_energy(work, sensors, settings, reasons=found.reasons, clock=clock)
    board, cpu = result.sensors
    assert (board.info.scope, cpu.info.scope) == ("module", "cpu package")
    assert board.idle_before.watts == pytest.approx(4.960, rel=0.01)
    assert [trial.gross_j_per_image for trial in board.trials[:2]] == pytest.approx([4.96 * 3 * 0.2] * 2, rel=0.01)
    assert board.trials[2].gross_j_per_image is None and board.gross.trials == 2
    assert "curr1_input is gone" in str(board.gross.reason)
    assert [trial.gross_j_per_image for trial in cpu.trials] == pytest.approx([2.0 * 0.2] * 3, rel=0.02)
    assert cpu.idle_before.watts is None, "nobody moved the counter"
