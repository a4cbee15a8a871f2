"""One sound file of every kind the product reads, and the commands that read it."""

import gzip
import io
import os
import shlex
import signal
import struct
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SIDE, TIMESTEPS = 8, 10
TRAINING = "--steps {} --batch-size 2 --warmup-steps 0 --preset tiny --cpu"
CUT = "--plan @plan.json"


@dataclass(frozen=True)
class Kind:
    """What is damaged and who reads it.

    Attributes:
        path: below the corpus, a file or a folder.
        form: "json", "tensors", "key", "graph", "bundle", "table" or "bytes": which changes make sense.
        readers: commands, a word that begins with @ is a path below the trial's folder.
        count: cases of a whole run.
        sealed: a change of content must be refused.
        inside: the folder that states the file's digest, for changes that an attacker seals again.
    """

    path: str
    form: str
    readers: tuple[str, ...]
    count: int
    sealed: bool = True
    inside: str | None = None


WEIGHTS = "diffusion_pytorch_model.safetensors"
UPLOAD = f"upload --data {{}} {CUT} --key @site.key --out @new"
INSPECT = "inspect @{}"
HANDOFF = f"handoff {CUT} --server @server --count 1 --steps 1 --out @new"
INFER = "infer @edge.head @x.tc.safetensors --out @new"
TRAIN_SERVER = f"train-server @{{}} {TRAINING.format(1)} --out @new"
TRAIN_CLIENT = f"train-client --data @data.npz {CUT} {TRAINING.format(2)} --out @{{}} --resume"
EVALUATE = "evaluate @images --data @data.npz --extractor @extractor.onnx"


def _image(name: str, count: int) -> Kind:
    readers = (UPLOAD.format(f"@{name}"), f"inspect @{name} --size 8 --out @new")
    return Kind(name, "bytes", readers, count, sealed=False)


KINDS: dict[str, Kind] = {
    "plan": Kind("plan.json", "json", (UPLOAD.format("phantom:0:1"), HANDOFF, INSPECT.format("plan.json")), 90),
    "key": Kind("site.key", "key", (UPLOAD.format("phantom:0:2"),), 150),
    "ledger": Kind("site.key.ledger.json", "json", (UPLOAD.format("phantom:0:2"),), 70),
    "shard": Kind("a.shard", "tensors", (TRAIN_SERVER.format("a.shard"), INSPECT.format("a.shard")), 90),
    "paper shard": Kind("p.shard", "tensors", (TRAIN_SERVER.format("p.shard"), INSPECT.format("p.shard")), 50),
    "server config": Kind("server/checkpoint.json", "json", (HANDOFF, INSPECT.format("server")), 70, inside="server"),
    "server network": Kind("server/config.json", "json", (HANDOFF, INSPECT.format("server")), 60, inside="server"),
    "server record": Kind("server/training.json", "json", (HANDOFF, INSPECT.format("server")), 50),
    "server weights": Kind("server/diffusion_pytorch_model.safetensors", "tensors", (HANDOFF,), 50, inside="server"),
    "head config": Kind("head/checkpoint.json", "json", (TRAIN_CLIENT.format("head"),), 50, inside="head"),
    "resume state": Kind("run.resume.safetensors", "tensors", (TRAIN_CLIENT.format("run"),), 50),
    "hand-over": Kind("x.tc.safetensors", "tensors", (INFER, INSPECT.format("x.tc.safetensors")), 110),
    "manifest": Kind("edge.head/manifest.json", "json", (INFER, "verify @edge.head", INSPECT.format("edge.head")), 130),
    "graph": Kind("edge.head/model.onnx", "graph", (INFER, "verify @edge.head"), 110, inside="edge.head"),
    "golden": Kind("edge.head/golden.safetensors", "tensors", ("verify @edge.head",), 50, inside="edge.head"),
    "bundle": Kind("edge.head", "bundle", (INFER, "verify @edge.head", "doctor @edge.head"), 60),
    "bench report": Kind("bench/report.json", "json", ("bench report @bench --out @new",), 70),
    "images record": Kind("images/images.json", "json", (EVALUATE, INSPECT.format("images")), 30),
    "generated": Kind("images/images.npz", "bytes", (EVALUATE,), 40, sealed=False),
    "extractor": Kind("extractor.onnx", "bytes", (EVALUATE,), 40, sealed=False),
    **{f"data {name}": _image(name, 30) for name in ("a.png", "a.jpg", "a.bmp", "a.gif", "a.webp", "a.pgm")},
    **{f"data {name}": _image(name, 45) for name in ("a.tif", "g.npz", "v.nii", "v.nii.gz", "s.dcm")},
    **{f"data {name}": _image(name, 30) for name in ("i-idx3-ubyte", "i-idx3-ubyte.gz")},
    "labels file": Kind(
        "labels.csv", "table", (UPLOAD.format("@folder") + " --labels-file @labels.csv",), 40, sealed=False
    ),
}


