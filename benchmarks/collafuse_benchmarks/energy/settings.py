"""How energy is measured; apart from the measurement, so that it costs no import of it."""

from dataclasses import dataclass
from typing import Annotated

from collafuse_runtimes.errors import InputError


@dataclass(frozen=True)
class EnergySettings:
    """How to measure; the text beside each field says what it is, here and in ``--help``.

    Raises:
        InputError: a value is too small, or no number.
    """

    trials: Annotated[int, "Windows of work, at least 1."] = 5
    window_s: Annotated[float, "Shortest window in seconds, at least 10."] = 10.0
    idle_s: Annotated[float, "Seconds of doing nothing before and after, at least 1."] = 30.0
    min_updates: Annotated[int, "New values of every sensor that a window is prolonged for, at least 2."] = 100
    prolong_s: Annotated[float, "Seconds, at most, that a window is prolonged; the work in hand is finished."] = 50.0
    warmup: Annotated[int, "Units of work before anything is measured."] = 1

    def __post_init__(self) -> None:
        limits = {"idle_s": 1, "window_s": 10, "min_updates": 2, "prolong_s": 0, "trials": 1, "warmup": 0}
        for name, least in limits.items():
            value = getattr(self, name)
            if not least <= value < float("inf"):
                raise InputError(f"{name} {value} out of range: must be at least {least}")
