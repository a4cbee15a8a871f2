"""Labels of arrays in every form they come in; what is no class is told in words."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collafuse_edge.data import ImageSet, Selection, load_images
from collafuse_edge.training.client import client_task
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.errors import InputError

SHAPE = (1, 4, 4)
IMAGES = np.arange(3, dtype=np.uint8)[:, None, None] * np.ones((3, 4, 4), np.uint8)


def load(folder: Path, **arrays: Any) -> ImageSet:
    np.savez(folder / "x.npz", **({} if "train_images" in arrays else {"images": IMAGES}), **arrays)
    return load_images(str(folder / "x.npz"), SHAPE)


@pytest.mark.parametrize(
    ("labels", "numbers", "names"),
    [
        (np.array([2, 0, 2], np.uint8), [2, 0, 2], None),
        (np.array([[2], [0], [2]]), [2, 0, 2], None),
        (np.array([2.0, 0.0, 2.0]), [2, 0, 2], None),
        (np.array([2, 0, 2], np.float16), [2, 0, 2], None),
        (np.array([True, False, True]), [1, 0, 1], None),
        (np.array([1, 5, 5]), [1, 5, 5], None),
        (np.array(["b", "a", "b"]), [1, 0, 1], ("a", "b")),
        (np.array([b"b", b"a", b"b"]), [1, 0, 1], ("a", "b")),
        (np.array([["b "], [" a"], ["b"]]), [1, 0, 1], ("a", "b")),
        (np.array(["7", "3", "7"]), [7, 3, 7], None),
        (np.array([[0, 1], [1, 0], [0, 1]]), [1, 0, 1], None),
        (np.array([[0, 0, 1.0], [1, 0, 0], [0, 0, 1]]), [2, 0, 2], None),
        (np.eye(3, dtype=bool)[[2, 0, 2]], [2, 0, 2], None),
    ],
)
def test_labels_are_understood(tmp_path: Path, labels: Any, numbers: list[int], names: tuple[str, ...] | None) -> None:
    loaded = load(tmp_path, labels=labels)
    assert (loaded.labels.tolist(), loaded.label_names) == (numbers, names)
    assert loaded.labels.dtype == np.int64


def test_names_of_one_hot_columns_and_of_texts(tmp_path: Path) -> None:
    one_hot = load(tmp_path, labels=np.eye(2)[[1, 0, 1]], label_names=["x", "y"])
    assert (one_hot.labels.tolist(), one_hot.label_names) == ([1, 0, 1], ("x", "y"))
    assert "labels read as one-hot, 2 classes" in one_hot.notes
    texts = load(tmp_path, labels=["y", "x", "y"], label_names=["z", "y", "x"])
    assert (texts.labels.tolist(), texts.label_names) == ([1, 2, 1], ("z", "y", "x"))


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (np.zeros((3, 14), int), "its labels are several for an image (14 columns, not one-hot)"),
        (np.array([[1, 1], [0, 1], [1, 0]]), "its labels are several for an image (2 columns, not one-hot)"),
        (np.array([[0.3, 0.7], [0.5, 0.5], [1, 0]]), "its labels are several for an image (2 columns, not one-hot)"),
        (np.array([["a", "b"]] * 3), "its labels are 2 texts for each image"),
    ],
)
def test_several_labels_are_no_class_and_that_is_said(tmp_path: Path, labels: Any, reason: str) -> None:
    loaded = load(tmp_path, labels=labels)
    assert (len(loaded), loaded.labels) == (3, None)
    assert f"no classes: {reason}" in loaded.notes
    with pytest.raises(InputError) as caught:
        client_task(SplitPlan(SHAPE), loaded, conditional=True)
    assert f"--conditional needs labels and {loaded.source} has none ({reason})" in str(caught.value)
    with pytest.raises(InputError) as caught:
        load_images(loaded.source, SHAPE, Selection(classes=("1",)))
    assert f"has no labels ({reason}), so classes 1 cannot be selected" in str(caught.value)


@pytest.mark.parametrize("kind", ["U", "S"])
def test_text_labels_number_every_split_alike(kind: str, tmp_path: Path) -> None:
    labels = {"train_labels": np.array(["b", "c", "b"], kind), "test_labels": np.array(["a"] * 3, kind)}
    loaded = load(tmp_path, train_images=IMAGES, test_images=IMAGES, **labels)
    assert (loaded.labels.tolist(), loaded.label_names) == ([1, 2, 1], ("a", "b", "c"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": ["a", "", "b"]}, "has an empty label, of image 1"),
        ({"labels": ["a", "c", "b"], "label_names": ["a", "b"]}, "has label 'c', which its label_names lack: a, b"),
        ({"labels": np.array(["a", b"\xff".decode("latin1"), "b"]).astype(object).tolist()[:2]}, "3 images but labels"),
    ],
)
def test_texts_that_are_no_labels(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, **arrays)
    assert message in str(caught.value)


def test_a_number_of_classes_no_head_can_have(tmp_path: Path) -> None:
    loaded = load(tmp_path, labels=[0, 1, 10**9])
    with pytest.raises(InputError, match=r"has label 1000000000, so 1000000001 classes; valid: at most 10000"):
        client_task(SplitPlan(SHAPE), loaded, conditional=True)


def test_labels_from_one_leave_an_empty_class_and_that_is_said(tmp_path: Path) -> None:
    loaded = load(tmp_path, labels=[1, 2, 1])
    assert client_task(SplitPlan(SHAPE), loaded, conditional=True)[1] == 3
    assert "classes 1: 2, 2: 1; no image of 0" in loaded.notes
