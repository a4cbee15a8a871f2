"""A sealed file that is damaged, cut short, mixed up or made by a stranger is refused in one line."""

import io
import json
import pickle
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collafuse_runtimes.errors import ArtefactError
from collafuse_runtimes.files.sealed import canonical, read_json, read_tensors, sha256_file, write_json, write_tensors

TENSORS = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "t": np.array([1, 2], np.int64)}
PAYLOAD: dict[str, Any] = {"seed": 7, "name": "münchen", "nested": {"list": [1, 2.5, None, True]}}
Content = tuple[dict[str, tuple[str, tuple[int, ...], bytes]], dict[str, Any]]


def load_tensors(path: Path) -> Content:
    tensors, payload = read_tensors(path, "kind")
    return {name: (value.dtype.str, value.shape, value.tobytes()) for name, value in tensors.items()}, payload


def load_json(path: Path) -> Content:
    return {}, read_json(path, "kind")


CONTAINERS = {"tensors": load_tensors, "json": load_json}
containers = pytest.mark.parametrize("container", CONTAINERS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sealed")
    write_tensors(path / "tensors", "kind", TENSORS, PAYLOAD)
    write_json(path / "json", "kind", PAYLOAD)
    return path


def refusal(load: Callable[[Path], Content], path: Path) -> str:
    with pytest.raises(ArtefactError) as caught:
        load(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 400 + len(str(path))
    assert str(path) in message
    return message


def load_or_refuse(folder: Path, container: str, data: bytes) -> None:
    """Refused, or void: then exactly the content that was written."""
    path, load = folder / f"damaged-{container}", CONTAINERS[container]
    path.write_bytes(data)
    try:
        found = load(path)
    except ArtefactError:
        refusal(load, path)
    else:
        assert found == load(folder / container)


@containers
def test_every_truncation_is_refused(folder: Path, container: str) -> None:
    data = (folder / container).read_bytes()
    path = folder / f"short-{container}"
    for length in range(len(data) - (container == "json")):  # the last byte of a JSON file is a line feed
        path.write_bytes(data[:length])
        refusal(CONTAINERS[container], path)


@containers
def test_every_flipped_bit_is_refused_or_void(folder: Path, container: str) -> None:
    data = (folder / container).read_bytes()
    path, load, void = folder / f"flipped-{container}", CONTAINERS[container], 0
    written = load(folder / container)
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        try:
            assert load(path) == written
            void += 1
        except ArtefactError:
            pass
    assert void < 0.05 * len(data)


@containers
@settings(max_examples=300, deadline=None)
@given(edits=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=9)), min_size=1, max_size=4))
def test_overwritten_bytes_are_refused_or_void(folder: Path, container: str, edits: list[tuple[float, bytes]]) -> None:
    data = bytearray((folder / container).read_bytes())
    for place, patch in edits:
        start = int(place * (len(data) - 1))
        data[start : start + len(patch)] = patch
    load_or_refuse(folder, container, bytes(data))


@containers
@settings(max_examples=200, deadline=None)
@given(place=st.floats(0, 1), patch=st.binary(max_size=20), removed=st.integers(0, 20))
def test_inserted_and_removed_bytes_are_refused_or_void(
    folder: Path, container: str, place: float, patch: bytes, removed: int
) -> None:
    data = (folder / container).read_bytes()
    start = int(place * len(data))
    load_or_refuse(folder, container, data[:start] + patch + data[start + removed :])


@containers
@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200))
def test_random_bytes_are_refused(folder: Path, container: str, data: bytes) -> None:
    path = folder / f"random-{container}"
    path.write_bytes(data)
    refusal(CONTAINERS[container], path)


JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(value=JSON_VALUES, field=st.sampled_from(["format", "version", "sha256", "other", None]))
def test_any_json_value_in_any_place_of_the_seal_is_refused(folder: Path, value: Any, field: str | None) -> None:
    sealed = json.loads((folder / "json").read_text())
    if field is not None and sealed.get(field) == value:
        return
    document = value if field is None else {**sealed, field: value}
    (folder / "x").write_text(json.dumps(document))
    refusal(load_json, folder / "x")
    metadata = {"collafuse": json.dumps(document)}
    (folder / "y").write_bytes(safetensors_bytes({"__metadata__": metadata}))
    refusal(load_tensors, folder / "y")
    (folder / "y").write_bytes(safetensors_bytes({"__metadata__": value}))
    refusal(load_tensors, folder / "y")


