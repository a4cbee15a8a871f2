"""The picture of a disclosure report: real images, and for each cut what is uploaded and the best guess from it."""

from collections.abc import Sequence

from collafuse_benchmarks.disclosure.measure import Attacked
from collafuse_runtimes.diffusion.noise import Float32Array

SHOWN = 8


def rows_of(real: Float32Array, cuts: Sequence[Attacked]) -> list[tuple[str, Float32Array]]:
    """(caption, images) row by row."""
    rows = [("real", real[:SHOWN])]
    for attacked in cuts:
        c = f"c = {attacked.cut.cut_ratio:g}"
        rows += [
            (f"{c}: what would be uploaded", attacked.released[:SHOWN]),
            (f"{c}: best guess ({attacked.cut.best.attacker.partition(',')[0]})", attacked.best_guess[:SHOWN]),
        ]
    return rows
