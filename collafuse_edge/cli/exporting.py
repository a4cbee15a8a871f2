"""The command export: a checkpoint to a head bundle, or a bundle to the TensorRT engine of this machine."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from collafuse_edge.cli.parts.choices import BuiltEngine, Precision
from collafuse_edge.cli.parts.config import keeps_options
from collafuse_edge.cli.parts.data_options import SELECTION_OPTIONS, DataChoice, chooses_images, note_lines
from collafuse_edge.cli.parts.fields import takes
from collafuse_edge.cli.parts.output import (
    JsonOption,
    OptionalOutFolder,
    OverwriteOption,
    SamplerChoice,
    emit,
    is_given,
    refuse_options,
    stage_printer,
)
from collafuse_runtimes.engine_options import EngineOptions
from collafuse_runtimes.errors import InputError

if TYPE_CHECKING:
    from collafuse_export import ExportSettings, Fit
    from collafuse_runtimes.diffusion.noise import Float32Array
    from collafuse_runtimes.files.handover import Handover

JudgeOption = Annotated[
    Path | None,
    typer.Option(
        "--judge-on", help="A server's hand-over tensors: few steps must be better on these too.",
        metavar="X.tc.safetensors",
    ),
]  # fmt: skip


@dataclass(frozen=True)
class Exported:
    """What a head bundle is made from, and how."""

    cut_ratio: Annotated[
        float | None,
        typer.Option(help="Serve a plan with a smaller cut ratio than the head was trained for. Default: its own."),
    ] = None
    steps: Annotated[
        str | None,
        typer.Option(
            help="Step counts to bake, e.g. 10,5. Default: 8,5 of dpm++2m (3 with --fit), every step of others."
        ),
    ] = None
    way: SamplerChoice = field(default_factory=SamplerChoice)
    precision: Annotated[Precision, typer.Option(help="Precision of the network; int8 needs --calibration.")] = "fp32"
    opset: Annotated[int, typer.Option(help="ONNX opset: 20, or 17 for JetPack 5.")] = 20
    calibration: Annotated[
        Path | None,
        typer.Option(help="Hand-over file that int8 is fitted to and judged on.", metavar="X.tc.safetensors"),
    ] = None
    data: Annotated[
        DataChoice | None,
        typer.Option(
            "--fit",
            help="Fit few steps to many: hand-over tensors (preferred) or images as for --data.",
            metavar="X.tc.safetensors|DATA",
        ),
    ] = None
    teacher_steps: Annotated[
        int | None, typer.Option(help="Steps of the trajectory that --fit fits to. Default: every step.")
    ] = None
    judge_on: JudgeOption = None
    force: Annotated[
        bool, typer.Option("--force/--no-force", help="Keep a precision slower or farther off than allowed.")
    ] = False


@dataclass(frozen=True)
class Built:
    """Which engine is built, for what."""

    engine: Annotated[
        BuiltEngine | None, typer.Option(help="Build the TensorRT engine of a bundle, for this machine.")
    ] = None
    options: Annotated[EngineOptions, ("gpu", "cache")] = field(default_factory=EngineOptions)
    max_batch: Annotated[int, typer.Option(help="Most images at once that the engine takes.")] = 8
    embed: Annotated[
        bool, typer.Option("--embed/--no-embed", help="Put the engine into the bundle, for devices of the same kind.")
    ] = False


EXPORT_ONLY = (
    "out", "cut_ratio", "steps", "sampler", "eta", "levels", "precision", "opset", "calibration", "force", "overwrite",
    "data", *SELECTION_OPTIONS, "teacher_steps", "judge_on",
)  # fmt: skip
ENGINE_ONLY = ("gpu", "cache", "max_batch", "embed")
HANDOVER_SUFFIX = ".tc.safetensors"


@keeps_options
@chooses_images
@takes("head", Exported)
@takes("built", Built)
def export(
    *,
    context: typer.Context,
    source: Annotated[
        Path, typer.Argument(help="Folder written by train-client, distill or import; with --engine a head bundle.")
    ],
    out: OptionalOutFolder = None,
    head: Exported,
    built: Built,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Turn a trained head into a head bundle; fails unless the graph reproduces the network's whole trajectory.

    With --engine: build the TensorRT engine of a bundle on this machine, ahead of its first use.
    """
    if built.engine is not None:
        refuse_options(context, EXPORT_ONLY, "--engine builds from a finished bundle")
        _build_engine(source, built.engine, built, as_json)
    elif out is None:
        raise InputError("export needs --out, the bundle folder to write, for example head-1.head")
    else:
        refuse_options(context, ENGINE_ONLY, "without --engine no TensorRT engine is built")
        if head.data is None or head.data.source.endswith(HANDOVER_SUFFIX):
            refuse_options(context, tuple(SELECTION_OPTIONS), "no images are read without --fit DATA")
        is_asked = any(is_given(context, name) for name in ("sampler", "eta", "levels"))
        _export_head(source, out, head, is_asked, overwrite=overwrite, as_json=as_json)


