"""A bundle's files are read once; its graph is one that a head needs; what fails while it runs is one line."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import run_cli
from heads import copy_of, default_head, handover, inputs
from onnx import TensorProto, helper

from collafuse_runtimes.engines import open_engine
from collafuse_runtimes.errors import ArtefactError
from collafuse_runtimes.files.bundle import FORMAT, GOLDEN, MANIFEST, MODEL, read_bundle
from collafuse_runtimes.files.golden import read_golden
from collafuse_runtimes.files.handover import write_handover
from collafuse_runtimes.files.sealed import write_json

ODD: tuple[Any, ...] = (None, True, -1, 0, 10**30, 0.5, "", "x", "\ud800", [], {}, [None], {"a": None}, "y" * 5000)


@pytest.fixture
def bundle_dir(tmp_path: Path) -> Path:
    return copy_of(default_head(), tmp_path)


def refusal(folder: Path) -> str:
    with pytest.raises(ArtefactError) as caught:
        read_bundle(folder)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def reseal(folder: Path, change: Callable[[dict[str, Any]], object] = lambda manifest: None) -> None:
    """A manifest that names the files as they are, with a valid seal."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    manifest = {key: value for key, value in manifest.items() if key not in ("format", "version", "sha256")}
    for name in (MODEL, GOLDEN):
        manifest["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    change(manifest)
    write_json(folder / MANIFEST, FORMAT, manifest)


def rewrite(folder: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    """Another graph under a valid seal."""
    model = onnx.load(folder / MODEL, load_external_data=False)
    change(model)
    (folder / MODEL).write_bytes(model.SerializeToString())
    reseal(folder)


@pytest.mark.parametrize("name", [MODEL, GOLDEN, MANIFEST])
@pytest.mark.parametrize("kind", ["/dev/zero", "pipe", "folder", "link to a good file"])
def test_only_regular_files_are_read(bundle_dir: Path, name: str, kind: str, tmp_path: Path) -> None:
    good = tmp_path / "good"
    (bundle_dir / name).rename(good)
    if kind == "pipe":
        os.mkfifo(bundle_dir / name)
    elif kind == "folder":
        (bundle_dir / name).mkdir()
    else:
        (bundle_dir / name).symlink_to(good if "good" in kind else kind)
    assert f"holds '{name}', which is no regular file" in refusal(bundle_dir)


def test_what_was_checked_is_what_runs(bundle_dir: Path) -> None:
    bundle = read_bundle(bundle_dir)
    x_tc, _ = inputs(bundle, 2)
    with open_engine(default_head()) as engine:
        expected = engine.denoise(x_tc, 7)
    for name in (MODEL, GOLDEN):
        (bundle_dir / name).write_bytes(b"swapped after it was read")
    for name in ("ort-cpu", "openvino"):
        with open_engine(bundle, name) as engine:
            np.testing.assert_allclose(engine.denoise(x_tc, 7), expected, atol=1e-4)
    assert read_golden(bundle).x_tc.shape == read_golden(default_head()).x_tc.shape


def external(model: onnx.ModelProto) -> None:
    weight = next(w for w in model.graph.initializer if w.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../secret")


def functions(model: onnx.ModelProto) -> None:
    model.functions.append(helper.make_function("own", "f", ["a"], ["b"], [], [helper.make_opsetid("", 20)]))


def loop(model: onnx.ModelProto) -> None:
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("If", ["c"], ["d"], then_branch=body, else_branch=body))


def vendor(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Attention", ["c"], ["d"], domain="com.microsoft"))


def unknown(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("RandomNormal", [], ["d"], shape=[1]))


def other_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 17


def other_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "image"


GRAPHS: dict[Callable[[onnx.ModelProto], None], str] = {
    external: "data in another file",
    functions: "functions of its own",
    loop: "a graph within the graph",
    vendor: "the operator 'com.microsoft.Attention'",
    unknown: "the operator 'RandomNormal'",
    other_opset: "has opset 17, its manifest states 20",
    other_input: "takes and gives (('image', 'step')",
}


@pytest.mark.parametrize("change", GRAPHS, ids=lambda change: change.__name__)
def test_a_graph_no_head_needs_is_refused(bundle_dir: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    rewrite(bundle_dir, change)
    assert GRAPHS[change] in refusal(bundle_dir)


@pytest.mark.parametrize("cut", [0, 1, 7, 0.5, 0.999])
def test_bytes_that_are_no_graph_are_refused(bundle_dir: Path, cut: float) -> None:
    data = (bundle_dir / MODEL).read_bytes()
    (bundle_dir / MODEL).write_bytes(data[: int(cut * len(data)) if isinstance(cut, float) else cut])
    reseal(bundle_dir)
    assert str(bundle_dir / MODEL) in refusal(bundle_dir)


def replaced_by(*nodes: onnx.NodeProto, constants: dict[str, np.ndarray] | None = None) -> Callable[..., None]:
    """The graph emptied and filled with ``nodes``."""

    def change(model: onnx.ModelProto) -> None:
        del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(onnx.numpy_helper.from_array(v, n) for n, v in (constants or {}).items())

    return change


def test_a_field_that_only_the_engine_would_see_is_refused(bundle_dir: Path) -> None:
    """protobuf keeps 32 bits of a field's tag: with a bit above them, a node would be unknown here and known there."""
    node = helper.make_node("RandomNormalLike", ["sample"], ["hidden"]).SerializeToString()
    tag = bytes([0x0A | 0x80, 0x80, 0x80, 0x80, 0x10])  # field 1, bytes, and bit 32
    hidden = tag + bytes([len(node)]) + node
    model = onnx.load(bundle_dir / MODEL)
    graph = hidden + model.graph.SerializeToString()
    model.ClearField("graph")
    length, varint = len(graph), b""
    while length:
        varint, length = varint + bytes([length & 0x7F | (0x80 if length > 0x7F else 0)]), length >> 7
    (bundle_dir / MODEL).write_bytes(model.SerializeToString() + b"\x3a" + varint + graph)
    reseal(bundle_dir)
    assert "field tag 4294967306" in refusal(bundle_dir)


def test_very_many_tiny_fields_end_soon(bundle_dir: Path) -> None:
    (bundle_dir / MODEL).write_bytes((bundle_dir / MODEL).read_bytes() + b"\x08\x01" * 5_000_000)
    reseal(bundle_dir)
    assert "more than 500,000 fields" in refusal(bundle_dir)


FAILING = {
    "a shape that cannot be": replaced_by(
        helper.make_node("Reshape", ["sample", "shape"], ["next_sample"]),
        constants={"shape": np.array([7, 11], np.int64)},
    ),
    "more memory than there is": replaced_by(
        helper.make_node("Cast", ["shape"], ["n"], to=TensorProto.INT64),
        helper.make_node("ConstantOfShape", ["n"], ["huge"]),
        helper.make_node("ReduceSum", ["huge"], ["sum"], keepdims=0),
        helper.make_node("Add", ["sample", "sum"], ["next_sample"]),
        constants={"shape": np.array([2**20, 2**22], np.int32)},
    ),
    "another shape": replaced_by(
        helper.make_node("Concat", ["sample", "sample"], ["next_sample"], axis=1), constants={}
    ),
}


@pytest.mark.parametrize("command", ["infer", "verify", "verify --engine openvino", "doctor"])
@pytest.mark.parametrize("case", FAILING)
def test_a_graph_that_fails_while_it_runs_is_one_line(
    bundle_dir: Path, case: str, command: str, tmp_path: Path
) -> None:
    rewrite(bundle_dir, FAILING[case])
    write_handover(tmp_path / "x.tc.safetensors", handover(default_head(), 2))
    words = [command.split(maxsplit=1)[0], bundle_dir, *command.split()[1:]]
    more = (tmp_path / "x.tc.safetensors", "--out", tmp_path / "images") if command == "infer" else ()
    result = run_cli(*words, *more)
    assert result.code in (1, 2)
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert len(errors[0]) < 1100
    assert "Traceback" not in result.err
    assert not (tmp_path / "images").exists()


def scaled(model: onnx.ModelProto) -> None:
    weight = next(w for w in model.graph.initializer if w.data_type == TensorProto.FLOAT and len(w.dims) == 4)
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(1.5), weight.name))


SWAPPED = {
    "the tensor as it came": replaced_by(helper.make_node("Identity", ["sample"], ["next_sample"])),
    "other weights": scaled,
}


@pytest.mark.parametrize("command", ["infer", "verify"])
@pytest.mark.parametrize("case", SWAPPED)
def test_another_graph_under_a_valid_seal_is_not_used(
    bundle_dir: Path, case: str, command: str, tmp_path: Path
) -> None:
    rewrite(bundle_dir, SWAPPED[case])
    write_handover(tmp_path / "x.tc.safetensors", handover(default_head(), 2))
    more = (tmp_path / "x.tc.safetensors", "--out", tmp_path / "images") if command == "infer" else ()
    result = run_cli(command, bundle_dir, *more)
    assert result.code == 1, result
    assert "network" in result.err
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize("key", sorted(json.loads((default_head().path / MANIFEST).read_bytes()).keys()))
def test_every_field_is_checked(bundle_dir: Path, key: str) -> None:
    if key in ("format", "version", "sha256", "files"):  # of the seal, or tried in test_bundle_damage
        return
    found = json.loads((bundle_dir / MANIFEST).read_bytes())[key]
    for odd in (value for value in ODD if value != found and (key != "float_layers" or value != ["x"])):
        if (key, odd) in (("class_names", None), ("num_classes", None), ("engines", {}), ("float_layers", [])):
            continue
        if key == "tools" and odd in ({}, {"a": None}):  # versions that could not be found are null
            continue
        reseal(bundle_dir, lambda manifest, odd=odd: manifest.update({key: odd}))  # type: ignore[misc]
        assert str(bundle_dir / MANIFEST) in refusal(bundle_dir), odd
    reseal(bundle_dir, lambda manifest: manifest.update({key: found}))
    read_bundle(bundle_dir)
    reseal(bundle_dir, lambda manifest: manifest.update(unexpected=1))
    assert "unknown field 'unexpected'" in refusal(bundle_dir)
