"""Standard streams that may be closed, full, broken, or too narrow for a file name: none of it stops the work."""

import contextlib
import io
import os
import sys
from typing import Any, NoReturn, TextIO


def prepare_streams() -> None:
    """Call before anything is opened or printed.

    A closed stream becomes the null device: its number would go to the next file opened, and whatever a library prints
    would be written into that. What cannot be printed on stderr is dropped.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdout = sys.stdout or _null()
    sys.stderr = sys.stderr or _null()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be Unicode
    if not isinstance(sys.stderr, _Forgiving):
        sys.stderr = _Forgiving(sys.stderr)


def _null() -> TextIO:
    return open(os.devnull, "w", errors="backslashreplace")  # noqa: PTH123  open as long as the process runs


class _Forgiving(io.TextIOBase):
    """stderr for progress and errors: a full disk or a closed pipe behind it changes neither work nor exit code."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        return bool(self._stream.isatty())

    def fileno(self) -> int:
        return int(self._stream.fileno())

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding or "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        return self._stream.errors or "backslashreplace"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def leave(exit_code: int) -> NoReturn:
    """End the process with this code even where stdout can take no more."""
    try:
        sys.stdout.flush()
    except OSError:  # a full disk or a closed pipe; Python would flush, and complain, once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(exit_code)
