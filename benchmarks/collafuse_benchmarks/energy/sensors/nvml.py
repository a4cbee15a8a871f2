"""NVML: energy counter or power of one NVIDIA GPU, through nvidia-ml-py."""

from contextlib import suppress
from typing import Any

from collafuse_benchmarks.energy.sensors.base import Sensor, SensorInfo
from collafuse_runtimes.errors import SensorLost

NAME = "nvml"
_MILLI = 1e-3
INTERVAL_S = 0.05


class NvmlSensor:
    """One GPU, by its energy counter in joules or, where it has none, by its power in watts."""

    def __init__(self, pynvml: Any, handle: Any, read: Any, info: SensorInfo) -> None:
        """Made by ``find_nvml``.

        Args:
            pynvml: the module, initialised.
            handle: of the GPU.
            read: function of ``handle`` that gives millijoules or milliwatts.
            info: what it measures.
        """
        self._pynvml, self._handle, self._read = pynvml, handle, read
        self.info = info

    def read(self) -> float:
        """Joules since the driver was loaded, or watts."""
        try:
            return float(self._read(self._handle)) * _MILLI
        except self._pynvml.NVMLError as error:
            gone = (self._pynvml.NVML_ERROR_GPU_IS_LOST, self._pynvml.NVML_ERROR_UNINITIALIZED)
            if error.value in gone:
                raise SensorLost(f"NVML: {error}") from error
            raise OSError(f"NVML: {error}") from error

    def close(self) -> None:
        """Shut NVML down for this sensor."""
        with suppress(self._pynvml.NVMLError):
            self._pynvml.nvmlShutdown()


def find_nvml(gpu: int) -> Sensor | str:
    """The GPU's counter or power, whichever answers, or one line why neither does and what to do.

    Args:
        gpu: NVML's index, which goes by PCI bus.
    """
    try:
        import pynvml
    except ImportError:
        return "nvidia-ml-py is not installed (pip install 'collafuse-edge[energy]')"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return f"NVML does not start ({error}): it needs NVIDIA's driver, loaded; see what `nvidia-smi` says"
    try:
        found = _probe(pynvml, gpu)
    except pynvml.NVMLError as error:
        found = f"NVML fails for GPU {gpu} ({error}): see what `nvidia-smi` says"
    if isinstance(found, str):
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
    return found


def _probe(pynvml: Any, gpu: int) -> Sensor | str:
    """Only a call tells what a GPU supports: on Jetsons NVML starts, names the GPU, and then refuses."""
    count = pynvml.nvmlDeviceGetCount()
    if not 0 <= gpu < count:
        return f"GPU {gpu} does not exist: NVML counts {count}; must be at least 0 and below that; see `nvidia-smi`"
    handle = pynvml.nvmlDeviceGetHandleByIndex(gpu)
    name = pynvml.nvmlDeviceGetName(handle)
    refusal = None
    for quantity, read, limits in (
        ("energy", pynvml.nvmlDeviceGetTotalEnergyConsumption, "counter since the driver was loaded"),
        ("power", pynvml.nvmlDeviceGetPowerUsage, "power, on many GPUs the mean of the last second"),
    ):
        try:
            read(handle)
        except pynvml.NVMLError as error:
            refusal = error
            continue
        info = SensorInfo(NAME, quantity, "gpu", f"GPU {gpu} ({name}): {limits}; no CPU or board", INTERVAL_S)
        return NvmlSensor(pynvml, handle, read, info)
    return (
        f"NVML gives neither energy nor power of GPU {gpu}, {name} ({refusal}): on a Jetson the board's power monitor "
        "measures, elsewhere use a wall meter"
    )
