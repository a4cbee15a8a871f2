"""Folders named like splits are splits, not classes: one is taken, and what was left out is said."""

from pathlib import Path

import pytest
from image_trees import load, notes, taken, tree

from collafuse_edge.data.splits import split_of
from collafuse_runtimes.errors import InputError

BOTH = ("Testing/a/1.png", "Testing/b/2.png", "Training/a/3.png", "Training/b/4.png")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("Training", "train"), ("TRAIN", "train"), ("train", "train"), ("trains", "train"), ("train2017", "train"),
        ("train_images", "train"), ("training-set", "train"), ("images_train", "train"), ("imagesTr", "train"),
        ("val", "val"), ("valid", "val"), ("Validation", "val"), ("validations", "val"), ("val_set", "val"),
        ("test", "test"), ("Tests", "test"), ("Testing", "test"), ("imagesTs", "test"), ("test data", "test"),
        ("contest", None), ("testes", None), ("trainer", None), ("valley", None), ("tested", None), ("a", None),
        ("invalid", None), ("validated", None), ("retest", None),
    ],
)  # fmt: skip
def test_names_of_splits(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_the_training_split_is_taken_by_default_and_the_rest_is_said(tmp_path: Path) -> None:
    loaded = load(tree(tmp_path, *BOTH))
    assert (taken(loaded), loaded.label_names, loaded.labels.tolist()) == ([3, 4], ("a", "b"), [0, 1])
    assert "split train taken (folder Training); left out: test (2 images of Testing)" in loaded.notes


@pytest.mark.parametrize(
    ("split", "places"),
    [("test", [1, 2]), ("Testing", [1, 2]), ("train", [3, 4]), ("training", [3, 4]), ("all", [1, 2, 3, 4])],
)
def test_a_split_is_chosen_by_any_of_its_names(tmp_path: Path, split: str, places: list[int]) -> None:
    loaded = load(tree(tmp_path, *BOTH), split=split)
    assert taken(loaded) == places
    assert loaded.label_names == ("a", "b"), "the class is the folder below the split"


def test_every_split_numbers_the_classes_alike(tmp_path: Path) -> None:
    tree(tmp_path, "test/b/1.png", "test/c/2.png", "train/a/3.png", "train/b/4.png")
    test, train = load(tmp_path, split="test"), load(tmp_path)
    assert test.label_names == train.label_names == ("a", "b", "c")
    assert (test.labels.tolist(), train.labels.tolist()) == ([1, 2], [0, 1])
    assert "classes 0 a: 1, 1 b: 1; no image of 2 c" in train.notes


@pytest.mark.parametrize(
    "names",
    [
        ("zip/test/a/1.png", "zip/train/a/2.png", "zip/train/b/3.png"),
        ("a/test/1.png", "a/train/2.png", "b/train/3.png"),
        ("test/images/a/1.png", "train/images/a/2.png", "train/images/b/3.png"),
        ("images/test/a/1.png", "images/train/a/2.png", "images/train/b/3.png"),
    ],
    ids=["wrapped", "below the classes", "around images", "below images"],
)
def test_splits_at_other_depths(tmp_path: Path, names: tuple[str, ...]) -> None:
    loaded = load(tree(tmp_path, *names))
    assert (taken(loaded), loaded.label_names) == ([2, 3], ("a", "b"))


def test_splits_without_classes(tmp_path: Path) -> None:
    loaded = load(tree(tmp_path, "test/1.png", "train/2.png", "val/3.png"))
    assert (taken(loaded), loaded.labels) == ([2], None)
    assert "left out: test (1 image of test), val (1 image of val)" in notes(loaded)


@pytest.mark.parametrize(
    ("names", "split", "message"),
    [
        (("test/1.png", "val/2.png"), None, "has no split 'train'; valid: val, test, all"),
        (BOTH, "val", "has no split 'val'; valid: train, test, all"),
        (BOTH, "dev", "has no split 'dev'; valid: train, test, all"),
        (("a/1.png",), "train", "has no folder named like a split, so split 'train' cannot be selected; leave it out"),
        (
            ("extra/1.png", "test/2.png", "train/3.png", "x.png"),
            None,
            "holds folders named like splits (train 1, test 1) beside 2 images outside of them (first: "
            "'extra/1.png'); give --split train, or --split all, or rename what is a class",
        ),
    ],
)
def test_what_cannot_be_decided_is_refused(
    tmp_path: Path, names: tuple[str, ...], split: str | None, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        load(tree(tmp_path, *names), split=split)
    assert str(caught.value) == f"{tmp_path} {message}"


def test_the_remedy_for_images_outside_the_splits_works(tmp_path: Path) -> None:
    tree(tmp_path, "extra/1.png", "test/2.png", "train/3.png")
    train = load(tmp_path, split="train")
    assert taken(train) == [3]
    assert "left out: outside the splits (1 image), test (1 image of test)" in notes(train)
    every = load(tmp_path, split="all")
    assert taken(every) == [1, 2, 3]
    assert "every split taken: train 1, test 1, outside of them 1" in every.notes
