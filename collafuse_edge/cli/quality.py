"""Commands that show and judge: demo, evaluate."""

from pathlib import Path
from typing import Annotated

import typer

from collafuse_edge.cli.parts.data_options import DataChoice, chooses_images, note_lines
from collafuse_edge.cli.parts.output import JsonOption, emit, stage_printer


@chooses_images
def evaluate(
    generated: Annotated[Path, typer.Argument(help="Folder written by `infer`, or a .tc.safetensors file.")],
    data: DataChoice,
    extractor: Annotated[Path, typer.Option(help="ONNX feature extractor: (N, 3, H, W) in 0..255 to (N, D).")],
    as_json: JsonOption = False,
) -> None:
    """Kernel inception distance between generated and real images."""
    from collafuse_edge.evaluation.evaluate import describe_score, kid, read_generated

    found = read_generated(generated)
    _, channels, height, width = found.images.shape
    real = data.load((channels, height, width))
    score = kid(real.images, found, extractor, real_name=real.source, generated_name=str(generated))
    answer, *details = describe_score(score)
    emit({**score.to_dict(), "notes": real.notes}, as_json, answer, *note_lines(real), *details)


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
