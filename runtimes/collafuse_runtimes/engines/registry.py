"""Which engines there are, what each needs and takes, and opening one by its name."""

import importlib
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass, fields

from collafuse_runtimes.engine_options import EngineOptions
from collafuse_runtimes.engines.base import Engine
from collafuse_runtimes.errors import EngineUnavailable, InputError
from collafuse_runtimes.files.bundle import HeadBundle
from collafuse_runtimes.files.bundle_manifest import PRECISIONS

LOG = logging.getLogger("collafuse")
DEFAULTS = EngineOptions()
MAX_THREADS = 1024
"""More than any device has cores; libraries end the process where threads run out."""

FLOATS = ("fp32", "fp16")
ENGINE_FOLDER = "collafuse_runtimes.engines"


@dataclass(frozen=True)
class _Entry:
    """One engine.

    Attributes:
        module, class_name: where it is, below ``ENGINE_FOLDER``.
        needs: modules that must be installed; "a|b" where either will do.
        remedy: what to do where one is missing.
        options: fields of ``EngineOptions`` that it takes.
        precisions: of the bundles it runs.
        provider: of ONNX Runtime, which has to be built with it.
        probe: asked after these were found, and loads the vendor's libraries; one line why the engine cannot run here,
            or None.
    """

    module: str
    class_name: str
    needs: tuple[str, ...]
    remedy: str
    options: tuple[str, ...]
    precisions: tuple[str, ...] = PRECISIONS
    provider: str | None = None
    probe: Callable[[], str | None] = lambda: None


_ORT_GPU = (
    "on x86 `pip uninstall onnxruntime`, then `pip install onnxruntime-gpu`; on a Jetson the onnxruntime-gpu wheel for "
    "its JetPack from the Jetson AI Lab index, on Thor one built for compute capability 11.0 (docs/jetson.md)"
)
_TENSORRT = (
    "pip install tensorrt 'collafuse-edge[tensorrt]'; on a Jetson tensorrt is JetPack's: use a venv with "
    "--system-site-packages"
)
_OPENVINO = "pip install 'collafuse-edge[openvino]'"


def _loads_provider(provider: str) -> Callable[[], str | None]:
    """A probe: can this onnxruntime load the provider?"""

    def probe() -> str | None:
        from collafuse_runtimes.engines.ort.session import reason_not_loaded

        return reason_not_loaded(provider)

    return probe


def _needs_gpu() -> str | None:
    from collafuse_runtimes.engines.cuda_device import reason_unusable

    return reason_unusable()


ENGINES: dict[str, _Entry] = {
    "ort-cpu": _Entry(
        "ort.cpu", "OrtCpuEngine", ("onnxruntime",), "pip install onnxruntime", ("threads", "spinning")
    ),
    "ort-cuda": _Entry(
        "ort.gpu", "OrtCudaEngine", ("onnxruntime",), _ORT_GPU, ("gpu",), FLOATS,
        "CUDAExecutionProvider", _loads_provider("CUDAExecutionProvider"),
    ),
    "ort-tensorrt": _Entry(
        "ort.gpu", "OrtTensorrtEngine", ("onnxruntime",), _ORT_GPU, ("gpu", "cache"), (*FLOATS, "int8-trt"),
        "TensorrtExecutionProvider", _loads_provider("TensorrtExecutionProvider"),
    ),
    "tensorrt": _Entry(
        "trt.engine", "TensorrtEngine", ("tensorrt", "cuda.bindings"), _TENSORRT,
        ("gpu", "cache", "trust_bundle"), (*FLOATS, "int8-trt"), None, _needs_gpu,
    ),
    "tensorrt-rtx": _Entry(
        "trt.engine", "TensorrtRtxEngine", ("tensorrt_rtx|tensorrt_rtx_bindings", "cuda.bindings"),
        "pip install tensorrt-rtx 'collafuse-edge[tensorrt]'",
        ("gpu", "cache", "trust_bundle"), (*FLOATS, "int8-trt"), None, _needs_gpu,
    ),
    "openvino": _Entry(
        "openvino_engine", "OpenVinoEngine", ("openvino",), _OPENVINO, ("threads",), (*FLOATS, "int8-cpu")
    ),
    "openvino-bf16": _Entry(
        "openvino_engine", "OpenVinoBf16Engine", ("openvino",), _OPENVINO, ("threads",), (*FLOATS, "int8-cpu")
    ),
    "torch": _Entry(
        "torch_engine", "TorchEngine", ("torch", "diffusers"), "pip install 'collafuse-edge[train]'",
        ("threads", "checkpoint"),
    ),
    "fake": _Entry("fake_engine", "FakeEngine", (), "", ("threads",)),
}  # fmt: skip


