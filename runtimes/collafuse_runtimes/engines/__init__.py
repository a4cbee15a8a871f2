"""Engines: one file each, one small protocol, no silent fallback."""

import importlib
import importlib.util
from dataclasses import fields
from typing import NamedTuple

from collafuse_runtimes.bundle import HeadBundle
from collafuse_runtimes.engines.base import Engine, EngineOptions
from collafuse_runtimes.engines.ort_session import reason_without_provider
from collafuse_runtimes.errors import EngineUnavailable, InputError

__all__ = ["ENGINES", "Engine", "EngineOptions", "available_engines", "open_engine"]


DEFAULTS = EngineOptions()
MAX_THREADS = 1024
"""More than any device has cores; libraries end the process where threads run out."""


class _Entry(NamedTuple):
    module: str
    class_name: str
    needs: tuple[str, ...]
    install: str
    options: tuple[str, ...]
    provider: str = ""
    """The execution provider that onnxruntime must have been built with."""


_ORT_GPU = (
    "on x86 `pip uninstall onnxruntime`, then `pip install onnxruntime-gpu`; on a Jetson the onnxruntime-gpu wheel for "
    "its JetPack from the Jetson AI Lab index (docs/jetson.md)"
)
ENGINES: dict[str, _Entry] = {
    "ort-cpu": _Entry("ort_engine", "OrtCpuEngine", ("onnxruntime",), "onnxruntime", ("threads", "spinning")),
    "ort-cuda": _Entry(
        "ort_gpu_engine", "OrtCudaEngine", ("onnxruntime",), _ORT_GPU, ("device",), "CUDAExecutionProvider"
    ),
    "ort-tensorrt": _Entry(
        "ort_gpu_engine",
        "OrtTensorrtEngine",
        ("onnxruntime",),
        _ORT_GPU,
        ("device", "cache"),
        "TensorrtExecutionProvider",
    ),
    "torch": _Entry(
        "torch_engine", "TorchEngine", ("torch", "diffusers"), "'collafuse-edge[train]'", ("threads", "checkpoint")
    ),
    "openvino": _Entry("openvino_engine", "OpenVinoEngine", ("openvino",), "'collafuse-edge[openvino]'", ("threads",)),
    "openvino-bf16": _Entry(
        "openvino_engine", "OpenVinoBf16Engine", ("openvino",), "'collafuse-edge[openvino]'", ("threads",)
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
    entry = ENGINES[name]
    reason = _reason_missing(entry)
    if reason is not None:
        raise EngineUnavailable(f"engine {name} cannot run here: {reason}; engines that can: {_runnable()}")
    _check_options(name, options)
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
    for module in entry.needs:
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed ({_remedy(entry)})"
    return reason_without_provider(entry.provider, _remedy(entry)) if entry.provider else None


def _remedy(entry: _Entry) -> str:
    return entry.install if entry.provider else f"pip install {entry.install}"