def words(command: str, folder: Path) -> list[str]:
    """A command line whose paths lie in ``folder``."""
    placed = command.replace("@", f"{folder}/")
    return shlex.split(placed)


def make_corpus(folder: Path) -> None:
    """Make every file of ``KINDS`` with the product's own commands and the formats' own libraries."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (6, SIDE, SIDE), np.uint8)
    np.savez(folder / "data.npz", images=pixels, labels=np.arange(6) % 2)
    _run(folder, f"init --size {SIDE} --timesteps {TIMESTEPS} --cut-ratio 0.5 --out @plan.json")
    _run(folder, f"upload --data @data.npz {CUT} --key @site.key --out @a.shard")
    _run(folder, f"upload --data @data.npz {CUT} --key @site.key --protocol paper --out @p.shard")
    _run(folder, f"train-server @a.shard {TRAINING.format(1)} --out @server")
    _run(folder, f"train-client --data @data.npz {CUT} {TRAINING.format(2)} --out @head")
    _unfinished_run(folder)
    _run(folder, f"handoff {CUT} --server @server --count 2 --steps 2 --out @x.tc.safetensors")
    _run(folder, "export @head --steps 2,1 --out @edge.head")
    _run(folder, "infer @edge.head @x.tc.safetensors --out @images")
    _extractor(folder / "extractor.onnx")
    _run(folder, "bench latency @edge.head @x.tc.safetensors --out @bench")
    _pictures(folder, pixels[0])
    _volumes(folder, random)
    (folder / "folder").mkdir()
    for name in ("a.png", "a.bmp"):
        os.link(folder / name, folder / "folder" / name)
    (folder / "labels.csv").write_text("path,label\na.png,one\na.bmp,two\n")


def _run(folder: Path, command: str) -> str:
    argv = [sys.executable, "-m", "collafuse_edge", *words(command, folder)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the corpus cannot be made: {command}: {done.stderr.strip()[-400:]}")
    return done.stdout


def _unfinished_run(folder: Path) -> None:
    """A resume state of two steps in all, so that continuing it is short."""
    slow = f"train-client --data @data.npz {CUT} {TRAINING.format(100_000)} --checkpoint-minutes 0 --out @run"
    run = subprocess.Popen([sys.executable, "-m", "collafuse_edge", *words(slow, folder)], stderr=subprocess.DEVNULL)
    state = folder / "run.resume.safetensors"
    while not state.exists() and run.poll() is None:
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    run.wait()


def _extractor(path: Path) -> None:
    from onnx import TensorProto, helper, save

    kind, shape = TensorProto.FLOAT, ["batch", 3, SIDE, SIDE]
    nodes = [
        helper.make_node("AveragePool", ["images"], ["means"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["means"], ["features"]),
    ]
    ends = (
        [helper.make_tensor_value_info("images", kind, shape)],
        [helper.make_tensor_value_info("features", kind, ["batch", 3 * SIDE * SIDE // 4])],
    )
    graph = helper.make_graph(nodes, "extractor", *ends)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def _pictures(folder: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    colour = Image.fromarray(np.dstack([pixels, pixels.T, pixels[::-1]]))
    for name in ("a.png", "a.jpg", "a.bmp", "a.gif", "a.webp", "a.tif"):
        colour.save(folder / name)
    Image.fromarray(pixels).save(folder / "a.pgm")
    header = struct.pack(">HBB3I", 0, 8, 3, 1, SIDE, SIDE)
    (folder / "i-idx3-ubyte").write_bytes(header + pixels.tobytes())
    (folder / "i-idx3-ubyte.gz").write_bytes(gzip.compress(header + pixels.tobytes(), mtime=0))
    member = io.BytesIO()
    np.save(member, np.stack([pixels, pixels.T]))
    with zipfile.ZipFile(folder / "g.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", member.getvalue())


def _volumes(folder: Path, random: np.random.Generator) -> None:
    import nibabel
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    volume = random.integers(0, 900, (SIDE, SIDE, 3), np.int16)
    for name in ("v.nii", "v.nii.gz"):
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), folder / name)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["fuzz"])
    slice_ = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    slice_.SOPClassUID, slice_.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    slice_.Modality, slice_.PhotometricInterpretation = "MR", "MONOCHROME2"
    slice_.Rows = slice_.Columns = SIDE
    slice_.SamplesPerPixel, slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 1, 16, 12, 11
    slice_.PixelRepresentation, slice_.PixelSpacing = 0, [1.0, 2.0]
    slice_.ImagePositionPatient, slice_.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    slice_.PixelData = volume[..., 0].astype("<u2").tobytes()
    pydicom.dcmwrite(folder / "s.dcm", slice_, enforce_file_format=True)
