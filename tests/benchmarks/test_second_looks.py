"""Combining releases of one image at several levels gains nothing; what does gain is warned of."""

import importlib.util
import sys
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from places import ROOT

from collafuse_edge.data import load_images
from collafuse_edge.upload.brownian import level_time, path_weights
from collafuse_runtimes.diffusion.plan import SplitPlan

SCRIPT = ROOT / "benchmarks" / "experiments" / "second_looks.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("second_looks", SCRIPT)
    assert spec
    assert spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def resized(images: np.ndarray, side: int) -> np.ndarray:
    pixels = np.round((images[:, 0] + 1) * 127.5).astype(np.uint8)
    small = [np.asarray(Image.fromarray(x).resize((side, side), Image.Resampling.LANCZOS)) for x in pixels]
    return (np.stack(small)[:, None] / 127.5 - 1).astype(np.float32)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("timesteps", [20, 100, 1000])
def test_any_levels_gain_nothing_by_their_exact_covariance(schedule: str, timesteps: int) -> None:
    """1' S^-1 1 = 1 / s of the cleanest, S from the weights of the noise path itself."""
    levels = SplitPlan((1, 1, 1), timesteps=timesteps, schedule=schedule).alpha_bar
    for chosen in (range(4, 20), [3, 4], [3, 12], [0, *range(5, 18, 3)]):
        paths = [dict(path_weights(level_time(float(levels[n])))) for n in chosen]
        draws = sorted(set().union(*paths))
        rows = np.array([[path.get(node, 0.0) for node in draws] for path in paths])
        covariance = rows @ rows.T
        precision = float(np.linalg.solve(covariance, np.ones(len(paths))).sum())
        assert 10 * np.log10(precision * covariance[0, 0]) == pytest.approx(0, abs=1e-6)


def test_the_table_on_phantoms(script: ModuleType) -> None:
    large = load_images("phantom:0:24:3", (1, 128, 128)).images
    images, other = resized(resized(large, 64), 32), resized(large, 32)
    rows = {row.name: row for row in script.all_looks(images, other, copies=(2, 16))}
    levels = ["the same shard again", "c = 0.2 and 0.4", "c = 0.20 and 0.21", "c = 0.21, then 0.20"]
    for name in (*levels, "16 cuts from 0.20 to 0.35"):
        assert abs(rows[name].gain) < 0.02, name
    apart = {name: rows[name].gain_drawn_apart for name in rows}
    assert apart["c = 0.20 and 0.21"] == pytest.approx(2.8, abs=0.2)
    assert apart["c = 0.2 and 0.4"] == pytest.approx(0.8, abs=0.1)
    assert apart["16 cuts from 0.20 to 0.35"] == pytest.approx(9.6, abs=0.3)
    assert rows["c = 0.2"].psnr == pytest.approx(15.5, abs=0.1)
    for name, gain in (
        ("2 copies, one pixel changed by one grey level", 3.0),
        ("16 copies, one pixel changed by one grey level", 12.0),
        ("resized from 64 and from 128 px", 3.0),
    ):
        assert rows[name].gain == pytest.approx(gain, abs=0.25), name
    count = len(images)
    assert rows["c = 0.2"].warned == {}
    assert rows["c = 0.20 and 0.21"].warned == {"noisier-level": count}
    assert rows["c = 0.21, then 0.20"].warned == {"cleaner-level": count}
    assert rows["2 copies, one pixel changed by one grey level"].warned == {"near-each-other": 2 * count}
    assert rows["16 copies, one pixel changed by one grey level"].warned == {"near-each-other": 16 * count}
    assert rows["resized from 64 and from 128 px"].warned["near-released"] >= 0.95 * count


def test_rounding_to_float16_adds_nothing_that_shows(script: ModuleType) -> None:
    gains = script.rounding_gain(load_images("phantom:0:16:3", (1, 32, 32)).images)
    assert gains["float16"] < gains["float32"] + 1e-4
    assert max(gains.values()) < 0.02
