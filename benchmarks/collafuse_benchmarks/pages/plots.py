"""Pictures of reports as SVG text, by matplotlib."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from collafuse_runtimes.disk.home import keep_font_list_together

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (9.0, 3.6)
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
"""Okabe and Ito: told apart by the colour-blind."""
PARTS = ("server", "transfer", "device")
"""Of a way; each has the same colour in every picture."""


def draw(plot: "Callable[[Axes], None]", size: tuple[float, float] = SIZE) -> str:
    """One picture: the text of an ``<svg>`` element, the same for the same data."""
    keep_font_list_together()
    import matplotlib
    from matplotlib.figure import Figure

    settings = {"svg.hashsalt": "collafuse-edge", "svg.fonttype": "none", "font.size": 10, "axes.grid": True,
                "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False}  # fmt: skip
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        plot(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    return re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)


def distributions(samples: Mapping[str, Sequence[float]], unit: str) -> str:
    """One histogram over another, each scaled to its own height."""

    def plot(axes: "Axes") -> None:
        for colour, (name, values) in zip(_colours(len(samples)), samples.items(), strict=True):
            counts, edges = np.histogram(values, bins=min(60, max(10, len(values) // 8)), range=_range(values))
            axes.stairs(counts / counts.max(), edges, fill=True, alpha=0.55, label=name, color=colour)
        axes.set_xlabel(unit)
        axes.set_ylabel("frequency, relative to the highest bar")
        axes.legend()

    return draw(plot)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """From the least to the largest, with room for bins where they are nearly the same."""
    low, high = min(values), max(values)
    slack = 1e-9 * max(abs(low), abs(high))
    margin = 0.5 + slack if high - low <= slack else 0.0
    return low - margin, high + margin


def in_order(samples: Sequence[float], unit: str) -> str:
    """Every sample in the order taken: drift and outliers show."""

    def plot(axes: "Axes") -> None:
        axes.plot(range(1, len(samples) + 1), samples, ".", markersize=3, color=COLOURS[0])
        axes.set_xlabel("run")
        axes.set_ylabel(unit)

    return draw(plot)


def lines_over_time(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    spans: Sequence[tuple[float, float, str]],
    unit: str,
) -> str:
    """Lines of (seconds, values), with spans of time shaded and named."""

    def plot(axes: "Axes") -> None:
        for colour, (name, (seconds, values)) in zip(_colours(len(lines)), lines.items(), strict=True):
            axes.plot(seconds, values, linewidth=1, label=name, color=colour)
        for k, (begin, end, name) in enumerate(spans):
            axes.axvspan(begin, end, alpha=0.2 if k % 2 else 0.08, linewidth=0, color="#666666")
            axes.text(begin, axes.get_ylim()[1], name, fontsize=8, va="top")
        axes.set_xlabel("seconds")
        axes.set_ylabel(unit)
        axes.legend(loc="lower right")

    return draw(plot)


def stacked(groups: Sequence[str], parts: Mapping[str, Sequence[float]], unit: str) -> str:
    """One line per group from top to bottom, its ``PARTS`` one after another."""

    def plot(axes: "Axes") -> None:
        left = [0.0] * len(groups)
        for name, values in parts.items():
            axes.barh(range(len(groups)), values, left=left, label=name, color=COLOURS[PARTS.index(name)], height=0.7)
            left = [a + b for a, b in zip(left, values, strict=True)]
        axes.set_yticks(range(len(groups)), groups)
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.set_xlabel(unit)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(parts), frameon=False)

    return draw(plot, (SIZE[0], 1.2 + 0.28 * len(groups)))


def front(points: Sequence[tuple[float, float, str, bool]], x_axis: str, y_axis: str) -> str:
    """Points (x, y, name or "", on the front); those on the front are joined."""

    def plot(axes: "Axes") -> None:
        axes.margins(x=0.1, y=0.1)
        best = sorted((x, y) for x, y, _, on_front in points if on_front)
        axes.plot([x for x, _ in best], [y for _, y in best], "-", color=COLOURS[0], linewidth=1)
        for x, y, name, on_front in points:
            axes.plot([x], [y], "o" if on_front else "x", color=COLOURS[0] if on_front else "#888888")
            axes.annotate(name, (x, y), textcoords="offset points", xytext=(5, 5), fontsize=8)
        axes.set_xlabel(x_axis)
        axes.set_ylabel(y_axis)

    return draw(plot)


def _colours(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]
