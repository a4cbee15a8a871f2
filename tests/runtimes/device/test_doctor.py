"""doctor: what works here, and for what does not, the reason and the remedy; one bad engine never hides the others."""

import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import refusal, run_cli
from device_trees import orin_nano, put
from heads import copy_of, default_head, head
from places import ROOT

from collafuse_runtimes import __version__, doctor
from collafuse_runtimes.device.machine import Machine, read_machine
from collafuse_runtimes.device.state import Clock
from collafuse_runtimes.device.versions import PACKAGES
from collafuse_runtimes.doctor import describe_doctor, examine
from collafuse_runtimes.engines import ENGINES, registry
from collafuse_runtimes.engines.fake_engine import FakeEngine
from collafuse_runtimes.engines.ort.cpu import OrtCpuEngine
from collafuse_runtimes.errors import CheckFailed, EngineUnavailable


def rows(bundle: Any = None) -> dict[str, doctor.EngineRow]:
    return {row.engine: row for row in examine(bundle).engines}


def test_every_engine_but_the_fake_has_a_row() -> None:
    report = examine()
    assert [row.engine for row in report.engines] == [name for name in ENGINES if name != "fake"]
    assert report.passed and report.bundle is None
    assert report.state.packages["collafuse-edge"] == __version__
    assert report.state.packages["numpy"] == np.__version__
    assert "CPUExecutionProvider" in (report.providers or ())
    for row in report.engines:
        assert row.works == (row.reason is None), row
        assert row.device == ("gpu" if "gpu" in ENGINES[row.engine].options else "cpu")


def test_an_engine_added_later_appears_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = replace(ENGINES["torch"], needs=("numpy", "no_such_library"), remedy="pip install 'collafuse-edge[later]'")
    monkeypatch.setitem(ENGINES, "later", entry)
    row = rows()["later"]
    assert (row.works, row.reason) == (False, "no_such_library is not installed (pip install 'collafuse-edge[later]')")


def test_a_bundle_is_really_run(tmp_path: Path) -> None:
    found = rows(default_head())
    good = found["ort-cpu"]
    assert good.works and good.precision == "fp32" and good.max_abs is not None
    assert 0 < good.max_abs < 1e-4
    assert "not run, it needs the head's checkpoint: `collafuse-edge verify " in str(found["torch"].reason)
    assert rows(head(precision="fp16"))["ort-cpu"].precision == "fp16"
    folder = copy_of(default_head(), tmp_path)
    assert run_cli("doctor", folder).code == 0
    (folder / "model.onnx").write_bytes(b"damaged")
    assert "model.onnx is not the file the manifest names" in refusal("doctor", folder)


class Wrong(FakeEngine):
    """Runs, and is no head's network."""

    name = "ort-cpu"


class Refusing(OrtCpuEngine):
    def _open(self) -> None:
        raise EngineUnavailable("the GPU is busy; wait")


class Raising(OrtCpuEngine):
    def _open(self) -> None:
        raise RuntimeError("CUDA failure 999:\n unknown error")


