"""The record of the front: JSON, tables, a picture of the front and one of the images."""

import json
import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measuring import CALIBRATION, COUNT, NOT_TRAINED, SERVER_SAMPLER, SERVER_STEPS, SHOWN, own_images, point_file
from settings import CHANGES, SIDES, TRIALS, WAY
from training import CLIENTS, HEADS, HELD_OUT, SEEDS, SERVER, SERVERS, SIZE, Folder
from ways import TODAY, WAYS, Way

from collafuse_benchmarks.pages import plots

STUDENT = {2: 12.706, 3: 4.303}
"""97.5 % quantile of Student's t by number of seeds."""
Point = dict[str, Any]


def publish(out: Path, results: Path, data: str, extractor: str) -> None:
    """Everything measured so far."""
    folder = Folder(out)
    found = {way: [_read(point_file(folder, way, seed)) for seed in SEEDS] for way in WAYS}
    points = {way: [p for p in rows if p is not None] for way, rows in found.items()}
    times_file = out / "times.json"
    times = json.loads(times_file.read_text()) if times_file.exists() else {"rounds": 0, "ways": {}}
    servers = [_read(out / f"server.{name}.{seed}.json") for name in SERVERS for seed in SEEDS]
    record = {
        "data": f"{data}, resized to {SIZE}x{SIZE}; {HELD_OUT} images a client held out of its training split",
        "clients": {seed: CLIENTS[seed] for seed in SEEDS},
        "extractor": extractor,
        "heads": {network: {"steps": steps, "learning_rate": rate} for network, (steps, rate) in HEADS.items()},
        "server": " ".join(map(str, SERVER)),
        "hand_over": f"{SERVER_STEPS} server steps of {SERVER_SAMPLER.text}",
        "images": COUNT,
        "int8_calibration": CALIBRATION,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, CPU only",
        "times": times,
        "points": [point for rows in points.values() for point in rows],
        "servers": [row for row in servers if row is not None],
        "settings": [row for trial in TRIALS if (row := _read(trial.record(folder))) is not None],
    }
    results.mkdir(parents=True, exist_ok=True)
    (results / "front.json").write_text(json.dumps(record, indent=1) + "\n")
    text = "\n".join(
        [*_head(record), *_server_table(record), *_settings_table(record), *_tables(points, times["ways"])]
    )
    (results / "front.md").write_text(text + "\n")
    (results / "front.svg").write_text(_plot(points, times["ways"]))
    _pictures(folder, results / "front.png")
    print(text)


def _read(path: Path) -> Point | None:
    found: Point | None = json.loads(path.read_text()) if path.exists() else None
    return found


def mean_and_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """(mean over the seeds, half of its 95 % interval by Student's t; None for one seed)."""
    count = len(values)
    half = STUDENT[count] * float(np.std(values, ddof=1)) / count**0.5 if count in STUDENT else None
    return float(np.mean(values)), half


def difference(points: Sequence[Point], reference: Sequence[Point], figure: str) -> tuple[float, float | None] | None:
    """Of one figure on the server's tensors, seed by seed; None where no seed has both."""
    base = {p["seed"]: p["server"][figure] for p in reference if "server" in p}
    pairs = [p["server"][figure] - base[p["seed"]] for p in points if "server" in p and p["seed"] in base]
    return mean_and_interval(pairs) if pairs else None


def _head(record: dict[str, Any]) -> list[str]:
    heads = ", ".join(f"{n} {h['steps']} steps at {h['learning_rate']:g}" for n, h in record["heads"].items())
    return [
        "# A front of ways to one image, brain MRI",
        "",
        f"{record['data']}. Three seeds, each one client: its heads ({heads}), and its own server",
        f"({record['server']}) of all three clients' uploads. The server of c = 0.2 hands over for 0.2 and 0.4, that",
        "of c = 0.6 for 0.6 and 0.8; the heads of c = 0.8 serve 0.4 and 0.6 too; c = 1 is the client alone.",
        f"Hand-over: {record['hand_over']}. {record['images']} images a way and seed, made by ort-cpu from head",
        "bundles, scored against the client's held-out images.",
        f"KID on centred, scaled features of {record['extractor']}, +- the 95 % interval of the mean over the seeds",
        "(Student's t): against the client's own images, and against those of all, which is what the server learns;",
        "difference: of the latter, seed by seed, from the same tensors. pyramid: sliced Wasserstein distance to the",
        "client's images, mean of the levels; sharpness: 1 as sharp as real; exact: KID from the client's held-out",
        "images noised exactly, against these.",
        f"Times are of {record['machine']}, one image at a time, all ways in turns, the median of "
        f"{record['times']['rounds']}; ratios are what carries over.",
        "",
    ]


