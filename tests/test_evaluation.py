"""KID is the estimator of Binkowski et al. 2018 on the features of the extractor it names."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch
from PIL import Image
from small_product import HANDOVERS, product, write_extractor

from collafuse_edge.data import load_images
from collafuse_edge.data.image_set import Selection
from collafuse_edge.evaluation import describe_score, kid, read_generated
from collafuse_runtimes.errors import ArtefactError, InputError
from collafuse_runtimes.handover import read_handover
from collafuse_runtimes.noise import Float32Array
from collafuse_runtimes.sealed import sha256_file

NAMES = {"real_name": "here", "generated_name": "there"}
Float64Array = npt.NDArray[np.float64]


def waves(count: int, channels: int = 1, frequency: float = 1.0, level: float = 0.0, seed: int = 0) -> Float32Array:
    """Images of one distribution per frequency and level: plane waves of random direction and phase around a level."""
    random = np.random.default_rng(seed)
    direction, phase = random.uniform(0, 2 * np.pi, (2, count, channels, 1, 1))
    y, x = np.mgrid[:8, :8] / 8
    images = np.sin(2 * np.pi * frequency * (np.cos(direction) * x + np.sin(direction) * y) + phase)
    return (level + (1 - abs(level)) * images).astype(np.float32)


def features_of(extractor: Path, images: Float32Array) -> Float64Array:
    """8-bit RGB, resized by Pillow (whose bilinear filter is antialiased), through the extractor."""
    session = onnxruntime.InferenceSession(extractor, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    pixels = np.round((np.clip(images, -1, 1) + 1) * 127.5).astype(np.float32)
    pixels = np.broadcast_to(pixels, (len(pixels), 3, *pixels.shape[2:]))
    size = (given.shape[3], given.shape[2])
    resized = [[np.asarray(Image.fromarray(c).resize(size, Image.Resampling.BILINEAR)) for c in rgb] for rgb in pixels]
    features: Float64Array = session.run(None, {given.name: np.array(resized, np.float32)})[0].astype(np.float64)
    return features


def unbiased_mmd(x: Float64Array, y: Float64Array) -> float:
    """Binkowski et al. 2018, eq. 4, with k(a, b) = (a.b / d + 1)^3; loops over pairs leave nothing to broadcasting."""

    def k(a: Float64Array, b: Float64Array) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    def within(points: Float64Array) -> float:
        m = len(points)
        return sum(k(points[i], points[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))

    return within(x) + within(y) - 2 * sum(k(a, b) for a in x for b in y) / (len(x) * len(y))


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 8), (1, 4), (3, 12)])
def test_the_estimator_is_that_of_the_paper(channels: int, side: int, tmp_path: Path) -> None:
    """Images of 8 x 8 at their own size, made smaller and larger."""
    extractor = write_extractor(tmp_path / "e.onnx", side=side)
    real, generated = waves(20, channels), waves(20, channels, frequency=2.0, level=0.4, seed=1)
    score = kid(real, generated, extractor, **NAMES)
    expected = unbiased_mmd(features_of(extractor, real), features_of(extractor, generated))
    assert expected > 0.05
    assert score.kid_mean == pytest.approx(expected, abs=1e-4)
    assert score.kid_std == pytest.approx(0, abs=1e-6)
    assert score.subset_size == 20


def test_equal_distributions_score_near_zero_and_others_do_not(tmp_path: Path) -> None:
    extractor = write_extractor(tmp_path / "e.onnx")
    images = waves(400, frequency=1.5)
    same = kid(images[:200], images[200:], extractor, **NAMES)
    coarser = kid(images[:200], waves(200, frequency=0.5, seed=1), extractor, **NAMES)
    darker = kid(images[:200], waves(200, frequency=1.5, level=-0.3, seed=1), extractor, **NAMES)
    assert abs(same.kid_mean) < 2e-3
    assert min(coarser.kid_mean, darker.kid_mean) > 10 * abs(same.kid_mean)


def test_a_set_against_itself_is_below_zero_because_the_estimator_is_unbiased(tmp_path: Path) -> None:
    images = waves(10)
    assert kid(images, images, write_extractor(tmp_path / "e.onnx"), **NAMES).kid_mean < 0


def test_the_seed_chooses_the_subsets_and_nothing_else_does(tmp_path: Path) -> None:
    extractor = write_extractor(tmp_path / "e.onnx")
    real, generated = waves(60), waves(30, frequency=2.0, seed=1)
    first = kid(real, generated, extractor, seed=3, **NAMES)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert kid(real, generated, extractor, seed=3, **NAMES) == first
    assert torch.equal(torch.get_rng_state(), before)
    other = kid(real, generated, extractor, seed=4, **NAMES)
    assert other != replace(first, seed=4)
    assert abs(other.kid_mean - first.kid_mean) < first.kid_std
    assert first.kid_std > 0


def test_the_result_names_all_it_depends_on(tmp_path: Path) -> None:
    extractor = write_extractor(tmp_path / "average.onnx")
    score = kid(waves(230), waves(210, seed=1), extractor, seed=2**64 - 1, **NAMES)
    assert (score.real, score.real_count, score.generated, score.generated_count) == ("here", 230, "there", 210)
    assert (score.subsets, score.subset_size, score.seed) == (100, 200, 2**64 - 1)
    assert (score.extractor, score.extractor_sha256) == ("average.onnx", sha256_file(extractor))
    text = "\n".join(describe_score(score))
    for part in (f"{score.kid_mean:.4g}", "230 images: here", "210 images: there", "average.onnx", "not comparable"):
        assert part in text


def test_values_beyond_the_range_are_clipped(tmp_path: Path) -> None:
    extractor = write_extractor(tmp_path / "e.onnx")
    real, generated = waves(12), 3 * waves(12, seed=1)
    assert kid(real, generated, extractor, **NAMES) == kid(real, generated.clip(-1, 1), extractor, **NAMES)


def test_what_infer_and_handoff_wrote_can_be_read() -> None:
    images = read_generated(product() / "images")
    assert (images.shape, images.dtype) == ((HANDOVERS, 1, 8, 8), np.float32)
    np.testing.assert_array_equal(images, read_generated(product() / "images" / "images.npz"))
    x_tc = read_generated(product() / "x.tc.safetensors")
    np.testing.assert_array_equal(x_tc, read_handover(product() / "x.tc.safetensors").x_tc)
    assert not np.array_equal(images, x_tc)


def test_float16_images_are_widened(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", images=waves(4).astype(np.float16))
    assert read_generated(tmp_path).dtype == np.float32


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"channels": 1}, "maps tensor(float) (batch, 1, 8, 8) to tensor(float) (batch, 16); valid: one float32 input"),
        ({"side": "any"}, "maps tensor(float) (batch, 3, any, any)"),
        ({"batch": 2}, "maps tensor(float) (2, 3, 8, 8)"),
        ({"outputs": 2}, "to tensor(float) (batch, 48), tensor(float) (batch, 48)"),
        ({"scale": np.inf}, "gives features with NaN or Inf"),
        ({"scale": 1e12}, "gives features too large for KID"),
    ],
)
def test_extractors_that_cannot_be_used(options: dict[str, object], error: str, tmp_path: Path) -> None:
    extractor = write_extractor(tmp_path / "e.onnx", **options)  # type: ignore[arg-type]
    with pytest.raises(InputError) as caught:
        kid(waves(4), waves(4), extractor, **NAMES)
    assert str(caught.value).startswith(f"{extractor} ")
    assert error in str(caught.value)


def test_files_that_are_no_extractor(tmp_path: Path) -> None:
    (tmp_path / "e.onnx").write_bytes(b"no graph")
    with pytest.raises(ArtefactError, match=r"e\.onnx is not a readable ONNX model: "):
        kid(waves(4), waves(4), tmp_path / "e.onnx", **NAMES)
    with pytest.raises(ArtefactError, match=r"cannot read .*nowhere\.onnx: No such file"):
        kid(waves(4), waves(4), tmp_path / "nowhere.onnx", **NAMES)


def test_one_image_is_no_distribution(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="KID needs 2 and more images a side; real 4, generated 1"):
        kid(waves(4), waves(1), write_extractor(tmp_path / "e.onnx"), **NAMES)


def test_a_real_extractor_tells_brains_from_phantoms(data_dir: Path) -> None:
    extractor = data_dir.parent / "weights" / "squeezenet1_0_features.onnx"
    if not extractor.exists():
        pytest.skip(f"no {extractor}")
    brains = load_images(str(data_dir / "brain_mri_64.npz"), (1, 64, 64), Selection(limit=48)).images
    phantoms = load_images("phantom:0:24", (1, 64, 64)).images
    same = kid(brains[::2], brains[1::2], extractor, **NAMES)
    other = kid(brains[::2], phantoms, extractor, **NAMES)
    assert other.kid_mean > 10 * abs(same.kid_mean)
    expected = unbiased_mmd(features_of(extractor, brains[::2]), features_of(extractor, phantoms))
    assert other.kid_mean == pytest.approx(expected, rel=1e-3)
