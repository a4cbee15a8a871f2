"""A bundle is a function of the checkpoint and the options: same bytes elsewhere, and no word of the machine."""

import getpass
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import diffusers
import onnx
import torch
from heads import checkpoint_of, copy_of, default_head
from made_once import workspace

from collafuse_runtimes.files.bundle import GOLDEN, MANIFEST, MODEL, HeadBundle

EXPORT = """
import sys
from pathlib import Path
from collafuse_export import ExportSettings, export_head
from collafuse_runtimes.diffusion.samplers import Sampler
export_head(Path(sys.argv[1]), Path(sys.argv[2]), ExportSettings(step_counts=(20, 7, 1), sampler=Sampler()))
"""


def export_elsewhere(bundle: HeadBundle, folder: Path) -> "subprocess.CompletedProcess[str]":
    source = shutil.copytree(checkpoint_of(bundle), folder / "moved.checkpoint")
    return subprocess.run(
        [sys.executable, "-c", EXPORT, str(source), str(folder / "other.head")],
        cwd=folder,
        env={**os.environ, "PYTHONHASHSEED": "4242", "TZ": "Asia/Tokyo"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )


def test_second_export_from_another_folder_and_process_is_byte_identical_and_silent(tmp_path: Path) -> None:
    bundle = default_head()
    done = export_elsewhere(bundle, tmp_path)
    assert (done.stdout, done.stderr) == ("", "")
    for name in (MODEL, GOLDEN, MANIFEST):
        assert (tmp_path / "other.head" / name).read_bytes() == (bundle.path / name).read_bytes(), name


def test_no_byte_names_the_exporting_machine(tmp_path: Path) -> None:
    bundle = default_head()
    names = {
        str(Path.cwd()), str(Path.home()), str(workspace()), str(Path(sys.prefix)), str(Path(torch.__file__).parent),
        str(Path(diffusers.__file__).parent), "site-packages", "/tmp", ".py", "Traceback", "checkpoint", "pkg.torch",
    }  # fmt: skip
    names |= {word for word in (socket.gethostname(), getpass.getuser()) if len(word) > 5}
    for file in copy_of(bundle, tmp_path).iterdir():
        data = file.read_bytes()
        words = b"\n".join(re.findall(rb"[\x20-\x7e]{3,}", data))  # text as `strings` shows it, not weights
        found = [name for name in names if len(name) > 1 and name.encode() in (words if len(name) < 8 else data)]
        assert found == [], f"{file.name} holds {found}"


def test_graph_carries_no_metadata() -> None:
    model = onnx.load(default_head().model_path)
    assert model.producer_name == "pytorch"
    assert list(model.metadata_props) == [] and model.doc_string == "" and list(model.functions) == []
    for item in [model.graph, *model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output]:
        assert list(item.metadata_props) == [] and item.doc_string == ""