@pytest.mark.parametrize(
    ("engine_class", "reason"),
    [
        (Wrong, "on ort-cpu differs from the torch network after step"),
        (Refusing, "the GPU is busy; wait"),
        (Raising, "RuntimeError: CUDA failure 999: unknown error"),
    ],
)
def test_an_engine_that_fails_is_a_row_with_the_reason(
    engine_class: type[Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = doctor.open_engine

    def open_engine(bundle: Any, name: str, options: Any) -> Any:
        return engine_class(bundle, options) if name == "ort-cpu" else real(bundle, name, options)

    monkeypatch.setattr(doctor, "open_engine", open_engine)
    monkeypatch.setitem(ENGINES, "second", ENGINES["ort-cpu"])
    found = rows(default_head())
    assert not found["ort-cpu"].works
    assert reason in str(found["ort-cpu"].reason) and "\n" not in str(found["ort-cpu"].reason)
    assert (found["ort-cpu"].max_abs is not None) == (engine_class is Wrong)
    assert found["second"].works


def test_exit_code_is_1_when_nothing_works_and_the_rows_are_still_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_engine(*_: Any) -> Any:
        raise EngineUnavailable("no")

    monkeypatch.setattr(doctor, "open_engine", open_engine)
    path = default_head().path
    result = run_cli("doctor", path, "--json")
    assert result.code == 1
    assert f"error: no engine runs {path} as it should" in result.err
    found = json.loads(result.out)
    assert found["passed"] is False and found["bundle"] == str(path)
    assert {row["works"] for row in found["engines"]} == {False}
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckFailed, match="no engine can run here"):
        examine().require_passed()


def test_a_jetson_is_known_by_its_files(tmp_path: Path) -> None:
    report = examine(root=orin_nano(tmp_path))
    board = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    machine = report.state.machine
    assert (machine.board, machine.l4t, machine.driver) == (board, "R36.4.3", "540.4.0")
    assert machine.gpus == (f"integrated GPU of {board}",)
    shown = " ".join(" ".join(describe_doctor(report)).split())
    assert f"board {board}; Jetson Linux R36.4.3; JetPack 6.2; power mode MAXN_SUPER (2)" in shown
    assert f"GPU integrated GPU of {board}; NVIDIA driver 540.4.0; 17000000.gpu nvhost_podgov 306 to 1020 MHz" in shown


def test_discrete_gpus_are_named_and_what_is_missing_is_unknown(tmp_path: Path) -> None:
    empty = read_machine(tmp_path)
    assert empty == Machine(empty.system, empty.architecture, empty.python, None, None, None, None)
    lines = describe_doctor(examine(root=tmp_path))
    (unknown,) = [number for number, line in enumerate(lines) if line.startswith("unknown ")]
    assert "whether in a container, board, Jetson Linux, JetPack, power mode, CPU model, " in lines[unknown]
    assert not any(line.startswith(("board ", "GPU ", "heat ")) for line in lines)
    assert lines[unknown - 1].startswith("telemetry off")
    version = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024"
    gpus = {"0000:01:00.0": "NVIDIA L4", "0000:02:00.0": "NVIDIA H100 80GB HBM3"}
    files = {f"proc/driver/nvidia/gpus/{bus}/information": f"Model: \t\t {gpu}\nIRQ: 16" for bus, gpu in gpus.items()}
    put(tmp_path, {"proc/driver/nvidia/version": version, **files})
    found = read_machine(tmp_path)
    assert (found.driver, found.gpus) == ("550.54.15", ("NVIDIA L4", "NVIDIA H100 80GB HBM3"))


def test_the_table_is_readable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(ENGINES, "later", replace(ENGINES["torch"], needs=("no_such_library",), remedy="'x' " * 60))
    lines = describe_doctor(examine(default_head(), orin_nano(tmp_path)))
    assert all(len(line) <= doctor.TABLE_WIDTH or " " not in line.strip() for line in lines)
    starts = {line.split(maxsplit=1)[0] for line in lines if not line.startswith(" ")}
    facts = {
        "works",
        "machine",
        "board",
        "CPU",
        "GPU",
        "heat",
        "throttle",
        "memory",
        "packages",
        "providers",
        "telemetry",
    }
    assert starts - {"source", "unknown"} == {*facts, *ENGINES} - {"fake"}
    (good,) = [line for line in lines if line.startswith("ort-cpu ")]
    assert "cpu  works: fp32, the golden trajectories hold, max-abs " in good


BARE = """
import json, sys
for name in ("torch", "diffusers", "accelerate", "onnx", "onnxscript", "nibabel", "scipy", *sys.argv[2:]):
    sys.modules[name] = None
sys.argv = ["collafuse-edge", "doctor", *filter(None, [sys.argv[1]]), "--json"]
from collafuse_edge.cli import main
try:
    main()
finally:
    loaded = {name.split(".")[0] for name, module in sys.modules.items() if module is not None}
    print(json.dumps(sorted(loaded & {"torch", "diffusers", "onnx", "onnxruntime", "rich"})), file=sys.stderr)
"""


def bare(bundle: object, *blocked: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", BARE, str(bundle), *blocked]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_runs_in_the_base_install_and_says_what_is_missing() -> None:
    ended = bare(default_head().path)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stderr.splitlines()[-1]) == ["onnxruntime"]
    found = {row["engine"]: row for row in json.loads(ended.stdout)["engines"]}
    assert found["ort-cpu"]["works"] is True and found["ort-cpu"]["max_abs"] < 1e-4
    assert found["torch"]["reason"] == "torch is not installed (pip install 'collafuse-edge[train]')"


def test_without_onnxruntime_nothing_works_and_it_says_so() -> None:
    ended = bare("", "onnxruntime", "openvino")
    assert ended.returncode == 1
    found = json.loads(ended.stdout)
    assert found["providers"] is None
    reasons = {row["engine"]: row["reason"] for row in found["engines"]}
    assert reasons["ort-cpu"] == "onnxruntime is not installed (pip install onnxruntime)"
    assert "onnxruntime-gpu" in reasons["ort-cuda"]
    assert "no engine can run here" in ended.stderr


def test_json_is_as_documented() -> None:
    docs = ROOT / "docs"
    documented, of_state = (docs / "command_line.md").read_text(), (docs / "device_state.md").read_text()

    def keys(text: str) -> list[str]:
        return re.findall(r"`(\w+)`", text)

    found = json.loads(run_cli("doctor", default_head().path, "--json").out)
    row = re.search(r"^\| `doctor` \| (.*) \|$", documented, re.MULTILINE)
    engine_keys = re.search(r"^`engines` is a list of (.*?)\. ", documented, re.MULTILINE | re.DOTALL)
    machine_keys = re.search(r"`machine` holds (.*?)\.$", documented, re.MULTILINE | re.DOTALL)
    state_keys = re.findall(r"^\| `(\w+)` \| .* \|$", of_state, re.MULTILINE)
    clock_keys = re.search(r"^A clock holds (.*?)\.$", of_state, re.MULTILINE | re.DOTALL)
    assert row and engine_keys and machine_keys and clock_keys
    assert keys(row[1]) == list(found)
    assert [key for key in keys(engine_keys[1]) if key not in ("gpu", "cpu", "null")] == list(found["engines"][0])
    assert keys(machine_keys[1]) == list(found["machine"])
    assert state_keys == list(found["state"])
    assert keys(clock_keys[1]) == list(Clock.__dataclass_fields__)
    assert (found["state"]["machine"], found["state"]["packages"]) == (found["machine"], found["packages"])


def test_looks_up_the_packages_of_every_engine() -> None:
    needed = {module.replace(".", "-") for entry in ENGINES.values() for module in entry.needs}
    installed = {name for name in {*needed, *PACKAGES} if importlib.util.find_spec(name.replace("-", "_"))}
    assert {"numpy", "onnxruntime", "torch", "diffusers"} <= installed & examine().state.packages.keys()
