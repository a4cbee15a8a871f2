"""From stored values to [0, 1]: full scale of the type, --max-value, or --window."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from collafuse_edge.data.notes import Notes
from collafuse_runtimes.errors import InputError

Float32Array = npt.NDArray[np.float32]
Window = tuple[float, float]

FULL_SCALE = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}
DARK = 4
"""A set whose largest value is below a quarter of full scale is likely of fewer bits than its type holds."""
HOUNSFIELD = -500
"""Values below it are taken for Hounsfield units: air has -1000; MRI, once scaled, goes barely below 0."""
WINDOWS = "0:80 (brain), -160:240 (soft tissue) or -1350:150 (lung)"


@dataclass
class Scaling:
    """How a source's stored values become [0, 1], and the largest ones met.

    Attributes:
        window: LOW and HIGH, mapped to 0 and 1; what lies beyond is clipped.
        max_value: of integer pixels, mapped to 1.
        peaks: full scale of 8- and of 16-bit pixels, where any were read, to the largest value so far.
    """

    window: Window | None = None
    max_value: int | None = None
    peaks: dict[int, int] = field(default_factory=dict)

    def require(self, name: str, stack: npt.NDArray[Any]) -> None:
        """Check stored values; ``stack`` holds images along its first axis.

        Raises:
            InputError: NaN or Inf, a value above ``max_value``, or values of no known range.
        """
        if stack.dtype.kind not in "iufb" or stack.dtype.itemsize > 8:
            raise InputError(f"{name} has pixels of dtype {stack.dtype}; valid: uint8, uint16, or floats in 0 to 1")
        if not stack.size or stack.dtype.kind == "b":
            return
        low, high = float(stack.min()), float(stack.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            first = next(i for i, image in enumerate(stack) if not np.isfinite(image).all())
            raise InputError(f"{name} holds NaN or Inf, first in image {first}; mend or remove it")
        if self.window is not None:
            return
        if self.max_value is not None:
            _require_below(name, stack.dtype, low, high, self.max_value)
        elif stack.dtype.newbyteorder("=") not in FULL_SCALE:
            _require_unit(name, stack.dtype, low, high)
        else:
            full = FULL_SCALE[stack.dtype.newbyteorder("=")]
            self.peaks[full] = max(self.peaks.get(full, 0), int(high))

    def to_unit(self, pixels: npt.NDArray[Any]) -> Float32Array:
        """Checked pixels as float32 in [0, 1]."""
        if self.window is not None:
            return windowed(pixels, self.window)
        full_scale = FULL_SCALE.get(pixels.dtype.newbyteorder("="))
        if self.max_value is not None and (full_scale is None or self.max_value < full_scale):
            full_scale = self.max_value
        if full_scale is None:
            return pixels.astype(np.float32, copy=False)
        unit: Float32Array = np.divide(pixels, np.float32(full_scale), dtype=np.float32)
        return unit

    def note(self, notes: Notes) -> None:
        """Say what a reader of the whole set would want to know."""
        if self.window is not None:
            notes.say(f"window {self.window[0]:g}:{self.window[1]:g} mapped to black and white, beyond it clipped")
        if self.max_value is not None:
            notes.say(f"values divided by {self.max_value}")
        for full, peak in self.peaks.items():
            if 0 < peak < full / DARK:
                share, bits = 100 * peak / full, _usual_bits(peak)
                notes.say(
                    f"{full.bit_length()}-bit values reach only {peak} of {full}, so all pixels are in the darkest "
                    f"{share:.1f} % of the range; scans of {bits} bits need --max-value {2**bits - 1}"
                )


def windowed(values: npt.NDArray[Any], window: Window) -> Float32Array:
    """(values - LOW) / (HIGH - LOW), clipped to [0, 1], float32."""
    low, high = window
    result: Float32Array = values.astype(np.float32)
    result -= np.float32(low)
    result /= np.float32(high - low)
    return np.clip(result, 0, 1, out=result)


def hounsfield(name: str, low: float, high: float) -> InputError:
    """The refusal of values that need a window."""
    return InputError(
        f"{name} has values from {low:g} to {high:g}, which look like Hounsfield units (CT); say what is black and "
        f"white: --window LOW:HIGH, for example {WINDOWS}"
    )


def _require_below(name: str, dtype: np.dtype[Any], low: float, high: float, most: int) -> None:
    if dtype.kind not in "iu":
        raise InputError(f"{name} has float pixels: --max-value is for whole numbers; give --window LOW:HIGH")
    if low < 0 or high > most:
        raise InputError(
            f"{name} has values {low:g} to {high:g}, beyond 0 to --max-value {most}; give the largest value"
        )


def _require_unit(name: str, dtype: np.dtype[Any], low: float, high: float) -> None:
    if low <= HOUNSFIELD:
        raise hounsfield(name, low, high)
    if dtype.kind != "f":
        raise InputError(
            f"{name} has pixels of dtype {dtype}, {low:g} to {high:g}; valid: uint8, uint16, or floats in 0 to 1; say "
            "their range with --window LOW:HIGH"
        )
    if low < 0 or high > 1:
        raise InputError(
            f"{name} has float pixels from {low:g} to {high:g}; valid: 0 to 1; rescale them first, or give --window "
            "LOW:HIGH"
        )


def _usual_bits(peak: int) -> int:
    """Of 1 bit and the depths that cameras and scanners have, the first that holds ``peak``."""
    return next(bits for bits in (1, 4, 6, 8, 10, 12, 14) if peak < 2**bits)
