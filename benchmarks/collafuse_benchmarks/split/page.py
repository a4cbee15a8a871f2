"""The page of a split report."""

from functools import partial
from typing import Any

from collafuse_benchmarks.pages import plots
from collafuse_benchmarks.pages.document import NOT_MEASURED, Block, Document, Heading, Paragraph, Plot, Table, figure
from collafuse_benchmarks.pages.sections import machine_section, opening

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


def split_document(payload: dict[str, Any]) -> Document:
    """From the payload of report.json; a part alone gives a page with gaps."""
    plan = payload["plan"]
    shape = "x".join(map(str, plan["image_shape"]))
    what = f"{WHAT} Images {shape}, T = {plan['timesteps']}, {plan['schedule']} schedule."
    blocks: list[Block] = [
        *opening(payload, what),
        Heading("Cuts"),
        Table(COLUMNS, tuple(_row(row) for row in payload["rows"])),
        Paragraph(NOTES.format(noise=payload.get("noise_level_is", OLD_NOISE))),
        Paragraph(_transfer(payload)),
        *_gaps(payload),
        *_choice(payload),
        *_plots(payload["rows"]),
        *_shares(payload["share_checks"]),
        *_parts(payload["parts"]),
    ]
    return Document("Where to cut: server and device, measured", tuple(blocks))


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    server, edge, total = row["server"], row["edge"], row["total_ms"]
    share = NOT_MEASURED if not total else f"{row['edge_ms'] / total:.0%}"
    head = (
        "none"
        if edge is None
        else f"{edge['network']['preset']} ({edge['name']}), {edge['precision']}, {edge['engine']}"
    ) + _origin(row)
    return (
        f"c = {row['cut_ratio']:g}",
        _steps(server, row["server_ms"]),
        _steps(edge, row["edge_ms"]),
        head,
        f"{row['noise_level']:.3f}" if row["transfer_bytes"] else "nothing crosses",
        figure(row["server_ms"], 4),
        "not counted" if row["transfer_ms"] is None else figure(row["transfer_ms"], 3),
        figure(row["edge_ms"], 4),
        figure(total, 4),
        share,
        figure(row["server_j"]),
        figure(row["edge_j"]),
        figure(row["total_j"]),
        _score(row, "handover_kid"),
        _score(row, "image_kid"),
    )


def _origin(row: dict[str, Any]) -> str:
    return "" if row["origin"] is None else f" ({row['origin']})"


def _score(row: dict[str, Any], key: str) -> str:
    value, error = row[key], row.get(f"{key}_error")
    if value is None:
        return "not given"
    return f"{value:.3g}" + ("" if error is None else f" +- {error:.1g}")


def _steps(row: dict[str, Any] | None, ms: float | None) -> str:
    if row is not None:
        return str(row["steps"])
    return "0" if ms == 0 else NOT_MEASURED


def _transfer(payload: dict[str, Any]) -> str:
    sizes = sorted({row["transfer_bytes"] for row in payload["rows"]} - {0})
    size = f"A hand-over file with one {payload['handover_dtype']} tensor has {', '.join(map(str, sizes)) or 0} bytes. "
    link = payload["link"]
    if link is None:
        return f"{size}No link was stated, so the totals are without its time; --link-mbps adds it."
    return (
        f"{size}The transfer is reckoned, not measured, for a link of {link['mbps']:g} Mbit/s and "
        f"{link['latency_ms']:g} ms before the first byte; its energy is not counted."
    )


def _gaps(payload: dict[str, Any]) -> list[Block]:
    reasons: dict[str, set[str]] = {}
    for row in payload["rows"]:
        sides, _, why = (row["energy_reason"] or "").partition(": ")
        if why:
            reasons.setdefault(why, set()).update(sides.split(" and "))
    scopes = {row["energy_scope"] for row in payload["rows"] if row["energy_scope"]}
    texts = [f"Energy of {' and '.join(sorted(sides))}: {why}." for why, sides in sorted(reasons.items())]
    texts += [f"The sensors see, {scope}; what they do not see is in no figure." for scope in sorted(scopes)]
    texts += [f"{row['title']}: {note}." for row in payload["rows"] for note in row["notes"]]
    return [Paragraph(text) for text in texts]


