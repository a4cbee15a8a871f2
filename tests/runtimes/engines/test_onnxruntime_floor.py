"""The oldest onnxruntime that the base install allows reads no external data from outside a model's folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from packaging.version import Version
from places import ROOT

TRY = """
import os, sys, onnxruntime
folder = sys.argv[1]
for model in (folder + "/model.onnx", open(folder + "/model.onnx", "rb").read()):
    os.chdir(folder)
    try:
        onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        print("READ")
    except Exception as error:
        print("refused" if "External data path" in str(error) else error)
"""


def floor() -> str:
    found = re.search(r"onnxruntime>=([\d.]+); python_version >= '3.11'", (ROOT / "pyproject.toml").read_text())
    assert found is not None
    return found[1]


def graph_that_reads_a_secret(folder: Path) -> Path:
    """model/model.onnx, whose only weight is the file beside the folder."""
    (folder / "model").mkdir()
    (folder / "secret").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "../secret"), ("offset", "0"), ("length", "16")):
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", ports[:1], ports[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "model" / "model.onnx").write_bytes(model.SerializeToString())
    assert onnx.load(folder / "model" / "model.onnx", load_external_data=False).graph.initializer[0].name == "w"
    return folder / "model"


def tried(folder: Path, library: Path | None = None) -> list[str]:
    place = {} if library is None else {"PYTHONPATH": str(library)}
    command = [sys.executable, "-c", TRY, str(graph_that_reads_a_secret(folder))]
    run = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "ORT_DISABLE_TELEMETRY": "1", **place}
    )
    return run.stdout.splitlines()


def test_the_installed_one_refuses_a_file_outside_the_models_folder(tmp_path: Path) -> None:
    if sys.version_info < (3, 11):
        pytest.skip("no onnxruntime for Python 3.10 refuses it; bundles with external data are refused before it")
    assert Version(onnxruntime.__version__) >= Version(floor())
    assert tried(tmp_path) == ["refused", "refused"]


@pytest.mark.slow
def test_the_oldest_allowed_one_refuses_it_too(tmp_path: Path) -> None:
    """Fetches that release's wheel."""
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "oldest")]
    subprocess.run([*install, f"onnxruntime=={floor()}"], check=True)
    assert tried(tmp_path, tmp_path / "oldest") == ["refused", "refused"]
