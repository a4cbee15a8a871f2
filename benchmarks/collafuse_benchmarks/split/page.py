"""The page of a split report."""

from collections.abc import Sequence
from functools import partial

from collafuse_benchmarks.pages import plots
from collafuse_benchmarks.pages.document import NOT_MEASURED, Block, Document, Heading, Paragraph, Plot, Table, figure
from collafuse_benchmarks.pages.folder import Stamp
from collafuse_benchmarks.pages.sections import cv_cell, interval_cell, machine_section, opening
from collafuse_benchmarks.split.parts import Part, Row
from collafuse_benchmarks.split.report import SplitReport
from collafuse_benchmarks.split.settings import Limits
from collafuse_benchmarks.split.table import ShareCheck, Side, SplitRow

WHAT = (
    "A diffusion model makes an image from noise in T steps. Here the steps are split: a server does the first (1 - c) "
    "T, hands over a tensor that is still noisy, and a small head on a device does the last c T. c = 0 leaves all to "
    "the server, c = 1 all to the device. This report says what each cut costs, so that one can be chosen."
)
COLUMNS = (
    "cut",
    "server steps",
    "device steps",
    "head, precision, engine",
    "noise handed over",
    "server ms",
    "transfer ms",
    "device ms",
    "total ms",
    "device share of time",
    "server J",
    "device J",
    "total J",
    "KID of hand-over",
    "KID of images",
)
NOTES = (
    "Times are medians for one image, whole trajectories from tensor to tensor. Joules are gross (idle power included) "
    "for one image. noise handed over: {noise}; at c = 0 it is 0, and what crosses is the finished image; at c = 1 "
    "nothing crosses. Noise hides detail; it is no proof of privacy. KID: distance from real images by `evaluate`; of "
    "the hand-over tensors further means that less shows, of the images closer is better."
)
OLD_NOISE = (
    "sqrt(1 - alpha_bar), since this report is older than the definition that `init` and --min-noise-level share now, "
    "sqrt((1 - alpha_bar) / alpha_bar)"
)
"""Of reports that do not say."""


BY = {"total_j": "energy", "total_ms": "time, since energy was not measured everywhere"}
"""What the choice went by, in words."""
PART_COLUMNS = (
    "c",
    "what",
    "steps",
    "engine",
    "median ms",
    "95 % interval",
    "cv",
    "samples",
    "joules, gross",
    "output",
)


def split_document(report: SplitReport, stamp: Stamp) -> Document:
    """A part alone gives a page with gaps."""
    plan = report.plan
    shape = "x".join(map(str, plan.image_shape))
    what = f"{WHAT} Images {shape}, T = {plan.timesteps}, {plan.schedule} schedule."
    blocks: list[Block] = [
        *opening(stamp, what, complete=report.complete),
        Heading("Cuts"),
        Table(COLUMNS, tuple(map(_row, report.rows))),
        Paragraph(NOTES.format(noise=report.noise_level_is or OLD_NOISE)),
        Paragraph(_transfer(report)),
        *_gaps(report.rows),
        *_plots(report.rows),
        *_shares(report.share_checks),
    ]
    answer, appendix = tuple(_choice(report)), tuple(_parts(report.parts))
    return Document("Where to cut: server and device, measured", tuple(blocks), answer, appendix)


def _row(row: SplitRow) -> tuple[str, ...]:
    edge = row.edge
    head = "none" if edge is None else f"{edge.network.preset} ({edge.name}), {edge.precision}, {edge.engine}"
    return (
        f"c = {row.cut_ratio:g}",
        _steps(row.server, row.server_ms),
        _steps(edge, row.edge_ms),
        head + _origin(row),
        f"{row.noise_level:.3f}" if row.transfer_bytes else "nothing crosses",
        figure(row.server_ms, 4),
        "not counted" if row.transfer_ms is None else figure(row.transfer_ms, 3),
        figure(row.edge_ms, 4),
        figure(row.total_ms, 4),
        f"{row.edge_ms / row.total_ms:.0%}" if row.total_ms and row.edge_ms is not None else NOT_MEASURED,
        figure(row.server_j),
        figure(row.edge_j),
        figure(row.total_j),
        _score(row.handover_kid, row.handover_kid_error),
        _score(row.image_kid, row.image_kid_error),
    )


