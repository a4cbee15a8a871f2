"""Engines built on this machine, by everything they depend on, signed, and why one was found or not (docs/tensorrt.md).

D.engine   what TensorRT serialised; D is the sha256 of the key, its first half
D.json     the key, the other file's sha256, and this machine's signature over both
D.timings and D.kernels: in the same way, what shortens the next build, and the next start of TensorRT-RTX
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collafuse_runtimes.disk.atomic import write_bytes
from collafuse_runtimes.engines.cuda_device import GpuInfo
from collafuse_runtimes.engines.trt.binding import is_rtx
from collafuse_runtimes.engines.trt.build import BatchProfile, build_rule
from collafuse_runtimes.engines.trt.key import is_signed, sign
from collafuse_runtimes.errors import ArtefactError
from collafuse_runtimes.files.sealed import canonical, read_bytes, read_json, write_json
from collafuse_runtimes.files.secret_file import cache_folder

FORMAT = "collafuse-engine"
EngineKey = dict[str, str]
KEPT = 8
"""Engines of one model: the profiles, TensorRT versions and GPUs in use at the same time, and some to spare."""


@dataclass(frozen=True)
class CachedEngine:
    """One entry.

    Attributes:
        path: of the engine file.
        key: what it depends on.
        data_sha256: of the engine file's bytes.
        seconds: the build took.
        inspection: the types of its convolutions, in words.
    """

    path: Path
    key: EngineKey
    data_sha256: str
    seconds: float
    inspection: str


@dataclass(frozen=True)
class Lookup:
    """What was found, None for a miss, and why, in words."""

    entry: CachedEngine | None
    reason: str


def default_cache_folder() -> Path:
    """``$XDG_CACHE_HOME/collafuse-edge/engines``, with ~/.cache where that variable is unset."""
    return cache_folder() / "engines"


def machine_key(trt: Any, gpu: GpuInfo | None) -> EngineKey:
    """The parts of a key that do not depend on the model; ``gpu`` None for a build without a GPU."""
    return {
        "flags": build_rule(trt),
        "library": "tensorrt-rtx" if is_rtx(trt) else "tensorrt",
        "library_version": str(trt.__version__),
        "cuda_driver": gpu.driver if gpu else "none",
        "gpu": gpu.name if gpu else "none",
        "compute_capability": gpu.compute_capability if gpu else "none",
    }


def engine_key(model_sha256: str, profile: BatchProfile, machine: EngineKey) -> EngineKey:
    """Everything an engine depends on."""
    return {"model_sha256": model_sha256, "profile": str(profile), **machine}


def differences(key: EngineKey, other: EngineKey) -> list[str]:
    """ "gpu Orin -> Thor" for every part in which ``other`` differs from ``key``."""
    names = [*key, *(name for name in other if name not in key)]
    nothing = "not a part"
    return [f"{n} {other.get(n, nothing)} -> {key.get(n, nothing)}" for n in names if key.get(n) != other.get(n)]


class PushedOut(ArtefactError):
    """An engine was removed between finding and reading it."""


class EngineCache:
    """A folder of entries; it is made when the first one is stored."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_cache_folder()

    def lookup(self, key: EngineKey) -> Lookup:
        """The entry of exactly this key.

        Raises:
            ArtefactError: there is one, but this machine did not make it or it was changed since.
        """
        path = self._path(key, ".engine")
        if _use(path):
            return Lookup(_read_entry(path.with_suffix(".json")), f"hit: {path.name} was built for this")
        return Lookup(None, f"miss: {self._why_not(key)}")

    def lookup_any_profile(self, key: EngineKey) -> Lookup:
        """As ``lookup``; where that misses, the entry with the largest batch that differs in its profile alone."""
        found = self.lookup(key)
        if found.entry is not None:
            return found
        same = [e for e in self._entries() if {**e.key, "profile": ""} == {**key, "profile": ""}]
        for entry in sorted(same, key=lambda e: -int(e.key["profile"].split(",")[0].split()[-1])):
            if _use(entry.path):
                return Lookup(entry, f"hit: {entry.path.name} was built for this with {entry.key['profile']}")
        return found

    def read(self, entry: CachedEngine) -> bytes:
        """The engine's bytes, checked.

        Raises:
            PushedOut: other processes' engines took its place since it was found.
            ArtefactError: they are not those that were stored.
        """
        try:
            data = read_bytes(entry.path)
        except ArtefactError:
            if entry.path.exists():
                raise
            raise PushedOut(f"{entry.path} gave way to engines built since; start again") from None
        _require_bytes(entry.path, data, entry.data_sha256)
        return data

    def store(self, key: EngineKey, data: bytes, seconds: float, inspection: str) -> CachedEngine:
        """Write an entry: the engine first, so that a sidecar never lacks its engine.

        Of the same model's engines those used longest ago are removed, so that ``KEPT`` are left.

        Raises:
            ArtefactError: the folder cannot be written.
        """
        _write_signed(self._path(key, ".engine"), self._path(key, ".json"), key, data, seconds, inspection)
        stored = _read_entry(self._path(key, ".json"))
        self._remove_oldest(stored)
        return stored

    def timings(self, machine: EngineKey) -> bytes:
        """TensorRT's timing cache of this machine; empty where there is none, or none that this machine signed."""
        return self._aid(machine, ".timings")

    def store_timings(self, machine: EngineKey, data: bytes) -> None:
        """Keep the timing cache for the next build.

        Raises:
            ArtefactError: the folder cannot be written.
        """
        self._store_aid(machine, ".timings", data)

    def kernels(self, key: EngineKey) -> bytes:
        """What TensorRT-RTX compiled for an engine on this machine; empty as ``timings`` is."""
        return self._aid(_kernels_key(key), ".kernels")

    def store_kernels(self, key: EngineKey, data: bytes) -> None:
        """Keep what was compiled for the next start.

        Raises:
            ArtefactError: the folder cannot be written.
        """
        self._store_aid(_kernels_key(key), ".kernels", data)

    def _aid(self, key: EngineKey, suffix: str) -> bytes:
        try:
            return self.read(_read_entry(self._path(key, ".json"), suffix))
        except ArtefactError:
            return b""  # costs time, no more

    def _store_aid(self, key: EngineKey, suffix: str, data: bytes) -> None:
        _write_signed(self._path(key, suffix), self._path(key, ".json"), key, data, 0.0, suffix.removeprefix("."))

    def _path(self, key: EngineKey, suffix: str) -> Path:
        return self.folder / (hashlib.sha256(canonical(key)).hexdigest()[:32] + suffix)

    def _remove_oldest(self, stored: CachedEngine) -> None:
        """Whoever found an engine has just used it (``_use``), and reads it long before ``KEPT`` others were used."""
        with suppress(OSError), _locked(self.folder):
            model = stored.key["model_sha256"]
            others = [e.path for e in self._entries() if e.key.get("model_sha256") == model and e.path != stored.path]
            for path in sorted(others, key=lambda path: path.stat().st_mtime_ns)[: 1 - KEPT]:
                kernels = self._path(_kernels_key(_read_entry(path.with_suffix(".json")).key), ".kernels")
                for file in (path, kernels):
                    file.with_suffix(".json").unlink(missing_ok=True)  # first, so that a sidecar never lacks its file
                    file.unlink(missing_ok=True)

    def _entries(self) -> list[CachedEngine]:
        """Every entry that can be trusted; others are of no use in comparing."""
        entries = []
        for sidecar in sorted(self.folder.glob("*.json")):
            try:
                entry = _read_entry(sidecar)
            except ArtefactError:
                continue
            if entry.path.exists():
                entries.append(entry)
        return entries

    def _why_not(self, key: EngineKey) -> str:
        same = [e for e in self._entries() if e.key.get("model_sha256") == key["model_sha256"]]
        if not same:
            return f"no engine of this model in {self.folder}"
        nearest = min(same, key=lambda entry: len(differences(key, entry.key)))
        return f"the nearest, {nearest.path.name}, differs in {'; '.join(differences(key, nearest.key))}"