def safetensors_bytes(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


DEEP = 100_000
SEALED_EMPTY = {"__metadata__": {"collafuse": '{"format":"kind","version":1,"sha256":"0"}'}}


def entry(dtype: str, shape: list[int], end: int = 16) -> dict[str, Any]:
    return {**SEALED_EMPTY, "x": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 8,
        b"\xff" * 8,
        b"\xff" * 8 + b"{}",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 100_000_001) + b"{}",
        safetensors_bytes(b"[" * DEEP),
        safetensors_bytes(b'{"a":' * DEEP),
        safetensors_bytes({"__metadata__": {"collafuse": "[" * DEEP}}),
        safetensors_bytes({"__metadata__": {"collafuse": "NaN"}}),
        safetensors_bytes({"__metadata__": {"collafuse": "1e999"}}),
        safetensors_bytes({"__metadata__": {"collafuse": "9" * 5000}}),
        safetensors_bytes({"__metadata__": {"collafuse": '{"format":"kind","version":1,"a":1e999}'}}),
        safetensors_bytes({"__metadata__": {"collafuse": '{"format":"kind","version":1,"a":NaN}'}}),
        safetensors_bytes({"__metadata__": {"collafuse": '{"format":' + "[" * 900 + "]" * 900 + "}"}}),
        safetensors_bytes({"__metadata__": {"collafuse": json.dumps({"format": "x" * 10**6})}}),
        safetensors_bytes({"__metadata__": {"other": "x"}}),
        safetensors_bytes({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"abcd"),
        safetensors_bytes(entry("F32", [2**62, 8]), bytes(16)),
        safetensors_bytes(entry("F32", [-4]), bytes(16)),
        safetensors_bytes(entry("F32", [4], end=2**60), bytes(16)),
        safetensors_bytes(entry("BF16", [8]), bytes(16)),
        safetensors_bytes(entry("F8_E4M3", [16]), bytes(16)),
        safetensors_bytes(entry("F4", [32]), bytes(16)),
        safetensors_bytes(entry("NOPE", [4]), bytes(16)),
        safetensors_bytes(entry("F32", [4]), bytes(15)),
        safetensors_bytes(entry("F32", [4]), bytes(17)),
    ],
    ids=lambda data: f"{len(data)}-{zlib.crc32(data) % 1000:03d}",
)
def test_crafted_tensor_files_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    refusal(load_tensors, tmp_path / "x")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        '"kind"',
        "[" * DEEP,
        '{"a":' * DEEP,
        "[" * 900 + "]" * 900,
        "NaN",
        '{"format":"kind","version":1,"sha256":"0","a":-Infinity}',
        '{"format":"kind","version":1,"sha256":"0","a":1e999}',
        '{"format":"kind","version":1,"sha256":"0","a":' + "9" * 5000 + "}",
        '{"format":"kind","version":1,"sha256":null}',
        '{"format":"kind","version":1}',
        "\udcff\udcfe",
    ],
    ids=lambda text: text[:20],
)
def test_crafted_json_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x").write_bytes(text.encode(errors="surrogateescape"))
    refusal(load_json, tmp_path / "x")


@containers
def test_another_format_or_version_is_named(folder: Path, container: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read: Callable[..., object] = {"tensors": read_tensors, "json": read_json}[container]
    with pytest.raises(ArtefactError, match=r"is not a other file: found 'kind'; check which file you passed$"):
        read(folder / container, "other")
    monkeypatch.setattr("collafuse_runtimes.files.sealed.FORMAT_VERSION", 2)
    with pytest.raises(ArtefactError, match="has format version 1; this release reads 2: make the file again"):
        read(folder / container, "kind")


@containers
def test_what_is_no_file_is_refused(tmp_path: Path, container: str) -> None:
    assert "No such file" in refusal(CONTAINERS[container], tmp_path / "missing")
    assert "Is a directory" in refusal(CONTAINERS[container], tmp_path)
    with pytest.raises(ArtefactError, match="No such file"):
        sha256_file(tmp_path / "missing")


class Bomb:
    """Unpickling this would exit the test run."""

    def __reduce__(self) -> Any:
        return sys.exit, ("unpickled",)


@containers
@pytest.mark.parametrize("kind", ["pickle", "npz", "npy"])
def test_pickles_under_our_names_are_refused_unread(tmp_path: Path, container: str, kind: str) -> None:
    buffer = io.BytesIO()
    if kind == "pickle":
        pickle.dump(Bomb(), buffer)
    elif kind == "npz":
        np.savez(buffer, x=np.array([Bomb()], dtype=object))
    else:
        np.save(buffer, np.array([Bomb()], dtype=object))
    path = tmp_path / "x.tc.safetensors"
    path.write_bytes(buffer.getvalue())
    refusal(CONTAINERS[container], path)


def test_a_torch_file_under_our_names_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.tc.safetensors"
    torch.save({"x": torch.zeros(3)}, path)
    assert "is not a readable kind file" in refusal(load_tensors, path)


def test_the_digest_covers_format_and_version(folder: Path) -> None:
    """Renaming the format inside a file breaks the seal, so no artefact passes for another."""
    sealed = json.loads((folder / "json").read_text())
    (folder / "renamed").write_bytes(canonical({**sealed, "format": "other"}))
    with pytest.raises(ArtefactError, match="does not match its own sha256"):
        read_json(folder / "renamed", "other")
