"""The command line run inside the test's own process: importing torch anew for every command would take seconds."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest import mock

from collafuse_edge.cli import main


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


def run_cli(*arguments: object) -> Result:
    out, err = io.StringIO(), io.StringIO()
    argv = mock.patch.object(sys, "argv", ["collafuse-edge", *map(str, arguments)])
    with argv, redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as leaving:
            return Result(int(leaving.code or 0), out.getvalue(), err.getvalue())
    raise AssertionError("main() returned instead of leaving with an exit code")


def refusal(*arguments: object, code: int = 2) -> str:
    """The one line a refused command prints."""
    result = run_cli(*arguments)
    asides = ("train ", "handoff ", "handoff:", "warning  ")
    lines = [line for line in result.err.splitlines() if not line.startswith(asides)]
    printed = [line for line in result.out.splitlines() if not line.startswith("note  ")]  # of what was read
    assert (result.code, printed, len(lines)) == (code, [], 1), result
    assert lines[0].startswith("error: ")
    return lines[0]


def done(*arguments: object) -> str:
    """What a command that succeeds prints."""
    result = run_cli(*arguments)
    assert result.code == 0, result
    return result.out
