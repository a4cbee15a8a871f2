"""No command sends anything, opens a network socket, or leaves in HOME what the docs do not name."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_product import copy_product

ROOT = Path(__file__).parents[1]
TRAINING = "--steps 1 --batch-size 2 --warmup-steps 0 --preset tiny --cpu"
COMMANDS = (
    "init --size 8 --timesteps 10 --cut-ratio 0.5 --out plan2.json",
    "upload --data data.npz --plan plan.json --out new.shard",  # the key in HOME
    f"train-server new.shard {TRAINING} --out new-server",
    "handoff --plan plan.json --server server --count 2 --out y.tc.safetensors",
    "export head --steps 2 --precision int8-cpu --calibration x.tc.safetensors --force --out int8.head",
    "verify edge.head --engine openvino",
    "infer edge.head x.tc.safetensors --out new-images",
    "evaluate images --data data.npz --extractor extractor.onnx",
    "bench report report --out pages",
)
SCRIPT = """
import sys
from unittest import mock
import collafuse_edge.cli as cli
for line in open("commands").read().splitlines():
    with mock.patch.object(sys, "argv", ["collafuse-edge", *line.split()]):
        try:
            cli.main()
        except SystemExit as leaving:
            if int(leaving.code or 0) > ("int8" in line):  # whether int8 is worth it is not asked here
                sys.exit(f"{line}: {leaving.code}")
"""
NAMED = {
    ".config/collafuse-edge/upload.key",
    ".config/collafuse-edge/upload.key.ledger.json",
    ".cache/collafuse-edge/matplotlib",
}
"""In docs/command_line.md, What is written where; the ledger and the font list need not be there."""
LIBRARY_IMPORT = re.compile(r"^\s*(?:import|from) (?:onnxruntime|openvino)\b", re.MULTILINE)


def spy(folder: Path) -> dict[str, str]:
    """The environment that reports network calls of native code."""
    if shutil.which("gcc") is None or sys.platform != "linux":
        pytest.skip("needs gcc on Linux to watch native code")
    library = folder / "network_spy.so"
    source = ROOT / "tests" / "network_spy.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "NETWORK_SPY": str(folder / "network.log")}


def home_environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "MPL", "CI", "TF_BUILD"))}
    return {**kept, "HOME": str(home), "ORT_DISABLE_TELEMETRY": "0", "OMP_NUM_THREADS": "1"}


def test_all_commands_leave_what_the_docs_name_and_open_no_socket(tmp_path: Path) -> None:
    site = copy_product(tmp_path / "site")
    home = tmp_path / "home"
    home.mkdir()
    (site / "report").mkdir()
    shutil.copy(ROOT / "benchmarks" / "results" / "split_cpu.json", site / "report" / "report.json")
    (site / "commands").write_text("\n".join(COMMANDS))
    environment = home_environment(home) | spy(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=site, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    left = {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}
    unnamed = {name for name in left if not any(name == named or name.startswith(f"{named}/") for named in NAMED)}
    assert unnamed == set()
    assert ".config/collafuse-edge/upload.key" in left
    log = tmp_path / "network.log"
    assert (log.read_text() if log.exists() else "") == ""


def test_the_spy_sees_a_socket_and_a_look_up(tmp_path: Path) -> None:
    code = "import socket; socket.socket(); socket.getaddrinfo('localhost', 80)"
    subprocess.run([sys.executable, "-c", code], env=dict(os.environ) | spy(tmp_path), check=True)
    log = (tmp_path / "network.log").read_text()
    assert "socket family 2" in log
    assert "localhost" in log


@pytest.mark.parametrize("first", ["onnxruntime", "openvino"])
def test_a_library_user_is_safe_and_a_late_import_is_said(first: str, tmp_path: Path) -> None:
    """``first`` imported before us: doctor's line says so; after us: nothing in HOME."""
    line = "from collafuse_runtimes.telemetry import describe_telemetry as d, not_switched_off as n"
    for code, said in ((f"{line}; import {first}; print(n())", "()"), (f"import {first}; {line}; print(n())", first)):
        environment = {**home_environment(tmp_path), "CI": "true"}  # openvino asks nobody in CI
        environment |= {"ORT_DISABLE_TELEMETRY": "1"} if first == "openvino" else {}
        if "(), " in said or code.startswith("import onnxruntime"):
            environment["HOME"] = str(tmp_path / "elsewhere")
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert said in done.stdout
    assert [path for path in tmp_path.rglob("*") if path.is_file() and "elsewhere" not in path.parts] == []


def test_no_module_imports_an_engine_library_before_the_switch() -> None:
    """Inside the four packages ``collafuse_runtimes`` is imported first; scripts beside them must do so themselves."""
    scripts = [path for path in (ROOT / "benchmarks").rglob("*.py") if "collafuse_benchmarks" not in path.parts]
    for path in scripts:
        text = path.read_text()
        found = LIBRARY_IMPORT.search(text)
        switch = re.search(r"^\s*(?:import|from) collafuse_\w+", text, re.MULTILINE)
        assert not found or (switch and switch.start() < found.start()), path
    for room in ("collafuse_edge", "export", "runtimes", "benchmarks/collafuse_benchmarks"):
        for path in (ROOT / room).rglob("*.py"):
            at_top = re.search(r"^(?:import|from) (?:onnxruntime|openvino)\b", path.read_text(), re.MULTILINE)
            assert at_top is None, path
