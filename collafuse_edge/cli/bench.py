"""Commands that measure: bench latency, energy, split, report."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from collafuse_benchmarks.energy.settings import EnergySettings
from collafuse_edge.cli.edge import BundleArgument, EngineOption
from collafuse_edge.cli.parts.choices import Engine, HandoverDtype, Mode
from collafuse_edge.cli.parts.config import keeps_options
from collafuse_edge.cli.parts.fields import Values, takes
from collafuse_edge.cli.parts.output import JsonOption, OverwriteOption, emit, line_printer, refuse_options
from collafuse_runtimes.engine_options import EngineOptions

if TYPE_CHECKING:
    from collafuse_benchmarks.pages.folder import MakeDocument, Report, ReportFolder, Stamped

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


@app.command()
@keeps_options
@takes("engine_options", EngineOptions)
def latency(
    *,
    bundle: BundleArgument,
    handover: HandoverArgument,
    engine: EngineOption = "ort-cpu",
    engine_options: Values,
    mode: ModeOption = "quick",
    batch: Annotated[str, typer.Option(help="Images at once, e.g. 1,4,8; each is measured.")] = "1",
    steps: StepsOption = None,
    out: OutOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Time a head on this machine: one step, the head call, and from hand-over file to image.

    Also a fresh process, loading, peak memory, and whether the output is right.
    """
    from collafuse_benchmarks.latency.page import latency_document
    from collafuse_benchmarks.latency.run import KIND, measure_latency
    from collafuse_benchmarks.measure.timing import mode_named
    from collafuse_edge.cli.parts.parsing import comma_integers
    from collafuse_runtimes.files.bundle import read_bundle
    from collafuse_runtimes.files.handover import read_handover

    head, tensors = read_bundle(bundle), read_handover(handover)
    with _report(out, KIND, latency_document, overwrite, as_json) as folder:
        measure_latency(
            head,
            handover,
            tensors,
            mode_named(mode),
            engine_name=engine,
            options=EngineOptions(**engine_options),
            steps=steps,
            batches=comma_integers("batch", batch),
            on_report=folder.save,
            on_stage=lambda what: print(f"measuring {what}", file=sys.stderr, flush=True),
        )