def _origin(row: SplitRow) -> str:
    return "" if row.origin is None else f" ({row.origin})"


def _score(value: float | None, error: float | None) -> str:
    if value is None:
        return "not given"
    return f"{value:.3g}" + ("" if error is None else f" +- {error:.1g}")


def _steps(side: Side | None, ms: float | None) -> str:
    if side is not None:
        return str(side.steps)
    return "0" if ms == 0 else NOT_MEASURED


def _transfer(report: SplitReport) -> str:
    sizes = sorted({row.transfer_bytes for row in report.rows} - {0})
    size = f"A hand-over file with one {report.handover_dtype} tensor has {', '.join(map(str, sizes)) or 0} bytes. "
    if report.link is None:
        return f"{size}No link was stated, so the totals are without its time; --link-mbps adds it."
    return (
        f"{size}The transfer is reckoned, not measured, for a link of {report.link.mbps:g} Mbit/s and "
        f"{report.link.latency_ms:g} ms before the first byte; its energy is not counted."
    )


def _gaps(rows: Sequence[SplitRow]) -> list[Block]:
    reasons: dict[str, set[str]] = {}
    for row in rows:
        sides, _, why = (row.energy_reason or "").partition(": ")
        if why:
            reasons.setdefault(why, set()).update(sides.split(" and "))
    scopes = {row.energy_scope for row in rows if row.energy_scope}
    texts = [f"Energy of {' and '.join(sorted(sides))}: {why}." for why, sides in sorted(reasons.items())]
    texts += [f"The sensors see, {scope}; what they do not see is in no figure." for scope in sorted(scopes)]
    texts += [f"{row.title}: {note}." for row in rows for note in row.notes]
    return [Paragraph(text) for text in texts]


def _choice(report: SplitReport) -> list[Block]:
    choice = report.choice
    if choice is None:
        return []
    stated = _stated(report.limits)
    if choice.row is None:
        return [
            Heading("Choice"),
            Paragraph(f"No measured way keeps {stated}. What would have to give:"),
            *(Paragraph(f"- {line}") for line in choice.advice),
        ]
    row, edge = choice.row, choice.row.edge
    way = "no head" if edge is None else f"{edge.name}, {edge.steps} steps, {edge.engine}"
    cost = f"{figure(row.total_ms, 4)} ms, energy {figure(row.total_j, 3, 'J')}"
    return [
        Heading("Choice"),
        Paragraph(
            f"With {stated}: c = {row.cut_ratio:g}, {way}{_origin(row)}: {cost}. {choice.admissible} of "
            f"{len(report.rows)} ways keep the limits; this one is the cheapest by {BY[choice.by]}. "
            f"{choice.quality or ''}".rstrip()
        ),
    ]


def _stated(limits: Limits) -> str:
    given = [(name, value) for name, value in sorted(limits.to_dict().items()) if value is not None]
    return ", ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in given)


def _plots(rows: Sequence[SplitRow]) -> list[Block]:
    whole = [row for row in rows if row.total_ms is not None]
    if not whole:
        return []
    names = [_short(row) for row in whole]
    times = {
        "server": [row.server_ms or 0.0 for row in whole],
        "transfer": [row.transfer_ms or 0.0 for row in whole],
        "device": [row.edge_ms or 0.0 for row in whole],
    }
    blocks: list[Block] = [
        Heading("Pictures"),
        Plot(
            "Time of one image by cut: what the server, the link and the device take. c is the device's share of the "
            "timesteps.",
            partial(plots.stacked, names, times, "milliseconds"),
        ),
    ]
    if all(row.total_j is not None for row in whole):
        joules = {"server": [row.server_j or 0.0 for row in whole], "device": [row.edge_j or 0.0 for row in whole]}
        blocks.append(Plot("Gross energy of one image by cut.", partial(plots.stacked, names, joules, "joules")))
    blocks.append(
        Plot(
            "Pareto front of time against noise in what crosses: no way that hands something over is both quicker and "
            "noisier than one on the line (dots). Crosses are ways that another one beats, or that make no images. Of "
            "each cut the quickest way is named; c = 1, where nothing crosses, has no place here.",
            partial(plots.front, _front(whole), "milliseconds for one image", "noise level handed over"),
        )
    )
    return blocks


