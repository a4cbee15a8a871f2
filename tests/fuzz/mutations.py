"""Seeded damage: to bytes, to fields behind a valid seal, to the files of a bundle; and what a change leaves equal."""

import hashlib
import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from corpus import Kind

from collafuse_runtimes.files.sealed import canonical

ODD_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, 1e-320, "", "x", "../x", "/etc/passwd", "\ud800",
    "\x1b[31m", "a" * 100_000, [], {}, [[]], [1, 2, 3], {"": None}, "NaN", float("nan"), float("inf"), [None] * 1000,
)  # fmt: skip
HUGE = (2**31 - 1, 2**40, 2**62)


def damage(kind: Kind, folder: Path, other: bytes, rng: random.Random) -> tuple[str, bool]:
    """Change the artefact below ``folder``.

    Args:
        other: bytes of an artefact of another kind.

    Returns:
        (what was done, whether the content is still what it was).
    """
    path = folder / kind.path
    if kind.form == "bundle":
        return rng.choice(BUNDLE_CHANGES)(path, rng), False
    before = path.read_bytes()
    if kind.form in ("json", "tensors") and rng.random() < 0.6:
        what, after = (_field_json if kind.form == "json" else _field_tensors)(before, rng)
        _replace(path, after)
        if kind.inside:
            seal_folder(folder / kind.inside)
        return f"resealed: {what}", False
    if kind.form == "graph" and rng.random() < 0.5:
        what, after = _graph(before, rng)
        _replace(path, after)
        seal_folder(folder / str(kind.inside))
        return f"resealed: {what}", after == before
    changes = KEY_CHANGES if kind.form == "key" else BYTE_CHANGES
    change = rng.choice(changes)
    after = other if change is _other else change(before, rng)
    _replace(path, after)
    return change.__name__.strip("_"), same_content(kind.form, before, after)


def same_content(form: str, before: bytes, after: bytes) -> bool:
    """Whether a reader may take ``after`` for ``before``: spaces moved, a key's digits in another case."""
    if before == after:
        return True
    try:
        if form == "key":
            return before.decode().lower().split() == after.decode().lower().split()
        if form == "json":
            return bool(json.loads(before) == json.loads(after))
        if form == "tensors":
            return _parts(before) == _parts(after)
    except (ValueError, KeyError, struct.error, RecursionError):
        return False
    return False


def seal_folder(folder: Path) -> None:
    """State the digests that the files of a bundle or checkpoint now have, as an attacker would."""
    record = next(path for path in (folder / "manifest.json", folder / "training.json") if path.exists())
    payload = json.loads(record.read_bytes())
    for name in payload["files"]:
        if (folder / name).is_file():
            payload["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    _replace(record, _sealed_json(payload))


def _replace(path: Path, data: bytes) -> None:
    mode = path.stat().st_mode
    path.unlink()
    path.write_bytes(data)
    path.chmod(mode)


def _flip(data: bytes, rng: random.Random) -> bytes:
    if not data:
        return b"\0"
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 4, 64))):
        changed[_position(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _position(data: bytes, rng: random.Random) -> int:
    """Half of the time among the first bytes, where headers are."""
    return rng.randrange(min(len(data), 400) if rng.random() < 0.5 else len(data))


def _truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) or 1)]


def _extend(data: bytes, rng: random.Random) -> bytes:
    return data + rng.randbytes(rng.choice((1, 8, 4096)))


def _cut_out(data: bytes, rng: random.Random) -> bytes:
    start = _position(data, rng)
    return data[:start] + data[start + rng.choice((1, 4, 64)) :]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    start = _position(data, rng)
    part = data[start : start + rng.choice((1, 4, 64))]
    return data[:start] + part * rng.choice((2, 50)) + data[start:]


def _overwrite(data: bytes, rng: random.Random) -> bytes:
    """A number somewhere becomes extreme."""
    start = _position(data, rng)
    value = rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\xc0\x7f"))
    return data[:start] + value + data[start + 4 :]


