"""What every sensor offers, and how a number is read from a file of the kernel."""

import errno
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from collafuse_runtimes.errors import SensorLost

_GONE = (errno.ENOENT, errno.ENODEV)


@dataclass(frozen=True)
class SensorInfo:
    """What a sensor measures.

    Attributes:
        name: unique among the sensors of a machine, e.g. "ina".
        quantity: "power": ``read`` gives watts, which may be negative; "energy": joules since an arbitrary start,
            never falling.
        scope: "module", "board", "gpu", "cpu package" or "wall".
        detail: rails, files or device and its limits, in one line for a report.
        interval_s: how often to read it.
    """

    name: str
    quantity: str
    scope: str
    detail: str
    interval_s: float


class Sensor(Protocol):
    """A power sensor or an energy counter."""

    @property
    def info(self) -> SensorInfo:
        """What it measures; does not change."""

    def read(self) -> float:
        """One reading, in watts or joules; may block for tens of milliseconds.

        Raises:
            OSError: this reading is lost, the next may come.
            SensorLost: there will be no other.
        """

    def close(self) -> None:
        """Give back what it holds; it cannot be read any more."""


def read_number(path: Path) -> int:
    """The signed integer in a file of the kernel.

    Raises:
        OSError: the file cannot be read now, or holds no integer.
        SensorLost: the file or its device is gone.
    """
    try:
        text = path.read_text()
    except OSError as error:
        if error.errno in _GONE:
            raise SensorLost(f"{path} is gone") from error
        raise
    try:
        return int(text)
    except ValueError:
        raise OSError(errno.EIO, f"{text.strip()[:40]!r} is no integer", str(path)) from None


def read_word(path: Path) -> str | None:
    """The text in a file of the kernel, stripped; None where there is none."""
    try:
        return path.read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None
