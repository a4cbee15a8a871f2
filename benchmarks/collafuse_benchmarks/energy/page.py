"""The page of an energy report."""

from functools import partial
from itertools import pairwise

from collafuse_benchmarks.energy.measurement import EnergyResult
from collafuse_benchmarks.energy.result import RawSamples, SensorEnergy, Statistic
from collafuse_benchmarks.energy.run import EnergyReport
from collafuse_benchmarks.pages import plots
from collafuse_benchmarks.pages.document import NOT_MEASURED, Block, Document, Heading, Paragraph, Plot, Table, figure
from collafuse_benchmarks.pages.folder import Stamp
from collafuse_benchmarks.pages.sections import machine_section, opening, output_section, subject_line, verdict

COLUMNS = (
    "sensor",
    "sees",
    "idle before, W",
    "idle after, W",
    "gross J per image",
    "net J per image",
    "trials",
    "readings, dropped",
    "verdict",
)
NOTES = (
    "gross: all that the sensor saw. net: less the idle power, the mean of the windows before and after, times "
    "the time. Mean +- standard deviation over the trials. Sensors that see overlapping parts of a machine are "
    "not added up."
)


def energy_document(report: EnergyReport, stamp: Stamp) -> Document:
    """Of a whole or a broken-off measurement."""
    settings = report.energy.settings
    what = (
        f"{subject_line(report.subject)} Engine {report.engine.name}, {report.batch} at once. Idle for "
        f"{settings.idle_s:g} s before and after, {settings.trials} trials of at least {settings.window_s:g} "
        "s of head calls without a pause between them."
    )
    blocks: list[Block] = [
        *opening(stamp, what, complete=report.complete),
        Heading("Energy"),
        *_energy(report.energy),
        *_latency(report),
        *_plots(report.energy),
        *output_section(report.check),
    ]
    title = f"Energy of {report.subject.bundle} on {report.engine.name}"
    machine = machine_section(report.state_before, report.state_after, report.changes)
    return Document(title, tuple(blocks), (Paragraph(_answer(report)),), machine)


def _answer(report: EnergyReport) -> str:
    """What the sensors saw of an image; the time alone where there is none."""
    reasons = [f"{sensor.info.name}: {sensor.gross.reason}" for sensor in report.energy.sensors]
    seen = [
        f"{figure(sensor.gross.mean)} J an image gross, {figure(sensor.net.mean)} J net by {sensor.info.name} "
        f"({sensor.info.scope})"
        for sensor in report.energy.sensors
        if sensor.gross.mean is not None
    ]
    summary = report.call_ms.summary
    joules = "; ".join(seen) or f"No energy figure ({'; '.join(reasons) or report.energy.reason})"
    time = "no head call was timed" if summary is None else f"{figure(summary.median, 3)} ms a head call"
    use = f"with {report.engine.name}, {report.subject.steps} steps, {report.batch} at once"
    return f"{joules}; {time} {use}{verdict(report.check)}."


def _energy(energy: EnergyResult) -> list[Block]:
    if not energy.sensors:
        return [Paragraph(f"No energy figure: {energy.reason}.")]
    details = [Paragraph(f"{sensor.info.name}: {sensor.info.detail}.") for sensor in energy.sensors]
    blocks: list[Block] = [Table(COLUMNS, tuple(map(_row, energy.sensors))), Paragraph(NOTES), *details]
    if energy.reasons:
        reasons = "; ".join(f"{name}: {why}" for name, why in sorted(energy.reasons.items()))
        blocks.append(Paragraph(f"Sensors that cannot be used here: {reasons}."))
    return blocks


def _row(sensor: SensorEnergy) -> tuple[str, ...]:
    gross, net, samples = sensor.gross, sensor.net, sensor.samples
    reason = "; ".join(dict.fromkeys(text for text in (gross.reason, net.reason) if text))
    return (
        sensor.info.name,
        sensor.info.scope,
        figure(sensor.idle_before.watts),
        figure(sensor.idle_after.watts),
        _statistic(gross),
        _statistic(net),
        str(gross.trials),
        f"{len(samples.times)}, {len(samples.dropped)}",
        gross.label + (f": {reason}" if reason else ""),
    )


def _statistic(statistic: Statistic) -> str:
    if statistic.mean is None:
        return NOT_MEASURED
    spread = "" if statistic.std is None else f" +- {figure(statistic.std, 2)}"
    return figure(statistic.mean, 4) + spread


def _latency(report: EnergyReport) -> list[Block]:
    summary, trials = report.call_ms.summary, report.energy.timeline.trials
    if summary is None:
        return [Heading("Time"), Paragraph("No trial came to its end.")]
    images, seconds = sum(trial.images for trial in trials), sum(trial.window.seconds for trial in trials)
    rate = (
        f" {images} images in {figure(seconds, 4)} s of trials, {figure(images / seconds)} a second." if seconds else ""
    )
    cv = "" if summary.cv is None else f", cv {summary.cv:.1%}"
    return [
        Heading("Time"),
        Paragraph(f"A head call took {figure(summary.median, 4)} ms (median of {summary.count}{cv}).{rate}"),
    ]


def _monotonic(samples: RawSamples, shift: float) -> list[float]:
    """Times of a sensor's samples on the clock of the windows; a wall meter's are on the other one."""
    return [t - shift for t in samples.times] if samples.clock == "unix" else list(samples.times)


def _watts(sensor: SensorEnergy, times: list[float]) -> tuple[list[float], list[float]]:
    """(times, power); of a counter its rise between two readings."""
    values = sensor.samples.values
    if sensor.info.quantity != "energy":
        return times, list(values)
    steps = [(t, (b - a) / (t - s)) for (s, t), (a, b) in zip(pairwise(times), pairwise(values), strict=True) if t > s]
    return [t for t, _ in steps], [rate for _, rate in steps]


def _plots(energy: EnergyResult) -> list[Block]:
    sensors = [sensor for sensor in energy.sensors if len(sensor.samples.times) > 1]
    if not sensors:
        return []
    line = energy.timeline
    shift = next((window.begin_unix - window.begin for window in line.windows), 0.0)
    times = {sensor.info.name: _monotonic(sensor.samples, shift) for sensor in sensors}
    start = min(min(found) for found in times.values())
    lines = {}
    for sensor in sensors:
        at, values = _watts(sensor, times[sensor.info.name])
        lines[sensor.info.name] = ([t - start for t in at], values)
    named = [("idle", line.idle_before), *((f"trial {i}", trial.window) for i, trial in enumerate(line.trials, 1)),
             ("idle", line.idle_after)]  # fmt: skip
    spans = [(window.begin - start, window.end - start, name) for name, window in named if window is not None]
    caption = (
        "Power over time as each sensor saw it (of counters, their rise between two readings), with idle and trials."
    )
    return [Plot(caption, partial(plots.lines_over_time, lines, spans, "watts"))]
