"""Commands that show and judge: demo, evaluate."""

from pathlib import Path
from typing import Annotated

import typer

from collafuse_edge.cli.parts.config import keeps_options
from collafuse_edge.cli.parts.data_options import DataChoice, chooses_images, note_lines
from collafuse_edge.cli.parts.output import JsonOption, emit, stage_printer
from collafuse_runtimes.errors import InputError


@keeps_options
@chooses_images
def evaluate(
    *,
    generated: Annotated[
        list[Path],
        typer.Argument(help="Folders written by `infer`, or hand-over files; compared with the first."),
    ],
    data: DataChoice,
    held_out_split: Annotated[
        str | None, typer.Option(help="Split of --data that nothing was trained on: judge against it too.")
    ] = None,
    extractor: Annotated[
        Path | None,
        typer.Option(help="ONNX feature extractor, (N, 3, H, W) in 0..255 to (N, D): KID, precision and recall too."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """How far generated images are from real ones, one set or several: pyramid distance, KID, precision, recall."""
    from collafuse_edge.evaluation.compare import compare
    from collafuse_edge.evaluation.describe import describe_comparison, describe_score
    from collafuse_edge.evaluation.evaluate import read_generated, real_images

    sets = {str(path): read_generated(path) for path in generated}
    if len(sets) < len(generated):
        raise InputError("a set of generated images is given twice; name each once")
    shape = next(iter(sets.values())).images.shape[1:]
    real = [data.load(shape)]
    names = [real[0].source]
    if held_out_split is not None:
        real.append(DataChoice(data.source, {**data.options, "split": held_out_split}).load(shape))
        names = [f"{real[0].source} ({data.options['split'] or 'train'})", f"{real[1].source} ({held_out_split})"]
    found = compare(
        [real_images(name, one.images, extractor) for name, one in zip(names, real, strict=True)], sets, extractor
    )
    notes = [line for one in real for line in note_lines(one)]
    if len(found.scores) == 1:
        answer, *details = describe_score(found.scores[0])
        emit({**found.scores[0].to_dict(), "notes": real[0].notes}, as_json, answer, *notes, *details)
        return
    emit({**found.to_dict(), "notes": [line for one in real for line in one.notes]}, as_json,
         *describe_comparison(found), *notes)  # fmt: skip


def demo(
    out: Annotated[Path, typer.Option(help="New folder to write.")] = Path("demo-out"), as_json: JsonOption = False
) -> None:
    """Two clients on drawn phantoms: upload, train, hand over, export, verify, infer; needs no data."""
    import sys
    from dataclasses import asdict

    from collafuse_edge.demo import demo_table, run_demo

    result = run_demo(
        out, lambda command: print(f"$ collafuse-edge {command}", file=sys.stderr), stage_printer("steps")
    )
    lines = [*demo_table(result), f"picture   {result.picture} (rows per client: its images, handed over, finished)"]
    emit(asdict(result), as_json, *lines, f"took      {result.seconds:.0f} s")


COMMANDS = (demo, evaluate)
