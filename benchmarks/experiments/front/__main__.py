"""A front, not a figure: quality, work and time of the ways to one image, c in {0.2, 0.4, 0.6, 0.8} and c = 1 alone.

    python benchmarks/experiments/front work/front    # two hours on two quiet cores; continues where it stopped

Reads brain_mri_64.npz and the feature extractor from COLLAFUSE_DATA. Trains three seeds of heads, distilled heads and
servers (training.py), scores every way (ways.py, measuring.py, servers.py), then times all of them in turns, for which
the machine should do nothing else (timing.py), and writes benchmarks/results/front.{json,md,svg,png}.
`--stage settings --stage publish` adds an hour of other learning rates and moving averages (settings.py).
"""

import argparse
import os
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from measuring import CALIBRATION, COUNT, handed_over, measure_head
from reporting import publish
from servers import measure_server
from settings import TRIALS, measure_trial, train_trials
from timing import measure_times
from training import SEEDS, Folder, train_all
from ways import WAYS

STAGES = ("train", "score", "time", "publish")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="where the record goes")
    parser.add_argument("--workers", type=int, default=2, help="trainings or heads at once, one thread each")
    parser.add_argument("--stage", action="append", choices=(*STAGES, "settings"), help=f"default: {', '.join(STAGES)}")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    out, stages = arguments.out, arguments.stage or STAGES
    out.mkdir(parents=True, exist_ok=True)
    shared = Path(os.environ.get("COLLAFUSE_DATA", "../shared/data"))
    data, extractor = shared / "brain_mri_64.npz", shared.parent / "weights" / "squeezenet1_0_features.onnx"
    if "train" in stages:
        train_all(out, data, arguments.workers)
    if "score" in stages:
        with ProcessPoolExecutor(arguments.workers, mp_context=get_context("spawn")) as pool:
            for future in list(_scores(out, extractor, pool)):
                future.result()
    if "time" in stages:
        measure_times(out)
    if "settings" in stages:
        train_trials(out, arguments.workers)
        for trial in TRIALS:
            measure_trial(out, extractor, trial)
    if "publish" in stages:
        publish(out, arguments.results, data.name, extractor.name)


def _scores(out: Path, extractor: Path, pool: ProcessPoolExecutor) -> "Iterator[Future[None]]":
    """One task per server and per head that is there."""
    cuts = dict.fromkeys(way.cut_ratio for way in WAYS)
    sets = [(c, seed, *which) for c in cuts for seed in SEEDS for which in ((COUNT, 0), (CALIBRATION, 10_000))]
    for made in [pool.submit(handed_over, Folder(out), *which) for which in sets]:
        made.result()
    for network, cut_ratio in dict.fromkeys((way.network, way.cut_ratio) for way in WAYS):
        for seed in SEEDS:
            yield pool.submit(measure_head, out, extractor, seed, network, cut_ratio)
    for name in ("v0.2", "epsilon0.2"):
        for seed in SEEDS:
            yield pool.submit(measure_server, out, name, seed)


if __name__ == "__main__":
    main()
