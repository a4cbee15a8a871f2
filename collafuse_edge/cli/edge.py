"""Commands of a device: verify, infer, doctor."""

from pathlib import Path
from typing import Annotated

import typer

from collafuse_edge.cli.parts.choices import Engine
from collafuse_edge.cli.parts.output import JsonOption, OutFolder, OverwriteOption, emit, progress

BundleArgument = Annotated[Path, typer.Argument(help="Head bundle written by `export`.", metavar="NAME.head")]
EngineOption = Annotated[Engine, typer.Option(help="What runs the head; `doctor` lists what can run here.")]
ThreadsOption = Annotated[int | None, typer.Option(help="CPU threads of one step.")]
SpinningOption = Annotated[
    bool | None,
    typer.Option("--spinning/--no-spinning", help="ort-cpu: idle threads wait busily. Faster steps, more energy."),
]
CheckpointOption = Annotated[Path | None, typer.Option(help="The head's checkpoint, for --engine torch only.")]
DeviceOption = Annotated[int | None, typer.Option(help="Index of the GPU, for engines that use one.")]
CacheOption = Annotated[Path | None, typer.Option(help="Folder of the TensorRT engines built on this machine.")]
TrustOption = Annotated[
    bool | None, typer.Option("--trust-bundle", help="Run the TensorRT engine that the bundle brings along.")
]


def verify(
    bundle: BundleArgument,
    engine: EngineOption = "ort-cpu",
    threads: ThreadsOption = None,
    spinning: SpinningOption = None,
    checkpoint: CheckpointOption = None,
    device: DeviceOption = None,
    cache: CacheOption = None,
    trust_bundle: TrustOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check every file of a head bundle and compare this machine's results with its golden trajectories."""
    from collafuse_runtimes.engines import EngineOptions
    from collafuse_runtimes.files.bundle import read_bundle
    from collafuse_runtimes.verify import describe_report, verify_bundle

    options = EngineOptions(threads, spinning, checkpoint, device, cache, trust_bundle)
    report = verify_bundle(read_bundle(bundle), engine, options)
    emit(report.to_dict(), as_json, *describe_report(report))
    report.require_passed(str(bundle))


def infer(
    bundle: BundleArgument,
    handover: Annotated[Path, typer.Argument(help="Hand-over file written by `handoff`.", metavar="X.tc.safetensors")],
    out: OutFolder,
    engine: EngineOption = "ort-cpu",
    steps: Annotated[int | None, typer.Option(help="A baked step count. Default: the bundle's first.")] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="Conditional heads: classes by name or number, one for all images or one each: 0,glioma,1."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images per step; changes speed and memory, not the images.")] = 8,
    threads: ThreadsOption = None,
    spinning: SpinningOption = None,
    checkpoint: CheckpointOption = None,
    device: DeviceOption = None,
    cache: CacheOption = None,
    trust_bundle: TrustOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Finish hand-over tensors: one PNG each, a contact sheet and an .npz, in a new folder."""
    from collafuse_runtimes.engines import EngineOptions
    from collafuse_runtimes.files.bundle import read_bundle
    from collafuse_runtimes.files.handover import read_handover
    from collafuse_runtimes.infer import run_inference
    from collafuse_runtimes.networks.classes import choose_classes

    head, tensors = read_bundle(bundle), read_handover(handover)
    classes = None if labels is None else choose_classes(labels, len(tensors), head.num_classes, head.class_names)
    batches = -(-len(tensors) // max(batch_size, 1))
    with progress("infer", batches * head.row_range(steps).steps) as show:
        result = run_inference(
            head,
            tensors,
            out,
            engine_name=engine,
            steps=steps,
            labels=classes,
            batch_size=batch_size,
            engine_options=EngineOptions(threads, spinning, checkpoint, device, cache, trust_bundle),
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
