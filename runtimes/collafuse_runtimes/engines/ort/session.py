"""Opening an ONNX Runtime session: the provider asked for and no other, on the graph that the bundle states."""

import ctypes
import importlib.util
import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from collafuse_runtimes.engines.ort.tensorrt_library import keep_float32, preload_tensorrt, tensorrt_remedy
from collafuse_runtimes.errors import ArtefactError, EngineUnavailable
from collafuse_runtimes.files.bundle import HeadBundle

CPU, TENSORRT = "CPUExecutionProvider", "TensorrtExecutionProvider"
FATAL = 4
"""Severity of ONNX Runtime's loggers: what goes wrong becomes an exception, and one line."""
_TYPES = {"float32": "tensor(float)", "int32": "tensor(int32)"}
_BAD_FILE = ("InvalidGraph", "InvalidProtobuf", "NoModel", "NoSuchFile")
"""Names of the errors that are about the file, whatever the provider."""


def new_session_options(config: Mapping[str, str]) -> Any:
    """``onnxruntime.SessionOptions``: all optimisations, quiet, with these config entries."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = FATAL
    for key, value in config.items():
        options.add_session_config_entry(key, value)
    return options


def open_session(
    bundle: HeadBundle, provider: str, options: Any, provider_options: Mapping[str, str] | None = None
) -> Any:
    """An ``onnxruntime.InferenceSession`` on one provider.

    ONNX Runtime adds its CPU provider to every session; a session with "session.disable_cpu_ep_fallback" has no node
    on it.

    Raises:
        ArtefactError: the file is no graph that ONNX Runtime reads, or it has other inputs or outputs than stated.
        EngineUnavailable: the provider cannot load, cannot run every node, or the session came back with others.
    """
    import onnxruntime

    if provider != CPU:
        onnxruntime.set_default_logger_severity(FATAL)  # GPU providers log past the session's options
    providers = [(provider, dict(provider_options or {}))]
    try:
        session = onnxruntime.InferenceSession(bundle.model, options, providers=providers, enable_fallback=False)
    except Exception as error:  # onnxruntime's own classes share no public base
        reason = in_short(error)
        if provider == CPU or type(error).__name__ in _BAD_FILE:
            raise ArtefactError(f"ONNX Runtime refuses {bundle.model_path}: {reason}; export the head again") from None
        raise EngineUnavailable(_cannot_run(provider, bundle, reason)) from None
    if session.get_providers() not in ([provider], [provider, CPU]):
        found = ", ".join(session.get_providers())
        raise EngineUnavailable(_cannot_run(provider, bundle, f"the session came back with {found}"))
    _require_stated_tensors(session, bundle)
    return session


@contextmanager
def one_line_errors(bundle: HeadBundle) -> Iterator[None]:
    """What one call of ONNX Runtime raises while a graph runs, as this package's error.

    Raises:
        ArtefactError: the graph fails.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # its own classes share no public base, and with bound buffers it is RuntimeError
        raise ArtefactError(
            f"the graph of {bundle.path} fails while it runs: {in_short(error)}; use smaller batches where memory "
            "is short, else export the head again"
        ) from None


def in_short(error: Exception) -> str:
    """What ONNX Runtime says, in one line; of a long text both ends, since its cause stands last."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", " ".join(str(error).split()))
    return text if len(text) <= 300 else f"{text[:130]} ... {text[-165:]}"


def _cannot_run(provider: str, bundle: HeadBundle, reason: str) -> str:
    import onnxruntime

    graph = f"all of {bundle.model_path} (opset {bundle.opset})"
    return (
        f"ONNX Runtime {onnxruntime.__version__} cannot run {graph} with {provider}: {reason}; "
        "see that the GPU is free and its libraries fit, try a newer onnxruntime-gpu, or export with --opset 17"
    )


def reason_without_provider(provider: str, remedy: str) -> str | None:
    """Why this onnxruntime has no ``provider``, None where it was built with it."""
    try:
        import onnxruntime
    except ImportError as error:
        return f"onnxruntime is installed but cannot be imported: {error} ({remedy})"
    what = f"onnxruntime {onnxruntime.__version__}"
    if provider not in onnxruntime.get_available_providers():
        return f"{what} is installed without {provider} ({remedy})"
    return None


def reason_not_loaded(provider: str) -> str | None:
    """Which library of a ``provider`` that it was built with this onnxruntime cannot load; None where it can."""
    import onnxruntime

    missing = _missing_library(provider)
    if missing is None:
        return None
    what = f"onnxruntime {onnxruntime.__version__}"
    return f"{what} cannot load its {provider}: {missing} ({_library_remedy(missing)})"


def _missing_library(provider: str) -> str | None:
    """The loader's words, e.g. "libcublasLt.so.13: cannot open shared object file: No such file or directory".

    ONNX Runtime itself says this on stderr only, and goes on with the CPU.
    """
    import onnxruntime

    library, is_tensorrt = provider_library(provider), provider == TENSORRT
    if is_tensorrt:
        keep_float32()  # before any of NVIDIA's libraries is loaded
    if importlib.util.find_spec("nvidia") is not None and hasattr(onnxruntime, "preload_dlls"):
        with redirect_stdout(io.StringIO()):  # it prints what it does not find
            onnxruntime.preload_dlls()  # CUDA and cuDNN installed by pip lie where the loader does not look
    if is_tensorrt:
        preload_tensorrt(library)
    missing = _not_loaded(str(library))
    if missing is None and not is_tensorrt and all(_not_loaded(f"libcudnn.so.{number}") for number in (9, 8)):
        return _not_loaded("libcudnn.so.9")  # from 1.31 on the provider opens it at the first convolution
    return missing


def provider_library(provider: str) -> Path:
    """Where onnxruntime has the library of a provider."""
    import onnxruntime

    stem = provider.removesuffix("ExecutionProvider").lower()
    return Path(onnxruntime.__file__).parent / "capi" / f"libonnxruntime_providers_{stem}.so"


def _not_loaded(library: str) -> str | None:
    try:
        ctypes.CDLL(library)
    except OSError as error:  # other errors: it wants to be loaded by ONNX Runtime
        return str(error) if "cannot open shared object file" in str(error) else None
    return None


def _library_remedy(missing: str) -> str:
    if missing.startswith("libcuda.so"):
        return "install the NVIDIA driver, or give the container its GPU"
    if missing.startswith(("libnvinfer", "libnvonnxparser")):
        return tensorrt_remedy(missing)
    return "`pip install 'onnxruntime-gpu[cuda,cudnn]'`; on a Jetson install JetPack's CUDA and cuDNN"


def _require_stated_tensors(session: Any, bundle: HeadBundle) -> None:
    found = [(t.name, t.type, len(t.shape)) for t in (*session.get_inputs(), *session.get_outputs())]
    stated = [(t.name, _TYPES[t.dtype], len(t.shape)) for t in (*bundle.inputs, *bundle.outputs)]
    if found != stated:
        raise ArtefactError(f"{bundle.model_path} takes and gives {found}, not {stated}; export the head again")
