"""A trajectory in host arrays that take turns as input and output; nothing is allocated between steps."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.engines.base import Labels, Trajectory

Bound = TypeVar("Bound")


@dataclass(frozen=True)
class StepArrays:
    """The arrays of one step, under the names of the graph; what the head does not have is None."""

    sample: Float32Array
    step: npt.NDArray[np.int32]
    noise: Float32Array | None
    label: Labels | None
    next_sample: Float32Array
    x_0_old: Float32Array | None = None
    x_0: Float32Array | None = None

    def inputs(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """Name and array of every input there is."""
        yield from self._there("sample", "step", "noise", "label", "x_0_old")

    def outputs(self) -> Iterator[tuple[str, Float32Array]]:
        """Name and array of every output there is."""
        yield from self._there("next_sample", "x_0")

    def _there(self, *names: str) -> Iterator[tuple[str, Any]]:
        for name in names:
            if (array := getattr(self, name)) is not None:
                yield name, array


Bind = Callable[[StepArrays], Bound]
"""-> a step that reads and writes these very arrays whenever it is run."""


def denoise_in_turns(trajectory: Trajectory, bind: Bind[Bound], run: Callable[[Bound], object]) -> Float32Array:
    """Bind both directions once, then run them in turns.

    Returns:
        (B, C, H, W) float32, one of those arrays; nothing else holds it.
    """
    x, y = trajectory.x_tc.copy(), np.empty_like(trajectory.x_tc)
    step = np.array([trajectory.rows.first_row], dtype=np.int32)
    z = None if trajectory.noise is None else np.empty_like(x)
    old, new = (np.zeros_like(x), np.empty_like(x)) if trajectory.has_history else (None, None)
    there = bind(StepArrays(x, step, z, trajectory.labels, y, old, new))
    back = bind(StepArrays(y, step, z, trajectory.labels, x, new, old))
    turns = ((there, y), (back, x))
    for k, (t, _) in enumerate(trajectory.rows.transitions):
        if z is not None and trajectory.noise is not None:
            z[...] = trajectory.noise(t)
        bound, result = turns[k % 2]
        run(bound)
        step += 1
        if trajectory.on_step is not None:
            trajectory.on_step(k, result)
    return result
