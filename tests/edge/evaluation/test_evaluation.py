"""`evaluate` scores images by the features of the extractor it names, and says what made them."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch
from command_line import done, refusal
from small_product import HANDOVERS, product, write_extractor

from collafuse_edge.data import load_images
from collafuse_edge.data.image_set import Selection
from collafuse_edge.evaluation.describe import describe_score
from collafuse_edge.evaluation.evaluate import ESTIMATOR, Generated, ImageScore, read_generated, real_images, score
from collafuse_edge.evaluation.extractor import _resized
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.errors import ArtefactError, InputError
from collafuse_runtimes.files.bundle import read_bundle
from collafuse_runtimes.files.handover import read_handover
from collafuse_runtimes.files.sealed import read_json, sha256_file, write_json

Float64Array = npt.NDArray[np.float64]


def waves(count: int, channels: int = 1, frequency: float = 1.0, level: float = 0.0, seed: int = 0) -> Float32Array:
    """Images of one distribution per frequency and level: plane waves of random direction and phase around a level."""
    random = np.random.default_rng(seed)
    direction, phase = random.uniform(0, 2 * np.pi, (2, count, channels, 1, 1))
    y, x = np.mgrid[:8, :8] / 8
    images = np.sin(2 * np.pi * frequency * (np.cos(direction) * x + np.sin(direction) * y) + phase)
    return (level + (1 - abs(level)) * images).astype(np.float32)


def kid(real: Float32Array, generated: Float32Array, extractor: Path | None) -> ImageScore:
    return score(real_images("here", real, extractor), Generated(generated, None), "there", extractor)


def features_of(extractor: Path, images: Float32Array) -> Float64Array:
    """8-bit RGB, resized by torch (bilinear, antialiased), through the extractor."""
    session = onnxruntime.InferenceSession(extractor, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    pixels = np.round((np.clip(images, -1, 1) + 1) * 127.5).astype(np.float32)
    pixels = np.broadcast_to(pixels, (len(pixels), 3, *pixels.shape[2:]))
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(pixels.copy()), tuple(given.shape[2:]), mode="bilinear", align_corners=False, antialias=True
    )
    features: Float64Array = session.run(None, {given.name: resized.numpy()})[0].astype(np.float64)
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
    found = kid(real, generated, extractor)
    f_real, f_generated = features_of(extractor, real), features_of(extractor, generated)
    expected = unbiased_mmd(f_real, f_generated)
    assert expected > 0.05
    assert found.kid_raw == pytest.approx(expected, abs=1e-5)
    on_scale = [(f - f_real.mean(0)) / f_real.var(0, ddof=1).mean() ** 0.5 for f in (f_real, f_generated)]
    assert found.kid_mean == pytest.approx(unbiased_mmd(*on_scale), rel=1e-4)


def test_equal_distributions_score_near_zero_and_others_do_not(tmp_path: Path) -> None:
    extractor = write_extractor(tmp_path / "e.onnx")
    images = waves(400, frequency=1.5)
    same = kid(images[:200], images[200:], extractor)
    coarser = kid(images[:200], waves(200, frequency=0.5, seed=1), extractor)
    darker = kid(images[:200], waves(200, frequency=1.5, level=-0.3, seed=1), extractor)
    assert same.kid_low is not None and same.kid_high is not None and same.kid_low < 0 < same.kid_high
    assert coarser.kid_low is not None and coarser.kid_low > same.kid_high
    assert darker.kid_low is not None and darker.kid_low > same.kid_high


def test_a_set_against_itself_is_below_zero_because_the_estimator_is_unbiased(tmp_path: Path) -> None:
    images = waves(10)
    assert kid(images, images, write_extractor(tmp_path / "e.onnx")).kid_mean < 0


def test_the_result_names_all_it_depends_on(tmp_path: Path) -> None:
    extractor = write_extractor(tmp_path / "average.onnx")
    found = kid(waves(230), waves(210, seed=1), extractor)
    assert (found.real, found.real_count, found.generated, found.generated_count) == ("here", 230, "there", 210)
    assert (found.extractor, found.extractor_sha256) == ("average.onnx", sha256_file(extractor))
    assert (found.estimator, found.kid_std, found.subset_size) == (ESTIMATOR, None, None)
    assert found.kid_error is not None and found.kid_low is not None and found.kid_high is not None
    assert found.kid_low < found.kid_mean < found.kid_high
    assert (found.head, found.steps, found.cut, found.seed) == (None, None, None, None)
    text = "\n".join(describe_score(found))
    for part in (
        f"{found.kid_mean:.4g} (standard error {found.kid_error:.2g}, 95 % interval {found.kid_low:.3g} to ",
        "230 images: here",
        "210 images: there",
        "unknown: made by a release of `infer` that wrote no images.json",
        "average.onnx",
        "not comparable",
    ):
        assert part in text


@pytest.mark.parametrize(("count", "is_given"), [(19, False), (20, True)])
def test_few_images_give_a_score_and_no_error(count: int, is_given: bool, tmp_path: Path) -> None:
    found = kid(waves(40), waves(count, seed=1), write_extractor(tmp_path / "e.onnx"))
    given = (found.kid_error, found.kid_low, found.kid_high, found.kid_raw_error)
    assert [value is not None for value in given] == [is_given] * 4
    assert (found.kid_error_reason is None) is is_given
    if not is_given:
        assert "fewer than 20 images on a side" in describe_score(found)[0]


def evaluate(generated: Path) -> dict[str, object]:
    options = ("--data", product() / "data.npz", "--extractor", product() / "extractor.onnx", "--json")
    found: dict[str, object] = json.loads(done("evaluate", generated, *options))
    return found


def test_a_score_says_what_made_the_images(tmp_path: Path) -> None:
    images = tmp_path / "images"
    done("infer", product() / "edge.head", product() / "x.tc.safetensors", "--steps", 2, "--out", images)
    head, handover = read_bundle(product() / "edge.head"), read_handover(product() / "x.tc.safetensors")
    found = evaluate(images)
    of_server = {
        "cut": 5,
        "cut_ratio": 0.5,
        "fingerprint": handover.plan.fingerprint,
        "seed": handover.seed,
        "first_index": 0,
        "server_sampler": {"name": "dpm++2m", "eta": 0.0, "levels": "karras"},
        "server_steps": 5,
        "server_sha256": handover.server_sha256,
    }
    of_head = {
        "head": "edge.head",
        "head_sha256": head.network.weights_sha256,
        "precision": "fp32",
        "engine": "ort-cpu",
        "sampler": {"name": "ddim", "eta": 0.0},
        "steps": 2,
    }
    expected = {**of_server, **of_head, "unknown": None}
    assert {key: found[key] for key in expected} == expected
    assert evaluate(images / "images.npz") == {**found, "generated": f"{images}/images.npz"}
    tensors = evaluate(product() / "x.tc.safetensors")
    expected = {**of_server, **dict.fromkeys(of_head), "unknown": "no head has run: these are hand-over tensors"}
    assert {key: tensors[key] for key in expected} == expected


def test_folders_of_older_releases_are_scored_without_a_name(tmp_path: Path) -> None:
    shutil.copytree(product() / "images", tmp_path / "old")
    (tmp_path / "old" / "images.json").unlink()
    found, named = evaluate(tmp_path / "old"), evaluate(product() / "images")
    assert found["kid_mean"] == named["kid_mean"]
    assert (found["head"], found["steps"], found["cut"]) == (None, None, None)
    assert "wrote no images.json" in str(found["unknown"])


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda record: record.update(images_sha256="0" * 64),
            "images.json is the record of other images",
        ),
        (lambda record: record["head"].pop("steps"), "images.json lacks or garbles a field ('steps'); run `infer`"),
        (lambda record: record.update(head=None), "images.json lacks or garbles a field ("),
        (lambda record: record.update(seed="1"), "images.json: seed is '1'; valid: integers of at least 0"),
        (lambda record: record["head"]["sampler"].update(name="x"), "images.json: unknown sampler 'x'"),
        (lambda record: record["plan"].update(timesteps=11), "images.json: the fingerprint is not that of the plan"),
    ],
)
def test_records_that_do_not_fit_are_refused(
    change: Callable[[dict[str, Any]], object], line: str, tmp_path: Path
) -> None:
    shutil.copytree(product() / "images", tmp_path / "images")
    record = read_json(tmp_path / "images" / "images.json", "collafuse-images")
    change(record)
    write_json(tmp_path / "images" / "images.json", "collafuse-images", record)
    options = ("--data", product() / "data.npz", "--extractor", product() / "extractor.onnx")
    assert line in refusal("evaluate", tmp_path / "images", *options)


def test_values_beyond_the_range_are_clipped(tmp_path: Path) -> None:
    extractor = write_extractor(tmp_path / "e.onnx")
    real, generated = waves(12), 3 * waves(12, seed=1)
    assert kid(real, generated, extractor) == kid(real, generated.clip(-1, 1), extractor)


def test_what_infer_and_handoff_wrote_can_be_read() -> None:
    images = read_generated(product() / "images").images
    assert (images.shape, images.dtype) == ((HANDOVERS, 1, 8, 8), np.float32)
    np.testing.assert_array_equal(images, read_generated(product() / "images" / "images.npz").images)
    x_tc = read_generated(product() / "x.tc.safetensors").images
    np.testing.assert_array_equal(x_tc, read_handover(product() / "x.tc.safetensors").x_tc)
    assert not np.array_equal(images, x_tc)


def test_float16_images_are_widened(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", images=waves(4).astype(np.float16))
    assert read_generated(tmp_path).images.dtype == np.float32


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"channels": 1}, "maps tensor(float) (batch, 1, 8, 8) to tensor(float) (batch, 16); valid: one float32 input"),
        ({"side": "any"}, "maps tensor(float) (batch, 3, any, any)"),
        ({"batch": 2}, "maps tensor(float) (2, 3, 8, 8)"),
        ({"outputs": 2}, "to tensor(float) (batch, 48), tensor(float) (batch, 48)"),
        ({"scale": np.inf}, "gives features with NaN or Inf"),
        ({"scale": 0.0}, "cannot judge these images: no feature varies over the real images"),
        ({"side": 0}, "maps tensor(float) (batch, 3, 0, 0)"),
    ],
)
def test_extractors_that_cannot_be_used(options: dict[str, object], error: str, tmp_path: Path) -> None:
    extractor = write_extractor(tmp_path / "e.onnx", **options)  # type: ignore[arg-type]
    with pytest.raises(InputError) as caught:
        kid(waves(4), waves(4), extractor)
    assert str(caught.value).startswith(f"{extractor} ")
    assert error in str(caught.value)


def test_files_that_are_no_extractor(tmp_path: Path) -> None:
    for content, says in (
        (b"no graph", "is not a readable ONNX model: "),
        (b"", "is empty, not a readable ONNX model"),
    ):
        (tmp_path / "e.onnx").write_bytes(content)
        with pytest.raises(ArtefactError, match=rf"e\.onnx {says}"):
            kid(waves(4), waves(4), tmp_path / "e.onnx")
    with pytest.raises(ArtefactError, match="is not a file; valid: an ONNX feature extractor"):
        kid(waves(4), waves(4), tmp_path)
    with pytest.raises(ArtefactError, match=r"cannot read .*nowhere\.onnx: No such file"):
        kid(waves(4), waves(4), tmp_path / "nowhere.onnx")


def test_one_image_is_no_distribution(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there has 1 image; valid: at least 2"):
        kid(waves(4), waves(1), write_extractor(tmp_path / "e.onnx"))


def test_a_real_extractor_tells_brains_from_phantoms(data_dir: Path) -> None:
    extractor = data_dir.parent / "weights" / "squeezenet1_0_features.onnx"
    if not extractor.exists():
        pytest.skip(f"no {extractor}")
    brains = load_images(str(data_dir / "brain_mri_64.npz"), (1, 64, 64), Selection(limit=48)).images
    phantoms = load_images("phantom:0:24", (1, 64, 64)).images
    same = kid(brains[::2], brains[1::2], extractor)
    other = kid(brains[::2], phantoms, extractor)
    assert other.kid_mean > 10 * abs(same.kid_mean)
    expected = unbiased_mmd(features_of(extractor, brains[::2]), features_of(extractor, phantoms))
    assert other.kid_raw == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("side", "to"), [(64, (224, 224)), (32, (224, 200)), (200, (64, 33)), (17, (17, 17))])
def test_images_are_resized_as_torch_does(side: int, to: tuple[int, int]) -> None:
    images = np.random.default_rng(side).uniform(-1.2, 1.2, (2, 3, side, side + 3)).astype(np.float32)
    pixels = torch.from_numpy(np.round((images.clip(-1, 1) + 1) * 127.5).astype(np.float64))
    expected = torch.nn.functional.interpolate(pixels, to, mode="bilinear", align_corners=False, antialias=True)
    assert np.abs(_resized(images, *to) - expected.numpy()).max() < 1e-4


def test_neither_torch_nor_its_metrics_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = evaluate(product() / "images")
    for name in ("torch", "torchmetrics", "diffusers", "onnx"):
        monkeypatch.setitem(sys.modules, name, None)
    assert evaluate(product() / "images") == before
