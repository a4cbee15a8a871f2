"""RAPL counts CPU packages, each once, around the turn of its counter; without permission it says what to do."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fake_sysfs as sysfs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collafuse_benchmarks.energy.sensors import find_sensors
from collafuse_benchmarks.energy.sensors.base import Sensor

MOST = 262_143_328_850
"""uJ, the range of a desktop's package."""
ZONES = {
    "intel-rapl:0": ("package-0", 1_000_000, MOST),
    "intel-rapl:0:0": ("core", 900_000, MOST),
    "intel-rapl:0:1": ("dram", 500_000, 65_532_610_987),
    "intel-rapl:0:2": ("package-0-part", 400_000, MOST),
    "intel-rapl:1": ("package-1", 5_000_000, MOST),
    "intel-rapl:2": ("psys", 7_000_000, MOST),
    "intel-rapl-mmio:0": ("package-0", 1_000_000, MOST),
}


def counter(root: Path) -> Sensor:
    found = find_sensors(root)
    assert "rapl" not in found.reasons, found.reasons
    return next(sensor for sensor in found.sensors if sensor.info.name == "rapl")


def test_packages_are_summed_and_nothing_else(tmp_path: Path) -> None:
    folder = sysfs.rapl(tmp_path, ZONES)
    sensor = counter(tmp_path)
    assert sensor.read() == 0.0
    assert (sensor.info.quantity, sensor.info.scope) == ("energy", "cpu package")
    assert sensor.info.detail.startswith("intel-rapl:0 (package-0), intel-rapl:1 (package-1)")
    for zone, (_, energy, _) in ZONES.items():
        sysfs.put(folder / zone / "energy_uj", energy + 250_000)
    assert sensor.read() == pytest.approx(0.5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, MOST - 1), st.lists(st.integers(0, MOST - 1), min_size=1, max_size=6))
def test_a_counter_that_turns_never_falls(
    tmp_path_factory: pytest.TempPathFactory, start: int, steps: list[int]
) -> None:
    root = tmp_path_factory.mktemp("rapl")
    folder = sysfs.rapl(root, {"intel-rapl:0": ("package-0", start, MOST), "intel-rapl:1": ("package-1", 3, 10**6)})
    sensor = counter(root)
    raw = start
    for k, step in enumerate(steps, 1):
        raw = (raw + step) % MOST
        sysfs.put(folder / "intel-rapl:0" / "energy_uj", raw)
        assert sensor.read() == pytest.approx(sum(steps[:k]) / 1e6, abs=1e-9)


def test_each_package_turns_at_its_own_range(tmp_path: Path) -> None:
    zones = {"intel-rapl:0": ("package-0", 990, 1000), "intel-rapl:1": ("package-1", 1990, 2000)}
    folder = sysfs.rapl(tmp_path, zones)
    sensor = counter(tmp_path)
    sysfs.put(folder / "intel-rapl:0" / "energy_uj", 5)
    sysfs.put(folder / "intel-rapl:1" / "energy_uj", 1995)
    assert sensor.read() == pytest.approx(20e-6)
    sysfs.put(folder / "intel-rapl:1" / "energy_uj", 0)
    assert sensor.read() == pytest.approx(25e-6)


def test_a_failed_read_loses_no_energy(tmp_path: Path) -> None:
    folder = sysfs.rapl(tmp_path, {"intel-rapl:0": ("package-0", 0, MOST), "intel-rapl:1": ("package-1", 0, MOST)})
    sensor = counter(tmp_path)
    sysfs.put(folder / "intel-rapl:0" / "energy_uj", 4_000_000)
    sysfs.put(folder / "intel-rapl:1" / "energy_uj", "")
    with pytest.raises(OSError):
        sensor.read()
    sysfs.put(folder / "intel-rapl:1" / "energy_uj", 1_000_000)
    assert sensor.read() == pytest.approx(5.0)


@pytest.mark.parametrize("zones", [{}, {"intel-rapl:0": ("psys", 1, MOST)}, {"intel-rapl:0:0": ("core", 1, MOST)}])
def test_without_a_package_there_is_a_reason(tmp_path: Path, zones: dict[str, tuple[str, int, int]]) -> None:
    if zones:
        sysfs.rapl(tmp_path, zones)
    assert "no CPU package under" in find_sensors(tmp_path).reasons["rapl"]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may enter; pytest's own they may not."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def test_root_alone_may_read_and_others_are_told(open_folder: Path) -> None:
    folder = sysfs.rapl(open_folder, ZONES)
    for path in folder.glob("*/energy_uj"):
        path.chmod(0o400 if os.geteuid() == 0 else 0)
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)
    try:
        reason = find_sensors(open_folder).reasons["rapl"]
    finally:
        os.seteuid(me)
    assert reason.startswith(
        f"{folder / 'intel-rapl:0' / 'energy_uj'} is for root alone: run as root, or `sudo chmod a+r"
    )
    assert len(reason.splitlines()) == 1
