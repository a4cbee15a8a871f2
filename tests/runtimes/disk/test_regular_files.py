"""Whatever stands where a file should be, and whatever its header says: one line at once, no memory taken."""

import json
import os
import socket
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import refusal
from small_product import copy_product, words

from collafuse_runtimes.errors import ArtefactError
from collafuse_runtimes.files.sealed import read_bytes, read_json, read_tensors

READERS = [
    "upload --data @data.npz --plan @odd --key @upload.key --out @new",
    "upload --data @data.npz --plan @plan.json --key @odd --out @new",
    "train-server @odd --steps 2 --cpu --out @new",
    "handoff --plan @odd --count 1 --out @new",
    "infer @edge.head @odd --out @new",
    "infer @odd @x.tc.safetensors --out @new",
    "verify @odd",
    "export @odd --out @new",
    "export @head --calibration @odd --precision fp16 --out @new",
    "evaluate @odd --data @data.npz --extractor @extractor.onnx",
    "evaluate @images --data @data.npz --extractor @odd",
    "bench report @odd --out @new",
    "bench split --merge @odd --out @new",
    "bench latency @edge.head @odd --out @new",
]


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def bound(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(path.parent)  # the name of a socket is short
        server.bind(path.name)
        os.chdir(here)


def looped(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize("make", [pipe, endless, bound, looped])
@pytest.mark.parametrize("command", READERS)
def test_no_pipe_or_device_is_read(command: str, make: Callable[[Path], None], tmp_path: Path) -> None:
    site = copy_product(tmp_path / "site")
    make(site / "odd")
    line = refusal(*words(command, site))
    assert f"{site}/odd" in line
    assert not (site / "new").exists()


def sealed(header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


SEAL = {"collafuse": json.dumps({"format": "kind", "version": 1})}
F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BAD = {
    "nothing": (b"", "its header states 0 bytes in a file of 0"),
    "half a length": (b"\1\0\0", "in a file of 3"),
    "a header longer than the file": (sealed(b"{}", length=10**9), "its header states 1000000000 bytes in a file"),
    "a header of 2^64 bytes": (sealed(b"{}", length=2**64 - 1), "bytes in a file of 10"),
    "tensors beyond the end": (sealed({"__metadata__": SEAL, "x": F32}, bytes(4)), "bytes, the file has"),
    "2^60 bytes of tensors": (
        sealed({"__metadata__": SEAL, "x": {"dtype": "F32", "shape": [2**58], "data_offsets": [0, 2**60]}}),
        "bytes, the file has",
    ),
    "a rest behind the tensors": (sealed({"__metadata__": SEAL, "x": F32}, bytes(12)), "bytes, the file has"),
    "BF16": (
        sealed({"__metadata__": SEAL, "x": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}, bytes(8)),
        "tensor x has dtype BF16; valid: BOOL, U8",
    ),
    "F8": (
        sealed({"__metadata__": SEAL, "x": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}, bytes(8)),
        "tensor x has dtype F8_E4M3",
    ),
    "a tensor twice": (
        sealed(b'{"__metadata__":{"collafuse":"{}"},"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"x":'
               b'{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
        "'x' is given twice",
    ),
    "a list": (sealed(b"[]"), "is not a readable"),
    "a tensor without a place": (sealed({"__metadata__": SEAL, "x": {}}), "is not a readable"),
    "an empty place": (sealed({"__metadata__": SEAL, "x": {**F32, "data_offsets": []}}), "is not a readable"),
    "no seal": (sealed({"x": F32}, bytes(8)), "is not a readable"),
    "a seal that is no text": (sealed({"__metadata__": {"collafuse": 1}}), "is not a readable"),
    "deep": (sealed(b'{"a":' * 50_000 + b"1" + b"}" * 50_000), "is not a readable"),
    "not JSON": (sealed(b"{{{{{{{{"), "is not a readable"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_headers_that_lie(name: str, tmp_path: Path) -> None:
    data, said = BAD[name]
    (tmp_path / "x").write_bytes(data)
    tracemalloc.start()
    with pytest.raises(ArtefactError) as caught:
        read_tensors(tmp_path / "x", "kind")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert said in str(caught.value)
    assert len(str(caught.value)) < len(str(tmp_path)) + 300
    assert peak < 20e6


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'{"format": "kind", "format": "kind"}', "'format' is given twice"),
        (b'{"a": {"b": 1, "b": 2}}', "'b' is given twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 900 + b"1" + b"}" * 900, "is not a kind file"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"9" * 5000, "is not valid JSON"),
        (b"null", "is not a kind file: found 'no format name'"),
        (b'{"format": {"a": []}}', "is not a kind file"),
    ],
)
def test_json_that_is_none(text: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(text)
    with pytest.raises(ArtefactError, match=said):
        read_json(tmp_path / "x", "kind")


def test_a_file_of_1_tb_is_not_read(tmp_path: Path) -> None:
    """Its blocks were never written, so it takes no room here; it would in memory."""
    large = tmp_path / "x"
    with large.open("wb") as file:
        file.truncate(1 << 40)
    for read in (lambda: read_json(large, "kind"), lambda: read_tensors(large, "kind"), lambda: read_bytes(large, 9)):
        with pytest.raises(ArtefactError):
            read()
