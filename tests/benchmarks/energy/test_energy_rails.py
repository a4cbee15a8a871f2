"""The total of a Jetson is the documented rails of that board and no other; what is not documented is not summed up."""

import re
from pathlib import Path

import fake_sysfs as sysfs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collafuse_benchmarks.energy.sensors import find_sensors
from collafuse_benchmarks.energy.sensors.base import Sensor
from collafuse_benchmarks.energy.sensors.hwmon import find_rails
from collafuse_runtimes.errors import SensorLost


def total(root: Path) -> Sensor:
    found = find_sensors(root)
    assert "ina" not in found.reasons, found.reasons
    return next(sensor for sensor in found.sensors if sensor.info.name == "ina")


def refusal(root: Path) -> str:
    found = find_sensors(root)
    assert "ina" not in [sensor.info.name for sensor in found.sensors]
    assert len(found.reasons["ina"].splitlines()) == 1
    return found.reasons["ina"]


@pytest.mark.parametrize(
    "model",
    [
        "NVIDIA Jetson Orin Nano Developer Kit",
        "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        "NVIDIA Jetson Orin NX Engineering Reference Developer Kit",
        "NVIDIA Jetson Xavier NX Developer Kit",
    ],
)
def test_small_modules_are_vdd_in_alone(tmp_path: Path, model: str) -> None:
    sysfs.orin_nano(tmp_path, model)
    sensor = total(tmp_path)
    assert sensor.read() == pytest.approx(4.960 * 1.008)
    assert (sensor.info.quantity, sensor.info.scope) == ("power", "module")
    assert "VDD_IN (ina3221 0x40)" in sensor.info.detail and "VDD_SOC" not in sensor.info.detail


@pytest.mark.parametrize("links", [("device",), ("of_node",), ("device", "of_node")])
def test_agx_orin_is_three_rails_at_0x40(tmp_path: Path, links: tuple[str, ...]) -> None:
    sysfs.agx_orin(tmp_path, links=links)
    sensor = total(tmp_path)
    assert sensor.read() == pytest.approx(14.904 * 0.215 + 14.904 * 0.066 + 4.968 * 0.953)
    assert sensor.info.scope == "module"
    assert "carrier board not included" in sensor.info.detail and "0x41" not in sensor.info.detail


def test_rails_of_the_same_name_at_0x41_are_left_out(tmp_path: Path) -> None:
    first, second = sysfs.agx_orin(tmp_path)
    sysfs.put(second / "in2_label", "VIN_SYS_5V0")
    sensor = total(tmp_path)
    before = sensor.read()
    sysfs.put(second / "curr2_input", 9000)
    assert sensor.read() == before
    sysfs.put(first / "curr3_input", 1953)
    assert sensor.read() == pytest.approx(before + 4.968)


@pytest.mark.parametrize("label", ["VIN", None])
def test_thor_is_its_input_in_microwatts(tmp_path: Path, label: str | None) -> None:
    sysfs.agx_thor(tmp_path, label=label)
    sensor = total(tmp_path)
    assert sensor.read() == pytest.approx(19.78)
    assert (sensor.info.scope, sensor.info.quantity) == ("board", "power")


@settings(max_examples=50, deadline=None)
@given(st.integers(-32760, 32760), st.integers(-163800, 163800))
def test_power_is_signed_volts_times_amperes(
    tmp_path_factory: pytest.TempPathFactory, millivolts: int, milliamperes: int
) -> None:
    root = tmp_path_factory.mktemp("board")
    folder = sysfs.orin_nano(root)
    sensor = total(root)
    sysfs.put(folder / "in1_input", millivolts)
    sysfs.put(folder / "curr1_input", milliamperes)
    assert sensor.read() == pytest.approx(millivolts * milliamperes / 1e6)


def test_shunt_voltages_and_sums_are_no_rails(tmp_path: Path) -> None:
    sysfs.agx_thor(tmp_path)
    assert [(rail.label, rail.channel) for rail in find_rails(tmp_path)] == [
        ("VDD_GPU", 1),
        ("VDD_CPU_SOC_MSS", 2),
        ("VIN_SYS_5V0", 3),
        ("VIN", 1),
    ]


def test_an_idle_rail_below_zero_lowers_the_sum(tmp_path: Path) -> None:
    folder, _ = sysfs.agx_orin(tmp_path)
    before = total(tmp_path).read()
    sysfs.put(folder / "curr1_input", -40)
    assert total(tmp_path).read() == pytest.approx(before - 14.904 * 0.255)


