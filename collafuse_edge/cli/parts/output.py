"""What every command shares: results for people or programs, progress, and options used more than once."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from collafuse_edge.cli.parts.choices import LEVELS
from collafuse_edge.cli.parts.choices import Sampler as SamplerName
from collafuse_runtimes.errors import ArtefactError, InputError

if TYPE_CHECKING:
    from collafuse_runtimes.diffusion.samplers import Sampler


def _file_to_write(path: Path) -> Path:
    """Refused before the work, not after it: no folder to write to, or a folder, device or pipe of that name.

    A rename would replace /dev/null by a file.

    Raises:
        ArtefactError: see above.
    """
    if _folder_to_write(path).exists() and not path.is_file():
        raise ArtefactError(f"cannot write {path}: a folder or device of that name exists; give the name of a file")
    return path


def _folder_to_write(path: Path) -> Path:
    """As ``_file_to_write``, for a folder that a command makes."""
    if not path.parent.is_dir():
        raise ArtefactError(f"cannot write {path}: there is no folder {path.parent}; create it first")
    return path


def _folder_if_any(path: Path | None) -> Path | None:
    return None if path is None else _folder_to_write(path)


def file_if_any(path: Path | None) -> Path | None:
    """As ``_file_to_write``, of an option that may be left out."""
    return None if path is None else _file_to_write(path)


PlanOption = Annotated[Path, typer.Option("--plan", help="Plan file written by `init`.", metavar="PLAN.json")]
OutFile = Annotated[Path, typer.Option("--out", help="File to write.", callback=_file_to_write)]
OptionalOutFile = Annotated[Path | None, typer.Option("--out", help="File to write.", callback=file_if_any)]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder to write.", callback=_folder_to_write)]
OptionalOutFolder = Annotated[Path | None, typer.Option("--out", help="Folder to write.", callback=_folder_if_any)]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an --out of the same kind.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for programs.")]


@dataclass(frozen=True)
class SamplerChoice:
    """How steps are taken, and where they lie."""

    sampler: Annotated[SamplerName, typer.Option(help="How a step is taken.")] = "dpm++2m"
    eta: Annotated[float, typer.Option(help="DDIM's eta, 0 (deterministic) to 1.")] = 0.0
    levels: Annotated[
        str | None,
        typer.Option(
            help="even, log-snr, karras, or timesteps, e.g. 19,9,4,1,0. Default: karras for dpm++2m, else even.",
            autocompletion=lambda: list(LEVELS),
        ),
    ] = None

    def named(self, steps: object) -> "tuple[Sampler, tuple[int, ...] | None]":
        """As ``way_named``."""
        from collafuse_edge.cli.parts.parsing import way_named

        return way_named(self.sampler, self.eta, self.levels, steps)


SECONDS_BETWEEN_LINES = 10.0


def is_given(context: typer.Context, name: str) -> bool:
    """Whether a parameter stands on the command line, or in the file of --config."""
    source = context.get_parameter_source(name)
    return source is not None and source.name in ("COMMANDLINE", "DEFAULT_MAP")


def refuse_options(context: typer.Context, names: tuple[str, ...], why: str) -> None:
    """Options that would do nothing are refused, not ignored.

    Raises:
        InputError: one of ``names`` stands on the command line, or in the file of --config.
    """
    for name in names:
        if is_given(context, name):
            option = next(param.opts[0] for param in context.command.params if param.name == name)
            raise InputError(f"{why}; leave out {option}")


def emit(result: dict[str, Any], as_json: bool, *lines: str) -> None:
    """Print the result as one JSON object, or the lines for people; names from files cannot command the terminal."""
    from collafuse_runtimes.text import printable

    text = "\n".join(printable(line) for part in lines for line in part.split("\n"))
    print(json.dumps(result, default=str) if as_json else text)


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """A function (done, text) that draws a bar on a terminal, or a line every ten seconds elsewhere, on stderr."""
    if not sys.stderr.isatty():
        yield line_printer(title, total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(title), BarColumn(), TextColumn("{task.completed}/{task.total} {task.fields[text]}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, text="")
        yield lambda done, text: bar.update(task, completed=done, text=text)


def line_printer(title: str, total: int) -> Callable[[int, str], None]:
    """A function (done, text) that prints a line on stderr every ten seconds and at the end."""
    last = time.monotonic()

    def show(done: int, text: str) -> None:
        nonlocal last
        if done == total or time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            print(f"{title} {done}/{total} {text}".rstrip(), file=sys.stderr, flush=True)

    return show


def stage_printer(unit: str = "") -> Callable[[str, int, int], None]:
    """A function (what, done, in all) that prints each stage as a line every ten seconds and at its end."""
    shows: dict[str, Callable[[int, str], None]] = {}

    def show(what: str, done: int, total: int) -> None:
        shows.setdefault(what, line_printer(what, total))(done, unit)

    return show