def _choice(payload: dict[str, Any]) -> list[Block]:
    choice, limits = payload["choice"], payload["limits"]
    if choice is None:
        return []
    stated = ", ".join(
        f"--{name.replace('_', '-')} {value:g}" for name, value in sorted(limits.items()) if value is not None
    )
    if choice["row"] is None:
        return [
            Heading("Choice"),
            Paragraph(f"No measured way keeps {stated}. What would have to give:"),
            *(Paragraph(f"- {line}") for line in choice["advice"]),
        ]
    row, by = choice["row"], {"total_j": "energy", "total_ms": "time, since energy was not measured everywhere"}
    steps = (
        "no head"
        if row["edge"] is None
        else f"{row['edge']['name']}, {row['edge']['steps']} steps, {row['edge']['engine']}"
    ) + _origin(row)
    cost = f"{figure(row['total_ms'], 4)} ms, energy {figure(row['total_j'], 3, 'J')}"
    return [
        Heading("Choice"),
        Paragraph(
            f"With {stated}: c = {row['cut_ratio']:g}, {steps}: {cost}. {choice['admissible']} of "
            f"{len(payload['rows'])} ways keep the limits; this one is the cheapest by {by[choice['by']]}. "
            f"{choice.get('quality') or ''}".rstrip()
        ),
    ]


def _plots(rows: list[dict[str, Any]]) -> list[Block]:
    whole = [row for row in rows if row["total_ms"] is not None]
    if not whole:
        return []
    names = [_short(row) for row in whole]
    times = {
        "server": [row["server_ms"] for row in whole],
        "transfer": [row["transfer_ms"] or 0.0 for row in whole],
        "device": [row["edge_ms"] for row in whole],
    }
    blocks: list[Block] = [
        Heading("Pictures"),
        Plot(
            "Time of one image by cut: what the server, the link and the device take. c is the device's share of the "
            "steps.",
            partial(plots.stacked, names, times, "milliseconds"),
        ),
    ]
    if all(row["total_j"] is not None for row in whole):
        joules = {"server": [row["server_j"] for row in whole], "device": [row["edge_j"] for row in whole]}
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


def _short(row: dict[str, Any]) -> str:
    edge = row["edge"]
    head = "" if edge is None else f", {edge['steps']} steps, {edge['precision']}, {edge['engine']}"
    return f"c = {row['cut_ratio']:g}{head}{_origin(row)}" + (" (no images)" if row["notes"] else "")


def _front(rows: list[dict[str, Any]]) -> list[tuple[float, float, str, bool]]:
    """Marks those that no other way beats: less time and more noise (one of both strictly); c = 1 is left out."""
    rows = [row for row in rows if row["transfer_bytes"]]
    points = [(row["total_ms"], row["noise_level"]) for row in rows if not row["notes"]]
    quickest: dict[float, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row["total_ms"]):
        quickest.setdefault(row["cut_ratio"], row)
    marked = []
    for row in rows:
        x, y = row["total_ms"], row["noise_level"]
        is_beaten = any((a <= x and b >= y) and (a < x or b > y) for a, b in points)
        name = f"c = {row['cut_ratio']:g}" if quickest[row["cut_ratio"]] is row else ""
        marked.append((x, y, name, not (is_beaten or row["notes"])))
    return marked


def _shares(checks: list[dict[str, Any]]) -> list[Block]:
    if not checks:
        return []
    rows = tuple(
        (
            f"{check['side']}, part {check['part']}",
            check["way"],
            ", ".join(map(str, check["steps"])),
            ", ".join(f"{ratio:.3f}" for ratio in check["ratio"]),
            "within 10 %" if check["holds"] else "NOT within 10 %",
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


def _parts(parts: list[dict[str, Any]]) -> list[Block]:
    blocks: list[Block] = []
    for number, part in enumerate(parts, 1):
        rows = tuple(_part_row(row) for row in part["rows"])
        blocks += [
            Heading(f"Part {number}: {part['side']} side on {part['machine']}"),
            Paragraph(
                f"Mode {part['mode']}, one image at a time, all ways in turns. Plan family {part['family'][:16]}."
            ),
            Table(
                (
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
                ),
                rows,
            ),
            *machine_section(part["state_before"], part["state_after"], part["changes"]),
        ]
    return blocks


def _part_row(row: dict[str, Any]) -> tuple[str, ...]:
    summary = row["summary"]
    what = (f"{row['cut_ratio']:g}", row["name"], str(row["steps"]), row["engine"])
    joules = "; ".join(
        f"{s['info']['name']} ({s['info']['scope']}): {figure(s['gross']['mean'])} +- {figure(s['gross']['std'], 2)}"
        for s in (row["energy"] or {}).get("energy") or ()
    )
    output = {True: "right", False: "WRONG", None: "not checked"}[row["is_right"]]
    if summary is None:
        return (*what, NOT_MEASURED, "", "", "0", joules or NOT_MEASURED, output)
    low, high = summary["interval"] or (None, None)
    interval = "too few samples" if low is None else f"{figure(low, 4)} to {figure(high, 4)}"
    cv = NOT_MEASURED if summary["cv"] is None else f"{summary['cv']:.1%}"
    unsteady = ", unsteady" if summary["is_steady"] is False else ""
    return (
        *what,
        figure(summary["median"], 4),
        interval,
        cv + unsteady,
        str(summary["count"]),
        joules or NOT_MEASURED,
        output,
    )
