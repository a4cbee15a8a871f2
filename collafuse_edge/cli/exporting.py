"""The command export: a checkpoint to a head bundle, or a bundle to the TensorRT engine of this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from collafuse_edge.cli.parts.choices import BuiltEngine, Precision
from collafuse_edge.cli.parts.config import keeps_options
from collafuse_edge.cli.parts.data_options import SELECTION_OPTIONS, DataChoice, chooses_images, note_lines
from collafuse_edge.cli.parts.fields import Values, takes
from collafuse_edge.cli.parts.output import (
    EtaOption,
    JsonOption,
    LevelsOption,
    OptionalOutFolder,
    OverwriteOption,
    SamplerOption,
    emit,
    is_given,
    refuse_options,
    stage_printer,
)
from collafuse_runtimes.engine_options import EngineOptions
from collafuse_runtimes.errors import InputError

if TYPE_CHECKING:
    from collafuse_runtimes.diffusion.noise import Float32Array
    from collafuse_runtimes.files.handover import Handover

StepsOption = Annotated[
    str | None,
    typer.Option(help="Step counts to bake, e.g. 10,5. Default: 8,5 of dpm++2m (3 with --fit), every step of others."),
]
CalibrationOption = Annotated[
    Path | None, typer.Option(help="Hand-over file that int8 is fitted to and judged on.", metavar="X.tc.safetensors")
]
ForceOption = Annotated[
    bool, typer.Option("--force/--no-force", help="Keep a precision slower or farther off than allowed.")
]
CutOption = Annotated[
    float | None,
    typer.Option(help="Serve a plan with a smaller cut ratio than the head was trained for. Default: its own."),
]
FitOption = Annotated[
    DataChoice | None,
    typer.Option(
        "--fit",
        help="Fit few steps to many: hand-over tensors (preferred) or images as for --data.",
        metavar="X.tc.safetensors|DATA",
    ),
]
TeacherOption = Annotated[
    int | None, typer.Option(help="Steps of the trajectory that --fit fits to. Default: every step.")
]
JudgeOption = Annotated[
    Path | None,
    typer.Option(
        "--judge-on", help="A server's hand-over tensors: few steps must be better on these too.",
        metavar="X.tc.safetensors",
    ),
]  # fmt: skip
EmbedOption = Annotated[
    bool, typer.Option("--embed/--no-embed", help="Put the engine into the bundle, for devices of the same kind.")
]


EXPORT_ONLY = (
    "out", "cut_ratio", "steps", "sampler", "eta", "levels", "precision", "opset", "calibration", "force", "overwrite",
    "data", *SELECTION_OPTIONS, "teacher_steps", "judge_on",
)  # fmt: skip
ENGINE_ONLY = ("gpu", "cache", "max_batch", "embed")
HANDOVER_SUFFIX = ".tc.safetensors"


@keeps_options
@chooses_images
@takes("engine_options", EngineOptions, only=("gpu", "cache"))
def export(
    *,
    context: typer.Context,
    source: Annotated[
        Path, typer.Argument(help="Folder written by train-client, distill or import; with --engine a head bundle.")
    ],
    out: OptionalOutFolder = None,
    cut_ratio: CutOption = None,
    steps: StepsOption = None,
    sampler: SamplerOption = "dpm++2m",
    eta: EtaOption = 0.0,
    levels: LevelsOption = None,
    precision: Annotated[Precision, typer.Option(help="Precision of the network; int8 needs --calibration.")] = "fp32",
    opset: Annotated[int, typer.Option(help="ONNX opset: 20, or 17 for JetPack 5.")] = 20,
    calibration: CalibrationOption = None,
    data: FitOption = None,
    teacher_steps: TeacherOption = None,
    judge_on: JudgeOption = None,
    force: ForceOption = False,
    engine: Annotated[
        BuiltEngine | None, typer.Option(help="Build the TensorRT engine of a bundle, for this machine.")
    ] = None,
    engine_options: Values,
    max_batch: Annotated[int, typer.Option(help="Most images at once that the engine takes.")] = 8,
    embed: EmbedOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Turn a trained head into a head bundle; fails unless the graph reproduces the network's whole trajectory.

    With --engine: build the TensorRT engine of a bundle on this machine, ahead of its first use.
    """
    if engine is not None:
        refuse_options(context, EXPORT_ONLY, "--engine builds from a finished bundle")
        _build_engine(source, engine, EngineOptions(**engine_options), max_batch, embed, as_json)
    elif out is None:
        raise InputError("export needs --out, the bundle folder to write, for example head-1.head")
    else:
        refuse_options(context, ENGINE_ONLY, "without --engine no TensorRT engine is built")
        if data is None or data.source.endswith(HANDOVER_SUFFIX):
            refuse_options(context, tuple(SELECTION_OPTIONS), "no images are read without --fit DATA")
        is_asked = any(is_given(context, name) for name in ("sampler", "eta", "levels"))
        sampling = _sampling(steps, (sampler, eta, levels) if is_asked else None)
        fixed = {"cut_ratio": cut_ratio, "precision": precision, "opset": opset, "teacher_steps": teacher_steps}
        tensors = {"calibration": _handover(calibration), "judge_on": _handover(judge_on)}
        replacing = {"force": force, "overwrite": overwrite}
        _export_head(source, out, data, as_json, **sampling, **fixed, **tensors, **replacing)


