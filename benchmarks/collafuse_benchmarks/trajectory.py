"""How long a head's whole trajectory takes on this machine."""

import time

import numpy as np
import numpy.typing as npt

from collafuse_runtimes.bundle import HeadBundle
from collafuse_runtimes.engines import open_engine
from collafuse_runtimes.handover import Handover


def trajectory_ms(
    bundle: HeadBundle, handover: Handover, *, engine_name: str = "ort-cpu", runs: int = 20, warmup: int = 3
) -> npt.NDArray[np.float64]:
    """Times of single-image trajectories, tensor in to tensor out, over the tensors of a hand-over file in turn.

    Returns:
        (runs,) float64, milliseconds; loading the model and ``warmup`` runs are not in them.

    Raises:
        EngineUnavailable: the engine cannot run here.
    """
    times = []
    with open_engine(bundle, engine_name) as engine:
        for run in range(warmup + runs):
            row = run % len(handover)
            x_tc, index = handover.x_tc[row : row + 1], [handover.first_index + row]
            begun = time.perf_counter()
            engine.denoise(x_tc, seed=handover.seed, sample_indices=index)
            times.append((time.perf_counter() - begun) * 1e3)
    return np.array(times[warmup:])
