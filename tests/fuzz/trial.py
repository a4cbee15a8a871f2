"""One command on one damaged file, in a forked process that is measured and cannot take the machine with it."""

import contextlib
import os
import resource
import selectors
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SECONDS, MEGABYTES = 20.0, 1024
ADDRESS_SPACE = 16 << 30


@dataclass(frozen=True)
class Outcome:
    """What a command did.

    Attributes:
        code: exit code; negative: ended by that signal; None: killed for its time.
        seconds: wall time.
        megabytes: peak resident memory of the process, libraries included.
        out: what it printed on stdout.
        err: and on stderr.
    """

    code: int | None
    seconds: float
    megabytes: int
    out: str
    err: str


def run(argv: list[str], folder: Path) -> Outcome:
    """Run `collafuse-edge argv` in a fork of this process, which has the libraries loaded, in ``folder``."""
    out, err = folder / ".stdout", folder / ".stderr"
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        _become(argv, folder, out, err)
    status, usage = _wait(child, start + SECONDS)
    code = None if status is None else os.waitstatus_to_exitcode(status)
    texts = [path.read_bytes().decode(errors="replace") for path in (out, err)]
    return Outcome(code, time.monotonic() - start, usage // 1024, *texts)


def fault(outcome: Outcome, *, may_succeed: bool) -> str | None:
    """What is wrong with an outcome, or None."""
    lines = outcome.err.strip().splitlines()
    last = lines[-1] if lines else ""
    worn = f"over {SECONDS:.0f} s" if outcome.code is None or outcome.seconds > SECONDS else None
    if worn or outcome.megabytes > MEGABYTES:
        return worn or f"{outcome.megabytes} MB"
    if outcome.code not in (0, 1, 2) or "Traceback" in outcome.err:
        return f"exit {outcome.code}, traceback or crash: {last[:300]}"
    if outcome.code == 0:
        return None if may_succeed else "SILENT ACCEPTANCE: exit 0"
    if not last.startswith("error: ") or sum(line.startswith("error: ") for line in lines) != 1:
        return f"exit {outcome.code} without one line of error: {last[:300]}"
    unreadable = len(last) > 2000 or any(ord(c) < 32 for c in last)
    return f"an error line of {len(last)} characters, or with control characters" if unreadable else None


def _become(argv: list[str], folder: Path, out: Path, err: Path) -> None:
    """The child: the command and nothing else."""
    code = 70
    try:
        os.setsid()
        os.chdir(folder)
        for path, number in ((out, 1), (err, 2)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        code = _command(argv)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _command(argv: list[str]) -> int:
    from collafuse_edge.cli import main

    sys.argv = ["collafuse-edge", *argv]
    try:
        main()
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0


def _wait(child: int, deadline: float) -> tuple[int | None, int]:
    """(wait status, or None where it had to be killed; peak memory in KiB)."""
    handle = os.pidfd_open(child)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(handle, selectors.EVENT_READ)
            in_time = bool(selector.select(max(deadline - time.monotonic(), 0)))
        if not in_time:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
        return (status if in_time else None), usage.ru_maxrss
    finally:
        os.close(handle)
