"""Power and energy sensors of this machine; what is not there is a reason, never a guess."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from collafuse_benchmarks.energy.sensors.base import Sensor, SensorInfo
from collafuse_benchmarks.energy.sensors.hwmon import NAME as INA
from collafuse_benchmarks.energy.sensors.hwmon import find_ina
from collafuse_benchmarks.energy.sensors.nvml import NAME as NVML
from collafuse_benchmarks.energy.sensors.nvml import find_nvml
from collafuse_benchmarks.energy.sensors.rapl import NAME as RAPL
from collafuse_benchmarks.energy.sensors.rapl import find_rapl

__all__ = ["Found", "Sensor", "SensorInfo", "find_sensors"]


@dataclass(frozen=True)
class Found:
    """The sensors of a machine; a context manager that closes them.

    Attributes:
        sensors: those that can be read; their scopes may overlap, so they are never added up.
        reasons: for every other kind ("ina", "rapl", "nvml") one line, why not and what to do.
    """

    sensors: tuple[Sensor, ...]
    reasons: dict[str, str]

    def __enter__(self) -> "Found":
        return self

    def __exit__(self, *_: object) -> None:
        for sensor in self.sensors:
            sensor.close()


def find_sensors(root: Path = Path("/"), gpu: int = 0) -> Found:
    """Probe every kind by reading it once.

    Args:
        root: where /sys and /proc are.
        gpu: NVML's index of the GPU to measure.
    """
    finders: dict[str, Callable[[], Sensor | str]] = {
        INA: lambda: find_ina(root),
        RAPL: lambda: find_rapl(root),
        NVML: lambda: find_nvml(gpu),
    }
    found = {name: find() for name, find in finders.items()}
    return Found(
        tuple(sensor for sensor in found.values() if not isinstance(sensor, str)),
        {name: reason for name, reason in found.items() if isinstance(reason, str)},
    )
