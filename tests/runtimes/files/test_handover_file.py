"""The hand-over file holds what docs/formats.md says, byte by byte, and a bad one never reaches the network."""

import hashlib
import json
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.errors import ArtefactError, InputError
from collafuse_runtimes.files.handover import Handover, read_handover, write_handover
from collafuse_runtimes.files.sealed import read_tensors, write_tensors

PLAN = SplitPlan((1, 4, 4), timesteps=10, cut_ratio=0.4)
X_TC = np.random.default_rng(0).standard_normal((3, 1, 4, 4)).astype(np.float32)
SERVER = "ab" * 32
HANDOVER = Handover(
    x_tc=X_TC,
    plan=PLAN,
    seed=2**64 - 1,
    first_index=5,
    sampler={"name": "ddim", "eta": 0.5},
    timesteps=(9, 7, 4),
    server_sha256=SERVER,
)


def parse_by_hand(data: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """(header, payload, tensor bytes) with nothing but struct and json."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    return header, json.loads(header["__metadata__"]["collafuse"]), data[8 + length :]


@pytest.mark.parametrize(("dtype", "code", "letter"), [("float32", "F32", "f"), ("float16", "F16", "e")])
def test_byte_layout(tmp_path: Path, dtype: str, code: str, letter: str) -> None:
    path = tmp_path / "x.tc.safetensors"
    write_handover(path, HANDOVER, dtype)
    data = path.read_bytes()
    header, payload, body = parse_by_hand(data)
    assert header.keys() == {"__metadata__", "x_tc"}
    assert header["__metadata__"].keys() == {"collafuse"}
    assert header["x_tc"] == {"dtype": code, "shape": [3, 1, 4, 4], "data_offsets": [0, len(body)]}
    assert body == struct.pack(f"<48{letter}", *X_TC.astype(dtype).ravel().tolist())
    assert (len(data) - len(body)) % 8 == 0
    digest = payload.pop("sha256")
    assert payload == {
        "format": "collafuse-handover",
        "version": 1,
        "plan": {
            "cut_ratio": 0.4,
            "image_shape": [1, 4, 4],
            "prediction_type": "epsilon",
            "schedule": "cosine",
            "timesteps": 10,
            "value_range": [-1.0, 1.0],
        },
        "fingerprint": hashlib.sha256(canonical(payload["plan"])).hexdigest(),
        "cut": 4,
        "level": 3,
        "count": 3,
        "seed": 18446744073709551615,
        "first_index": 5,
        "sampler": {"eta": 0.5, "name": "ddim"},
        "timesteps": [9, 7, 4],
        "server_sha256": SERVER,
    }
    tensor = canonical(["x_tc", f"<f{len(body) // 48}", [3, 1, 4, 4]])
    assert digest == hashlib.sha256(canonical(payload) + tensor + body).hexdigest()


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("handover")


def same(a: Handover, b: Handover) -> bool:
    return a.x_tc.tobytes() == b.x_tc.tobytes() and replace(a, x_tc=X_TC) == replace(b, x_tc=X_TC)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_round_trip(folder: Path, data: st.DataObject) -> None:
    plan = SplitPlan((data.draw(st.sampled_from([1, 3])), 3, 5), timesteps=20, cut_ratio=data.draw(st.floats(0, 1)))
    count = data.draw(st.integers(1, 3))
    steps = data.draw(st.integers(min(plan.t_c, 1), plan.t_c))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    handover = Handover(
        x_tc=random.standard_normal((count, *plan.image_shape)).astype(np.float32),
        plan=plan,
        seed=data.draw(st.integers(0, 2**64 - 1)),
        first_index=data.draw(st.integers(0, 2**64 - count)),
        sampler={"name": "ddpm", "eta": 0.0},
        timesteps=tuple(t for t, _ in plan.server_transitions(steps)),
        server_sha256=SERVER if steps else None,
    )
    write_handover(folder / "x", handover)
    assert same(read_handover(folder / "x"), handover)


def test_float16_halves_the_tensor_and_rounds_once(tmp_path: Path) -> None:
    write_handover(tmp_path / "x", HANDOVER, "float16")
    found = read_handover(tmp_path / "x").x_tc
    assert found.dtype == np.float32
    assert np.all(np.abs(found - X_TC) <= 2.0**-11 * np.abs(X_TC) + 2.0**-25)
    assert np.any(found != X_TC)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, "seed -1 out of range"),
        ({"seed": 2**64}, "seed 18446744073709551616 out of range"),
        ({"seed": 1.5}, "seed 1.5 out of range"),
        ({"first_index": -1}, "sample index -1 out of range"),
        ({"first_index": 2**64 - 2}, "sample index 18446744073709551616 out of range"),
        ({"sampler": "ddim"}, "sampler is 'ddim'; valid: the server's sampler as JSON fields"),
        ({"server_sha256": 3}, "server_sha256 is 3; valid: a hex digest or null"),
        ({"timesteps": ()}, "server timesteps [] do not fit the plan; valid: integers descending from 9 to at least 4"),
        ({"timesteps": (8, 7)}, "server timesteps [8, 7] do not fit"),
        ({"timesteps": (9, 9)}, "server timesteps [9, 9] do not fit"),
        ({"timesteps": (9, 3)}, "server timesteps [9, 3] do not fit"),
        ({"timesteps": (9, 4.5)}, "server timesteps [9, 4.5] do not fit"),
        ({"x_tc": X_TC[:, :, :3]}, "x_tc has shape (3, 1, 3, 4); valid: (N >= 1, 1, 4, 4)"),
        ({"x_tc": X_TC[:0]}, "x_tc has shape (0, 1, 4, 4); valid: (N >= 1, 1, 4, 4)"),
        (
            {"x_tc": np.where(X_TC[1, 0, 0, 0] == X_TC, np.nan, X_TC)},
            "x_tc holds NaN or Inf in 1 of 3 samples (first: 1)",
        ),
    ],
)
def test_bad_fields_are_refused_on_writing(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        write_handover(tmp_path / "x", replace(HANDOVER, **change))
    assert list(tmp_path.iterdir()) == []


def test_no_timesteps_belong_to_a_server_without_steps(tmp_path: Path) -> None:
    local = replace(HANDOVER, plan=PLAN.with_cut_ratio(1), timesteps=(), server_sha256=None)
    write_handover(tmp_path / "x", local)
    assert same(read_handover(tmp_path / "x"), local)
    with pytest.raises(InputError, match=r"server timesteps \[9\] do not fit the plan; valid: none at cut_ratio 1$"):
        write_handover(tmp_path / "x", replace(local, timesteps=(9,)))


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", ""])
def test_unknown_dtypes_are_refused(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(InputError, match=f"^unknown dtype '{dtype}'; valid: float32, float16$"):
        write_handover(tmp_path / "x", HANDOVER, dtype)


@pytest.mark.filterwarnings("error")
def test_values_beyond_float16_are_refused_there_only(tmp_path: Path) -> None:
    large = replace(HANDOVER, x_tc=X_TC * np.float32(1e6))
    write_handover(tmp_path / "x", large, "float32")
    with pytest.raises(InputError, match="x_tc holds NaN or Inf in 3 of 3 samples"):
        write_handover(tmp_path / "x", large, "float16")


DROP = type("Drop", (), {"__repr__": lambda self: "DROP"})()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(({key: DROP}, key) for key in ("cut", "level", "count", "seed", "first_index", "sampler", "timesteps")),
        ({"server_sha256": DROP}, "server_sha256"),
        ({"plan": DROP}, "found NoneType"),
        ({"fingerprint": DROP}, "the fingerprint is not that of the plan"),
        ({"fingerprint": "0" * 64}, "the fingerprint is not that of the plan"),
        ({"plan": {**PLAN.to_dict(), "timesteps": "10"}}, "plan field timesteps is '10'"),
        ({"plan": 5}, "found int"),
        ({"cut": 5}, "cut is 5 but its plan and tensor give 4"),
        ({"level": 4}, "level is 4 but its plan and tensor give 3"),
        ({"count": 4}, "count is 4 but its plan and tensor give 3"),
        ({"seed": "7"}, "seed '7' out of range"),
        ({"seed": None}, "seed None out of range"),
        ({"first_index": [0]}, "sample index [0] out of range"),
        ({"timesteps": 7}, "'int' object is not iterable"),
        ({"timesteps": None}, "'NoneType' object is not iterable"),
        ({"timesteps": ["9"]}, "server timesteps ['9'] do not fit the plan"),
        ({"timesteps": [[9]]}, "server timesteps [[9]] do not fit the plan"),
        ({"sampler": ["ddim"]}, "sampler is ['ddim']"),
    ],
    ids=str,
)
def test_a_well_sealed_file_with_bad_fields_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """The digest finds damage, not malice: anybody can seal anything."""
    write_handover(tmp_path / "x", HANDOVER)
    tensors, payload = read_tensors(tmp_path / "x", "collafuse-handover")
    payload = {key: value for key, value in {**payload, **change}.items() if value is not DROP}
    write_tensors(tmp_path / "x", "collafuse-handover", tensors, payload)
    assert message in refusal(tmp_path / "x")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "'x_tc'"),
        ({"x_tc": X_TC, "x_0": X_TC}, "holds 1 other tensors beside x_tc"),
        ({"x_tc": X_TC.astype(np.float64)}, "x_tc has dtype float64; valid: float32 or float16"),
        ({"x_tc": X_TC.astype(np.int32)}, "x_tc has dtype int32; valid: float32 or float16"),
        ({"x_tc": X_TC[0]}, "x_tc has shape (1, 4, 4); valid: (N >= 1, 1, 4, 4)"),
        ({"x_tc": X_TC[:0]}, "x_tc has shape (0, 1, 4, 4); valid: (N >= 1, 1, 4, 4)"),
        ({"x_tc": X_TC * np.inf}, "x_tc holds NaN or Inf in 3 of 3 samples"),
    ],
)
def test_a_well_sealed_file_with_bad_tensors_is_refused(tmp_path: Path, tensors: Any, message: str) -> None:
    write_handover(tmp_path / "x", HANDOVER)
    _, payload = read_tensors(tmp_path / "x", "collafuse-handover")
    write_tensors(tmp_path / "x", "collafuse-handover", tensors, payload)
    assert message in refusal(tmp_path / "x")


def refusal(path: Path) -> str:
    with pytest.raises(ArtefactError) as caught:
        read_handover(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(str(path))
    return message


@settings(max_examples=200, deadline=None)
@given(place=st.floats(0, 1), patch=st.binary(min_size=1, max_size=6), cut=st.one_of(st.none(), st.floats(0, 1)))
def test_damaged_bytes_are_refused_or_void(folder: Path, place: float, patch: bytes, cut: float | None) -> None:
    write_handover(folder / "good", HANDOVER)
    data = bytearray((folder / "good").read_bytes())
    start = int(place * (len(data) - 1))
    data[start : start + len(patch)] = patch
    (folder / "bad").write_bytes(data if cut is None else data[: int(cut * len(data))])
    try:
        found = read_handover(folder / "bad")
    except ArtefactError:
        refusal(folder / "bad")
    else:
        assert same(found, HANDOVER)
