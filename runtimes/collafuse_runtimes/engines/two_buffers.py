"""A trajectory in two host arrays that take turns as input and output; nothing is allocated between steps."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from collafuse_runtimes.engines.base import Labels, Trajectory
from collafuse_runtimes.noise import Float32Array

Bound = TypeVar("Bound")
Bind = Callable[[Float32Array, npt.NDArray[np.int32], Float32Array | None, Labels | None, Float32Array], Bound]
"""(sample, step, noise, label, next_sample) -> a step that reads and writes these very arrays whenever it is run."""


def denoise_in_turns(trajectory: Trajectory, bind: Bind[Bound], run: Callable[[Bound], object]) -> Float32Array:
    """Bind both directions once, then run them in turns.

    Returns:
        (B, C, H, W) float32, one of the two arrays; nothing else holds it.
    """
    x, y = trajectory.x_tc.copy(), np.empty_like(trajectory.x_tc)
    step = np.array([trajectory.rows.first_row], dtype=np.int32)
    z = None if trajectory.noise is None else np.empty_like(x)
    turns = ((bind(x, step, z, trajectory.labels, y), y), (bind(y, step, z, trajectory.labels, x), x))
    for k, (t, _) in enumerate(trajectory.rows.transitions):
        if z is not None and trajectory.noise is not None:
            z[...] = trajectory.noise(t)
        bound, result = turns[k % 2]
        run(bound)
        step += 1
        if trajectory.on_step is not None:
            trajectory.on_step(k, result)
    return result
