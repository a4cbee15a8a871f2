"""The two containers all artefacts are made of (docs/formats.md): sealed JSON and sealed safetensors.

Both carry a format name, a format version and a sha256 over everything else they hold, checked on load. The digest
finds damage and mix-ups; it is no signature. No pickle anywhere.
"""

import hashlib
import io
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from collafuse_runtimes import FORMAT_VERSION
from collafuse_runtimes.disk.atomic import BeforeRename, Check, write_bytes
from collafuse_runtimes.disk.found import METADATA_KEY, MOST_HEADER, MOST_JSON, replaces_own
from collafuse_runtimes.disk.partial import is_partial
from collafuse_runtimes.disk.regular_file import open_regular, read_bytes
from collafuse_runtimes.errors import ArtefactError
from collafuse_runtimes.text import one_line, without_surrogates

__all__ = [
    "Tensors",
    "canonical",
    "read_bytes",
    "read_json",
    "read_tensors",
    "sha256_file",
    "write_json",
    "write_tensors",
]

LOG = logging.getLogger("collafuse")
Tensors = dict[str, npt.NDArray[Any]]

_DTYPES = ("BOOL", "U8", "I8", "U16", "I16", "F16", "U32", "I32", "F32", "U64", "I64", "F64")
"""Those that numpy has, too."""

_SEAL = ("format", "version", "sha256")