def _empty(data: bytes, rng: random.Random) -> bytes:
    return b""


def _noise(data: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice((1, 16, len(data))))


def _other(data: bytes, rng: random.Random) -> bytes:
    raise NotImplementedError  # ``damage`` puts the other file in


BYTE_CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flip, _flip, _flip, _truncate, _extend, _cut_out, _repeat, _overwrite, _overwrite, _empty, _noise, _other,
)  # fmt: skip


def _another_digit(data: bytes, rng: random.Random) -> bytes:
    at = rng.choice([i for i, byte in enumerate(data) if chr(byte) in "0123456789abcdef"])
    digit = rng.choice([d for d in "0123456789abcdef" if ord(d) != data[at]])
    return data[:at] + digit.encode() + data[at + 1 :]


def _two_digits_swapped(data: bytes, rng: random.Random) -> bytes:
    places = [i for i in range(len(data) - 1) if data[i] != data[i + 1] and data[i + 1 : i + 2].isalnum()]
    at = rng.choice(places)
    return data[:at] + data[at + 1 : at + 2] + data[at : at + 1] + data[at + 2 :]


KEY_CHANGES = (*BYTE_CHANGES, _another_digit, _another_digit, _another_digit, _two_digits_swapped)


def _field_json(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    payload = json.loads(data)
    what = _change_field(payload, rng)
    return what, _sealed_json(payload)


def _sealed_json(payload: dict[str, Any]) -> bytes:
    body = {key: value for key, value in payload.items() if key != "sha256"}
    if "sha256" in payload:
        try:
            body["sha256"] = hashlib.sha256(canonical(body)).hexdigest()
        except ValueError:  # NaN: a careless writer's seal
            body["sha256"] = "0" * 64
    return json.dumps(body).encode()


def _change_field(payload: dict[str, Any], rng: random.Random) -> str:
    """Another value, a field less or a field more, at a random depth."""
    node: Any = payload
    trail: list[str] = []
    while True:
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        trail.append(str(key))
        if not (isinstance(node[key], dict | list) and node[key]) or rng.random() < 0.3:
            break
        node = node[key]
    action = rng.choice(("value", "value", "value", "missing", "more"))
    if action == "missing":
        del node[key]
    elif action == "more" and isinstance(node, dict):
        node["unexpected"] = rng.choice(ODD_VALUES)
    else:
        node[key] = rng.choice((*ODD_VALUES, *HUGE))
    return f"{action} at {'.'.join(trail)}"


def _parts(data: bytes) -> tuple[Any, bytes]:
    (length,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _field_tensors(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """One field or one tensor changed, sealed again."""
    from safetensors.numpy import load, save

    header, _ = _parts(data)
    payload = json.loads(header["__metadata__"]["collafuse"])
    tensors = {name: np.array(value) for name, value in load(data).items()}
    what = _change_tensor(tensors, rng) if rng.random() < 0.5 else _change_field(payload, rng)
    return what, save(tensors, metadata={"collafuse": _tensor_seal(payload, tensors)})


def _change_tensor(tensors: dict[str, np.ndarray[Any, Any]], rng: random.Random) -> str:
    name = rng.choice(sorted(tensors))
    value, action = tensors[name], rng.choice(("nan", "huge", "dtype", "shape", "missing", "more", "empty"))
    if action == "nan" and value.dtype.kind == "f":
        value.reshape(-1)[rng.randrange(value.size or 1)] = rng.choice((np.nan, np.inf, -np.inf))
    elif action == "huge" and value.dtype.kind == "f":
        with np.errstate(over="ignore"):
            value *= np.asarray(6e4, value.dtype)
    elif action == "dtype":
        tensors[name] = value.astype(rng.choice(("int8", "uint64", "float64", "bool", "float16")))
    elif action == "shape":
        tensors[name] = value.reshape(rng.choice(((-1,), (1, *value.shape), value.shape[::-1])))
    elif action == "missing":
        del tensors[name]
    elif action == "more":
        tensors["unexpected"] = np.zeros(3, np.float32)
    else:
        tensors[name] = value[:0]
    return f"{action} in {name}"


def _tensor_seal(payload: dict[str, Any], tensors: dict[str, np.ndarray[Any, Any]]) -> str:
    """As docs/formats.md, Sealed safetensors."""
    body = {key: value for key, value in payload.items() if key != "sha256"}
    try:
        digest = hashlib.sha256(canonical(body))
    except ValueError:
        return json.dumps(body)
    for name in sorted(tensors):
        value = np.ascontiguousarray(tensors[name])
        digest.update(canonical([name, value.dtype.newbyteorder("<").str, list(value.shape)]))
        digest.update(value.tobytes())
    body["sha256"] = digest.hexdigest()
    return canonical(body).decode()


def _graph(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Another graph with the same inputs and outputs, or the graph with other weights, or damage."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load_from_string(data)
    action = rng.choice(("identity", "weights", "operator", "external data", "attribute", "bytes"))
    if action == "identity":
        ends = model.graph.input[0].name, model.graph.output[0].name
        del model.graph.node[:]
        model.graph.node.append(helper.make_node("Identity", [ends[0]], [ends[1]]))
    elif action == "weights":
        weight = rng.choice([w for w in model.graph.initializer if w.data_type == onnx.TensorProto.FLOAT])
        changed = numpy_helper.from_array(
            numpy_helper.to_array(weight) * np.float32(1.5) + np.float32(0.1), weight.name
        )
        weight.CopyFrom(changed)
    elif action == "operator":
        rng.choice(model.graph.node).op_type = rng.choice(("Loop", "If", "NonMaxSuppression", "Sin", "NoSuchThing"))
    elif action == "external data":
        weight = rng.choice(model.graph.initializer)
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=rng.choice(("../../site.key", "/etc/passwd", "plan.json")))
    elif action == "attribute":
        nodes = [node for node in model.graph.node if node.attribute]
        attribute = rng.choice(rng.choice(nodes).attribute)
        attribute.i, attribute.f = rng.choice((0, -1, 2**40)), 1e30
        for i in range(len(attribute.ints)):
            attribute.ints[i] = rng.choice((0, -1, 2**40))
    else:
        return "bytes", _flip(data, rng)
    return action, model.SerializeToString()


def _special_file(bundle: Path, rng: random.Random) -> str:
    path = rng.choice(sorted(bundle.iterdir()))
    path.unlink()
    action = rng.choice(("/dev/zero", "/dev/stdin", "nowhere", "fifo", "folder", "itself"))
    if action == "fifo":
        os.mkfifo(path)
    elif action == "folder":
        path.mkdir()
    else:
        path.symlink_to(path if action == "itself" else action)
    return f"{path.name} is {action}"


def _missing_file(bundle: Path, rng: random.Random) -> str:
    path = rng.choice(sorted(bundle.iterdir()))
    path.unlink()
    return f"{path.name} missing"


def _extra_file(bundle: Path, rng: random.Random) -> str:
    name = rng.choice(("extra.bin", "model.onnx.data", "x.engine", ".hidden", "a" * 200))
    (bundle / name).write_bytes(b"x" * rng.choice((0, 100)))
    return f"{name} added"


def _swapped_files(bundle: Path, rng: random.Random) -> str:
    a, b = rng.sample(sorted(bundle.iterdir()), 2)
    a_bytes = a.read_bytes()
    _replace(a, b.read_bytes())
    _replace(b, a_bytes)
    return f"{a.name} and {b.name} swapped"


BUNDLE_CHANGES = (_special_file, _special_file, _missing_file, _extra_file, _swapped_files)
