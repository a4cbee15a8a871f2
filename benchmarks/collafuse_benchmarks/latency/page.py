"""The page of a latency report."""

from collections.abc import Sequence
from functools import partial

from collafuse_benchmarks.latency.run import LatencyReport, Series
from collafuse_benchmarks.measure.memory import Memory
from collafuse_benchmarks.measure.subject import EngineUse
from collafuse_benchmarks.measure.summary import Summary
from collafuse_benchmarks.pages import plots
from collafuse_benchmarks.pages.document import (
    NOT_MEASURED,
    Block,
    Document,
    Heading,
    Paragraph,
    Plot,
    Table,
    figure,
    megabytes,
)
from collafuse_benchmarks.pages.folder import Stamp
from collafuse_benchmarks.pages.sections import (
    cv_cell,
    interval_cell,
    machine_section,
    opening,
    output_section,
    subject_line,
    verdict,
)

SCOPES = (
    "step: one denoising step inside a trajectory. head call: the whole trajectory, from tensor to tensor, copies to "
    "and from a GPU included. end to end: from the hand-over file to PNG images in memory."
)
INTERVAL = (
    "interval: where the median of another run of a tenth of this length is expected, at 95 %, from the medians of ten "
    "consecutive parts of this one. A percentile is given only where there are samples enough for it (64, 130, 662 for "
    "p90, p95, p99). cv is the standard deviation over the mean; above 2.5 % the machine was not steady, and the row "
    "says so."
)
COLUMNS = ("scope", "images at once", "median", "95 % interval", "p90", "p95", "p99", "cv", "samples", "clock")


def latency_document(report: LatencyReport, stamp: Stamp) -> Document:
    """Of a whole or a broken-off measurement."""
    engine, mode = report.engine, report.mode
    what = (
        f"{subject_line(report.subject)} Engine {engine.name}"
        f"{_options(engine)}, mode {mode.name}: {mode.warmup} warm-up runs, then at least {mode.runs} runs "
        f"and {mode.seconds:g} s a row."
    )
    blocks: list[Block] = [
        *opening(stamp, what, complete=report.complete),
        Heading("Latency, milliseconds"),
        Table(COLUMNS, tuple(map(_row, report.series))),
        Paragraph(SCOPES),
        Paragraph(INTERVAL),
        *_plots(report.series),
        *_start(report),
        *_memory(report.memory),
        *output_section(report.check),
    ]
    title = f"Latency of {report.subject.bundle} on {engine.name}"
    machine = machine_section(report.state_before, report.state_after, report.changes)
    return Document(title, tuple(blocks), (Paragraph(_answer(report)),), machine)


def _answer(report: LatencyReport) -> str:
    """The head call at the first batch size."""
    calls = [series for series in report.series if series.scope == "head call"]
    summary = calls[0].summary if calls else None
    on = f"with {report.engine.name}, {report.subject.steps} steps, {report.subject.precision}"
    if summary is None:
        return f"No head call was timed {on}."
    batch = calls[0].batch
    what = "an image" if batch == 1 else f"for {batch} images at once"
    return f"{figure(summary.median, 3)} ms {what} {on}; {_spread(summary)}{verdict(report.check)}."


def _spread(summary: Summary) -> str:
    p95 = summary.percentiles.get("p95")
    tail = "p95 needs more samples" if p95 is None else f"p95 {figure(p95, 3)} ms"
    return tail + (", and the machine was not steady" if summary.is_steady is False else "")


def _options(engine: EngineUse) -> str:
    return "".join(f", {name} {value}" for name, value in sorted(engine.options.items()))


def _row(series: Series) -> tuple[str, ...]:
    head, summary = (series.scope, str(series.batch)), series.summary
    if summary is None:
        return (*head, f"{NOT_MEASURED}: {series.reason}", *[""] * 6, series.clock)
    percentiles = ["insufficient" if value is None else figure(value, 4) for value in summary.percentiles.values()]
    return (
        *head,
        figure(summary.median, 4),
        interval_cell(summary),
        *percentiles,
        cv_cell(summary),
        str(summary.count),
        series.clock,
    )


def _plots(every: Sequence[Series]) -> list[Block]:
    blocks: list[Block] = []
    measured = [series for series in every if series.samples_ms]
    for scope in dict.fromkeys(series.scope for series in measured):
        samples = {f"{s.batch} at once": s.samples_ms for s in measured if s.scope == scope}
        caption = f"Distribution of {scope}, every sample, each batch size scaled to its own height."
        blocks.append(Plot(caption, partial(plots.distributions, samples, "milliseconds")))
    calls = [series for series in measured if series.scope == "head call"]
    if calls:
        caption = f"Head calls in the order they were taken, {calls[0].batch} at once: drift and outliers show here."
        blocks.append(Plot(caption, partial(plots.in_order, calls[0].samples_ms, "milliseconds")))
    return blocks


def _start(report: LatencyReport) -> list[Block]:
    build, starts = report.build, report.cold_starts
    loaded = f"Loading the engine in a running process took {figure(report.load_ms, 4, 'ms')}."
    if build is not None:
        how = build.reason if build.hit else f"built in {figure(build.seconds, 3, 's')}: {build.reason}"
        loaded += f" The TensorRT engine ({how}) is not in it."
    blocks: list[Block] = [Heading("Start"), Paragraph(loaded)]
    if starts:
        names = ("total_ms", "import_ms", "read_ms", "load_ms", "first_call_ms")
        header = ("fresh process", *(name.removesuffix("_ms").replace("_", " ") for name in names))
        rows = tuple(
            (str(i + 1), *(figure(getattr(start, name), 4) for name in names)) for i, start in enumerate(starts)
        )
        blocks += [
            Table(header, rows),
            Paragraph(
                "Milliseconds from the start of a process to its end after the first image, and parts of it: importing "
                "this product, reading bundle and tensors, loading the engine, the first head call. The system's file "
                "cache was as the measurement before left it, so a first start after boot takes longer."
            ),
        ]
    return blocks


def _memory(rows: Sequence[Memory]) -> list[Block]:
    if not rows:
        return []
    cells = tuple(
        (
            str(row.batch),
            megabytes(row.process_peak) + _because(row.process_reason),
            row.since,
            megabytes(row.device) + _because(row.device_reason),
        )
        for row in rows
    )
    return [
        Heading("Peak memory"),
        Table(("images at once", "process, resident", "peak since start of", "GPU"), cells),
        Paragraph(
            "The process is the whole benchmark, with Python and every library. GPU: by how much its free memory had "
            "shrunk after the last run of a batch size, since before the engine was loaded; the CUDA context was there "
            "before and is not in it, other processes are."
        ),
    ]


def _because(reason: str | None) -> str:
    return "" if reason is None else f" ({reason})"
