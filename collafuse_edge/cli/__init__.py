"""The `collafuse-edge` command: parse, call one library function, print. Exit codes: 0 done, 1 a check failed,
2 bad usage or input."""

import errno
import os
import socket
import sys
from typing import Any

from collafuse_edge.cli.parts.streams import leave, prepare_streams

INTERRUPTED = 130
"""What newer Typers return after Ctrl-C; older ones raise."""


def main() -> None:
    """Entry point of the console script."""
    prepare_streams()
    _stay_offline()
    import typer

    from collafuse_edge.cli.app import click_command
    from collafuse_runtimes.errors import CollafuseError

    usage_error: Any = typer.BadParameter.__bases__[0]  # click's UsageError; newer Typers carry a private copy of click
    try:
        code = click_command().main(prog_name="collafuse-edge", standalone_mode=False) or 0
        sys.stdout.flush()
    except CollafuseError as error:
        _fail(str(error), error.exit_code)
    except usage_error as error:
        _fail(_usage(error), 2)
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except BrokenPipeError:  # whoever reads has seen enough
        leave(1)
    except ModuleNotFoundError as error:
        _fail(f"{error.name} is not installed; pip install 'collafuse-edge[all]'", 2)
    except MemoryError:
        _fail(TOO_LARGE, 2)
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        _fail(TOO_LARGE, 2)
    except OSError as error:
        _fail(_system_error(error), 2)
    if code == INTERRUPTED:
        _fail("stopped", 1)
    sys.exit(code)


def _usage(error: Any) -> str:
    """What was wrong with the words of the command line, and whose help says more."""
    from collafuse_edge.cli.parts.choices import unknown_choice

    said = unknown_choice(error) or error.format_message().rstrip(".")
    command = "collafuse-edge" if error.ctx is None else error.ctx.command_path
    return f"{said}; see `{command} --help`"


TOO_LARGE = "this does not fit into memory; use fewer or smaller images, or smaller batches"


def _stay_offline() -> None:
    """No command needs a network: model hubs are not asked, and urllib3, which the training libraries import, does not
    open a socket to learn whether there is IPv6."""
    from collafuse_runtimes.disk.home import keep_font_list_together

    keep_font_list_together()
    os.environ["HF_HUB_OFFLINE"] = "1"
    socket.has_ipv6 = False


def _is_out_of_memory(error: RuntimeError) -> bool:
    """torch has a class for a full GPU only; its CPU allocator, and sizes beyond an int64, are plain RuntimeErrors."""
    said = ("can't allocate memory", "out of memory", "Storage size calculation overflow")
    return any(words in str(error) for words in said)


def _system_error(error: OSError) -> str:
    if error.filename is not None:
        return f"cannot use {error.filename}: {error.strerror}; free space or choose another place"
    try:
        os.getcwd()  # noqa: PTH109  Path.cwd does no more
    except FileNotFoundError:
        return "the current folder was deleted; change to one that exists, or give whole paths"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{error.strerror}; raise the limit (`ulimit -n`)"
    return f"cannot print the result: {error.strerror or error}; free space or choose another place"


def _fail(message: str, exit_code: int) -> None:
    from collafuse_runtimes.text import one_line

    print(f"error: {one_line(message)}", file=sys.stderr)
    leave(exit_code)
