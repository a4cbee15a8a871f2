"""The options that choose images, declared once for every command that reads them."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from collafuse_edge.cli.parts.fields import replace_parameter

if TYPE_CHECKING:
    from collafuse_edge.data import ImageSet

DataOption = Annotated[
    str,
    typer.Option(
        "--data", help="Folder of images, .npz, idx(.gz), NIfTI or DICOM, or phantom:POPULATION[:COUNT[:SEED]]."
    ),
]
SELECTION_OPTIONS: dict[str, tuple[Any, Any]] = {
    "split": (
        Annotated[str | None, typer.Option(help="Split of a folder or .npz: train, val, test. Default: train.")],
        None,
    ),
    "classes": (
        Annotated[list[str] | None, typer.Option("--class", help="Class name or number to keep; repeatable.")],
        None,
    ),
    "slices": (Annotated[str | None, typer.Option(help="NIfTI, DICOM: slices START:STOP of each volume.")], None),
    "limit": (Annotated[int | None, typer.Option(help="Use the first N images only.")], None),
    "include": (
        Annotated[
            list[str] | None, typer.Option(help="Folders: take only paths like this, e.g. 'siteA/**'; repeatable.")
        ],
        None,
    ),
    "exclude": (
        Annotated[list[str] | None, typer.Option(help="Folders: leave out paths like this; repeatable.")],
        None,
    ),
    "labels_file": (
        Annotated[
            Path | None,
            typer.Option(help="Folders: table of path and label.", metavar="FILE.csv|.tsv|.json"),
        ],
        None,
    ),
    "window": (
        Annotated[
            str | None,
            typer.Option(
                help="Stored values that become black and white, e.g. -160:240 Hounsfield.", metavar="LOW:HIGH"
            ),
        ],
        None,
    ),
    "max_value": (
        Annotated[int | None, typer.Option(help="Stored value that becomes white, e.g. 4095 for 12 bits.")],
        None,
    ),
}
"""Parameter name to (annotation, default)."""


@dataclass(frozen=True)
class DataChoice:
    """What --data and its companions said.

    Attributes:
        source: of --data.
        options: value of every name in ``SELECTION_OPTIONS``; these are fields of ``Selection``.
    """

    source: str
    options: dict[str, Any]

    def load(self, image_shape: tuple[int, int, int]) -> "ImageSet":
        """The images, fitted to (C, H, W).

        Raises:
            InputError: as ``load_images``, or an option cannot be read.
        """
        from collafuse_edge.cli.parts.parsing import slice_range, value_window
        from collafuse_edge.data import Selection, load_images

        given = {name: tuple(value) if isinstance(value, list) else value for name, value in self.options.items()}
        chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if "slices" in chosen:
            chosen["slices"] = slice_range(chosen["slices"])
        if "window" in chosen:
            chosen["window"] = value_window(chosen["window"])
        return load_images(self.source, image_shape, Selection(**chosen))


def note_lines(images: "ImageSet") -> list[str]:
    """What was taken, left out and converted, in lines for people."""
    return [f"note      {line}" for line in images.notes]


def chooses_images(command: Callable[..., None]) -> Callable[..., None]:
    """Replace a command's parameter ``data`` by its source and the options of ``SELECTION_OPTIONS``.

    The source is --data where the parameter is annotated as ``DataChoice``, else what the annotation says; where the
    parameter has a default, None, it may be left out.
    """

    @functools.wraps(command)
    def run(**values: Any) -> None:
        options = {name: values.pop(name) for name in SELECTION_OPTIONS}
        source = values.pop("data")
        command(data=None if source is None else DataChoice(source, options), **values)

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameter = inspect.signature(command).parameters["data"]
    own, default = parameter.annotation, parameter.default
    kind: Any = str if default is inspect.Parameter.empty else str | None
    source = DataOption if own is DataChoice else Annotated[kind, own.__metadata__[0]]
    chosen = [inspect.Parameter("data", keyword, default=default, annotation=source)]
    chosen += [
        inspect.Parameter(name, keyword, default=default, annotation=annotation)
        for name, (annotation, default) in SELECTION_OPTIONS.items()
    ]
    return replace_parameter(run, command, "data", chosen)
