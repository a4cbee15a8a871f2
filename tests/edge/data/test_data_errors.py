"""Every unusable source or selection is refused in one line that names what was found and what is valid."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from collafuse_edge.data import Selection, load_images
from collafuse_runtimes.errors import InputError

SHAPE = (1, 4, 4)
IMAGES = np.zeros((3, 4, 4), np.uint8)


def refusal(source: str | Path, selection: Selection = Selection()) -> str:  # noqa: B008
    with pytest.raises(InputError) as caught:
        load_images(str(source), SHAPE, selection)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400 + len(str(source))
    return message


def npz(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "set.npz", **arrays)
    return folder / "set.npz"


@pytest.mark.parametrize("source", ["missing.npz", "", "no/such/folder", "x" * 300, "nul\0byte"])
def test_missing_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal(source)
    assert repr(source) in message
    assert "does not exist" in message and "phantom:<population>" in message


def test_unknown_kind_lists_the_kinds(tmp_path: Path) -> None:
    (tmp_path / "scan.mha").write_bytes(b"ObjectType = Image")
    message = refusal(tmp_path / "scan.mha")
    assert "scan.mha" in message and all(kind in message for kind in (".npz", "idx", ".nii", "phantom:", "folder"))


@pytest.mark.parametrize("extra", [None, "notes.txt", ".hidden.png"])
def test_folder_without_readable_images(tmp_path: Path, extra: str | None) -> None:
    if extra:
        (tmp_path / extra).write_bytes(b"text")
    assert str(tmp_path) in refusal(tmp_path) and ".png" in refusal(tmp_path)


def cut_jpeg(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-1500])


def cut_png(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    Image.fromarray(noise).save(path, format="png")
    path.write_bytes(path.read_bytes()[:1500])


@pytest.mark.parametrize("spoil", [cut_jpeg, cut_png, lambda p: p.write_bytes(b"not a jpeg"), lambda p: p.touch()])
def test_corrupt_image_file_is_named(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    spoil(tmp_path / "broken.jpg")
    assert f"cannot read image {tmp_path / 'broken.jpg'}" in refusal(tmp_path)


def test_image_of_unknown_range(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(tmp_path / "x.tif")
    assert "x.tif has pixels of dtype int32, 70000 to 70000; valid" in refusal(tmp_path)


def test_float_tif_out_of_range_names_file_and_range(tmp_path: Path) -> None:
    Image.fromarray(np.float32([[-1.5, 3]])).save(tmp_path / "x.tif")
    message = refusal(tmp_path)
    assert "x.tif" in message and "from -1.5 to 3; valid: 0 to 1" in message


def test_images_and_volumes_in_one_folder(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "b.nii").touch()
    message = refusal(tmp_path)
    assert "a.png" in message and "b.nii" in message


def test_npz_without_known_keys_lists_those_found(tmp_path: Path) -> None:
    message = refusal(npz(tmp_path, x_train=IMAGES, y_train=IMAGES))
    assert "x_train, y_train" in message and "images" in message and "train_images" in message


def test_pickled_npz_is_never_loaded(tmp_path: Path) -> None:
    assert "Python objects" in refusal(npz(tmp_path, images=np.array([{}, {}], object)))


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_truncated_npz(tmp_path: Path, keep: float) -> None:
    path = npz(tmp_path, images=np.random.default_rng(0).integers(0, 255, (9, 4, 4), np.uint8))
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
    assert f"{path} is damaged" in refusal(path)


def test_npz_with_a_damaged_member(tmp_path: Path) -> None:
    path = npz(tmp_path, images=IMAGES)
    data = bytearray(path.read_bytes())
    data[200] ^= 255  # a pixel, no longer the one its CRC was made for
    path.write_bytes(data)
    assert f"cannot read {path}" in refusal(path)


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (np.zeros((3, 4, 4), np.int64), "dtype int64, 0 to 0; valid: uint8, uint16, or floats"),
        (np.zeros((3, 4, 4), complex), "dtype complex128; valid"),
        (np.linspace(-1, 1, 48).reshape(3, 4, 4), "from -1 to 1; valid: 0 to 1"),
        (np.linspace(0, 1.01, 48).reshape(3, 4, 4), "from 0 to 1.01; valid: 0 to 1"),
        (np.linspace(0, 255, 48).reshape(3, 4, 4), "from 0 to 255; valid: 0 to 1"),
        (np.where(np.arange(48) == 20, np.nan, 0.5).reshape(3, 4, 4), "NaN or Inf, first in image 1;"),
        (np.where(np.arange(48) == 47, np.inf, 0.5).reshape(3, 4, 4), "NaN or Inf, first in image 2;"),
        (np.zeros((4, 4), np.uint8), "shape (4, 4); valid: (N,H,W)"),
        (np.zeros((3, 1, 4, 4), np.uint8), "shape (3, 1, 4, 4); valid"),
        (np.zeros((3, 0, 4), np.uint8), "shape (3, 0, 4); valid"),
        (np.zeros((0, 4, 4), np.uint8), "no image left"),
    ],
)
def test_unusable_pixels(tmp_path: Path, images: np.ndarray, found: str) -> None:
    assert found in refusal(npz(tmp_path, images=images))


@pytest.mark.parametrize(
    ("labels", "names", "found"),
    [
        ([0, 1], None, "3 images but labels of shape (2,)"),
        (np.zeros((3, 1, 1), int), None, "3 images but labels of shape (3, 1, 1)"),
        (np.int64(1), None, "3 images but labels of shape ()"),
        ([0.0, 1.5, 2.0], None, "label 1.5, no whole number; valid: whole numbers from 0"),
        ([0.0, np.nan, 2.0], None, "label nan, no whole number"),
        (np.array([1, 2, 3], "M8[D]"), None, "labels of dtype datetime64[D]; valid: whole numbers"),
        (np.array([1, 2, 3], complex), None, "labels of dtype complex128; valid: whole numbers"),
        ([0, -1, 2], None, "label -1"),
        ([0, 1, 2], ["a", "b"], "label 2; valid: 0 to 1"),
    ],
)
def test_unusable_labels(tmp_path: Path, labels: Any, names: list[str] | None, found: str) -> None:
    arrays = {"images": IMAGES, "labels": labels} | ({"label_names": names} if names else {})
    assert found in refusal(npz(tmp_path, **arrays))


def test_unknown_split_lists_the_splits(tmp_path: Path) -> None:
    both = npz(tmp_path, images=IMAGES, split=["train", "test", "train"])
    assert "no split 'dev'; valid: test, train" in refusal(both, Selection(split="dev"))
    med = npz(tmp_path, train_images=IMAGES, val_images=IMAGES)
    assert "no split 'test'; valid: train, val" in refusal(med, Selection(split="test"))
    without = npz(tmp_path, images=IMAGES)
    assert "has no splits" in refusal(without, Selection(split="train"))
    no_train = npz(tmp_path, images=IMAGES, split=["a", "b", "b"])
    assert "no split 'train'; valid: a, b" in refusal(no_train)
    short = npz(tmp_path, images=IMAGES, split=["train"])
    assert "3 images but split of shape (1,)" in refusal(short)


def test_unknown_class_lists_the_classes(tmp_path: Path) -> None:
    named = npz(tmp_path, images=IMAGES, labels=[0, 1, 1], label_names=["cat", "dog"])
    assert "no class 'cow'; valid: cat, dog" in refusal(named, Selection(classes=("dog", "cow")))
    assert "no class '2'; valid: cat, dog" in refusal(named, Selection(classes=("2",)))
    numbered = npz(tmp_path, images=IMAGES, labels=[7, 3, 3])
    assert "no class '0'; valid: 3, 7" in refusal(numbered, Selection(classes=("0",)))


def test_classes_of_a_source_without_labels(tmp_path: Path) -> None:
    assert "has no labels, so classes cat, dog" in refusal(
        npz(tmp_path, images=IMAGES), Selection(classes=("cat", "dog"))
    )


def test_selection_that_leaves_nothing(tmp_path: Path) -> None:
    path = npz(tmp_path, images=IMAGES, labels=[0, 0, 1], label_names=["a", "b"], split=["train", "train", "test"])
    message = refusal(path, Selection(classes=("b",)))
    assert "no image left" in message and "classes b" in message


def test_selection_out_of_range_or_of_another_kind(tmp_path: Path) -> None:
    for wrong in ((5, 5), (6, 2), (-1, 3)):
        with pytest.raises(InputError, match=f"slices {wrong[0]}:{wrong[1]} select nothing"):
            Selection(slices=wrong)
    with pytest.raises(InputError, match="limit 0 out of range: must be at least 1"):
        Selection(limit=0)
    assert "slices 1:2 does not fit" in refusal(npz(tmp_path, images=IMAGES), Selection(slices=(1, 2)))
    assert "split 'train' does not fit" in refusal("phantom:0:4", Selection(split="train"))


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "damaged or truncated"),
        (b"\0\0\x08\x03\0\0", "damaged or truncated"),
        (struct.pack(">HBB3I", 0, 8, 3, 3, 4, 4) + bytes(47), "47 bytes for shape (3, 4, 4)"),
        (struct.pack(">HBB3I", 0, 8, 3, 3, 4, 4) + bytes(49), "more bytes than belong there for shape (3, 4, 4)"),
        (struct.pack(">HBB3I", 0, 8, 3, 2**31, 2**31, 2**31), "0 bytes for shape"),
        (struct.pack(">HBB3I", 0, 13, 3, 1, 1, 1) + bytes(4), "starts with 00 00 0d 03; valid: 00 00 08"),
        (struct.pack(">HBB1I", 0, 8, 1, 5) + bytes(5), "shape (5,); valid: (N,H,W)"),
    ],
    ids=["empty", "header cut", "data cut", "data too long", "huge", "floats", "labels"],
)
def test_damaged_idx(tmp_path: Path, data: bytes, found: str) -> None:
    (tmp_path / "x-images-idx3-ubyte").write_bytes(data)
    assert found in refusal(tmp_path / "x-images-idx3-ubyte")


def test_truncated_gzip_and_labels_of_another_count(tmp_path: Path) -> None:
    data = struct.pack(">HBB3I", 0, 8, 3, 3, 4, 4) + IMAGES.tobytes()
    path = tmp_path / "x-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(data)[:-12])
    assert f"cannot read {path}" in refusal(path)
    path.write_bytes(data)
    assert f"cannot read {path}" in refusal(path)
    path.write_bytes(gzip.compress(data))
    (tmp_path / "x-labels-idx1-ubyte").write_bytes(struct.pack(">HBB1I", 0, 8, 1, 2) + bytes(2))
    assert "3 images but labels of shape (2,)" in refusal(path)


def test_unusable_volumes(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel", reason="NIfTI needs nibabel, of the extra [train]")

    def save(voxels: np.ndarray, name: str = "v.nii.gz") -> Path:
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / name)
        return tmp_path / name

    ones = np.ones((4, 4, 5), np.float32)
    assert "shape (4, 4, 5, 2); valid: one 3-D volume" in refusal(save(np.stack([ones, ones], axis=3)))
    assert "shape (4, 4); valid: one 3-D volume" in refusal(save(np.ones((4, 4), np.float32)))
    assert "no image left" in refusal(save(0 * ones))
    assert "slices 5:9" in refusal(save(ones), Selection(slices=(5, 9)))
    ones[1, 2, 3] = np.nan
    assert "NaN or Inf, first in slice 3" in refusal(save(ones))
    whole = save(np.random.default_rng(0).random((8, 8, 8)))
    whole.write_bytes(whole.read_bytes()[:-900])
    assert f"cannot read {whole}" in refusal(whole)
    (tmp_path / "w.nii").write_bytes(b"no header")
    assert f"cannot read {tmp_path / 'w.nii'}" in refusal(tmp_path / "w.nii")
    assert "has no labels" in refusal(save(np.ones((4, 4, 5))), Selection(classes=("a",)))


@pytest.mark.parametrize("numbers", ["", ":", ":x", ":-1", ":0:", ":0:1.5", ":0:4:1:2", ":²", ": 1"])
def test_bad_phantom_spec(numbers: str) -> None:
    spec = f"phantom{numbers}"
    message = refusal(spec)
    assert repr(spec) in message and "phantom:<population>[:<count>[:<seed>]]" in message


def test_phantom_numbers_out_of_range() -> None:
    assert "phantom count 0 out of range: must be 1 to" in refusal("phantom:0:0")
    assert "phantom seed 18446744073709551616 out of range" in refusal(f"phantom:0:4:{2**64}")
    assert "phantom count 1000000000000 out of range" in refusal("phantom:0:1000000000000")
