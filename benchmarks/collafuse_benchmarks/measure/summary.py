"""Figures of a list of samples, each only where the samples carry it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from collafuse_benchmarks.measure.record import Record

PERCENTILES = {90: 64, 95: 130, 99: 662}
"""Samples a percentile needs: MLPerf inference rules, early stopping."""
BLOCKS = 10
T_975 = 2.262
"""Student's t for 9 degrees of freedom, two-sided 95 %."""
MAX_CV = 0.025


@dataclass(frozen=True)
class Summary(Record):
    """Of samples in one unit.

    Attributes:
        count: of samples.
        median, mean, minimum, maximum, std: of them; std with ddof 1, None below two samples.
        percentiles: "p90", "p95", "p99"; None where the count does not carry it.
        interval: where the median of another tenth of such a run is expected, at 95 %: median +- t s sqrt(1 + 1/10)
            with s the standard deviation of the medians of ten consecutive blocks, not below 0; None below ten samples.
        cv: std / mean; None below two samples.
        is_steady: cv <= 0.025; None where there is no cv.
    """

    count: int
    median: float
    mean: float
    minimum: float
    maximum: float
    std: float | None
    percentiles: dict[str, float | None]
    interval: tuple[float, float] | None
    cv: float | None
    is_steady: bool | None


def summarise(samples: Sequence[float]) -> Summary | None:
    """None where there are no samples."""
    if not len(samples):
        return None
    values = np.asarray(samples, dtype=np.float64)
    mean, median = float(values.mean()), float(np.median(values))
    std = float(values.std(ddof=1)) if len(values) > 1 else None
    cv = None if std is None or mean <= 0 else std / mean
    return Summary(
        count=len(values),
        median=median,
        mean=mean,
        minimum=float(values.min()),
        maximum=float(values.max()),
        std=std,
        percentiles={
            f"p{p}": float(np.percentile(values, p)) if len(values) >= needed else None
            for p, needed in PERCENTILES.items()
        },
        interval=_interval(values, median),
        cv=cv,
        is_steady=None if cv is None else cv <= MAX_CV,
    )


def _interval(values: "np.ndarray[Any, np.dtype[np.float64]]", median: float) -> tuple[float, float] | None:
    if len(values) < BLOCKS:
        return None
    medians = np.array([np.median(block) for block in np.array_split(values, BLOCKS)])
    half = T_975 * float(medians.std(ddof=1)) * float(np.sqrt(1 + 1 / BLOCKS))
    return max(0.0, median - half), median + half
