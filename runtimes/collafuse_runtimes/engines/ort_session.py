"""Opening an ONNX Runtime session: the provider asked for and no other, on the graph that the bundle states."""

from collections.abc import Mapping
from typing import Any

from collafuse_runtimes.bundle import HeadBundle
from collafuse_runtimes.errors import ArtefactError, EngineUnavailable

CPU = "CPUExecutionProvider"
_TYPES = {"float32": "tensor(float)", "int32": "tensor(int32)"}
_BAD_FILE = ("InvalidGraph", "InvalidProtobuf", "NoModel", "NoSuchFile")
"""Names of the errors that are about the file, whatever the provider."""


def new_session_options(config: Mapping[str, str]) -> Any:
    """``onnxruntime.SessionOptions``: all optimisations, quiet, with these config entries."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4  # what goes wrong becomes an exception, and one line
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

    providers = [(provider, dict(provider_options or {}))]
    try:
        session = onnxruntime.InferenceSession(
            str(bundle.model_path), options, providers=providers, enable_fallback=False
        )
    except Exception as error:  # onnxruntime's own classes share no public base
        reason = " ".join(str(error).split())[:300]
        if provider == CPU or type(error).__name__ in _BAD_FILE:
            raise ArtefactError(f"ONNX Runtime refuses {bundle.model_path}: {reason}; export again") from None
        raise EngineUnavailable(_cannot_run(provider, bundle, reason)) from None
    if session.get_providers() not in ([provider], [provider, CPU]):
        found = ", ".join(session.get_providers())
        raise EngineUnavailable(_cannot_run(provider, bundle, f"the session came back with {found}"))
    _require_stated_tensors(session, bundle)
    return session


def _cannot_run(provider: str, bundle: HeadBundle, reason: str) -> str:
    import onnxruntime

    return (
        f"ONNX Runtime {onnxruntime.__version__} cannot run all of {bundle.model_path} (opset {bundle.opset}) with "
        f"{provider}: {reason}; check with `collafuse-edge doctor` that its GPU libraries are there, then try a newer "
        "onnxruntime-gpu, or export with --opset 17"
    )


def _require_stated_tensors(session: Any, bundle: HeadBundle) -> None:
    found = [(t.name, t.type, len(t.shape)) for t in (*session.get_inputs(), *session.get_outputs())]
    stated = [(t.name, _TYPES[t.dtype], len(t.shape)) for t in (*bundle.inputs, *bundle.outputs)]
    if found != stated:
        raise ArtefactError(f"{bundle.model_path} takes and gives {found}, not {stated}; export again")
