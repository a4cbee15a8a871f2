"""infer: hand-over file in, one folder of images out, the same images whatever the batch."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from heads import checkpoint_of, conditional_head, default_head, handover, inputs, rgb_head
from PIL import Image

from collafuse_runtimes.engines import EngineOptions, open_engine
from collafuse_runtimes.engines.fake_engine import FakeEngine
from collafuse_runtimes.errors import ArtefactError, CheckFailed, InputError, PlanMismatch
from collafuse_runtimes.files.bundle import HeadBundle
from collafuse_runtimes.files.images import encode_rows, to_uint8, write_contact_sheet, write_png
from collafuse_runtimes.infer import InferSettings, run_inference

LABELS = np.array([2, 0, 1, 1, 2])


def labels_of(bundle: HeadBundle) -> Any:
    return None if bundle.num_classes is None else LABELS


@pytest.mark.parametrize("make_head", [default_head, conditional_head, rgb_head])
def test_images_do_not_depend_on_the_batch(make_head: Any, tmp_path: Path) -> None:
    bundle = make_head()
    tensors, labels = handover(bundle, 5), labels_of(bundle)
    whole, ones, twos = (
        run_inference(bundle, tensors, tmp_path / f"by-{n}", InferSettings(batch_size=n), labels=labels).images
        for n in (8, 1, 2)
    )
    np.testing.assert_allclose(ones, whole, atol=1e-5)
    np.testing.assert_allclose(twos, whole, atol=1e-5)
    later = handover(bundle, 3, x_tc=tensors.x_tc[2:], first_index=102)
    rest = run_inference(bundle, later, tmp_path / "rest", labels=None if labels is None else labels[2:]).images
    np.testing.assert_allclose(rest, whole[2:], atol=1e-5)


def test_files(tmp_path: Path) -> None:
    bundle = rgb_head()
    result = run_inference(bundle, handover(bundle, 3), tmp_path / "out", InferSettings(steps=6))
    assert result.files == ("00000.png", "00001.png", "00002.png", "contact_sheet.png", "images.npz", "images.json")
    assert sorted(file.name for file in result.out_dir.iterdir()) == sorted(result.files)
    assert (result.steps, result.engine) == (6, "ort-cpu")
    with np.load(tmp_path / "out" / "images.npz", allow_pickle=False) as data:
        assert data.files == ["images"] and data["images"].dtype == np.float32
        np.testing.assert_array_equal(data["images"], result.images)
    picture = np.asarray(Image.open(tmp_path / "out" / "00001.png"))
    np.testing.assert_array_equal(picture, to_uint8(result.images)[1])
    assert picture.shape == (8, 12, 3)
    assert Image.open(tmp_path / "out" / "contact_sheet.png").size == (2 * 12 + 2, 2 * 8 + 2)


def test_same_as_the_engine(tmp_path: Path) -> None:
    bundle = default_head()
    tensors = handover(bundle, 2)
    calls: list[tuple[int, int]] = []
    result = run_inference(
        bundle,
        tensors,
        tmp_path / "out",
        InferSettings(engine="torch", options=EngineOptions(checkpoint=checkpoint_of(bundle)), batch_size=1, steps=7),
        on_step=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(k, 14) for k in range(1, 15)]
    with open_engine(bundle) as engine:
        np.testing.assert_allclose(result.images, engine.denoise(inputs(bundle, 2)[0], 7), atol=1e-4)


def test_other_plan_is_refused(tmp_path: Path) -> None:
    tensors = handover(default_head(), 1, plan=default_head().plan.with_cut_ratio(0.2))
    with pytest.raises(PlanMismatch, match=r"plans disagree on cut_ratio: head .* has 0.4, the hand-over file has 0.2"):
        run_inference(default_head(), tensors, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch size 0 out of range"),
        ({"steps": 4}, "4 steps are not baked into"),
        ({"labels": LABELS[:2]}, "this head is not class-conditional"),
        ({"engine": "gpu"}, "unknown engine 'gpu'"),
    ],
)
def test_unusable_options(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        labels = options.pop("labels", None)
        settings = InferSettings(**options)
        run_inference(default_head(), handover(default_head(), 2), tmp_path / "out", settings, labels=labels)
    assert list(tmp_path.iterdir()) == []


def test_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="a folder of other files is there, not a folder that infer wrote; choose"):
        run_inference(default_head(), handover(default_head(), 1), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    assert len(run_inference(default_head(), handover(default_head(), 1), tmp_path / "empty").files) == 4


def test_folder_that_cannot_be_made_is_found_before_the_work(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    bundle, out = default_head(), tmp_path / "missing" / "out"
    with pytest.raises(ArtefactError, match=r"cannot write .*missing/out: No such file or directory"):
        run_inference(bundle, handover(bundle, 1), out, on_step=lambda *step: calls.append(step))
    assert calls == []


def test_images_that_are_not_finite_are_not_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(engine: FakeEngine, trajectory: Any) -> Any:
        return np.where(np.arange(len(trajectory.x_tc))[:, None, None, None] == 1, np.nan, trajectory.x_tc)

    monkeypatch.setattr(FakeEngine, "_denoise", broken)
    with pytest.raises(CheckFailed, match=r"NaN or Inf in 1 of 3 images \(first: 1\); nothing was written"):
        run_inference(default_head(), handover(default_head(), 3), tmp_path / "out", InferSettings(engine="fake"))
    assert list(tmp_path.iterdir()) == []


def test_bytes_of_an_image() -> None:
    ramp = np.array([-9, -1, -1 / 255, 0, 1 / 255, 1, 9], np.float32).reshape(1, 1, 1, 7)
    assert to_uint8(ramp).ravel().tolist() == [0, 0, 127, 128, 128, 255, 255]
    every = np.arange(256, dtype=np.float32).reshape(1, 1, 16, 16) / 127.5 - 1
    assert to_uint8(every).ravel().tolist() == list(range(256))


def test_rows_stand_under_their_captions_enlarged() -> None:
    dark, light = (np.full((3, 1, 16, 16), value, np.float32) for value in (-1, 1))
    picture = np.asarray(Image.open(io.BytesIO(encode_rows([("dark", dark), ("light", light[:1])]))))
    side, line = 64, 64 + 14 + 2
    assert picture.shape == (2 * line, 3 * (side + 2), 3)
    assert picture[14 : 14 + side, :side].max() == 0
    assert picture[:14, :40].min() < 128  # the caption
    assert (picture[line + 14 :, side + 2 :] == 255).all()


def test_png_and_contact_sheet(tmp_path: Path) -> None:
    images = np.stack([np.full((1, 4, 6), value, np.float32) for value in (-1, 0, 1)])
    write_png(tmp_path / "a.png", images[2])
    assert np.asarray(Image.open(tmp_path / "a.png")).tolist() == [[255] * 6] * 4
    write_contact_sheet(tmp_path / "s.png", images, columns=3)
    sheet = np.asarray(Image.open(tmp_path / "s.png"))
    assert sheet.shape == (4, 3 * 6 + 2 * 2, 3)
    assert [int(sheet[0, x, 0]) for x in (0, 8, 16)] == [0, 128, 255]
    write_contact_sheet(tmp_path / "c.png", images, columns=1, captions=["a", "b", "c"])
    captioned = np.asarray(Image.open(tmp_path / "c.png"))
    assert captioned.shape == (3 * (4 + 2 + 14) - 2, 6, 3)
    with pytest.raises(InputError, match="2 captions for 3 images"):
        write_contact_sheet(tmp_path / "d.png", images, captions=["a", "b"])
    with pytest.raises(InputError, match="columns 0 out of range"):
        write_contact_sheet(tmp_path / "d.png", images, columns=0)