def available_engines() -> dict[str, str | None]:
    """Every engine by name: None where it can run here, else one line saying why it cannot."""
    return {name: _reason_missing(entry) for name, entry in ENGINES.items()}


def available_engine(name: str) -> str | None:
    """As ``available_engines``, of one alone."""
    return _reason_missing(ENGINES[name])


def open_engine(bundle: HeadBundle, name: str = "ort-cpu", options: EngineOptions = DEFAULTS) -> Engine:
    """An engine for one bundle; cheap until entered (``with open_engine(...) as engine``).

    Args:
        name: a key of ENGINES.

    Raises:
        EngineUnavailable: unknown, or cannot run here; the message says why and lists what can.
        InputError: a precision it does not run, an option out of range, or one that it does not take, or lacks.
    """
    if name not in ENGINES:
        raise EngineUnavailable(
            f"unknown engine {name!r}; valid: {', '.join(ENGINES)} (of these can run here: {_runnable()})"
        )
    entry = ENGINES[name]
    reason = _reason_missing(entry)
    if reason is not None:
        raise EngineUnavailable(f"engine {name} cannot run here: {reason}; engines that can: {_runnable()}")
    check_precision(name, bundle)
    _check_options(name, options)
    engine_class = getattr(importlib.import_module(f"{ENGINE_FOLDER}.{entry.module}"), entry.class_name)
    engine: Engine = engine_class(bundle, options)
    told = {field.name: value for field in fields(options) if (value := getattr(options, field.name)) is not None}
    LOG.info("engine %s, as asked: it can run here and takes %s heads; told %s", name, bundle.precision, told)
    return engine


def check_precision(name: str, bundle: HeadBundle) -> None:
    """Refuse a head that was made for other engines.

    Raises:
        InputError: names both, and the precisions that this engine runs.
    """
    valid = ENGINES[name].precisions
    if bundle.precision not in valid:
        raise InputError(
            f"engine {name} runs no {bundle.precision} heads; valid: {', '.join(valid)}: "
            "export the head in one of these, or choose another engine"
        )


def _check_options(name: str, options: EngineOptions) -> None:
    taken = ENGINES[name].options
    for field in fields(options):
        if getattr(options, field.name) is not None and field.name not in taken:
            valid = ", ".join(taken) or "none"
            raise InputError(f"engine {name} takes no option {field.name}; leave it out (valid: {valid})")
    if "checkpoint" in taken and options.checkpoint is None:
        raise InputError(f"engine {name} needs the head's checkpoint; name its folder with --checkpoint")
    if options.threads is not None and not 1 <= options.threads <= MAX_THREADS:
        raise InputError(f"threads {options.threads} out of range: must be 1 to {MAX_THREADS}")
    if options.gpu is not None and options.gpu < 0:
        raise InputError(f"GPU {options.gpu} out of range: must be at least 0")


def _runnable() -> str:
    return ", ".join(engine for engine, reason in available_engines().items() if reason is None)


def _reason_missing(entry: _Entry) -> str | None:
    reason = reason_not_installed(entry)
    return entry.probe() if reason is None else reason


def reason_not_installed(entry: _Entry) -> str | None:
    """As ``available_engines``, without loading any vendor's library."""
    for modules in entry.needs:
        if not any(_is_installed(module) for module in modules.split("|")):
            return f"{modules.split('|')[0]} is not installed ({entry.remedy})"
    if entry.provider is None:
        return None
    from collafuse_runtimes.engines.ort.session import reason_without_provider

    return reason_without_provider(entry.provider, entry.remedy)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is missing
        return False
