"""The user's folders: `~` in a path, and where keys and engines are kept. There may be no home at all."""

import os
from contextlib import suppress
from pathlib import Path

from collafuse_runtimes.errors import ArtefactError, InputError


def expand(path: str) -> Path:
    """A path as typed, with ``~`` and ``~user`` at its start replaced as a shell does; ``./~x`` is a plain name.

    Raises:
        InputError: there is no home folder, or no such user.
    """
    if not path.startswith("~"):
        return Path(path)
    expanded = os.path.expanduser(path)  # noqa: PTH111  Path has no memory of a leading ./
    user = path.partition("/")[0][1:]
    if expanded.startswith("~"):
        why = f"there is no user {user!r}" if user else "there is no home folder here"
        raise InputError(f"cannot use {path}: {why}; give the whole path, or ./{path} for a file of that name")
    home = os.environ.get("HOME", "/")
    if not user and not Path(home).is_absolute():
        raise InputError(f"cannot use {path}: HOME is {home!r}, no absolute path; give the whole path")
    return Path(expanded)


def user_folder(variable: str, default: str, option: str | None = None) -> Path:
    """``$variable/collafuse-edge``, with ``~/default`` in its place where the variable is unset or relative.

    A relative one would mean another key in every working folder, and the XDG Base Directory Specification (0.8) has
    it ignored.

    Args:
        variable: "XDG_CONFIG_HOME" or "XDG_CACHE_HOME".
        default: ".config" or ".cache".
        option: of the command line that names the place instead, for example "--key".

    Raises:
        ArtefactError: neither the variable nor a home folder exists.
    """
    base = Path(os.environ.get(variable, ""))
    try:
        return (base if base.is_absolute() else expand("~") / default) / "collafuse-edge"
    except InputError:
        choice = "" if option is None else f"give {option}, or "
        raise ArtefactError(f"there is no home folder here; {choice}set HOME or {variable} to a folder") from None


def keep_font_list_together() -> None:
    """matplotlib, when it is imported later, keeps its list of fonts in our cache folder, not in two of its own."""
    with suppress(ArtefactError):  # no home folder: it then takes a temporary one
        os.environ.setdefault("MPLCONFIGDIR", str(user_folder("XDG_CACHE_HOME", ".cache") / "matplotlib"))
