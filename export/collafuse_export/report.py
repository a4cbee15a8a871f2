"""What an export says to people: where the bundle is and that its graph is right, then the details."""

from typing import Any

from collafuse_export.precision import PrecisionReport, describe_precision
from collafuse_runtimes.files.bundle import HeadBundle
from collafuse_runtimes.files.bundle_text import describe_bundle


def describe_export(bundle: HeadBundle, report: PrecisionReport | None) -> list[str]:
    """Lines for people; the first is the answer."""
    judged = "" if report is None else f"; against float32: {report.speed}"
    size = f"{len(bundle.model) / 1e6:.1f} MB"
    answer = f"wrote     {bundle.path}: {size}, {_gate(bundle.parity)}{judged}"
    return [answer, *describe_bundle(bundle), *([] if report is None else describe_precision(report))]


def _gate(parity: dict[str, Any]) -> str:
    """The worst step of all against what is allowed; by max-rel where that is what let it pass."""
    limits = parity["tolerance"]
    worst = max((found["worst"] for found in parity["ranges"]), key=lambda worst: float(worst["max_abs"]))
    name = "max_abs" if worst["max_abs"] <= limits["max_abs"] else "max_rel"
    return f"every step is the network's: {name.replace('_', '-')} {worst[name]:.3g} at worst, {limits[name]:g} allowed"
