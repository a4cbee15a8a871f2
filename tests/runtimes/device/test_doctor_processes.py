"""doctor looks at each GPU engine in a process of its own: a crash, a hang or a lost GPU is one row's reason."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import run_cli
from heads import default_head

from collafuse_runtimes import doctor
from collafuse_runtimes.doctor import EngineRow, examine

GPU_ROWS = ("ort-cuda", "ort-tensorrt", "tensorrt", "tensorrt-rtx")
TENSORRT = "import sys\nsys.modules[__name__].__spec__.submodule_search_locations = None\n__version__ = '10.3.0'\n"


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, **modules: str) -> None:
    """Modules of these names, found before any other; ``cuda`` is the text of cuda.bindings.runtime."""
    for name, text in modules.items():
        path = folder / ("cuda/bindings/runtime.py" if name == "cuda" else f"{name}.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for package in (folder / "cuda", folder / "cuda" / "bindings"):
        if package.exists():
            (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(folder)
    for name in ("cuda", "cuda.bindings", "cuda.bindings.runtime", "tensorrt"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def rows(bundle: Any = None) -> dict[str, EngineRow]:
    return {row.engine: row for row in examine(bundle).engines}


CRASH = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n"
HANG = "import time\ntime.sleep(60)\n"


def test_a_crash_in_the_driver_is_a_row_and_the_others_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = default_head()  # by torch, which looks for cuda.bindings too
    stand_in(tmp_path, monkeypatch, cuda=CRASH, tensorrt=TENSORRT)
    found = rows(bundle)
    crashed = found["tensorrt"]
    assert (crashed.works, crashed.device, crashed.max_abs) == (False, "gpu", None)
    assert crashed.reason == "its process was ended by SIGSEGV; check the NVIDIA driver with nvidia-smi"
    assert found["ort-cpu"].works and found["ort-cpu"].max_abs is not None


def test_a_hang_is_stopped_and_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, cuda=HANG, tensorrt=TENSORRT)
    monkeypatch.setattr(doctor, "PROBE_S", 3.0)
    began = time.monotonic()
    assert doctor.look_apart("tensorrt").reason == (
        "its process did not end within 3 s and was stopped; check the NVIDIA driver with nvidia-smi"
    )
    assert time.monotonic() - began < 30


def test_a_process_that_says_nothing_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, cuda="import os\nprint('loading', flush=True)\nos._exit(7)\n", tensorrt=TENSORRT)
    assert doctor.look_apart("tensorrt").reason == (
        "its process ended with code 7 and no result; check the NVIDIA driver with nvidia-smi"
    )


def test_an_error_that_sticks_to_a_process_does_not_reach_the_next_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that works once in a process, and writes down in which process it was asked."""
    cuda = f"""
import os
from types import SimpleNamespace
asked = 0
cudaError_t = SimpleNamespace(cudaSuccess=0, cudaErrorNoDevice=100)
def cudaGetErrorString(error): return 0, b"an illegal memory access was encountered"
def cudaDriverGetVersion(): return 0, 13020
def cudaGetDeviceCount():
    global asked
    asked += 1
    open({str(tmp_path / "asked")!r}, "a").write(f"{{os.getpid()}}\\n")
    return (0, 1) if asked == 1 else (700, None)
"""
    stand_in(tmp_path, monkeypatch, cuda=cuda, tensorrt=TENSORRT, tensorrt_rtx="__version__ = '1.7.1'\n")
    found = rows()
    assert [found[name].reason for name in ("tensorrt", "tensorrt-rtx")] == [None, None]
    asked = (tmp_path / "asked").read_text().split()
    assert len(set(asked)) == len(asked) == 2 and str(os.getpid()) not in asked


def test_a_tensorrt_that_does_not_load_says_why_without_a_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = """
from types import SimpleNamespace
cudaError_t = SimpleNamespace(cudaSuccess=0, cudaErrorNoDevice=100)
def cudaDriverGetVersion(): return 0, 13020
def cudaGetDeviceCount(): return 0, 1
"""
    words = "libnvdla_compiler.so: cannot open shared object file: No such file or directory"
    stand_in(tmp_path, monkeypatch, cuda=cuda, tensorrt=f"raise ImportError({words!r})")
    found = json.loads(run_cli("doctor", "--json").out)
    (row,) = [row for row in found["engines"] if row["engine"] == "tensorrt"]
    assert row["works"] is False
    assert row["reason"] == (
        f"tensorrt does not load ({words}); the container's host has none to lend: JetPack 6: "
        "`sudo apt-get install nvidia-l4t-dla-compiler` on the host; JetPack 7.2 and later: use the host's TensorRT, "
        "or an image made for that JetPack"
    )


def test_nothing_is_started_for_an_engine_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: Any, **__: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(doctor, "_ask", start)
    monkeypatch.setattr(
        "collafuse_runtimes.engines.registry._is_installed", lambda module: module in ("onnxruntime", "numpy")
    )
    found = rows()
    assert found["ort-cpu"].works
    assert all("installed" in str(found[name].reason) for name in GPU_ROWS if not found[name].works)


def test_the_childs_telemetry_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ORT_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        monkeypatch.delenv(name, raising=False)
    note = tmp_path / "environment"
    cuda = (
        f"import os\nopen({str(note)!r}, 'w').write(os.environ.get('ORT_DISABLE_TELEMETRY', ''))\nraise ImportError\n"
    )
    stand_in(tmp_path, monkeypatch, cuda=cuda, tensorrt=TENSORRT)
    doctor.look_apart("tensorrt")
    assert note.read_text() == "1"
