"""From a trained head to a head bundle: ONNX graph, precision, parity."""

from collafuse_export.to_bundle import export_head
from collafuse_runtimes.bundle import describe_bundle

__all__ = ["describe_bundle", "export_head"]