def _server_table(record: dict[str, Any]) -> list[str]:
    lines = [
        "## The server's tensors",
        "",
        "Distance of x_n to held-out images of all clients noised to the same level, mean over the seeds +- its 95 %",
        "interval; floor: that of training images noised likewise. brightness: mean less that of real tensors.",
        "",
        "| server | way | whole tensors | pyramid | brightness |",
        "|---|---|---|---|---|",
    ]
    for name in SERVERS:
        rows = [server for server in record["servers"] if server["server"] == name]
        ways = [row["way"] for row in rows[0]["rows"]] if rows else []
        for k, way in enumerate(ways):
            cells = (_cell([server["rows"][k][f] for server in rows]) for f in ("pixels", "pyramid", "brightness"))
            lines.append(f"| {name} | {way} | {' | '.join(cells)} |")
        if rows:
            cells = (_cell([server["floor"][f] for server in rows]) for f in ("pixels", "pyramid", "brightness"))
            lines.append(f"| {name} | floor | {' | '.join(cells)} |")
    return [*lines, ""]


def _settings_table(record: dict[str, Any]) -> list[str]:
    """Nothing where that stage was not run."""
    if not record["settings"]:
        return []
    lines = [
        "## Learning rate and moving average",
        "",
        f"The same seeds trained again with one setting changed from a rate of {HEADS['small'][1]:g} and an average of",
        f"0.995; mean +- its 95 % interval. Head: {WAY.name}, KID of its images from exact tensors and",
        "pyramid of those from the server's; server: whole tensors and pyramid of x_n.",
        "",
        "| side | changed | KID, exact; whole tensors | pyramid |",
        "|---|---|---|---|",
    ]
    for side in SIDES:
        for change in CHANGES:
            rows = [r for r in record["settings"] if (r["side"], tuple(r["change"])) == (side, change)]
            if rows:
                ours = side == "head"
                first = _cell([r["exact"]["kid"] if ours else r["pixels"] for r in rows])
                second = _cell([r["server"]["pyramid"] if ours else r["pyramid"] for r in rows])
                name = " ".join(map(str, change)) or "nothing"
                lines.append(f"| {side} | {name} | {first} | {second} |")
    return [*lines, ""]


def _tables(points: dict[Way, list[Point]], times: dict[str, Any]) -> list[str]:
    lines, today = [], times.get(TODAY.name)
    for cut_ratio in dict.fromkeys(way.cut_ratio for way in WAYS):
        ways = [way for way in WAYS if way.cut_ratio == cut_ratio]
        lines += [
            f"## c = {cut_ratio:g}",
            "",
            f"Difference to: {ways[0].name}. Work and time relative to: {TODAY.name}.",
            "",
            "| way | MFLOP | work | ms, one thread | time | two threads | KID | of all | difference | pyramid | "
            "sharpness | exact |",
            "|" + "---|" * 12,
        ]
        for way in ways:
            rows = [point for point in points[way] if "server" in point]
            if rows:
                lines.append(_row(way, rows, points[ways[0]], times.get(way.name), today, points[TODAY]))
        for way in ways:
            said = [f"{p['client']}: {p['gate'].splitlines()[0]}" for p in points[way] if p["gate"]]
            if said and said[0].endswith(NOT_TRAINED):
                lines += ["", f"Not measured: {way.name}."]
            elif said:
                lines += ["", f"The gate on {way.name}: {'; '.join(said)}."]
        lines.append("")
    return lines


