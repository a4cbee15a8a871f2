"""From a trained head to a head bundle: ONNX graph, precision, parity."""

from collafuse_export.golden import handover_of
from collafuse_export.precision import describe_precision
from collafuse_export.to_bundle import export_head, export_with_report
from collafuse_runtimes.files.bundle_text import describe_bundle

__all__ = ["describe_bundle", "describe_precision", "export_head", "export_with_report", "handover_of"]
