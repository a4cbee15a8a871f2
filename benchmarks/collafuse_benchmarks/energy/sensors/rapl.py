"""RAPL: the energy counters of x86 CPU packages, as Linux's powercap shows them."""

import re
from pathlib import Path

from collafuse_benchmarks.energy.sensors.base import Sensor, SensorInfo, read_number, read_word
from collafuse_runtimes.errors import SensorLost

NAME = "rapl"
_CLASS = Path("sys/class/powercap")
_MICRO = 1e-6


class RaplSensor:
    """The sum over CPU packages in joules since it was made; each package's counter may wrap around."""

    def __init__(self, zones: tuple[Path, ...]) -> None:
        """Read every counter once.

        Args:
            zones: folders .../intel-rapl:N of packages.

        Raises:
            OSError, SensorLost: as ``read_number``.
        """
        self._ranges = {zone: read_number(zone / "max_energy_range_uj") for zone in zones}
        self._last = {zone: read_number(zone / "energy_uj") for zone in zones}
        self._total = 0
        names = ", ".join(f"{zone.name} ({read_word(zone / 'name')})" for zone in zones)
        self.info = SensorInfo(NAME, "energy", "cpu package", f"{names}; no board, GPU or separate DRAM zone", 0.1)

    def read(self) -> float:
        """Joules since the sensor was made. Each package must be read at least once per turn of its counter."""
        for zone, last in self._last.items():
            now = read_number(zone / "energy_uj")
            self._total += now - last if now >= last else now - last + self._ranges[zone]
            self._last[zone] = now
        return self._total * _MICRO

    def close(self) -> None:
        """Nothing is held."""


def find_rapl(root: Path) -> Sensor | str:
    """The CPU packages' counters, or one line why there are none and what to do.

    Args:
        root: where /sys is.
    """
    zones = tuple(
        path
        for path in sorted((root / _CLASS).glob("intel-rapl:*"))
        if re.fullmatch(r"intel-rapl:\d+", path.name) and (read_word(path / "name") or "").startswith("package")
    )
    if not zones:
        return (
            f"no CPU package under {root / _CLASS}: RAPL is on x86 alone, and virtual machines and containers mostly "
            "hide it; use a wall meter"
        )
    try:
        return RaplSensor(zones)
    except PermissionError as error:
        readable = f"sudo chmod a+r {root / _CLASS}/intel-rapl:*/energy_uj"
        return f"{error.filename} is for root alone: run as root, or `{readable}` (docs/energy.md says what that opens)"
    except (OSError, SensorLost) as error:
        return f"RAPL cannot be read ({error}): load the kernel module intel_rapl_msr or use a wall meter"
