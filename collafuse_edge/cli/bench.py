"""Commands that measure: bench latency, energy, split, report."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from collafuse_benchmarks.energy.settings import EnergySettings
from collafuse_benchmarks.split.settings import Limits
from collafuse_edge.cli.edge import BundleArgument, EngineChoice
from collafuse_edge.cli.parts.choices import Engine, HandoverDtype, Mode
from collafuse_edge.cli.parts.config import keeps_options
from collafuse_edge.cli.parts.fields import takes
from collafuse_edge.cli.parts.output import JsonOption, OverwriteOption, emit, line_printer, refuse_options
from collafuse_runtimes.engine_options import EngineOptions

if TYPE_CHECKING:
    from collafuse_benchmarks.pages.folder import MakeDocument, Report, ReportFolder, Stamped
    from collafuse_benchmarks.split.measure import OnParts
    from collafuse_benchmarks.split.report import SplitOptions

app = typer.Typer(name="bench", rich_markup_mode=None, help="Measure latency, energy, and where to cut.")

HandoverArgument = Annotated[
    Path, typer.Argument(help="Hand-over file written by `handoff`; its tensors are run.", metavar="X.tc.safetensors")
]
ModeOption = Annotated[Mode, typer.Option(help="quick (10 s a row) or report (60 s a row).")]
StepsOption = Annotated[int | None, typer.Option(help="A baked step count. Default: the bundle's first.")]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="New folder for report.json (every sample), report.md and report.html.")
]
NvmlGpuOption = Annotated[int, typer.Option(help="Index of the GPU whose energy NVML reads, as nvidia-smi counts.")]
DEVICE_SIDE = ("engine", "threads", "gpu", "cache")
SERVER_SIDE = ("server", "cuts", "server_steps", "server_device")


@dataclass(frozen=True)
class ReportPlace:
    """Where a report goes, and how it is printed."""

    out: OutOption = None
    overwrite: OverwriteOption = False
    as_json: JsonOption = False


@dataclass(frozen=True)
class Timed:
    """What of a head is timed, and how long."""

    mode: ModeOption = "quick"
    batch: Annotated[str, typer.Option(help="Images at once, e.g. 1,4,8; each is measured.")] = "1"
    steps: StepsOption = None


@dataclass(frozen=True)
class Measured:
    """What of a split is measured here, and by what."""

    server: Annotated[
        Path | None, typer.Option(help="Folder written by train-server or import: measure its side here.")
    ] = None
    cuts: Annotated[
        str | None,
        typer.Option(help="Cut ratios of the server's side, e.g. 0,0.2,1. Default: 0 and those of the heads."),
    ] = None
    engine: Annotated[
        str,
        typer.Option(
            help="What runs the heads, e.g. ort-cpu,openvino; each is measured.",
            autocompletion=lambda: list(get_args(Engine)),
        ),
    ] = "ort-cpu"
    engine_options: Annotated[EngineOptions, ("threads", "gpu", "cache")] = field(default_factory=EngineOptions)
    server_steps: Annotated[int | None, typer.Option(help="Most steps of the server. Default: 20, as handoff.")] = None
    server_device: Annotated[
        str | None, typer.Option(help="torch device: cpu, cuda or cuda:N. Default: a GPU where there is one.")
    ] = None
    mode: ModeOption = "quick"
    nvml_gpu: NvmlGpuOption = 0


@dataclass(frozen=True)
class Joined:
    """What the parts of a split are joined with."""

    link_mbps: Annotated[
        float | None, typer.Option(help="Speed of the link between the sides, 10^6 bits a second.")
    ] = None
    link_latency_ms: Annotated[float, typer.Option(help="Latency of the link: milliseconds before the first byte.")] = (
        0.0
    )
    dtype: Annotated[HandoverDtype, typer.Option(help="Type of the tensors in the hand-over file.")] = "float32"
    image_kid: Annotated[
        list[str] | None, typer.Option(help="Score of finished images, e.g. 0.2=score.json (`evaluate --json`).")
    ] = None
    handover_kid: Annotated[list[str] | None, typer.Option(help="Score of hand-over tensors, in the same way.")] = None


@app.command()
@keeps_options
@takes("run", EngineChoice)
@takes("timed", Timed)
@takes("place", ReportPlace)
def latency(
    *, bundle: BundleArgument, handover: HandoverArgument, run: EngineChoice, timed: Timed, place: ReportPlace
) -> None:
    """Time a head on this machine: one step, the head call, and from hand-over file to image.

    Also a fresh process, loading, peak memory, and whether the output is right.
    """
    from collafuse_benchmarks.latency.page import latency_document
    from collafuse_benchmarks.latency.run import KIND, LatencySettings, measure_latency
    from collafuse_benchmarks.measure.timing import mode_named
    from collafuse_edge.cli.parts.parsing import comma_integers
    from collafuse_runtimes.files.bundle import read_bundle
    from collafuse_runtimes.files.handover import read_handover

    head, tensors = read_bundle(bundle), read_handover(handover)
    with _report(place, KIND, latency_document) as folder:
        batches = comma_integers("batch", timed.batch)
        settings = LatencySettings(mode_named(timed.mode), run.engine, run.options, timed.steps, batches)
        measure_latency(
            head,
            handover,
            tensors,
            settings,
            on_report=folder.save,
            on_stage=lambda what: print(f"measuring {what}", file=sys.stderr, flush=True),
        )


@dataclass(frozen=True)
class EnergyOf:
    """What of a head is measured."""

    batch: Annotated[int, typer.Option(help="Images at once.")] = 1
    steps: StepsOption = None
    nvml_gpu: NvmlGpuOption = 0


@app.command()
@keeps_options
@takes("run", EngineChoice)
@takes("windows", EnergySettings, only=("trials", "window_s", "idle_s"))
@takes("of", EnergyOf)
@takes("place", ReportPlace)
def energy(
    *,
    bundle: BundleArgument,
    handover: HandoverArgument,
    run: EngineChoice,
    windows: EnergySettings,
    of: EnergyOf,
    place: ReportPlace,
) -> None:
    """Measure the energy of an image on this machine, gross and net of idle, by every sensor that it has.

    Without a sensor the energy is null, with the reason; the times are measured all the same. Readings of a wall meter
    are added afterwards: `bench report --meter`.
    """
    from collafuse_benchmarks.energy.page import energy_document
    from collafuse_benchmarks.energy.run import KIND, measure_head_energy
    from collafuse_benchmarks.energy.sensors import find_sensors
    from collafuse_benchmarks.measure.workload import Workload
    from collafuse_runtimes.files.bundle import read_bundle
    from collafuse_runtimes.files.handover import read_handover

    head, tensors = read_bundle(bundle), read_handover(handover)
    with _report(place, KIND, energy_document) as folder, find_sensors(gpu=of.nvml_gpu) as found:
        load = Workload(head, tensors, head.row_range(of.steps).steps, of.batch)
        measure_head_energy(
            load, run.engine, run.options, found, windows, on_report=folder.save, on_progress=_phase_printer()
        )


@app.command()
@keeps_options
@takes("measured", Measured)
@takes("joined", Joined)
@takes("limits", Limits)
@takes("place", ReportPlace)
def split(
    *,
    context: typer.Context,
    sources: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Head bundles, one or more for each cut; with --merge split reports.", metavar="[NAME.head ...]"
        ),
    ] = None,
    measured: Measured,
    merge: Annotated[
        bool, typer.Option("--merge/--no-merge", help="Join reports of both sides, measured on any machines.")
    ] = False,
    joined: Joined,
    limits: Limits,
    place: ReportPlace,
) -> None:
    """Measure what every cut costs server, link and device, and choose one.

    Each baked step count of each bundle is measured, one image at a time, all ways in turns. Either side alone gives a
    part; parts are joined with --merge.
    """
    from collafuse_benchmarks.split.page import split_document
    from collafuse_benchmarks.split.report import KIND, read_parts, split_report

    if merge:
        refuse_options(context, (*DEVICE_SIDE, *SERVER_SIDE, "mode", "nvml_gpu"), "--merge measures nothing")
    if measured.server is None:
        refuse_options(context, SERVER_SIDE[1:], "without --server its side is not measured")
    if not sources:
        refuse_options(context, DEVICE_SIDE, "without a head bundle the device's side is not measured")
    if joined.link_mbps is None:
        refuse_options(context, ("link_latency_ms",), "without --link-mbps the transfer is not counted")
    options = _split_options(joined, limits)
    with _report(place, KIND, split_document) as folder:
        if merge:
            folder.save(split_report(read_parts(sources or []), options))
        else:
            _sweep(sources or [], measured, lambda parts: folder.save(split_report(parts, options)))


def _split_options(joined: Joined, limits: Limits) -> "SplitOptions":
    from collafuse_benchmarks.split.report import SplitOptions
    from collafuse_benchmarks.split.scores import read_scores
    from collafuse_benchmarks.split.table import Link

    return SplitOptions(
        link=None if joined.link_mbps is None else Link(joined.link_mbps, joined.link_latency_ms),
        dtype=joined.dtype,
        limits=limits,
        image_scores=read_scores("image-kid", joined.image_kid or []),
        handover_scores=read_scores("handover-kid", joined.handover_kid or []),
    )


def _sweep(bundles: list[Path], measured: Measured, on_parts: "OnParts") -> None:
    from collafuse_benchmarks.energy.sensors import find_sensors
    from collafuse_benchmarks.measure.timing import mode_named
    from collafuse_benchmarks.split.measure import Watch
    from collafuse_benchmarks.split.sweep import SweepOptions, sweep
    from collafuse_edge.handoff.timed import open_server
    from collafuse_runtimes.files.bundle import read_bundle

    how = SweepOptions(
        mode_named(measured.mode),
        tuple(measured.engine.split(",")),
        measured.engine_options,
        measured.cuts,
        measured.server_steps,
    )
    heads = [read_bundle(path) for path in bundles]
    with find_sensors(gpu=measured.nvml_gpu) as found:
        server = None if measured.server is None else open_server(measured.server, measured.server_device)
        sweep(heads, server, how, found, Watch(on_parts, _turn_printer(), _phase_printer()))


@app.command()
def report(
    source: Annotated[Path, typer.Argument(help="Folder of a report, or its report.json.", metavar="REPORT")],
    out: Annotated[Path, typer.Option(help="New folder.")],
    meter: Annotated[
        Path | None, typer.Option(help="CSV of a wall meter, columns time and watts, to add to an energy report.")
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make the pages of a report anew, on any machine; with --meter, with the energy that a wall meter saw."""
    from collafuse_benchmarks.reports import remake

    made = remake(source, out, meter, overwrite=overwrite)
    _print_report(made.saved, out, made.note, as_json)


