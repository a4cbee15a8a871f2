"""What types a built engine really computes in, read from TensorRT's own inspector (JSON)."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from collafuse_runtimes.engines.trt.binding import require
from collafuse_runtimes.errors import CheckFailed
from collafuse_runtimes.files.bundle import TensorInfo

_TYPES = (
    ("int8", r"int8|i8i8"),
    ("fp16", r"half|fp16|float16"),
    ("fp32", r"float\b|fp32|float32|row major linear format"),
)
_CONVOLUTION = re.compile(r"conv|fprop", re.IGNORECASE)


@dataclass(frozen=True)
class Inspection:
    """The types of an engine's convolutions.

    Attributes:
        convolutions: "int8", "fp16", "fp32" or "unknown" to the number of convolutions that compute in it.
        reason: why nothing was inspected; None where something was.
    """

    convolutions: dict[str, int] = field(default_factory=dict)
    reason: str | None = None

    def __str__(self) -> str:
        if self.reason is not None:
            return f"not inspected: {self.reason}"
        return "convolutions: " + ", ".join(f"{n} {kind}" for kind, n in sorted(self.convolutions.items()))


def parse_inspection(text: str) -> Inspection:
    """The inspector's JSON; types are named as in "Half" or "Row major linear FP16 format".

    A convolution's type is that of its weights; of its inputs where no weights are listed. With a profile of several
    batches the inspector may name no type at all ("N/A due to dynamic shapes"): such a convolution counts as unknown.
    """
    try:
        layers = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError):
        return Inspection(reason="the inspector gave no list of layers")
    convolutions = [layer for layer in layers if isinstance(layer, dict) and _is_convolution(layer)]
    if not convolutions:
        return Inspection(reason=f"the inspector shows no convolution among {len(layers)} layers (fused out of sight)")
    return Inspection(dict(Counter(_type_of_layer(layer) for layer in convolutions)))


def require_precision(inspection: Inspection, precision: str, where: str) -> None:
    """Do nothing, or say that the engine computes in other types than its graph asks for.

    An fp32 or fp16 graph has all its convolutions in that type. An int8 graph may leave some of them out, the first and
    the last for instance, so there one int8 convolution is asked for. What was not inspected passes.

    Raises:
        CheckFailed: names the types found.
    """
    if inspection.reason is not None:
        return
    found = {kind for kind in inspection.convolutions if kind != "unknown"}
    if not found:
        return
    if precision not in found or (precision != "int8" and found != {precision}):
        raise CheckFailed(
            f"the engine of {where} was asked to compute in {precision} and has {inspection}; "
            "build with another TensorRT release, or export in a precision this GPU has"
        )


def inspect_engine(trt: Any, log: Any, engine: Any, inputs: Sequence[TensorInfo], opt_batch: int) -> Inspection:
    """Ask a loaded engine; needs a GPU.

    Args:
        log: of the runtime that loaded it: context and inspector have no other to tell their errors to.

    Raises:
        EngineUnavailable: TensorRT cannot make a context or an inspector.
    """
    unused = trt.ExecutionContextAllocationStrategy.USER_MANAGED  # nothing runs in it
    context = require(trt, log, "make a context", engine.create_execution_context(unused))
    inspector = require(trt, log, "make an inspector", engine.create_engine_inspector())
    for tensor in inputs:  # without a batch the inspector has no types to show
        if tensor.shape[0] == "batch":
            shape = (opt_batch, *tensor.shape[1:])
            require(trt, log, f"set {tensor.name} to {shape}", context.set_input_shape(tensor.name, shape))
    inspector.execution_context = context
    said = len(log.errors)
    found = parse_inspection(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    if found.reason is None or len(log.errors) == said:
        return found
    return Inspection(reason=f"{found.reason}: {log.errors[-1][:300]}")


def _is_convolution(layer: dict[str, Any]) -> bool:
    """By kind or kernel. The name and the metadata say which ONNX nodes were fused, not what the layer is: a fused cast
    after a convolution names the convolution too.
    """
    return any(_CONVOLUTION.search(str(layer.get(key, ""))) for key in ("LayerType", "ParameterType", "TacticName"))


def _type_of_layer(layer: dict[str, Any]) -> str:
    weights = layer.get("Weights")
    stated = [weights.get("Type", "")] if isinstance(weights, dict) else []
    stated += [tensor.get("Format/Datatype", "") for tensor in layer.get("Inputs", []) if isinstance(tensor, dict)]
    return next((kind for text in stated if (kind := _type_in(str(text))) is not None), "unknown")


def _type_in(text: str) -> str | None:
    return next((kind for kind, pattern in _TYPES if re.search(pattern, text, re.IGNORECASE)), None)
