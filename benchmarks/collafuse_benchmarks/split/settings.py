"""What a chosen way must keep; apart from the choice, so that it costs no import of it."""

import math
import sys
from dataclasses import dataclass, fields
from typing import Annotated

from collafuse_benchmarks.measure.record import Record
from collafuse_runtimes.errors import InputError

ABOVE_BEST = "--max-kid-above-best"
VALID = {
    "max_latency_ms": (sys.float_info.min, "above 0"),
    "max_energy_j": (sys.float_info.min, "above 0"),
    "min_noise_level": (0.0, "a finite number of at least 0"),
    "min_handover_kid": (-math.inf, "finite numbers"),
    "max_image_kid": (-math.inf, "finite numbers"),
    "max_kid_above_best": (0.0, "a finite number of at least 0"),
}
"""Limit -> (the least that it may be, what is valid in words)."""


@dataclass(frozen=True)
class Limits(Record):
    """What a way must keep; None is no limit. The text beside each field says what it is, here and in ``--help``.

    Latency is of the whole way, of its transfer only where a link was stated; energy is gross. Noise is
    ``SplitPlan.noise_level``. A way that hands nothing over keeps the limits of what is handed over. The best way, that
    ``max_kid_above_best`` goes by, is the best of those that keep the other limits.

    Raises:
        InputError: a limit is out of range.
    """

    max_latency_ms: Annotated[float | None, "Choose: the most one image may take."] = None
    max_energy_j: Annotated[float | None, "Choose: the most joules of one image, both sides."] = None
    min_noise_level: Annotated[float | None, "Choose: least noise in what is handed over, as `init` prints it."] = None
    min_handover_kid: Annotated[float | None, "Choose: least distance of the hand-over tensors from real images."] = (
        None
    )
    max_image_kid: Annotated[float | None, "Choose: largest distance of the images from real ones."] = None
    max_kid_above_best: Annotated[float | None, "Choose: how far that may lie above the best way's."] = None

    def __post_init__(self) -> None:
        for name, (least, valid) in VALID.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= least):
                raise InputError(f"--{name.replace('_', '-')} {value:g} out of range: must be {valid}")

    @property
    def is_empty(self) -> bool:
        """Whether nothing is limited."""
        return all(getattr(self, field.name) is None for field in fields(self))