@pytest.mark.parametrize("model", ["NVIDIA Jetson AGX Xavier Developer Kit", "Acme Vision Box (Orin inside)"])
def test_an_unknown_board_has_no_total(tmp_path: Path, model: str) -> None:
    sysfs.board(tmp_path, model)
    sysfs.ina3221(tmp_path, 0, 0x40, [("GPU", 19000, 100), ("CPU", 19000, 50), ("VDD_IN", 19000, 90)])
    reason = refusal(tmp_path)
    assert f"the total of board {model!r} is not documented" in reason
    assert "rails found: GPU (ina3221 0x40), CPU (ina3221 0x40), VDD_IN (ina3221 0x40)" in reason


def test_a_board_without_a_model_has_no_total(tmp_path: Path) -> None:
    sysfs.ina3221(tmp_path, 0, 0x40, [("VDD_IN", 5000, 1000), None, None])
    assert "the board does not tell its model; rails found: VDD_IN" in refusal(tmp_path)


def test_a_known_board_with_other_rails_has_no_total(tmp_path: Path) -> None:
    sysfs.board(tmp_path, "NVIDIA Jetson Orin Nano Developer Kit")
    sysfs.ina3221(tmp_path, 0, 0x40, [("VDD_GPU_SOC", 5000, 1000), ("VDD_CPU_CV", 5000, 1000), None])
    reason = refusal(tmp_path)
    assert reason.startswith("no VDD_IN of ina3221 at 0x40 on board 'NVIDIA Jetson Orin Nano Developer Kit'")
    assert "channel 3 without a label (ina3221 0x40)" in reason


def test_a_monitor_at_another_address_is_not_the_boards(tmp_path: Path) -> None:
    sysfs.board(tmp_path, "NVIDIA Jetson Orin Nano Developer Kit")
    sysfs.ina3221(tmp_path, 0, 0x41, [("VDD_IN", 5000, 1000), None, None])
    assert "no VDD_IN of ina3221 at 0x40" in refusal(tmp_path)


def test_without_an_address_nothing_is_summed(tmp_path: Path) -> None:
    sysfs.agx_orin(tmp_path, links=())
    assert "VDD_GPU_SOC (ina3221 address unknown)" in refusal(tmp_path)


def test_missing_labels_are_told(tmp_path: Path) -> None:
    folder = sysfs.orin_nano(tmp_path)
    (folder / "in1_label").unlink()
    assert "channel 1 without a label (ina3221 0x40)" in refusal(tmp_path)


def test_a_rail_that_is_switched_off_says_how_to_switch_it_on(tmp_path: Path) -> None:
    folder = sysfs.orin_nano(tmp_path)
    sysfs.put(folder / "in1_enable", 0)
    assert f"VDD_IN (ina3221 0x40) is switched off: `echo 1 | sudo tee {folder / 'in1_enable'}`" == refusal(tmp_path)


def test_a_rail_whose_read_fails_is_refused_and_its_neighbours_do_not_matter(tmp_path: Path) -> None:
    folder = sysfs.orin_nano(tmp_path)
    for name in ("in2_input", "curr3_input"):
        (folder / name).unlink()
        (folder / name).symlink_to(sysfs.UNREADABLE)
    assert total(tmp_path).read() == pytest.approx(4.960 * 1.008)
    (folder / "curr1_input").unlink()
    (folder / "curr1_input").symlink_to(sysfs.UNREADABLE)
    assert re.search(r"VDD_IN .* cannot be read \(.*Input/output error.*\)", refusal(tmp_path))


def test_two_inputs_of_a_thor_are_ambiguous(tmp_path: Path) -> None:
    sysfs.agx_thor(tmp_path, label=None)
    sysfs.ina238(tmp_path, 6, 5, address=0x45, label=None)
    assert "2 rails VIN of ina238 on board" in refusal(tmp_path)


def test_a_thor_without_its_input_monitor_has_no_total(tmp_path: Path) -> None:
    sysfs.agx_thor(tmp_path)
    (tmp_path / "sys/class/hwmon/hwmon5").unlink()
    reason = refusal(tmp_path)
    assert "no VIN of ina238 on board" in reason and "VIN_SYS_5V0 (ina3221 0x40)" in reason


def test_no_monitor_at_all(tmp_path: Path) -> None:
    assert "no ina3221 or ina238 power monitor under" in refusal(tmp_path)


def test_a_failing_read_is_dropped_and_a_vanished_file_is_the_end(tmp_path: Path) -> None:
    folder = sysfs.orin_nano(tmp_path)
    sensor = total(tmp_path)
    for content in ("", "n/a", "12.5"):
        sysfs.put(folder / "curr1_input", content)
        with pytest.raises(OSError, match="is no integer"):
            sensor.read()
    (folder / "curr1_input").unlink()
    (folder / "curr1_input").symlink_to(sysfs.UNREADABLE)
    with pytest.raises(OSError):
        sensor.read()
    (folder / "curr1_input").unlink()
    with pytest.raises(SensorLost, match="curr1_input is gone"):
        sensor.read()
