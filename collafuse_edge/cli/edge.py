"""Commands of a device: verify, infer, doctor."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from collafuse_edge.cli.parts.choices import Engine
from collafuse_edge.cli.parts.config import keeps_options
from collafuse_edge.cli.parts.fields import takes
from collafuse_edge.cli.parts.output import JsonOption, OutFolder, OverwriteOption, emit, progress
from collafuse_runtimes.engine_options import EngineOptions

BundleArgument = Annotated[Path, typer.Argument(help="Head bundle written by `export`.", metavar="NAME.head")]
EngineOption = Annotated[Engine, typer.Option(help="What runs the head; `doctor` lists what can run here.")]


@dataclass(frozen=True)
class EngineChoice:
    """What runs a head, and what it is told."""

    engine: EngineOption = "ort-cpu"
    options: EngineOptions = field(default_factory=EngineOptions)


@dataclass(frozen=True)
class Finishing:
    """How hand-over tensors are finished."""

    run: EngineChoice = field(default_factory=EngineChoice)
    steps: Annotated[int | None, typer.Option(help="A baked step count. Default: the bundle's first.")] = None
    labels: Annotated[
        str | None,
        typer.Option(help="Conditional heads: classes by name or number, one for all images or one each: 0,glioma,1."),
    ] = None
    batch_size: Annotated[int, typer.Option(help="Images per step; changes speed and memory, not the images.")] = 8


@keeps_options
@takes("run", EngineChoice)
def verify(*, bundle: BundleArgument, run: EngineChoice, as_json: JsonOption = False) -> None:
    """Check every file of a head bundle and compare this machine's results with its golden trajectories."""
    from collafuse_runtimes.files.bundle import read_bundle
    from collafuse_runtimes.verify import describe_report, verify_bundle

    report = verify_bundle(read_bundle(bundle), run.engine, run.options)
    emit(report.to_dict(), as_json, *describe_report(report))
    report.require_passed(str(bundle))


@keeps_options
@takes("how", Finishing)
def infer(
    *,
    bundle: BundleArgument,
    handover: Annotated[Path, typer.Argument(help="Hand-over file written by `handoff`.", metavar="X.tc.safetensors")],
    out: OutFolder,
    how: Finishing,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Finish hand-over tensors: one PNG each, a contact sheet and an .npz, in a new folder."""
    from collafuse_runtimes.files.bundle import read_bundle
    from collafuse_runtimes.files.handover import read_handover
    from collafuse_runtimes.infer import InferSettings, run_inference
    from collafuse_runtimes.networks.classes import choose_classes

    head, tensors = read_bundle(bundle), read_handover(handover)
    labels, names = how.labels, head.class_names
    classes = None if labels is None else choose_classes(labels, len(tensors), head.num_classes, names)
    batches = -(-len(tensors) // max(how.batch_size, 1))
    with progress("infer", batches * head.row_range(how.steps).steps) as show:
        result = run_inference(
            head,
            tensors,
            out,
            InferSettings(how.run.engine, how.run.options, how.steps, how.batch_size),
            labels=classes,
            on_step=lambda done, _: show(done, "steps"),
            overwrite=overwrite,
        )
    summary = {"out": str(out), "count": len(result.images), "steps": result.steps, "engine": result.engine}
    emit(summary, as_json, f"wrote     {out}: {len(result.images)} images in {result.steps} steps by {result.engine}")


def doctor(
    bundle: Annotated[
        Path | None, typer.Argument(help="Head bundle to run on every engine that is here.", metavar="[NAME.head]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say which engines, libraries and devices work here, and for each that does not, why and what to do."""
    from collafuse_runtimes.doctor import describe_doctor, examine
    from collafuse_runtimes.files.bundle import read_bundle

    report = examine(None if bundle is None else read_bundle(bundle))
    emit(report.to_dict(), as_json, *describe_doctor(report))
    report.require_passed()


COMMANDS = (verify, infer, doctor)
