"""The device's benchmarks run on what a device has: no torch, no diffusers, no onnx, no matplotlib, no NVML."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from places import SUPPORT
from small_product import copy_product, words

ABSENT = (
    "torch", "diffusers", "accelerate", "onnx", "onnxscript", "nibabel", "torchmetrics", "scipy", "matplotlib",
    "pynvml", "cuda", "tensorrt", "openvino",
)  # fmt: skip
HIDDEN = f"import sys\nfor name in {ABSENT}:\n    sys.modules[name] = None\n"
RUN = """
import json, sys
from functools import partial
from command_line import run_cli
from fast_clock import FastClock
from collafuse_benchmarks.energy import run as energy_run
from collafuse_benchmarks.measure import timing
timing.MODES["quick"] = timing.Mode("quick", 1, 10, 0.0, 1)
timing.SETTLE_S = 0.0
energy_run.measure_energy = partial(energy_run.measure_energy, clock=FastClock())
print(json.dumps([vars(run_cli("bench", *arguments)) for arguments in json.load(sys.stdin)]))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_product(tmp_path_factory.mktemp("device") / "site")


def on_device(lines: list[str], site: Path, tmp_path: Path) -> list[dict[str, Any]]:
    """Results of commands where only the base install exists, for the processes they start too."""
    (tmp_path / "sitecustomize.py").write_text(HIDDEN)
    path = os.pathsep.join([str(tmp_path), str(SUPPORT), *sys.path])
    ended = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps([words(line, site) for line in lines]),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    results: list[dict[str, Any]] = json.loads(ended.stdout)
    return results


def test_every_benchmark_of_a_device(site: Path, tmp_path: Path) -> None:
    lines = [
        "latency @edge.head @x.tc.safetensors --out @latency",
        "energy @edge.head @x.tc.safetensors --idle-s 1 --trials 1 --out @energy",
        "split @edge.head --out @split",
        "report @latency --out @latency-again",
        "split --merge @split --max-latency-ms 100 --out @merged",
    ]
    for line, result in zip(lines, on_device(lines, site, tmp_path), strict=True):
        assert result["code"] == 0, (line, result)
        out = site / line.split("@")[-1]
        has_page = (out / "report.html").exists()
        note = "no report.html: matplotlib is not installed (pip install 'collafuse-edge[report]')"
        assert has_page == (note not in result["out"])
        assert not (has_page and out.name.startswith("latency"))  # the others have no picture here
        assert (out / "report.md").exists()
        assert json.loads((out / "report.json").read_text())["complete"] is True
    energy = json.loads((site / "energy" / "report.json").read_text())
    assert energy["call_ms"]["summary"]["count"] >= 1
    if energy["energy"]["energy"] is None:  # no sensor here
        assert energy["energy"]["reason"]
    assert len(json.loads((site / "latency" / "report.json").read_text())["cold_starts"]) == 1


def test_the_servers_side_says_what_to_install(site: Path, tmp_path: Path) -> None:
    (result,) = on_device(["split --server @server --cuts 0 --out @above"], site, tmp_path)
    assert (result["code"], result["out"]) == (2, "")
    assert "is not installed; pip install 'collafuse-edge[" in result["err"] and result["err"].count("\n") == 1
    assert not (site / "above").exists()
