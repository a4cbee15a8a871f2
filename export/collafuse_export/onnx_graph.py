"""Torch module -> ONNX bytes that name nothing but the model."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from collafuse_export.graph_passes import simplify
from collafuse_runtimes.errors import CollafuseError
from collafuse_runtimes.files.bundle import TensorInfo
from collafuse_runtimes.text import one_line

if TYPE_CHECKING:
    import torch

TRACED_BATCH = 3
"""Not the golden vectors' batch, so the parity check runs a batch that was never traced."""
MAX_TRACED_BATCH = 16
"""Without a bound torch finds that its trace is good for 63 images at most, and traces once more with that bound. The
graph has none in either case."""


class ExportFailed(CollafuseError):
    """The torch exporter gave up or returned another graph than asked for."""


def to_onnx(
    module: "torch.nn.Module",
    inputs: tuple[TensorInfo, ...],
    outputs: tuple[TensorInfo, ...],
    opset: int,
    rows: int,
) -> bytes:
    """Trace ``module`` with a dynamic batch and return the checked, stripped, simplified model.

    ``rows`` is the number of steps baked in: what depends on the input ``step`` alone becomes tables of that length.
    The same module gives the same bytes on every machine with the same versions of torch and onnxscript.

    Raises:
        ExportFailed: the module cannot be traced, or the graph does not check.
    """
    import onnx
    import torch

    batch = torch.export.Dim("batch", max=MAX_TRACED_BATCH)
    examples = {tensor.name: _example(tensor) for tensor in inputs}
    dynamic = {tensor.name: {0: batch} if tensor.shape[0] == "batch" else None for tensor in inputs}
    try:
        with _quiet():
            program = torch.onnx.export(
                module.eval(),
                kwargs=examples,
                dynamo=True,
                external_data=False,
                opset_version=opset,
                input_names=list(examples),
                output_names=[tensor.name for tensor in outputs],
                dynamic_shapes=dynamic,
                verbose=False,
            )
        model = simplify(program.model_proto, "step", rows)  # type: ignore[union-attr]
        strip(model)
        onnx.checker.check_model(model, full_check=True)
        if [(entry.domain, entry.version) for entry in model.opset_import] != [("", opset)] or model.functions:
            raise ExportFailed(f"asked for opset {opset} alone, got {model.opset_import}")
    except Exception as error:
        raise ExportFailed(f"torch could not export this head: {one_line(error, 300)}") from error
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def strip(message: Any) -> None:
    """Remove what describes the exporting machine (stack traces, source paths) from a protobuf message, in place."""
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for item in value if isinstance(value, Iterable) else (value,):
                strip(item)


def _example(tensor: TensorInfo) -> "torch.Tensor":
    import torch

    shape = [TRACED_BATCH if size == "batch" else int(size) for size in tensor.shape]
    return torch.zeros(shape, dtype=getattr(torch, tensor.dtype))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints progress, warns and logs; what matters is checked afterwards."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
