"""From a trained head to a head bundle: ONNX graph, precision, parity."""

from collafuse_export.golden import handover_of
from collafuse_export.report import describe_export
from collafuse_export.to_bundle import ExportSettings, Fit, export_head, export_with_report

__all__ = ["ExportSettings", "Fit", "describe_export", "export_head", "export_with_report", "handover_of"]
