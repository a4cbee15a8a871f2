"""What volumes of every kind share: which slices, and one scale for all of them."""

import numpy as np

from collafuse_edge.data.image_set import Float32Array
from collafuse_edge.data.notes import Notes
from collafuse_edge.data.scaling import HOUNSFIELD, Scaling, hounsfield, windowed
from collafuse_runtimes.errors import InputError

WHITE_PERCENTILE = 99.5
SAMPLE = 1 << 22
"""Voxels that the percentile is taken of, evenly spread."""


def slice_bounds(name: str, depth: int, slices: tuple[int, int] | None) -> range:
    """Indices of the slices to take from a volume of ``depth``.

    Raises:
        InputError: ``slices`` reaches beyond the volume.
    """
    start, stop = slices or (0, depth)
    if stop > depth:
        raise InputError(
            f"slices {start}:{stop} reach beyond {name}, which has {depth}; valid: 0 <= START < STOP <= {depth}"
        )
    return range(start, stop)


def scale_volume(name: str, values: Float32Array, scaling: Scaling, notes: Notes) -> Float32Array:
    """A volume's stored values in [0, 1]; one value is one grey in all its slices. ``values`` may be overwritten.

    With a window LOW is black and HIGH white. Without, 0 is black, negative values too, and the 99.5th percentile of
    the positive values is white.

    Raises:
        InputError: values that look like Hounsfield units, and no window; ``max_value`` was given; no positive value.
    """
    if scaling.max_value is not None:
        raise InputError(f"--max-value does not fit {name}: a volume's scale is its own; leave it out or give --window")
    if scaling.window is not None:
        scaling.note(notes)
        return windowed(values, scaling.window)
    low, high = float(values.min()), float(values.max())
    if low <= HOUNSFIELD or (high <= 0 and low < 0):
        raise hounsfield(name, low, high)
    if high <= 0:
        return values  # empty: every slice is left out
    flat = values.reshape(-1)[:: -(-values.size // SAMPLE)]
    positive = flat[flat > 0]
    white = float(np.percentile(positive, WHITE_PERCENTILE)) if positive.size else high
    notes.say(
        f"each volume scaled as a whole: 0 black, the {WHITE_PERCENTILE}th percentile of its positive values white"
    )
    if low < 0:
        notes.say("negative values of volumes made black")
    values /= np.float32(white)
    return np.clip(values, 0, 1, out=values)
