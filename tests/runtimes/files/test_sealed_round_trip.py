"""What is sealed comes back exactly, and the same content is always the same bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from collafuse_runtimes.errors import ArtefactError
from collafuse_runtimes.files.sealed import read_json, read_tensors, write_json, write_tensors

DTYPES = ["float32", "float16", "float64", "int64", "int32", "uint8", "bool", ">f4", ">i8"]
payloads = st.dictionaries(
    st.text(min_size=1, max_size=6).filter(lambda key: key not in ("format", "version", "sha256")),
    st.recursive(
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(),
            st.floats(allow_nan=False, allow_infinity=False),
            st.text(max_size=8),
        ),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)
arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sealed")


@settings(max_examples=150, deadline=None)
@given(payload=payloads)
def test_json_comes_back_as_it_was(folder: Path, payload: dict[str, Any]) -> None:
    write_json(folder / "x.json", "kind", payload)
    assert read_json(folder / "x.json", "kind") == payload


@settings(max_examples=150, deadline=None)
@given(tensors=st.dictionaries(st.text(min_size=1, max_size=6), arrays, min_size=1, max_size=3), payload=payloads)
def test_tensors_come_back_as_they_were(folder: Path, tensors: dict[str, Any], payload: dict[str, Any]) -> None:
    """Shape (also none), values bit for bit; big-endian arrays come back in the file's little-endian order."""
    tensors.pop("__metadata__", None)
    write_tensors(folder / "x", "kind", tensors, payload)
    found, found_payload = read_tensors(folder / "x", "kind")
    assert found_payload == payload
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert (found[name].shape, found[name].dtype) == (value.shape, value.dtype.newbyteorder("<"))
        assert found[name].tobytes() == value.astype(value.dtype.newbyteorder("<")).tobytes()


@pytest.mark.parametrize("layout", [np.asfortranarray, lambda a: a[::-1], lambda a: a[:, ::2], np.transpose])
def test_memory_layout_does_not_matter(folder: Path, layout: Any) -> None:
    value = layout(np.arange(24, dtype=np.float32).reshape(4, 6))
    write_tensors(folder / "x", "kind", {"x": value}, {})
    np.testing.assert_array_equal(read_tensors(folder / "x", "kind")[0]["x"], value)


def test_keys_and_tuples_become_json_before_they_are_sealed(folder: Path) -> None:
    payload = {"losses": {2: 0.5, 10: 0.25}, "shape": (1, 2)}
    write_json(folder / "x.json", "kind", payload)
    assert read_json(folder / "x.json", "kind") == {"losses": {"2": 0.5, "10": 0.25}, "shape": [1, 2]}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1, {"a": float("-inf")}]])
def test_nan_and_inf_are_refused_on_writing(tmp_path: Path, value: Any) -> None:
    for write in (
        lambda: write_json(tmp_path / "x", "k", {"a": value}),
        lambda: write_tensors(tmp_path / "x", "k", {}, {"a": value}),
    ):
        with pytest.raises(
            ArtefactError, match=r"^cannot write .*: a value is NaN or infinite .*; valid: finite numbers$"
        ):
            write()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("field", ["format", "version", "sha256"])
def test_a_payload_cannot_replace_the_seal(tmp_path: Path, field: str) -> None:
    with pytest.raises(ValueError, match=f"payload fields \\['{field}'\\] belong to the seal"):
        write_json(tmp_path / "x", "kind", {field: 1})


WRITE = """
import sys, numpy as np
from pathlib import Path
from collafuse_runtimes.files.sealed import write_json, write_tensors
folder = Path(sys.argv[1])
names = ["weight", "bias", "x_tc", "steps"]
tensors = {n: np.arange(8, dtype=np.float32) * i for i, n in enumerate(names)}
tensors["half"] = np.ones((2, 2), np.float16)
payload = {n: {"b": 1, "a": [1.5, None, "é"]} for n in reversed(names)}
write_tensors(folder / "x.safetensors", "kind", tensors, payload)
write_json(folder / "x.json", "kind", payload)
"""


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", WRITE, str(tmp_path / seed)], check=True, env=environment)
    for name in ("x.safetensors", "x.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_sealed_json_is_indented_for_people_and_ends_in_a_line_feed(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", "kind", {"b": 1, "a": 2})
    text = (tmp_path / "x.json").read_text()
    assert text.endswith("}\n")
    assert [line.split('"')[1] for line in text.splitlines()[1:-1]] == ["a", "b", "format", "sha256", "version"]
    assert json.loads(text)["version"] == 1