def canonical(payload: Any) -> bytes:
    """JSON with sorted keys and no spaces; refuses NaN."""
    return json.dumps(payload, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes.

    Raises:
        ArtefactError: the file is missing or unreadable.
    """
    return hashlib.sha256(read_bytes(path)).hexdigest()


def write_json(
    path: Path,
    format_name: str,
    payload: dict[str, Any],
    version: int | None = None,
    *,
    mode: int = 0o644,
    guard: bool = True,
) -> None:
    """Write ``payload`` sealed, indented for people; ``mode`` less the umask.

    Args:
        guard: replace a file of this format alone; False for folders of our own, where a damaged one is no loss.

    Raises:
        ArtefactError: the payload holds NaN or Inf, the file cannot be written, or another kind of file is there.
    """
    sealed = _body(path, format_name, payload, FORMAT_VERSION if version is None else version)
    sealed["sha256"] = hashlib.sha256(canonical(sealed)).hexdigest()
    data = json.dumps(sealed, indent=2, sort_keys=True, allow_nan=False).encode() + b"\n"
    write_bytes(path, data, mode=mode, check=_check(path, format_name) if guard else None)
    LOG.info("wrote %s, %d bytes", path, len(data))


def read_json(path: Path, format_name: str, version: int | None = None) -> dict[str, Any]:
    """Inverse of ``write_json``; the seal's own fields are left out of the result.

    Raises:
        ArtefactError: missing, not JSON, other format or version, or the digest does not match.
    """
    try:
        data = read_bytes(path, MOST_JSON)
        LOG.info("read %s, %d bytes", path, len(data))
        payload = _parse(data)
    except ValueError as error:
        raise ArtefactError(
            f"{path} is not valid JSON (truncated or damaged?): {_short(error)}; copy it again"
        ) from None
    version = FORMAT_VERSION if version is None else version
    return _unseal(path, payload, format_name, version, lambda body: hashlib.sha256(canonical(body)).hexdigest())


def write_tensors(
    path: Path,
    format_name: str,
    tensors: Tensors,
    payload: dict[str, Any],
    *,
    metadata: dict[str, str] | None = None,
    before_rename: BeforeRename | None = None,
) -> None:
    """Write named arrays and a JSON payload as one safetensors file; ``metadata`` is what other readers want beside it.

    Args:
        before_rename: as of ``write_bytes``.

    Raises:
        ArtefactError: the payload holds NaN or Inf, or the file cannot be written.
    """
    from safetensors.numpy import save

    tensors = {name: _little_endian(value) for name, value in tensors.items()}
    sealed = _body(path, format_name, payload, FORMAT_VERSION)
    sealed["sha256"] = _digest(sealed, tensors)
    seal = {METADATA_KEY: canonical(sealed).decode()}
    data = save(tensors, metadata=seal)
    data = data if metadata is None else _with_metadata(data, {**metadata, **seal})
    write_bytes(path, data, check=_check(path, format_name), before_rename=before_rename)
    LOG.info("wrote %s, %d bytes", path, len(data))


def read_tensors(path: Path, format_name: str, data: bytes | None = None) -> tuple[Tensors, dict[str, Any]]:
    """Inverse of ``write_tensors``.

    Args:
        data: the file's bytes where they were read before; ``path`` then only names them.

    Raises:
        ArtefactError: missing, truncated, damaged, other format or version, or the digest does not match.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        if data is None:
            with open_regular(path) as file:
                _payload_of_tensors(
                    file, os.fstat(file.fileno()).st_size
                )  # before gigabytes of something else are read
            data = read_bytes(path)
            LOG.info("read %s, %d bytes", path, len(data))
        payload = _payload_of_tensors(io.BytesIO(data), len(data))
        tensors = load(data)
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ArtefactError(
            f"{path} is not a readable {format_name} file (truncated, damaged or made by another tool): "
            f"{_short(error)}; copy or make it again"
        ) from None
    return tensors, _unseal(path, payload, format_name, FORMAT_VERSION, lambda body: _digest(body, tensors))


def _check(path: Path, format_name: str) -> Check | None:
    """A folder that is being filled holds nothing to lose."""
    return None if is_partial(path.parent) else replaces_own(format_name)


def _payload_of_tensors(file: BinaryIO, size: int) -> Any:
    """The seal of a safetensors file, read before any tensor is.

    Raises:
        ValueError, LookupError, TypeError, AttributeError: it is no header, or states another size than the file has.
    """
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(size - 8, MOST_HEADER):
        raise ValueError(f"its header states {length} bytes in a file of {size}")
    header = _parse(file.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    if 8 + length + max(ends, default=0) != size:
        raise ValueError(f"its header states {8 + length + max(ends, default=0)} bytes, the file has {size}")
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] not in _DTYPES:
            raise ValueError(f"tensor {name} has dtype {entry['dtype']}; valid: {', '.join(_DTYPES)}")
    return _parse(header["__metadata__"][METADATA_KEY])


def _body(path: Path, format_name: str, payload: dict[str, Any], version: int) -> dict[str, Any]:
    """The sealed fields as a reader will see them (keys are strings, tuples are lists), digest apart."""
    if taken := payload.keys() & set(_SEAL):
        raise ValueError(f"payload fields {sorted(taken)} belong to the seal")
    try:
        body: dict[str, Any] = json.loads(
            canonical(without_surrogates({"format": format_name, "version": version, **payload}))
        )
    except ValueError as error:
        raise ArtefactError(
            f"cannot write {path}: a value is NaN or infinite ({_short(error)}); valid: finite numbers"
        ) from None
    return body


def _parse(text: str | bytes) -> Any:
    """json.loads, with ValueError also for NaN (JSON has none), a name given twice, and nesting too deep to read."""
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is given twice")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def _unseal(
    path: Path, payload: Any, format_name: str, version: int, digest: Callable[[dict[str, Any]], str]
) -> dict[str, Any]:
    found = payload.get("format", "no format name") if isinstance(payload, dict) else "no format name"
    if found != format_name:
        raise ArtefactError(
            f"{path} is not a {format_name} file: found {_short(repr(found))}; check which file you passed"
        )
    if payload.get("version") != version:
        raise ArtefactError(
            f"{path} has format version {_short(repr(payload.get('version')))}; this release reads {version}: "
            "make the file again, or install the release that wrote it"
        )
    stated = payload.pop("sha256", None)
    try:
        intact = stated == digest(payload)
    except (ValueError, RecursionError):  # values that canonical JSON cannot hold
        intact = False
    if not intact:
        raise ArtefactError(f"{path} does not match its own sha256: it was damaged or edited; copy or make it again")
    return {key: without_surrogates(value) for key, value in payload.items() if key not in _SEAL}


def _little_endian(value: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.asarray(value, dtype=value.dtype.newbyteorder("<"), order="C")


def _digest(payload: dict[str, Any], tensors: Tensors) -> str:
    """sha256 of the canonical payload, then per tensor in name order: name, dtype, shape (JSON), bytes."""
    state = hashlib.sha256(canonical(payload))
    for name in sorted(tensors):
        value = tensors[name]
        state.update(canonical([name, value.dtype.str, list(value.shape)]))
        state.update(value.data.cast("B") if value.size else b"")
    return state.hexdigest()


def _with_metadata(data: bytes, metadata: dict[str, str]) -> bytes:
    """The same safetensors file with this metadata, in this order: the library writes several keys in a random one."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = {**json.loads(data[8:start]), "__metadata__": metadata}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[start:]


def _short(error: Exception | str) -> str:
    return one_line(error, 120) or type(error).__name__