@contextmanager
def _report(place: ReportPlace, kind: str, make_document: "MakeDocument[Report]") -> "Iterator[ReportFolder[Report]]":
    """The report's folder, printed when the block ends well. SIGTERM ends the block as Ctrl-C does."""
    from collafuse_benchmarks.pages.folder import ReportFolder

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with ReportFolder(place.out, kind, make_document, overwrite=place.overwrite) as folder:
            yield folder
    finally:
        signal.signal(signal.SIGTERM, before)
    assert folder.saved is not None
    _print_report(folder.saved, place.out, folder.note, place.as_json)


def _print_report(saved: "Stamped[Report]", out: Path | None, note: str | None, as_json: bool) -> None:
    from collafuse_benchmarks.pages.document import to_brief

    document = saved.document()
    lines = [to_brief(document).rstrip("\n")]
    if out is not None:
        lines.append(f"wrote     {out}")
    elif document.appendix:
        lines.append("note      the state of the machine and all samples: with --out FOLDER, or --json")
    if note is not None:
        lines.append(f"note      {note}")
    emit(saved.payload, as_json, *lines)


def _phase_printer() -> Callable[[str, float], None]:
    """A line for every phase that begins."""
    last = ""

    def show(phase: str, _: float) -> None:
        nonlocal last
        if phase != last:
            last = phase
            print(f"measuring {phase}", file=sys.stderr, flush=True)

    return show


def _turn_printer() -> Callable[[int, int], None]:
    shows: list[Callable[[int, str], None]] = []

    def show(done: int, total: int) -> None:
        if not shows:
            shows.append(line_printer("bench split", total))
        shows[0](done, "turns")

    return show