def _kernels_key(key: EngineKey) -> EngineKey:
    return {**key, "part": "compiled kernels"}


def read_cached_engine(path: Path) -> tuple[CachedEngine, bytes]:
    """One engine file of a cache, with its bytes, both checked.

    Raises:
        ArtefactError: there is no sidecar, or this machine did not make the file.
    """
    entry = _read_entry(path.with_suffix(".json"))
    data = read_bytes(path)
    _require_bytes(path, data, entry.data_sha256)
    return entry, data


def _use(path: Path) -> bool:
    """Whether an engine is there, with its sidecar; if so it now counts as the one used last."""
    with suppress(OSError), _locked(path.parent):  # a folder that cannot be written is read all the same
        os.utime(path)
    return path.exists() and path.with_suffix(".json").exists()


def _write_signed(path: Path, sidecar: Path, key: EngineKey, data: bytes, seconds: float, inspection: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ArtefactError(
            f"cannot create {path.parent}: {error.strerror}; name a writable folder with --cache"
        ) from error
    body = {
        "key": key,
        "data_sha256": hashlib.sha256(data).hexdigest(),
        "seconds": round(seconds, 3),
        "inspection": inspection,
    }
    with _locked(path.parent):  # of two builds at once, no engine gets the other's sidecar
        write_bytes(path, data, mode=0o600)
        write_json(sidecar, FORMAT, {**body, "hmac": sign(body)}, guard=False)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    import fcntl

    with (folder / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _read_entry(sidecar: Path, suffix: str = ".engine") -> CachedEngine:
    path = sidecar.with_suffix(suffix)
    body = read_json(sidecar, FORMAT)
    stated = body.pop("hmac", None)
    if not is_signed(body, stated):
        raise _refusal(path)
    try:
        return CachedEngine(path, body["key"], body["data_sha256"], body["seconds"], body["inspection"])
    except KeyError:
        raise _refusal(path) from None


def _require_bytes(path: Path, data: bytes, data_sha256: str) -> None:
    if hashlib.sha256(data).hexdigest() != data_sha256:
        raise _refusal(path)


def _refusal(path: Path) -> ArtefactError:
    return ArtefactError(
        f"{path} was not built on this machine, or was changed since: an engine is machine code and is not run; "
        f"delete it and {path.with_suffix('.json').name}, and it will be built again"
    )
