"""The command inspect: what a data set looks like to the network, or what an artefact is."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from collafuse_edge.cli.parts.data_options import SELECTION_OPTIONS, DataChoice, chooses_images
from collafuse_edge.cli.parts.output import JsonOption, OptionalOutFile, emit, refuse_options
from collafuse_runtimes.errors import InputError

if TYPE_CHECKING:
    from collafuse_runtimes.inspection import Description

Subject = Annotated[
    DataChoice, typer.Argument(help="Images of any kind (as --data), or a file or folder of any command.")
]
OF_DATA = ("plan", "size", "channels", "out", *SELECTION_OPTIONS)


@chooses_images
def inspect(
    context: typer.Context,
    data: Subject,
    plan: Annotated[Path | None, typer.Option(help="Images: plan whose size to fit them to.")] = None,
    size: Annotated[str | None, typer.Option(help="Images: side, or HEIGHTxWIDTH, in place of a plan.")] = None,
    channels: Annotated[int, typer.Option(help="Images: 1 (grey) or 3 (colour), with --size.")] = 1,
    out: OptionalOutFile = None,
    as_json: JsonOption = False,
) -> None:
    """Show images as the network will see them, or explain any file or folder of these commands."""
    artefact = None if data.source.partition(":")[0] == "phantom" else _artefact(data.source)
    if artefact is not None:
        refuse_options(context, OF_DATA, f"{data.source} is a {artefact.kind}, no set of images")
        emit(artefact.to_dict(), as_json, *artefact.lines())
        return
    from collafuse_edge.data.inspection import describe_data, inspect_images, to_dict
    from collafuse_runtimes.disk.home import expand

    if out is not None:
        _require_new_place(out, expand(data.source))
    images = data.load(_image_shape(plan, size, channels))
    report = inspect_images(images, out)
    emit(to_dict(report), as_json, *describe_data(report))


def _artefact(source: str) -> "Description | None":
    """None for what images are read from."""
    import os

    from collafuse_edge.artefacts import describe_artefact, kinds
    from collafuse_edge.data.loading import KINDS, is_image_source
    from collafuse_runtimes.disk.home import expand
    from collafuse_runtimes.inspection import unknown

    path = expand(source)
    if not source or not os.path.exists(path):  # noqa: PTH110  Path.exists raises on names no file can have
        raise InputError(f"{source!r} does not exist; give a file or folder of these commands, or {KINDS}")
    found = describe_artefact(path)
    if found is None and not is_image_source(path):
        raise unknown(path, [*kinds(), KINDS])
    return found


def _require_new_place(out: Path, data: Path) -> None:
    """A contact sheet replaces nothing and does not become an image of the data set."""
    if out.exists():
        raise InputError(f"{out} exists already; choose another --out for the contact sheet, or delete it")
    if data.is_dir() and out.resolve().is_relative_to(data.resolve()):
        raise InputError(f"{out} lies in {data}, where the sheet would be read as an image; choose another place")


def _image_shape(plan: Path | None, size: str | None, channels: int) -> tuple[int, int, int]:
    from collafuse_edge.init import sides
    from collafuse_runtimes.diffusion.plan import SplitPlan
    from collafuse_runtimes.files.plan_file import read_plan

    if (plan is None) == (size is None):
        raise InputError("images are shown at a plan's size; give --plan PLAN.json, or --size SIDE and --channels")
    return SplitPlan((channels, *sides(str(size)))).image_shape if plan is None else read_plan(plan).image_shape


COMMANDS = (inspect,)
"""Of this module."""