def _export_head(
    checkpoint: Path, out: Path, head: Exported, is_asked: bool, *, overwrite: bool, as_json: bool
) -> None:
    """Args: is_asked: whether sampler, eta or levels were given."""
    from dataclasses import asdict

    from collafuse_export import describe_export, export_with_report

    settings = _export_settings(head, is_asked)
    fit, notes = _fit(head, checkpoint)
    bundle, report = export_with_report(
        checkpoint, out, settings, fit, force=head.force, overwrite=overwrite, on_progress=stage_printer()
    )
    result = {
        "bundle": str(out),
        "parity": bundle.parity,
        "precision": None if report is None else report.to_dict(),
        "fit": None if bundle.fitted is None else asdict(bundle.fitted.report),
    }
    answer, *details = describe_export(bundle, report)
    emit(result, as_json, answer, *notes, *details)


def _export_settings(head: Exported, is_asked: bool) -> "ExportSettings":
    from collafuse_edge.cli.parts.parsing import comma_integers
    from collafuse_export import ExportSettings
    from collafuse_runtimes.files.handover import read_handover

    sampler, timesteps = head.way.named(head.steps) if is_asked else (None, None)
    counts = None if head.steps is None else comma_integers("steps", head.steps)
    calibration = None if head.calibration is None else read_handover(head.calibration)
    return ExportSettings(head.cut_ratio, counts, sampler, timesteps, head.precision, head.opset, calibration)


def _fit(head: Exported, checkpoint: Path) -> "tuple[Fit, list[str]]":
    """(what --fit and its companions name, lines about it)."""
    from collafuse_export import Fit
    from collafuse_runtimes.files.handover import read_handover

    judge_on = None if head.judge_on is None else read_handover(head.judge_on)
    source, notes = _fit_source(head.data, checkpoint)
    return Fit(source, head.teacher_steps, judge_on), notes


def _fit_source(data: DataChoice | None, checkpoint: Path) -> "tuple[Handover | Float32Array | None, list[str]]":
    from collafuse_runtimes.disk.home import expand
    from collafuse_runtimes.files.checkpoint import read_checkpoint
    from collafuse_runtimes.files.handover import read_handover

    if data is None:
        return None, []
    if data.source.endswith(HANDOVER_SUFFIX):
        return read_handover(expand(data.source)), []
    images = data.load(read_checkpoint(checkpoint, "client").plan.image_shape)
    return images.images, note_lines(images)


def _build_engine(source: Path, engine: str, built: Built, as_json: bool) -> None:
    from dataclasses import asdict

    from collafuse_runtimes.engines import ENGINES, check_precision
    from collafuse_runtimes.engines.trt.prepare import build_engine, embed_engine, print_progress
    from collafuse_runtimes.files.bundle import read_bundle

    bundle = read_bundle(source)
    if engine in ENGINES:
        check_precision(engine, bundle)
    report = build_engine(bundle, engine, built.options, max_batch=built.max_batch, on_progress=print_progress)
    lines = [
        f"engine    {report.path}",
        f"cache     {report.reason}",
        f"types     {report.inspection}",
        f"built     in {report.seconds:.1f} s, for 1 to {built.max_batch} images",
    ]
    if built.embed:
        embed_engine(bundle, report.path)
        lines.append(f"embedded  in {source}; devices of this kind run it with --trust-bundle")
    emit(asdict(report), as_json, *lines)


COMMANDS = (export,)
