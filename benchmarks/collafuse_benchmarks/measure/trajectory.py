"""How long a head's whole trajectory takes on this machine."""

import numpy as np
import numpy.typing as npt

from collafuse_benchmarks.measure.timing import Mode, collect, host_timed
from collafuse_benchmarks.measure.workload import Workload
from collafuse_runtimes.engines import open_engine
from collafuse_runtimes.files.bundle import HeadBundle
from collafuse_runtimes.files.handover import Handover


def trajectory_ms(
    bundle: HeadBundle, handover: Handover, *, engine_name: str = "ort-cpu", runs: int = 20, warmup: int = 3
) -> npt.NDArray[np.float64]:
    """Times of single-image trajectories, tensor in to tensor out, over tensors of a hand-over file in turn.

    Returns:
        (runs,) float64, milliseconds; loading the model and ``warmup`` runs are not in them.

    Raises:
        EngineUnavailable: the engine cannot run here.
    """
    load = Workload(bundle, handover, bundle.row_range(None).steps)
    mode = Mode("trajectory", warmup, runs, seconds=0.0, cold_starts=0)
    with open_engine(bundle, engine_name) as engine:
        return np.array(collect(host_timed(lambda i: load.denoise(engine, i)), mode))
