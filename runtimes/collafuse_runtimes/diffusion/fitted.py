"""What a head bundle says of steps that were fitted to its head (docs/formats.md, docs/architecture.md)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.diffusion.samplers import StepCoefficients
from collafuse_runtimes.errors import InputError

FREE = ("c_x0", "c_xt", "c_old")
"""The coefficients that a fit chooses; the others are the solver's."""
FREE_COLUMNS = [StepCoefficients._fields.index(name) for name in FREE]


@dataclass(frozen=True)
class FittedRange:
    """One step count on tensors that nothing was fitted to, against the teacher's images of the same tensors.

    Attributes:
        steps: the step count.
        rmse, rmse_unfitted: root mean square difference, images in [-1, 1]; fitted rows and the solver's.
        sharpness, sharpness_unfitted: power of the images' Laplacian relative to that of the teacher's images.
    """

    steps: int
    rmse: float
    rmse_unfitted: float
    sharpness: float
    sharpness_unfitted: float


@dataclass(frozen=True)
class OnServer:
    """The same judgement on tensors that a server handed over, which training tensors only resemble.

    Attributes:
        tensors: how many.
        ranges: one per baked step count.
    """

    tensors: int
    ranges: tuple[FittedRange, ...]


@dataclass(frozen=True)
class FitReport:
    """How rows were fitted and what they are worth.

    Attributes:
        source: "hand-over" or "images", what the tensors came from.
        tensors, held_out: how many were fitted to, and how many others judged the result.
        teacher_steps: of the trajectories that were fitted to.
        ranges: one per baked step count.
        server: on a server's tensors, where some were given to judge on.
    """

    source: str
    tensors: int
    held_out: int
    teacher_steps: int
    ranges: tuple[FittedRange, ...]
    server: OnServer | None = None


@dataclass(frozen=True)
class FittedRows:
    """Rows to use in place of the solver's.

    Attributes:
        rows: all baked rows, 7 numbers each as in ``StepCoefficients``, every one exact in float32.
        report: how they came about.
    """

    rows: tuple[tuple[float, ...], ...]
    report: FitReport

    @property
    def table(self) -> Float32Array:
        """(rows, 7) float32."""
        with np.errstate(over="ignore"):
            return np.array(self.rows, dtype=np.float32)

    def to_manifest(self) -> dict[str, Any]:
        """The manifest's fields."""
        report = asdict(self.report)
        if self.report.server is None:
            del report["server"]
        return {"rows": [list(row) for row in self.rows], "fit": report}


def read_fitted(manifest: dict[str, Any]) -> FittedRows | None:
    """The rows of a checked manifest, None where nothing was fitted.

    Raises:
        InputError: ``rows``, ``fit`` and the sampler's ``fitted`` do not come together.
    """
    said = ["rows" in manifest, "fit" in manifest, manifest["sampler"].get("fitted", False)]
    if len(set(said)) > 1:
        raise InputError("rows, fit and the sampler's fitted come together or not at all; export the head again")
    if not said[0]:
        return None
    fit = manifest["fit"]
    server = OnServer(fit["server"]["tensors"], _ranges(fit["server"])) if "server" in fit else None
    report = FitReport(**{**fit, "ranges": _ranges(fit), "server": server})
    return FittedRows(tuple(tuple(map(float, row)) for row in manifest["rows"]), report)


def _ranges(entries: dict[str, Any]) -> tuple[FittedRange, ...]:
    return tuple(FittedRange(**entry) for entry in entries["ranges"])


def require_rows_of(fitted: FittedRows, solver: Float32Array, steps: Sequence[int]) -> None:
    """Hold fitted rows against the solver's: a fit may change the columns ``FREE`` alone.

    Args:
        solver: (rows, 7) float32, the unfitted table.
        steps: of every row range, in order.

    Raises:
        InputError: another number of rows, a number that float32 does not hold, a column that is not the solver's, a
            first step with a history, or a report of other step counts.
    """
    table = fitted.table
    if table.shape != solver.shape:
        raise InputError(f"rows has the shape {table.shape}, its row ranges need {solver.shape}; export the head again")
    if not np.isfinite(table).all() or not np.array_equal(table.astype(np.float64), np.array(fitted.rows)):
        raise InputError("rows holds a number that is no float32; export the head again")
    kept = [column for column in range(table.shape[1]) if column not in FREE_COLUMNS]
    if not np.array_equal(table[:, kept], solver[:, kept]):
        raise InputError(f"rows differs from the plan's in more than {', '.join(FREE)}; export the head again")
    firsts = np.cumsum([0, *steps[:-1]])
    if table[firsts, StepCoefficients._fields.index("c_old")].any():
        raise InputError("rows gives a first step a step before it; export the head again")
    judged = [fitted.report.ranges] + ([] if fitted.report.server is None else [fitted.report.server.ranges])
    if any([entry.steps for entry in ranges] != list(steps) for ranges in judged):
        raise InputError("fit reports other step counts than row_ranges; export the head again")


def require_rows_in(fitted: FittedRows, model: bytes) -> None:
    """Hold fitted rows against the graph, which has each coefficient as one constant with a number for every row.

    Raises:
        InputError: the graph was made from other rows.
    """
    for name, column in zip(FREE, fitted.table[:, FREE_COLUMNS].T, strict=True):
        if column.any() and np.ascontiguousarray(column, "<f4").tobytes() not in model:
            raise InputError(f"rows has {name} that are not those of the graph; export the head again")


def describe_fit(report: FitReport) -> list[str]:
    """A fit in lines for people, one per step count, then what it is worth on a server's tensors."""
    seen = f"{report.tensors} {'hand-over tensors' if report.source == 'hand-over' else 'images'}"
    lines = [
        f"fitted    {r.steps} steps to {report.teacher_steps} on {seen}; on {report.held_out} others {_figures(r)}"
        for r in report.ranges
    ]
    if report.server is not None:
        count = report.server.tensors
        return lines + [
            f"server    {r.steps} steps on {count} of its tensors: {_figures(r)}" for r in report.server.ranges
        ]
    if report.source == "images":
        lines.append("server    not judged on a server's tensors: give some with --judge-on")
    return lines


def _figures(r: FittedRange) -> str:
    return (
        f"RMSE {r.rmse:.4f} (unfitted {r.rmse_unfitted:.4f}), sharpness {r.sharpness:.3f} ({r.sharpness_unfitted:.3f})"
    )