def _short(row: SplitRow) -> str:
    edge = row.edge
    head = "" if edge is None else f", {edge.steps} steps, {edge.precision}, {edge.engine}"
    return f"c = {row.cut_ratio:g}{head}{_origin(row)}" + (" (no images)" if row.notes else "")


def _front(rows: Sequence[SplitRow]) -> list[tuple[float, float, str, bool]]:
    """Marks those that no other way beats: less time and more noise (one of both strictly); c = 1 is left out."""
    timed = [(row.total_ms, row) for row in rows if row.transfer_bytes and row.total_ms is not None]
    points = [(ms, row.noise_level) for ms, row in timed if not row.notes]
    quickest: dict[float, SplitRow] = {}
    for _, row in sorted(timed, key=lambda pair: pair[0]):
        quickest.setdefault(row.cut_ratio, row)
    marked = []
    for x, row in timed:
        y = row.noise_level
        is_beaten = any((a <= x and b >= y) and (a < x or b > y) for a, b in points)
        name = f"c = {row.cut_ratio:g}" if quickest[row.cut_ratio] is row else ""
        marked.append((x, y, name, not (is_beaten or row.notes)))
    return marked


def _shares(checks: Sequence[ShareCheck]) -> list[Block]:
    if not checks:
        return []
    rows = tuple(
        (
            f"{check.side}, part {check.part}",
            check.way,
            ", ".join(map(str, check.steps)),
            ", ".join(f"{ratio:.3f}" for ratio in check.ratio),
            "within 10 %" if check.holds else "NOT within 10 %",
        )
        for check in checks
    )
    return [
        Heading("Do times follow the step counts?"),
        Table(
            ("side", "network, precision, engine", "steps", "time per step, relative to the most steps", "verdict"),
            rows,
        ),
        Paragraph(
            "1 means that half the steps take half the time. Above 1 at few steps: the fixed cost of a call (copies, "
            "binding) shows. Far from 1 both ways: the machine was not steady; see the 95 % intervals below."
        ),
    ]


def _parts(parts: Sequence[Part]) -> list[Block]:
    blocks: list[Block] = []
    for number, part in enumerate(parts, 1):
        blocks += [
            Heading(f"Part {number}: {part.side} side on {part.machine}"),
            Paragraph(f"Mode {part.mode}, one image at a time, all ways in turns. Plan family {part.family[:16]}."),
            Table(PART_COLUMNS, tuple(map(_part_row, part.rows))),
            *machine_section(part.state_before, part.state_after, part.changes),
        ]
    return blocks


def _part_row(row: Row) -> tuple[str, ...]:
    what = (f"{row.cut_ratio:g}", row.name, str(row.steps), row.engine)
    sensors = () if row.energy is None else row.energy.sensors
    joules = "; ".join(
        f"{s.info.name} ({s.info.scope}): {figure(s.gross.mean)} +- {figure(s.gross.std, 2)}" for s in sensors
    )
    output = {True: "right", False: "WRONG", None: "not checked"}[row.is_right]
    last, summary = (joules or NOT_MEASURED, output), row.summary
    if summary is None:
        return (*what, NOT_MEASURED, "", "", "0", *last)
    return (*what, figure(summary.median, 4), interval_cell(summary), cv_cell(summary), str(summary.count), *last)
