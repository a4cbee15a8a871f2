"""Engines: one file each, one small protocol, no silent fallback."""

import importlib
import importlib.util
from pathlib import Path
from typing import NamedTuple

from collafuse_runtimes.bundle import HeadBundle
from collafuse_runtimes.engines.base import Engine, EngineOptions
from collafuse_runtimes.errors import EngineUnavailable, InputError

__all__ = ["ENGINES", "Engine", "available_engines", "open_engine"]


MAX_THREADS = 1024
"""More than any device has cores; libraries end the process where threads run out."""


class _Entry(NamedTuple):
    module: str
    class_name: str
    needs: tuple[str, ...]
    install: str


ENGINES: dict[str, _Entry] = {
    "ort-cpu": _Entry("ort_engine", "OrtCpuEngine", ("onnxruntime",), "onnxruntime"),
    "torch": _Entry("torch_engine", "TorchEngine", ("torch", "diffusers"), "'collafuse-edge[train]'"),
    "fake": _Entry("fake_engine", "FakeEngine", (), ""),
}


def available_engines() -> dict[str, str | None]:
    """Every engine by name: None where it can run here, else one line saying why it cannot."""
    return {name: _reason_missing(entry) for name, entry in ENGINES.items()}


def open_engine(
    bundle: HeadBundle, name: str = "ort-cpu", *, threads: int | None = None, checkpoint: Path | None = None
) -> Engine:
    """An engine for one bundle; cheap until entered (``with open_engine(...) as engine``).

    Args:
        name: a key of ENGINES.
        threads: CPU threads of one step, 1 to 1024; None lets the library choose.
        checkpoint: the head's checkpoint, for the ``torch`` engine only.

    Raises:
        EngineUnavailable: unknown, or its library is not installed; the message lists what can run here.
        InputError: threads out of range, or a checkpoint missing or given to an engine that reads none.
    """
    missing = available_engines()
    runnable = ", ".join(engine for engine, reason in missing.items() if reason is None)
    if name not in ENGINES:
        raise EngineUnavailable(
            f"unknown engine {name!r}; valid: {', '.join(ENGINES)} (of these can run here: {runnable})"
        )
    if missing[name] is not None:
        raise EngineUnavailable(f"engine {name} cannot run here: {missing[name]}; engines that can: {runnable}")
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise InputError(f"threads {threads} out of range: valid are 1 to {MAX_THREADS}")
    if (name == "torch") != (checkpoint is not None):
        detail = "needs the head's checkpoint; give one" if name == "torch" else "reads no checkpoint; leave it out"
        raise InputError(f"engine {name} {detail}")
    entry = ENGINES[name]
    engine_class = getattr(importlib.import_module(f"{__name__}.{entry.module}"), entry.class_name)
    engine: Engine = engine_class(bundle, EngineOptions(threads, checkpoint))
    return engine


def _reason_missing(entry: _Entry) -> str | None:
    for module in entry.needs:
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed (pip install {entry.install})"
    return None
