"""The options that choose images, declared once for every command that reads them."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collafuse_edge.data import ImageSet

DataOption = Annotated[
    str,
    typer.Option(
        "--data", help="Folder of images, .npz, idx(.gz), NIfTI file or folder, or phantom:POPULATION[:COUNT[:SEED]]."
    ),
]
SELECTION_OPTIONS: dict[str, tuple[Any, Any]] = {
    "split": (Annotated[str | None, typer.Option(help="Split of an .npz: train, val, test. Default: train.")], None),
    "classes": (
        Annotated[list[str] | None, typer.Option("--class", help="Class name or number to keep; repeatable.")],
        None,
    ),
    "slices": (Annotated[str | None, typer.Option(help="NIfTI: axial slices START:STOP.")], None),
    "limit": (Annotated[int | None, typer.Option(help="Use the first N images only.")], None),
}
"""Parameter name to (annotation, default)."""


@dataclass(frozen=True)
class DataChoice:
    """What --data and its companions said.

    Attributes:
        source: of --data.
        options: value of every name in ``SELECTION_OPTIONS``.
    """

    source: str
    options: dict[str, Any]

    def load(self, image_shape: tuple[int, int, int]) -> "ImageSet":
        """The images, fitted to (C, H, W).

        Raises:
            InputError: as ``load_images``, or an option cannot be read.
        """
        from collafuse_edge.cli.parsing import slice_range
        from collafuse_edge.data import Selection, load_images

        split, classes, slices, limit = (self.options[name] for name in ("split", "classes", "slices", "limit"))
        bounds = None if slices is None else slice_range(slices)
        return load_images(self.source, image_shape, Selection(split, tuple(classes or ()), bounds, limit))


def chooses_images(command: Callable[..., None]) -> Callable[..., None]:
    """Replace a command's parameter ``data: DataChoice`` by --data and the options of ``SELECTION_OPTIONS``."""

    @functools.wraps(command)
    def run(**values: Any) -> None:
        options = {name: values.pop(name) for name in SELECTION_OPTIONS}
        command(data=DataChoice(values.pop("data"), options), **values)

    keyword = inspect.Parameter.KEYWORD_ONLY
    chosen = [inspect.Parameter("data", keyword, annotation=DataOption)]
    chosen += [
        inspect.Parameter(name, keyword, default=default, annotation=annotation)
        for name, (annotation, default) in SELECTION_OPTIONS.items()
    ]
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        parameters += chosen if parameter.name == "data" else [parameter.replace(kind=keyword)]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
