"""The page of an energy report."""

from functools import partial
from typing import Any

from collafuse_benchmarks.pages import plots
from collafuse_benchmarks.pages.document import NOT_MEASURED, Block, Document, Heading, Paragraph, Plot, Table, figure
from collafuse_benchmarks.pages.sections import machine_section, opening, output_section, subject_line

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


def energy_document(payload: dict[str, Any]) -> Document:
    """From the payload of report.json, of a whole or a broken-off measurement."""
    engine, energy = payload["engine"], payload["energy"]
    settings = energy["settings"]
    what = (
        f"{subject_line(payload['subject'])} Engine {engine['name']}, {payload['batch']} at once. Idle for "
        f"{settings['idle_s']:g} s before and after, {settings['trials']} trials of at least {settings['window_s']:g} "
        "s of head calls without a pause between them."
    )
    blocks: list[Block] = [*opening(payload, what), Heading("Energy"), *_energy(energy), *_latency(payload)]
    blocks += _plots(energy)
    blocks += output_section(payload["check"])
    blocks += machine_section(payload["state_before"], payload["state_after"], payload["changes"])
    return Document(f"Energy of {payload['subject']['bundle']} on {engine['name']}", tuple(blocks))


def _energy(energy: dict[str, Any]) -> list[Block]:
    if energy["energy"] is None:
        return [Paragraph(f"No energy figure: {energy['reason']}."), *_other_sensors(energy)]
    rows = tuple(_row(sensor) for sensor in energy["energy"])
    details = [Paragraph(f"{s['info']['name']}: {s['info']['detail']}.") for s in energy["energy"]]
    return [Table(COLUMNS, rows), Paragraph(NOTES), *details, *_other_sensors(energy)]


def _other_sensors(energy: dict[str, Any]) -> list[Block]:
    if energy["energy"] is None or not energy["reasons"]:
        return []
    reasons = "; ".join(f"{name}: {why}" for name, why in sorted(energy["reasons"].items()))
    return [Paragraph(f"Sensors that cannot be used here: {reasons}.")]


def _row(sensor: dict[str, Any]) -> tuple[str, ...]:
    gross, net, samples = sensor["gross"], sensor["net"], sensor["samples"]
    reason = "; ".join(dict.fromkeys(text for text in (gross["reason"], net["reason"]) if text))
    return (
        sensor["info"]["name"],
        sensor["info"]["scope"],
        figure(sensor["idle_before"]["watts"] if sensor["idle_before"] else None),
        figure(sensor["idle_after"]["watts"] if sensor["idle_after"] else None),
        _statistic(gross),
        _statistic(net),
        str(gross["trials"]),
        f"{len(samples['times'])}, {len(samples['dropped'])}",
        gross["label"] + (f": {reason}" if reason else ""),
    )


def _statistic(statistic: dict[str, Any]) -> str:
    if statistic["mean"] is None:
        return NOT_MEASURED
    spread = "" if statistic["std"] is None else f" +- {figure(statistic['std'], 2)}"
    return figure(statistic["mean"], 4) + spread


def _latency(payload: dict[str, Any]) -> list[Block]:
    summary, trials = payload["call_ms"]["summary"], payload["energy"]["trials"]
    if summary is None:
        return [Heading("Time"), Paragraph("No trial came to its end.")]
    images = sum(trial["images"] for trial in trials)
    seconds = sum(trial["window"]["end"] - trial["window"]["begin"] for trial in trials)
    rate = (
        ""
        if not seconds
        else f" {images} images in {figure(seconds, 4)} s of trials, {figure(images / seconds)} a second."
    )
    cv = "" if summary["cv"] is None else f", cv {summary['cv']:.1%}"
    return [
        Heading("Time"),
        Paragraph(f"A head call took {figure(summary['median'], 4)} ms (median of {summary['count']}{cv}).{rate}"),
    ]


def _monotonic(sensor: dict[str, Any], shift: float) -> list[float]:
    """Times of a sensor's samples on the clock of the windows; a wall meter's are on the other one."""
    times = sensor["samples"]["times"]
    return [t - shift for t in times] if sensor["samples"]["clock"] == "unix" else list(times)


def _plots(energy: dict[str, Any]) -> list[Block]:
    sensors = [sensor for sensor in energy["energy"] or () if len(sensor["samples"]["times"]) > 1]
    if not sensors:
        return []
    windows = [energy["idle_before"], *(trial["window"] for trial in energy["trials"]), energy["idle_after"]]
    shift = next((w["begin_unix"] - w["begin"] for w in windows if w is not None), 0.0)
    start = min(_monotonic(sensor, shift)[0] for sensor in sensors)
    lines = {}
    for sensor in sensors:
        times, values = _monotonic(sensor, shift), sensor["samples"]["values"]
        if sensor["info"]["quantity"] == "energy":
            rates = [(b - a) / (t - s) for a, b, s, t in zip(values, values[1:], times, times[1:], strict=False)]
            times, values = times[1:], rates
        lines[sensor["info"]["name"]] = ([t - start for t in times], values)
    spans = [
        (window["begin"] - start, window["end"] - start, name)
        for name, window in (
            ("idle", energy["idle_before"]),
            *((f"trial {i + 1}", trial["window"]) for i, trial in enumerate(energy["trials"])),
            ("idle", energy["idle_after"]),
        )
        if window is not None
    ]
    caption = (
        "Power over time as each sensor saw it (of counters, their rise between two readings), with idle and trials."
    )
    return [Plot(caption, partial(plots.lines_over_time, lines, spans, "watts"))]
