"""Paths on the command line, for all commands at once: `~` in every one, and an output that is none of the inputs."""

import functools
import inspect
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from collafuse_runtimes.errors import InputError

PATHS_IN_TEXT = {"data": "", "others": "", "image_kid": "=", "handover_kid": "="}
"""Parameters that are texts with a path in them: what separates it from what stands before."""
NO_INPUTS = ("out", "cache", "save_config")


def expand_homes(command: Any) -> Any:
    """Make every path parameter of a click command, and of those below it, take ``~`` and ``~user``.

    A shell expands neither in ``--option=~/x``. Typers differ in the classes of their parameters; all have
    ``process_value``, which is given what stands on the command line. A callback would be given a Path, which does not
    know any more whether ``./~x`` was written or ``~x``.
    """
    for child in getattr(command, "commands", {}).values():
        expand_homes(child)
    for parameter in path_parameters(command):
        parameter.process_value = functools.partial(_process_expanded, parameter.process_value)
    return command


def path_parameters(command: Any) -> list[Any]:
    """Parameters of one click command whose values are paths."""
    if command.callback is None:
        return []
    declared = inspect.signature(command.callback).parameters
    return [p for p in command.params if p.name in declared and _is_path(declared[p.name].annotation)]


def keep_inputs(command: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse, before anything is done, an --out that is, or lies in, something the same command reads.

    The same file under another spelling, through a link, or as a hard link counts; so does a name that does not exist
    yet.
    """

    @functools.wraps(command)
    def run(*args: Any, **values: Any) -> Any:
        out = values.get("out")
        if isinstance(out, Path):
            for read in _inputs(values):
                _require_apart(out, read)
        return command(*args, **values)

    return run


def _process_expanded(process: Callable[[Any, Any], Any], context: Any, value: Any) -> Any:
    from collafuse_runtimes.disk.home import expand

    if isinstance(value, str):
        value = str(expand(value))
    elif isinstance(value, tuple | list):
        value = type(value)(str(expand(item)) if isinstance(item, str) else item for item in value)
    return process(context, value)


def _is_path(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return annotation is Path or any(_is_path(part) for part in get_args(annotation))


def _inputs(values: dict[str, Any]) -> Iterator[Path]:
    from collafuse_runtimes.disk.home import expand

    for name, value in values.items():
        for item in value if isinstance(value, list | tuple) else (value,):
            if name in PATHS_IN_TEXT and isinstance(item, str):
                yield expand(item.rpartition(PATHS_IN_TEXT[name])[2] if PATHS_IN_TEXT[name] else item)
            elif isinstance(item, Path) and name not in NO_INPUTS:
                yield item


def _require_apart(out: Path, read: Path) -> None:
    """Raises InputError where writing ``out`` would change ``read``."""
    if _same(out, read):
        raise InputError(f"--out {out} is what this command reads, {read}, and would replace it; choose another --out")
    if _kind(read) != stat.S_IFDIR:
        return
    place = Path(os.path.realpath(out)).parent
    if any(_same(folder, read) for folder in (place, *place.parents)):
        raise InputError(f"--out {out} lies in what this command reads, {read}; choose a place outside it")


def _same(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except (OSError, ValueError):  # one of them does not exist yet
        return os.path.realpath(first) == os.path.realpath(second)


def _kind(path: Path) -> int:
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except (OSError, ValueError):
        return 0
