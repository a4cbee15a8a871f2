"""What a quantiser must see: real hand-over tensors on their way through every baked step of the head."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from collafuse_runtimes.diffusion.noise import Float32Array, noise_batch
from collafuse_runtimes.engines import Engine
from collafuse_runtimes.errors import InputError
from collafuse_runtimes.files.bundle import HISTORY_IN
from collafuse_runtimes.files.handover import Handover

MAX_CALIBRATION, MAX_CHECK = 16, 8
"""Tensors used of a hand-over file: more change ranges and figures little and cost time in proportion."""

Feeds = dict[str, npt.NDArray[Any]]


def split_handover(handover: Handover) -> tuple[range, range]:
    """(rows to calibrate on, rows to check on), disjoint: a quantiser is not judged on what it was fitted to.

    Raises:
        InputError: fewer than two tensors.
    """
    count = len(handover)
    if count < 2:
        raise InputError(
            f"a hand-over file of {count} tensor cannot calibrate: it must hold at least 2 (16 calibrate, 8 check); "
            "make one with `collafuse-edge handoff --count 24`"
        )
    check = min(MAX_CHECK, max(count // 3, 1))
    return range(min(count - check, MAX_CALIBRATION)), range(count - check, count)


def labels_for(rows: Sequence[int], num_classes: int | None) -> npt.NDArray[np.int32] | None:
    """Every class in turn; None for unconditional heads."""
    return None if num_classes is None else (np.array(rows) % num_classes).astype(np.int32)


def trajectories(engine: Engine, handover: Handover, rows: range) -> dict[int, Float32Array]:
    """Every baked step count run over some rows of a hand-over file.

    Returns:
        By step count, (steps + 1, B, C, H, W): x_tc and the tensor after each step.
    """
    x_tc = handover.x_tc[rows.start : rows.stop]
    indices = [handover.first_index + row for row in rows]
    labels = labels_for(rows, engine.bundle.num_classes)
    found = {}
    for row_range in engine.bundle.row_ranges:
        states = np.empty((row_range.steps + 1, *x_tc.shape), np.float32)
        states[0] = x_tc
        engine.denoise(
            x_tc,
            row_range.steps,
            seed=handover.seed,
            sample_indices=indices,
            labels=labels,
            on_step=states[1:].__setitem__,
        )
        found[row_range.steps] = states
    return found


def step_feeds(engine: Engine, handover: Handover, rows: range) -> Iterator[Feeds]:
    """The graph's inputs at every step of every baked step count."""
    bundle, labels = engine.bundle, labels_for(rows, engine.bundle.num_classes)
    indices = [handover.first_index + row for row in rows]
    for row_range in bundle.row_ranges:
        x: Float32Array = handover.x_tc[rows.start : rows.stop]
        x_0 = np.zeros_like(x) if bundle.sampler.has_history else None
        for k, (t, _) in enumerate(row_range.transitions):
            row, shape = row_range.first_row + k, bundle.plan.image_shape
            noise = noise_batch(handover.seed, indices, t, shape) if bundle.sampler.is_stochastic else None
            optional = {"noise": noise, "label": labels, HISTORY_IN: x_0}
            feeds: Feeds = {"sample": x, "step": np.array([row], np.int32)}
            yield feeds | {name: array for name, array in optional.items() if array is not None}
            x, x_0 = engine.step_with_x_0(x, row, noise, labels, x_0)
