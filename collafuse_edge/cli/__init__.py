"""The `collafuse-edge` command: parse, call one library function, print. Exit codes: 0 done, 1 a check failed,
2 bad usage or input."""

import io
import os
import socket
import sys
from typing import Any

INTERRUPTED = 130
"""What newer Typers return after Ctrl-C; older ones raise."""


def main() -> None:
    """Entry point of the console script."""
    _stay_offline()
    import typer

    from collafuse_edge.cli.app import app
    from collafuse_runtimes.errors import CollafuseError

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be Unicode
    usage_error: Any = typer.BadParameter.__bases__[0]  # click's UsageError; newer Typers carry a private copy of click
    try:
        code = typer.main.get_command(app).main(prog_name="collafuse-edge", standalone_mode=False) or 0
        sys.stdout.flush()
    except CollafuseError as error:
        _fail(str(error), error.exit_code)
    except usage_error as error:
        _fail(f"{error.format_message().rstrip('.')}; see `collafuse-edge --help`", 2)
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except BrokenPipeError:  # whoever reads has seen enough
        _leave_quietly(1)
    except ModuleNotFoundError as error:
        _fail(f"{error.name} is not installed; pip install 'collafuse-edge[all]'", 2)
    except MemoryError:
        _fail("this does not fit into memory; use fewer or smaller images, or smaller batches", 2)
    except OSError as error:
        what = "cannot print the result" if error.filename is None else f"cannot use {error.filename}"
        _fail(f"{what}: {error.strerror}; free space or choose another place", 2)
    if code == INTERRUPTED:
        _fail("stopped", 1)
    sys.exit(code)


def _stay_offline() -> None:
    """No command needs a network: model hubs are not asked, and urllib3, which the training libraries import, does not
    open a socket to learn whether there is IPv6."""
    from collafuse_runtimes.secret_file import keep_font_list_together

    keep_font_list_together()
    os.environ["HF_HUB_OFFLINE"] = "1"
    socket.has_ipv6 = False


def _fail(message: str, exit_code: int) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    _leave_quietly(exit_code)


def _leave_quietly(exit_code: int) -> None:
    try:
        sys.stdout.flush()
    except OSError:  # a full disk or a closed pipe; Python would flush, and complain, once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(exit_code)