def _row(way: Way, rows: list[Point], reference: list[Point], times: Any, today: Any, today_points: list[Point]) -> str:
    flops, less = rows[0]["flops"], difference(rows, reference, "kid_pooled")
    share = flops / today_points[0]["flops"] if today_points else float("nan")
    one, two = (_time(times, today, threads) for threads in ("1", "2"))
    values = [[row["server"][figure] for row in rows] for figure in ("kid", "kid_pooled", "pyramid", "sharpness")]
    exact = _cell([row["exact"]["kid"] for row in rows]) if "exact" in rows[0] else "-"
    shown = "-" if less is None else f"{less[0]:+.3f}" + ("" if less[1] is None else f" +- {less[1]:.3f}")
    kid, pooled, pyramid, sharpness = (_cell(v) for v in values)
    work = f"1/{1 / share:.3g}"
    cells = (way.name, f"{flops / 1e6:.0f}", work, *one, two[1], kid, pooled, shown, pyramid, sharpness, exact)
    return f"| {' | '.join(cells)} |"


def _time(times: Any, today: Any, threads: str) -> tuple[str, str]:
    if times is None or today is None:
        return "-", "-"
    median = times[threads]["median_ms"]
    return f"{median:.2f}", f"1/{today[threads]['median_ms'] / median:.3g}"


def _cell(values: Sequence[float]) -> str:
    mean, half = mean_and_interval(values)
    return f"{mean:.3f}" + ("" if half is None else f" +- {half:.3f}")


def _plot(points: dict[Way, list[Point]], times: dict[str, Any]) -> str:
    """Time against KID, a colour a cut, a marker a network; what no way beats in both is joined and named."""
    measured = {
        way: (
            times[way.name]["1"]["median_ms"],
            float(np.mean([p["server"]["kid_pooled"] for p in rows if "server" in p])),
        )
        for way, rows in points.items()
        if way.name in times and rows and "server" in rows[0]
    }
    best = sorted((way for way, mine in measured.items() if not _is_beaten(mine, measured.values())), key=measured.get)
    cuts, markers = sorted({way.cut_ratio for way in WAYS}), {"small": "o", "tiny": "s", "edge": "^"}

    def plot(axes: Any) -> None:
        axes.set_xscale("log")
        axes.plot(*zip(*(measured[way] for way in best), strict=True), "-", color="#888888", linewidth=1)
        for way, (x, y) in measured.items():
            axes.plot([x], [y], markers[way.network], color=plots.COLOURS[cuts.index(way.cut_ratio)], markersize=5)
        for way in best:
            axes.annotate(way.name, measured[way], textcoords="offset points", xytext=(4, -10), fontsize=6)
        for colour, cut_ratio in zip(plots.COLOURS, cuts, strict=False):
            axes.plot([], [], "o", color=colour, label=f"c = {cut_ratio:g}")
        for network, marker in markers.items():
            axes.plot([], [], marker, color="#888888", label=network)
        axes.set_xlabel("milliseconds of the device for one image, one thread")
        axes.set_ylabel("KID, all clients' images")
        axes.legend(fontsize=8)

    return plots.draw(plot, (9.0, 6.0)) if measured else ""


def _is_beaten(mine: tuple[float, float], others: Iterable[tuple[float, float]]) -> bool:
    return any(x <= mine[0] and y <= mine[1] and (x, y) != mine for x, y in others)


def _pictures(folder: Folder, path: Path) -> None:
    """A row of images per way of the first seed, named at its left; real ones first."""
    from matplotlib.figure import Figure

    names, strips = ["real"], [own_images(folder, SEEDS[0], "test")[:SHOWN]]
    for way in WAYS:
        file = point_file(folder, way, SEEDS[0]).with_suffix(".npy")
        if file.exists():
            names.append(way.name)
            strips.append(np.load(file))
    sheet = np.concatenate([np.concatenate(list(strip[:, 0]), axis=1) for strip in strips]).clip(-1, 1)
    figure = Figure(figsize=(8.0, 0.55 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(sheet, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
    axes.set_yticks([SIZE * (k + 0.5) for k in range(len(names))], names, fontsize=7)
    axes.set_xticks([])
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})
