"""No command sends anything, opens a network socket, or leaves in HOME what the docs do not name."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from foreign_networks import PLAN, pipeline
from places import ROOT, SUPPORT
from small_product import copy_product

from collafuse_runtimes.files.plan_file import write_plan

TRAINING = "--steps 1 --batch-size 2 --warmup-steps 0 --preset tiny --cpu"
COMMANDS = (
    "init --size 8 --timesteps 10 --cut-ratio 0.5 --out plan2.json",
    "upload --data data.npz --plan plan.json --out new.shard",  # the key in HOME
    f"train-server new.shard {TRAINING} --out new-server",
    f"train-client --data data.npz --plan plan.json {TRAINING} --out new-head",
    "handoff --plan plan.json --server server --count 2 --out y.tc.safetensors",
    "import theirs --role client --plan theirs.json --out imported",
    "export imported --steps 2 --out new.head",  # a smaller network than ours
    "verify edge.head",
    "verify edge.head --engine openvino",
    "verify edge.head --engine torch --checkpoint head",
    "doctor edge.head",
    "infer edge.head x.tc.safetensors --out new-images",
    "infer edge.head x.tc.safetensors --engine openvino --out images-of-openvino",
    "evaluate images --data data.npz --extractor extractor.onnx",
    "inspect data.npz --plan plan.json --out sheet.png",
    "inspect edge.head",
    "bench latency edge.head x.tc.safetensors --out latency",
    "bench report report --out pages",
)
SLOW_COMMANDS = ("export head --steps 2 --precision int8-cpu --calibration x.tc.safetensors --force --out int8.head",)
SCRIPT = """
import os, sys
from unittest import mock

def note(event, arguments):  # Python's own calls; the spy sees those of native code, where it can be built
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        said = arguments[0]
    elif event == "socket.__new__" and arguments[1] != 1:  # AF_UNIX
        said = f"family {int(arguments[1])}"
    else:
        return
    with open(os.environ["NETWORK_SPY"], "a") as log:
        print(event, said, file=log)

sys.addaudithook(note)
import collafuse_edge.cli as cli
from collafuse_benchmarks.measure import timing
timing.MODES["quick"] = timing.Mode("quick", 0, 10, 0.0, 0)
for line in open("commands").read().splitlines():
    with mock.patch.object(sys, "argv", ["collafuse-edge", *line.split()]):
        try:
            cli.main()
        except SystemExit as leaving:
            if int(leaving.code or 0) > ("int8" in line):  # whether int8 is worth it is not asked here
                sys.exit(f"{line}: {leaving.code}")
"""
QUANTISE = """
import numpy as np
from collafuse_export.quantize import Quantiser
feeds = {"sample": np.zeros((1, 1, 8, 8), np.float32), "step": np.zeros(1, np.int32)}
model = open("edge.head/model.onnx", "rb").read()
Quantiser(model, [feeds], "int8-cpu").quantise()
"""
NAMED = {
    ".config/collafuse-edge/upload.key",
    ".config/collafuse-edge/upload.key.ledger.json",
    ".cache/collafuse-edge/matplotlib",
}
"""In docs/command_line.md, What is written where; the ledger and the font list need not be there."""
LIBRARY_IMPORT = re.compile(r"^\s*(?:import|from) (?:onnxruntime|openvino)\b", re.MULTILINE)


def spy(folder: Path) -> dict[str, str]:
    """The environment that reports network calls: of native code too, where a compiler is there."""
    library = folder / "network_spy.so"
    log = {"NETWORK_SPY": str(folder / "network.log")}
    if shutil.which("gcc") is None or sys.platform != "linux":
        return log
    source = SUPPORT / "network_spy.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return log | {"LD_PRELOAD": str(library)}


def home_environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "MPL", "CI", "TF_BUILD"))}
    return {**kept, "HOME": str(home), "ORT_DISABLE_TELEMETRY": "0", "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("commands", "then"),
    [pytest.param(COMMANDS, QUANTISE, id="quick"), pytest.param(SLOW_COMMANDS, "", id="slow", marks=pytest.mark.slow)],
)
def test_all_commands_leave_what_the_docs_name_and_open_no_socket(
    commands: tuple[str, ...], then: str, tmp_path: Path
) -> None:
    site = copy_product(tmp_path / "site")
    home = tmp_path / "home"
    home.mkdir()
    (site / "report").mkdir()
    shutil.copy(ROOT / "benchmarks" / "results" / "split_cpu.json", site / "report" / "report.json")
    pipeline(site / "theirs")
    write_plan(site / "theirs.json", PLAN)
    (site / "commands").write_text("\n".join(commands))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = home_environment(home) | spy(tmp_path) | {"TMPDIR": str(scratch)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + then], cwd=site, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    left = {str(path.relative_to(home)) for path in home.rglob("*") if not path.is_dir() or not any(path.iterdir())}
    unnamed = {name for name in left if not any(name == named or name.startswith(f"{named}/") for named in NAMED)}
    assert unnamed == set()
    assert (".config/collafuse-edge/upload.key" in left) == any(line.startswith("upload") for line in commands)
    assert sorted(scratch.rglob("*")) == []
    log = tmp_path / "network.log"
    assert (log.read_text() if log.exists() else "") == ""


@pytest.mark.parametrize("native", [False, True])
def test_the_spies_see_a_socket_and_a_look_up(native: bool, tmp_path: Path) -> None:
    code = "import socket; socket.socket(); socket.getaddrinfo('localhost', 80)"
    environment = dict(os.environ) | spy(tmp_path)
    if native and "LD_PRELOAD" not in environment:
        pytest.skip("needs gcc on Linux to watch native code")
    if not native:
        environment.pop("LD_PRELOAD", None)
        code = SCRIPT[: SCRIPT.index("import collafuse_edge")] + code
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    log = (tmp_path / "network.log").read_text()
    assert ("socket family 2" if native else "socket.__new__ family 2") in log
    assert "localhost" in log


@pytest.mark.parametrize("first", ["onnxruntime", "openvino"])
def test_a_library_user_is_safe_and_a_late_import_is_said(first: str, tmp_path: Path) -> None:
    """``first`` imported before us: doctor's line says so; after us: nothing in HOME."""
    line = "from collafuse_runtimes.device.telemetry import describe_telemetry as d, not_switched_off as n"
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
