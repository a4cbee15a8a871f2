"""--config and --save-config: a command's options in a TOML file, read as defaults and written as they were given."""

import functools
import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from collafuse_edge.cli.parts.fields import replace_parameter
from collafuse_edge.cli.parts.output import file_if_any, is_given
from collafuse_edge.cli.parts.paths import PATHS_IN_TEXT
from collafuse_runtimes.errors import InputError
from collafuse_runtimes.text import without_surrogates

NOT_KEPT = ("context", "config", "save_config", "as_json", "overwrite", "resume")
"""Parameters of one run: how it is printed, and what it may replace or continue."""
LARGEST = 1 << 20
"""Bytes of a file; one with every option has a thousand."""
NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}


def keeps_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --config, whose values are defaults, and --save-config, written when the command has ended well."""
    parameters = inspect.signature(command).parameters
    own_context = "context" in parameters

    @functools.wraps(command)
    def run(context: typer.Context, config: Path | None, save_config: Path | None, **values: Any) -> None:
        kept = None if save_config is None else _text(save_config, context, values)
        command(**values, **({"context": context} if own_context else {}))
        if save_config is not None and kept is not None:
            write_kept(save_config, kept)

    last = parameters["as_json"]
    added = [_parameter("config"), _parameter("save_config"), last, *([] if own_context else [_parameter("context")])]
    return replace_parameter(run, command, "as_json", added)


def write_kept(path: Path, text: str) -> None:
    """Of several processes (`accelerate launch`) only the first writes."""
    from collafuse_runtimes.disk.atomic import write_bytes

    if os.environ.get("RANK", "0") == "0":
        write_bytes(path, text.encode(), check=_require_new)
        print(f"wrote     {path}: --config repeats this run", file=sys.stderr)


def take_files(command: Any) -> Any:
    """Give positional arguments of a click command, and of those below it, what a file has where none stand.

    click looks into ``default_map`` for options alone where an argument takes any number, and asks a callback too late:
    after it has refused a required one that is not there.
    """
    for child in getattr(command, "commands", {}).values():
        take_files(child)
    for parameter in command.params:
        if parameter.param_type_name == "argument" and parameter.nargs == -1:
            parameter.process_value = functools.partial(_or_from_file, parameter, parameter.process_value)
    return command


def _or_from_file(parameter: Any, process: Callable[[Any, Any], Any], context: Any, value: Any) -> Any:
    return process(context, value or (context.default_map or {}).get(parameter.name, value))


def _read(context: typer.Context, path: Path | None) -> Path | None:
    """The callback of --config: what the file says becomes the default of each option."""
    if path is None:
        return None
    valid = _kept(context)
    found = {}
    for key, value in _tables(path).items():
        if key not in valid:
            raise InputError(f"{path}: {key!r} is no option of this command; valid: {', '.join(sorted(valid))}")
        name, kind, is_list, choices = valid[key]
        _check(path, key, value, kind, is_list, choices)
        found[name] = _moved(name, value, lambda named: str(path.parent / named)) if _is_path(name, kind) else value
    context.default_map = found
    return path


def _tables(path: Path) -> dict[str, Any]:
    """What a TOML file says."""
    from collafuse_runtimes.disk.regular_file import read_bytes

    try:
        toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    except ModuleNotFoundError:
        raise InputError("--config needs Python 3.11 or newer, or `pip install tomli`") from None
    try:
        said: dict[str, Any] = toml.loads(read_bytes(path, LARGEST).decode())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no TOML file: {error}; valid lines are, for example, steps = 100") from None
    return said


def _kept(context: Any) -> dict[str, tuple[str, Any, bool, tuple[str, ...]]]:
    """Key in the file -> (parameter, type, whether a list, valid texts) of everything worth keeping."""
    declared = inspect.signature(context.command.callback).parameters
    return {
        _key(p): (p.name, *_type(declared[p.name].annotation))
        for p in context.command.params
        if p.name in declared and p.name not in NOT_KEPT
    }


def _key(parameter: Any) -> str:
    """An option's name without dashes; an argument's own."""
    return str(parameter.name if parameter.param_type_name == "argument" else parameter.opts[0].lstrip("-"))


def _type(annotation: Any) -> tuple[Any, bool, tuple[str, ...]]:
    """(bool, int, float, str or Path, whether a list of these, valid texts)."""
    kind = get_args(annotation)[0]
    parts = [part for part in get_args(kind) if part is not NoneType]
    if NoneType in get_args(kind):
        kind = parts[0]
    if get_origin(kind) is list:
        return get_args(kind)[0], True, ()
    return (str, False, get_args(kind)) if get_origin(kind) is Literal else (kind, False, ())


def _check(path: Path, key: str, value: Any, kind: Any, is_list: bool, choices: tuple[str, ...]) -> None:
    """Raises InputError: a value is of another type than its option, or outside its set."""
    valid = str if kind is Path else kind
    items = value if is_list and isinstance(value, list) else [value]
    taken = (int, float) if valid is float else valid
    fits = all(isinstance(item, taken) and isinstance(item, bool) == (valid is bool) for item in items)
    if not fits or isinstance(value, list) != is_list:
        words = f"a list, each {NAMES[valid]}" if is_list else NAMES[valid]
        raise InputError(f"{path}: {key} is {json.dumps(value, default=str)}; valid: {words}")
    if choices and value not in choices:
        raise InputError(f"{path}: {key} is {value!r}; valid: {', '.join(choices)}")


def _is_path(name: str, kind: Any) -> bool:
    return kind is Path or name in PATHS_IN_TEXT


def _moved(name: str, value: Any, move: Callable[[str], str]) -> Any:
    """The value with its path, or paths, moved; ~ and phantom:... stay."""
    if isinstance(value, list | tuple):
        return [_moved(name, item, move) for item in value]
    separator = PATHS_IN_TEXT.get(name)
    before, mark, path = str(value).rpartition(separator) if separator else ("", "", str(value))
    stays = path.startswith("~") or (name == "data" and path.startswith("phantom:"))
    return str(value) if stays else before + mark + move(path)


def _text(path: Path, context: Any, values: dict[str, Any]) -> str:
    """A file of what was given, and as remarks of what was not; never of what is in a file that an option names.

    Raises:
        InputError: the file is there already, or a name is not Unicode, as TOML is.
    """
    _require_new(path)
    folder = path.parent.resolve()

    def from_folder(name: str) -> str:
        there = Path.cwd() / name
        return str(there.relative_to(folder) if there.is_relative_to(folder) else there)

    lines = [f"# {context.command_path} --config {path.name}", "# Paths are relative to the folder of this file."]
    for key, (name, kind, _, _) in _kept(context).items():
        value = values[name]
        if value is None or value in ([], ()):
            continue
        left = "" if is_given(context, name) else "# by default: "
        lines.append(f"{left}{key} = {_toml(_moved(name, value, from_folder) if _is_path(name, kind) else value)}")
    text = "\n".join([*lines, ""])
    if without_surrogates(text) != text:
        raise InputError(f"--save-config {path}: a name in it is not Unicode, as TOML has to be; rename what has it")
    return text


def _toml(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool | int | float):
        return str(value).lower()
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _require_new(path: Path) -> None:
    if path.exists():
        raise InputError(f"{path} exists already; choose another --save-config, or delete it")


OURS = {
    "context": typer.Context,
    "config": Annotated[
        Path | None,
        typer.Option(
            help="File with options of this command; the command line wins.", metavar="FILE.toml", is_eager=True,
            callback=_read,
        ),
    ],
    "save_config": Annotated[
        Path | None,
        typer.Option(help="New file that repeats this run by --config.", metavar="FILE.toml", callback=file_if_any),
    ],
}  # fmt: skip


def _parameter(name: str) -> inspect.Parameter:
    default = inspect.Parameter.empty if name == "context" else None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=OURS[name])
