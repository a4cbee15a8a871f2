"""The base install on a device: small, without torch, diffusers and onnx, and able to verify and infer."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from heads import handover, head, rgb_head
from places import ROOT

from collafuse_runtimes.files.handover import write_handover
from collafuse_runtimes.infer import run_inference

FORBIDDEN = ("torch", "diffusers", "onnx", "accelerate", "onnxscript", "torchmetrics", "nibabel")
MAX_MEGABYTES = 150
MAX_PEAK_MEGABYTES = 150


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare environment with the base install, made from a wheel with the device's constraints."""
    folder = tmp_path_factory.mktemp("device")
    sources = folder / "sources"
    ignored = shutil.ignore_patterns(".*", "build", "*.egg-info", "demo-out", "tests")
    shutil.copytree(ROOT, sources, ignore=ignored)
    environment = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        environment / "bin" / "python",
        "--quiet",
        "install",
        "--no-compile",
    ]
    constraints = ROOT / "runtimes" / "device-constraints.txt"
    subprocess.run([*pip, "--constraint", constraints, sources], check=True, cwd=folder)
    return environment


def run(device: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    command = [device / "bin" / arguments[0], *map(str, arguments[1:])]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=device.parent, check=False)


def test_holds_no_torch_diffusers_or_onnx(device: Path) -> None:
    probe = f"import importlib.util as u; print([m for m in {FORBIDDEN!r} if u.find_spec(m)])"
    assert run(device, "python", "-c", probe).stdout.strip() == "[]"


def test_verifies_and_finishes_images_made_elsewhere(device: Path, tmp_path: Path) -> None:
    bundle = head()
    tensors = handover(bundle, 3)
    write_handover(tmp_path / "x.tc.safetensors", tensors)
    verified = run(device, "collafuse-edge", "verify", bundle.path, "--json")
    assert verified.returncode == 0, verified.stderr
    assert json.loads(verified.stdout)["passed"] is True
    done = run(device, "collafuse-edge", "infer", bundle.path, tmp_path / "x.tc.safetensors", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    here = run_inference(bundle, tensors, tmp_path / "here").images
    with np.load(tmp_path / "out" / "images.npz", allow_pickle=False) as there:
        assert np.abs(there["images"] - here).max() < 1e-5


def test_runs_stochastic_heads_with_the_same_noise(device: Path) -> None:
    verified = run(device, "collafuse-edge", "verify", rgb_head().path)
    assert verified.returncode == 0, verified.stderr


def test_says_what_to_install_for_commands_that_train(device: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    assert run(device, "collafuse-edge", "init", "--size", "16", "--out", plan).returncode == 0
    refused = run(
        device, "collafuse-edge", "train-client", "--data", "phantom:0:8", "--plan", plan, "--out", tmp_path / "h"
    )
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "pip install 'collafuse-edge[train]'" in refused.stderr


def test_peak_memory_of_infer_is_bounded(device: Path, tmp_path: Path) -> None:
    """The figure docs/formats.md's reader plans with: the whole process, one 16x16 image at a time."""
    write_handover(tmp_path / "x.tc.safetensors", handover(head(), 3))
    probe = (
        "import re, sys; sys.argv = ['collafuse-edge', 'infer', *sys.argv[1:]]\n"
        "from collafuse_edge.cli import main\n"
        "try: main()\n"
        "finally: print(int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) / 1024)"
    )
    arguments = (head().path, tmp_path / "x.tc.safetensors", "--out", tmp_path / "out", "--batch-size", 1)
    done = run(device, "python", "-c", probe, *arguments)
    assert done.returncode == 0, done.stderr
    peak = float(done.stdout.split()[-1])
    print(f"peak memory of infer: {peak:.0f} MB")
    assert peak <= MAX_PEAK_MEGABYTES


def test_takes_at_most_150_megabytes_after_use(device: Path) -> None:
    """Disk blocks of site-packages, with the bytecode Python has written by now."""
    used = subprocess.run(
        ["du", "-sm", *device.glob("lib/python*/site-packages")], capture_output=True, text=True, check=True
    )
    megabytes = int(used.stdout.split()[0])
    print(f"site-packages: {megabytes} MB")
    assert megabytes <= MAX_MEGABYTES
