"""Engines: one file each, one small protocol, no silent fallback."""

import importlib
import importlib.util
from dataclasses import fields
from typing import NamedTuple

from collafuse_runtimes.bundle import HeadBundle
from collafuse_runtimes.engines.base import Engine, EngineOptions
from collafuse_runtimes.errors import EngineUnavailable, InputError

__all__ = ["ENGINES", "Engine", "EngineOptions", "available_engines", "open_engine"]


DEFAULTS = EngineOptions()
MAX_THREADS = 1024
"""More than any device has cores; libraries end the process where threads run out."""


class _Entry(NamedTuple):
    module: str
    class_name: str
    needs: tuple[str, ...]
    """Modules; "a|b" where either will do."""
    install: str
    options: tuple[str, ...]
    probe: str = ""
    """module:function that says why the device cannot be used, or None; asked after the modules were found."""


ENGINES: dict[str, _Entry] = {
    "ort-cpu": _Entry("ort_engine", "OrtCpuEngine", ("onnxruntime",), "onnxruntime", ("threads", "spinning")),
    "torch": _Entry(
        "torch_engine", "TorchEngine", ("torch", "diffusers"), "'collafuse-edge[train]'", ("threads", "checkpoint")
    ),
    "tensorrt": _Entry(
        "tensorrt_engine",
        "TensorrtEngine",
        ("tensorrt", "cuda.bindings"),
        "tensorrt 'collafuse-edge[tensorrt]'; on a Jetson it is JetPack's: use a venv with --system-site-packages",
        ("device", "cache", "trust_bundle"),
        "cuda_device:reason_unusable",
    ),
    "tensorrt-rtx": _Entry(
        "tensorrt_engine",
        "TensorrtRtxEngine",
        ("tensorrt_rtx|tensorrt_rtx_bindings", "cuda.bindings"),
        "tensorrt-rtx 'collafuse-edge[tensorrt]'",
        ("device", "cache", "trust_bundle"),
        "cuda_device:reason_unusable",
    ),
    "fake": _Entry("fake_engine", "FakeEngine", (), "", ("threads",)),
}


def available_engines() -> dict[str, str | None]:
    """Every engine by name: None where it can run here, else one line saying why it cannot."""
    return {name: _reason_missing(entry) for name, entry in ENGINES.items()}


def open_engine(bundle: HeadBundle, name: str = "ort-cpu", options: EngineOptions = DEFAULTS) -> Engine:
    """An engine for one bundle; cheap until entered (``with open_engine(...) as engine``).

    Args:
        name: a key of ENGINES.

    Raises:
        EngineUnavailable: unknown, or its library is not installed; the message lists what can run here.
        InputError: an option out of range, or one that this engine does not take, or lacks.
    """
    if name not in ENGINES:
        raise EngineUnavailable(
            f"unknown engine {name!r}; valid: {', '.join(ENGINES)} (of these can run here: {_runnable()})"
        )
    missing = _reason_missing(ENGINES[name])
    if missing is not None:
        raise EngineUnavailable(f"engine {name} cannot run here: {missing}; engines that can: {_runnable()}")
    _check_options(name, options)
    entry = ENGINES[name]
    engine_class = getattr(importlib.import_module(f"{__name__}.{entry.module}"), entry.class_name)
    engine: Engine = engine_class(bundle, options)
    return engine


def _check_options(name: str, options: EngineOptions) -> None:
    taken = ENGINES[name].options
    for field in fields(options):
        if getattr(options, field.name) is not None and field.name not in taken:
            valid = ", ".join(taken) or "none"
            raise InputError(f"engine {name} takes no option {field.name}; leave it out (valid: {valid})")
    if "checkpoint" in taken and options.checkpoint is None:
        raise InputError(f"engine {name} needs the head's checkpoint; give one")
    if options.threads is not None and not 1 <= options.threads <= MAX_THREADS:
        raise InputError(f"threads {options.threads} out of range: valid are 1 to {MAX_THREADS}")
    if options.device is not None and options.device < 0:
        raise InputError(f"device {options.device} out of range: valid are 0 and more")


def _runnable() -> str:
    return ", ".join(engine for engine, reason in available_engines().items() if reason is None)


def _reason_missing(entry: _Entry) -> str | None:
    for modules in entry.needs:
        if not any(_is_installed(module) for module in modules.split("|")):
            return f"{modules.split('|')[0]} is not installed (pip install {entry.install})"
    if not entry.probe:
        return None
    module, function = entry.probe.split(":")
    reason: str | None = getattr(importlib.import_module(f"{__name__}.{module}"), function)()
    return reason


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is missing
        return False