def _sampling(steps: str | None, way: tuple[str, float, str | None] | None) -> dict[str, Any]:
    """What is baked: step counts, or sampler, eta and levels with either."""
    from collafuse_edge.cli.parts.parsing import comma_integers, way_named

    sampler, timesteps = (None, None) if way is None else way_named(*way, steps)
    counts = None if steps is None else comma_integers("steps", steps)
    return {"step_counts": counts, "sampler": sampler, "timesteps": timesteps}


def _handover(path: Path | None) -> "Handover | None":
    from collafuse_runtimes.files.handover import read_handover

    return None if path is None else read_handover(path)


def _export_head(checkpoint: Path, out: Path, data: DataChoice | None, as_json: bool, **options: Any) -> None:
    """Args: options: of ``export_with_report``."""
    from dataclasses import asdict

    from collafuse_export import describe_bundle, describe_precision, export_with_report

    fit_to, notes = _fit_source(data, checkpoint)
    bundle, report = export_with_report(checkpoint, out, fit_to=fit_to, on_progress=stage_printer(), **options)
    result = {
        "bundle": str(out),
        "parity": bundle.parity,
        "precision": None if report is None else report.to_dict(),
        "fit": None if bundle.fitted is None else asdict(bundle.fitted.report),
    }
    lines = [] if report is None else describe_precision(report)
    emit(result, as_json, *notes, *describe_bundle(bundle), *lines)


def _fit_source(data: DataChoice | None, checkpoint: Path) -> "tuple[Handover | Float32Array | None, list[str]]":
    """(what --fit names, lines about it)."""
    from collafuse_runtimes.disk.home import expand
    from collafuse_runtimes.files.checkpoint import read_checkpoint
    from collafuse_runtimes.files.handover import read_handover

    if data is None:
        return None, []
    if data.source.endswith(HANDOVER_SUFFIX):
        return read_handover(expand(data.source)), []
    images = data.load(read_checkpoint(checkpoint, "client").plan.image_shape)
    return images.images, note_lines(images)


def _build_engine(
    source: Path, engine: str, options: EngineOptions, max_batch: int, embed: bool, as_json: bool
) -> None:
    from dataclasses import asdict

    from collafuse_runtimes.engines import ENGINES, check_precision
    from collafuse_runtimes.engines.trt.prepare import build_engine, embed_engine, print_progress
    from collafuse_runtimes.files.bundle import read_bundle

    bundle = read_bundle(source)
    if engine in ENGINES:
        check_precision(engine, bundle)
    report = build_engine(bundle, engine, options, max_batch=max_batch, on_progress=print_progress)
    lines = [
        f"engine    {report.path}",
        f"cache     {report.reason}",
        f"types     {report.inspection}",
        f"built     in {report.seconds:.1f} s, for 1 to {max_batch} images",
    ]
    if embed:
        embed_engine(bundle, report.path)
        lines.append(f"embedded  in {source}; devices of this kind run it with --trust-bundle")
    emit(asdict(report), as_json, *lines)


COMMANDS = (export,)
