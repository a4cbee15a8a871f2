"""Time of one image by every way, ONNX Runtime on the CPU, in turns, with one thread and with two."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from measuring import COUNT, exported, handed_over, point_file
from training import Folder
from ways import WAYS, Way

from collafuse_benchmarks.measure.timing import time_rounds
from collafuse_runtimes.engines import EngineOptions, open_engine
from collafuse_runtimes.files.bundle import read_bundle

ROUNDS, THREADS, SEED = 15, (1, 2), 0
SAME = 0.02
"""A timed image may differ from the scored one by this much: it was made in another batch."""


def measure_times(out: Path) -> None:
    """Milliseconds of every way of the first seed, and the largest difference to the images that were scored."""
    folder = Folder(out)
    found: dict[str, Any] = {}
    for threads in THREADS:
        for name, times in timed(folder, threads).items():
            found.setdefault(name, {})[str(threads)] = {"least_ms": np.min(times), "median_ms": np.median(times)}
    (out / "times.json").write_text(json.dumps({"rounds": ROUNDS, "ways": found}, indent=2))


def timed(folder: Folder, threads: int) -> dict[str, list[float]]:
    """Milliseconds of every round, all ways in shuffled turns; the engines stay open, as on a device.

    Raises:
        SystemExit: a way made other images than those that were scored.
    """
    ways = {way.name: way for way in WAYS if point_file(folder, way, SEED).with_suffix(".npy").exists()}
    with ExitStack() as stack:
        engines = {
            way.bundle: stack.enter_context(
                open_engine(_bundle(folder, way), "ort-cpu", EngineOptions(threads=threads))
            )
            for way in {way.bundle: way for way in ways.values()}.values()
        }

        def run_of(way: Way) -> Callable[[int], Any]:
            x_n = handed_over(folder, way.cut_ratio, SEED, COUNT).x_tc[:1]
            return lambda _: engines[way.bundle].denoise(x_n, way.steps, seed=SEED, sample_indices=range(1))

        def check(turn: int, name: str, found: Any) -> None:
            if turn == 0:
                _require_same(folder, ways[name], found[0])

        return time_rounds({name: run_of(way) for name, way in ways.items()}, ROUNDS, on_result=check)


def _bundle(folder: Folder, way: Way) -> Any:
    bundle, _ = exported(folder, (way,), SEED)
    assert bundle is not None
    return read_bundle(bundle.path)


def _require_same(folder: Folder, way: Way, image: Any) -> None:
    scored = np.load(point_file(folder, way, SEED).with_suffix(".npy"))[0]
    if not np.abs(image - scored).max() < SAME:
        raise SystemExit(f"{way.name}: the timed image is not the scored one; measure again in an empty folder")