@app.command()
@keeps_options
@takes("engine_options", EngineOptions)
@takes("windows", EnergySettings, only=("trials", "window_s", "idle_s"))
def energy(
    *,
    bundle: BundleArgument,
    handover: HandoverArgument,
    engine: EngineOption = "ort-cpu",
    engine_options: Values,
    windows: Values,
    batch: Annotated[int, typer.Option(help="Images at once.")] = 1,
    steps: StepsOption = None,
    nvml_gpu: NvmlGpuOption = 0,
    out: OutOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure the energy of an image on this machine, gross and net of idle, by every sensor that it has.

    Without a sensor the energy is null, with the reason; the times are measured all the same. Readings of a wall meter
    are added afterwards: `bench report --meter`.
    """
    from collafuse_benchmarks.energy.page import energy_document
    from collafuse_benchmarks.energy.run import KIND, measure_head_energy
    from collafuse_benchmarks.energy.sensors import find_sensors
    from collafuse_runtimes.files.bundle import read_bundle
    from collafuse_runtimes.files.handover import read_handover

    head, tensors = read_bundle(bundle), read_handover(handover)
    settings = EnergySettings(**windows)
    with _report(out, KIND, energy_document, overwrite, as_json) as folder, find_sensors(gpu=nvml_gpu) as found:
        measure_head_energy(
            head,
            tensors,
            found,
            settings,
            engine_name=engine,
            options=EngineOptions(**engine_options),
            steps=steps,
            batch=batch,
            on_report=folder.save,
            on_progress=_phase_printer(),
        )


@app.command()
@keeps_options
@takes("engine_options", EngineOptions, only=("threads", "gpu", "cache"))
def split(
    *,
    context: typer.Context,
    sources: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Head bundles, one or more for each cut; with --merge split reports.", metavar="[NAME.head ...]"
        ),
    ] = None,
    server: Annotated[
        Path | None, typer.Option(help="Folder written by train-server or import: measure its side here.")
    ] = None,
    cuts: Annotated[
        str | None,
        typer.Option(help="Cut ratios of the server's side, e.g. 0,0.2,1. Default: 0 and those of the heads."),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="What runs the heads, e.g. ort-cpu,openvino; each is measured.",
            autocompletion=lambda: list(get_args(Engine)),
        ),
    ] = "ort-cpu",
    engine_options: Values,
    server_steps: Annotated[int | None, typer.Option(help="Most steps of the server. Default: 20, as handoff.")] = None,
    server_device: Annotated[
        str | None, typer.Option(help="torch device: cpu, cuda or cuda:N. Default: a GPU where there is one.")
    ] = None,
    mode: ModeOption = "quick",
    nvml_gpu: NvmlGpuOption = 0,
    merge: Annotated[
        bool, typer.Option("--merge/--no-merge", help="Join reports of both sides, measured on any machines.")
    ] = False,
    link_mbps: Annotated[
        float | None, typer.Option(help="Speed of the link between the sides, 10^6 bits a second.")
    ] = None,
    link_latency_ms: Annotated[
        float, typer.Option(help="Latency of the link: milliseconds before the first byte.")
    ] = 0.0,
    dtype: Annotated[HandoverDtype, typer.Option(help="Type of the tensors in the hand-over file.")] = "float32",
    image_kid: Annotated[
        list[str] | None, typer.Option(help="Score of finished images, e.g. 0.2=score.json (`evaluate --json`).")
    ] = None,
    handover_kid: Annotated[list[str] | None, typer.Option(help="Score of hand-over tensors, in the same way.")] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="Choose: the most one image may take.")] = None,
    max_energy_j: Annotated[
        float | None, typer.Option(help="Choose: the most joules of one image, both sides.")
    ] = None,
    min_noise_level: Annotated[
        float | None, typer.Option(help="Choose: least noise level of what is handed over, as `init` prints it.")
    ] = None,
    min_handover_kid: Annotated[
        float | None, typer.Option(help="Choose: least distance of the hand-over tensors from real images.")
    ] = None,
    max_image_kid: Annotated[
        float | None, typer.Option(help="Choose: largest distance of the images from real ones.")
    ] = None,
    max_kid_above_best: Annotated[
        float | None, typer.Option(help="Choose: how far that may lie above the best way's.")
    ] = None,
    out: OutOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure what every cut costs server, link and device, and choose one.

    Each baked step count of each bundle is measured, one image at a time, all ways in turns. Either side alone gives a
    part; parts are joined with --merge.
    """
    from collafuse_benchmarks.split.choice import Limits
    from collafuse_benchmarks.split.page import split_document
    from collafuse_benchmarks.split.report import KIND, SplitOptions, read_parts, split_report
    from collafuse_benchmarks.split.scores import read_scores
    from collafuse_benchmarks.split.table import Link

    if merge:
        refuse_options(context, (*DEVICE_SIDE, *SERVER_SIDE, "mode", "nvml_gpu"), "--merge measures nothing")
    if server is None:
        refuse_options(context, SERVER_SIDE[1:], "without --server its side is not measured")
    if not sources:
        refuse_options(context, DEVICE_SIDE, "without a head bundle the device's side is not measured")
    if link_mbps is None:
        refuse_options(context, ("link_latency_ms",), "without --link-mbps the transfer is not counted")
    options = SplitOptions(
        link=None if link_mbps is None else Link(link_mbps, link_latency_ms),
        dtype=dtype,
        limits=Limits(
            max_latency_ms, max_energy_j, min_noise_level, min_handover_kid, max_image_kid, max_kid_above_best
        ),
        image_scores=read_scores("image-kid", image_kid or []),
        handover_scores=read_scores("handover-kid", handover_kid or []),
    )
    with _report(out, KIND, split_document, overwrite, as_json) as folder:
        if merge:
            folder.save(split_report(read_parts(sources or []), options))
            return
        from collafuse_benchmarks.energy.sensors import find_sensors
        from collafuse_benchmarks.measure.timing import mode_named
        from collafuse_benchmarks.split.sweep import SweepOptions, sweep
        from collafuse_edge.handoff.timed import open_server
        from collafuse_runtimes.files.bundle import read_bundle

        opened = EngineOptions(**engine_options)
        how = SweepOptions(mode_named(mode), tuple(engine.split(",")), opened, cuts, server_steps)
        heads = [read_bundle(path) for path in sources or []]
        with find_sensors(gpu=nvml_gpu) as found:
            sweep(
                heads,
                None if server is None else open_server(server, server_device),
                how,
                found,
                on_parts=lambda parts: folder.save(split_report(parts, options)),
                on_turn=_turn_printer(),
                on_phase=_phase_printer(),
            )


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
def _report(
    out: Path | None, kind: str, make_document: "MakeDocument[Report]", overwrite: bool, as_json: bool
) -> "Iterator[ReportFolder[Report]]":
    """The report's folder, printed when the block ends well. SIGTERM ends the block as Ctrl-C does."""
    from collafuse_benchmarks.pages.folder import ReportFolder

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with ReportFolder(out, kind, make_document, overwrite=overwrite) as folder:
            yield folder
    finally:
        signal.signal(signal.SIGTERM, before)
    assert folder.saved is not None
    _print_report(folder.saved, out, folder.note, as_json)


def _print_report(saved: "Stamped[Report]", out: Path | None, note: str | None, as_json: bool) -> None:
    from collafuse_benchmarks.pages.document import to_markdown

    lines = [to_markdown(saved.document()).rstrip("\n")]
    if out is not None:
        lines.append(f"wrote     {out}")
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
