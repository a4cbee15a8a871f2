"""NVML: nvidia-ml-py itself, over a stand-in for the driver's library; what a GPU supports is found by calling."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from places import SUPPORT

SOURCE = SUPPORT / "fake_nvml.c"
COMPILER = shutil.which("cc") or shutil.which("gcc")
pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
with_stand_in = pytest.mark.skipif(COMPILER is None, reason="no C compiler to build the stand-in for libnvidia-ml.so.1")

PROBE = """
import ctypes, json, sys
from pathlib import Path
from collafuse_benchmarks.energy.sensors import find_sensors
gpu, count = int(sys.argv[1]), int(sys.argv[2])
with find_sensors(Path(sys.argv[3]), gpu=gpu) as found:
    out = {"reason": found.reasons.get("nvml"), "readings": []}
    for sensor in found.sensors:
        out["info"] = vars(sensor.info)
        for _ in range(count):
            try:
                out["readings"].append(sensor.read())
            except Exception as error:
                out["readings"].append(f"{type(error).__name__}: {error}")
if sys.argv[4:]:
    out["started"] = ctypes.CDLL("libnvidia-ml.so.1").fake_started()
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nvml")
    assert COMPILER is not None
    command = [COMPILER, "-shared", "-fPIC", "-o", folder / "libnvidia-ml.so.1", SOURCE]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def probe(library: Path, tmp_path: Path, *, gpu: int = 0, readings: int = 2, **settings: object) -> dict[str, Any]:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library)}
    environment |= {f"FAKE_NVML_{name.upper()}": str(value) for name, value in settings.items()}
    command = [sys.executable, "-c", PROBE, str(gpu), str(readings), str(tmp_path), "started"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["started"] == 0, "NVML is shut down as often as it is started"
    return found


@with_stand_in
def test_the_energy_counter_is_taken_first_in_millijoules(library: Path, tmp_path: Path) -> None:
    found = probe(library, tmp_path)
    assert found["info"] == {
        "name": "nvml",
        "quantity": "energy",
        "scope": "gpu",
        "detail": "GPU 0 (Fake A GPU): counter since the driver was loaded; no CPU or board",
        "interval_s": 0.05,
    }
    assert found["readings"] == [1003.0, 1004.5]


@with_stand_in
def test_without_a_counter_it_is_power_in_milliwatts(library: Path, tmp_path: Path) -> None:
    found = probe(library, tmp_path, energy=0)
    assert (found["info"]["quantity"], found["readings"]) == ("power", [72.25, 72.25])
    assert "mean of the last second" in found["info"]["detail"]


@with_stand_in
def test_the_chosen_gpu_is_read(library: Path, tmp_path: Path) -> None:
    found = probe(library, tmp_path, gpu=2, gpus=4, energy=0)
    assert found["info"]["detail"].startswith("GPU 2 (Fake C GPU)")
    assert found["readings"] == [74.25, 74.25]


@with_stand_in
def test_a_jetson_starts_and_then_supports_nothing(library: Path, tmp_path: Path) -> None:
    found = probe(library, tmp_path, energy=0, power=0)
    assert found["reason"].startswith("NVML gives neither energy nor power of GPU 0, Fake A GPU (Not Supported)")
    assert "the board's power monitor measures" in found["reason"]


@with_stand_in
@pytest.mark.parametrize("gpu", [-1, 1, 7])
def test_a_gpu_that_is_not_there(library: Path, tmp_path: Path, gpu: int) -> None:
    assert probe(library, tmp_path, gpu=gpu)["reason"] == (
        f"GPU {gpu} does not exist: NVML counts 1; must be at least 0 and below that; see `nvidia-smi`"
    )


@with_stand_in
def test_without_a_driver_it_does_not_start(library: Path, tmp_path: Path) -> None:
    reason = probe(library, tmp_path, no_driver=1)["reason"]
    assert (
        reason
        == "NVML does not start (Driver Not Loaded): it needs NVIDIA's driver, loaded; see what `nvidia-smi` says"
    )


@with_stand_in
def test_a_failed_reading_is_dropped_and_a_lost_gpu_is_lost(library: Path, tmp_path: Path) -> None:
    found = probe(library, tmp_path, readings=3, fail="2=3")
    assert found["readings"] == [1003.0, "OSError: NVML: Not Supported", 1006.0]
    found = probe(library, tmp_path, readings=2, fail="2=15")
    assert found["readings"] == [1003.0, "SensorLost: NVML: GPU is lost"]


@pytest.mark.skipif(Path("/proc/driver/nvidia/version").exists(), reason="NVIDIA's driver is here")
def test_without_the_library_the_reason_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, "0", "0", str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["reason"].startswith("NVML does not start (NVML Shared Library Not Found)")


def test_without_the_package_the_reason_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from collafuse_benchmarks.energy.sensors import find_sensors

    monkeypatch.setitem(sys.modules, "pynvml", None)
    reason = find_sensors(tmp_path).reasons["nvml"]
    assert reason == "nvidia-ml-py is not installed (pip install 'collafuse-edge[energy]')"
