"""Every kind of source is recognised, read in a fixed order, with its labels, and selected from."""

import gzip
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from collafuse_edge.data import ImageSet, Selection, load_images
from collafuse_runtimes.errors import InputError

SHAPE = (1, 4, 4)


def flat(grey: int, *, size: tuple[int, int] = (4, 4), mode: str = "L") -> Image.Image:
    return Image.new("L", size, grey).convert(mode)


def greys(loaded: ImageSet) -> list[int]:
    """One stored grey value per (constant) image."""
    np.testing.assert_allclose(loaded.images, loaded.images[:, :1, :1, :1] + np.zeros_like(loaded.images), atol=1e-6)
    return [round(float(v)) for v in (loaded.images[:, 0, 0, 0] + 1) * 127.5]


def stack(values: list[int]) -> np.ndarray:
    return np.tile(np.array(values, np.uint8)[:, None, None], (1, 4, 4))


# --- folders


def test_folder_is_read_recursively_in_sorted_order_with_every_format(tmp_path: Path) -> None:
    names = ["a.png", "b.JPG", "c.bmp", "d.tif", "e.webp", "f.jpeg", "sub/g.png"]
    (tmp_path / "sub").mkdir()
    for index, name in reversed(list(enumerate(names))):
        options = {"lossless": True} if name.endswith("webp") else {}
        flat(30 * index, mode="RGB").save(tmp_path / name, **options)
    (tmp_path / "notes.txt").write_text("no image")
    loaded = load_images(str(tmp_path), SHAPE)
    assert greys(loaded) == [0, 30, 60, 90, 120, 150, 180]
    assert loaded.labels is None and loaded.label_names is None
    assert loaded.source == str(tmp_path)


def test_hidden_files_and_folders_are_skipped(tmp_path: Path) -> None:
    for name in ("seen.png", "._seen.png", ".cache/old.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        flat(7).save(tmp_path / name)
    assert len(load_images(str(tmp_path), SHAPE)) == 1


def test_class_sub_folders_are_labels(tmp_path: Path) -> None:
    for name, grey in (("b/2/x.png", 40), ("a/1.png", 10), ("c/4.png", 60), ("b/1.png", 20)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        flat(grey).save(tmp_path / name)
    loaded = load_images(str(tmp_path), SHAPE)
    assert loaded.label_names == ("a", "b", "c")
    assert list(zip(greys(loaded), loaded.labels.tolist(), strict=True)) == [(10, 0), (20, 1), (40, 1), (60, 2)]
    assert loaded.labels.dtype == np.int64


def test_linked_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    real, view = tmp_path / "real", tmp_path / "view"
    real.mkdir(), view.mkdir()
    flat(9).save(real / "x.png")
    (view / "class_a").symlink_to(real)
    (real / "loop").symlink_to(view)
    loaded = load_images(str(view), SHAPE)
    assert (len(loaded), loaded.label_names) == (1, ("class_a",))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK"])
def test_colour_modes_of_image_files(tmp_path: Path, mode: str) -> None:
    for name, grey in (("a", 0), ("b", 255)):
        flat(grey, mode="RGB").convert(mode).save(tmp_path / f"{name}.{'tif' if mode == 'CMYK' else 'png'}")
    with Image.open(next(tmp_path.iterdir())) as image:
        assert image.mode == mode
    assert greys(load_images(str(tmp_path), SHAPE)) == [0, 255]


def test_transparent_pixels_are_black_and_photos_stand_upright(tmp_path: Path) -> None:
    clear, photo = tmp_path / "clear", tmp_path / "photo"
    clear.mkdir(), photo.mkdir()
    Image.new("RGBA", (4, 4), (250, 250, 250, 0)).save(clear / "a.png")
    Image.new("L", (4, 4), 250).save(clear / "b.png", transparency=250)
    assert greys(load_images(str(clear), SHAPE)) == [0, 0]
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    pixels = np.zeros((16, 16), np.uint8)
    pixels[:8] = 255
    Image.fromarray(pixels).save(photo / "x.png", exif=exif)
    upright = load_images(str(photo), (1, 16, 16)).images[0, 0]
    np.testing.assert_array_equal(upright[:8], -1)
    np.testing.assert_array_equal(upright[8:], 1)


# --- npz


@pytest.fixture
def split_npz(tmp_path: Path) -> str:
    path = tmp_path / "set.npz"
    split = np.array(["test", "train", "train", "test", "train"])
    labels, names = np.uint8([0, 1, 2, 1, 1]), ["x", "y", "z"]
    np.savez(path, images=stack([0, 10, 20, 30, 40]), labels=labels, label_names=names, split=split)
    return str(path)


def test_npz_takes_the_train_split_unless_told_otherwise(split_npz: str) -> None:
    train, test = load_images(split_npz, SHAPE), load_images(split_npz, SHAPE, Selection(split="test"))
    assert (greys(train), train.labels.tolist()) == ([10, 20, 40], [1, 2, 1])
    assert (greys(test), test.labels.tolist()) == ([0, 30], [0, 1])
    assert train.label_names == ("x", "y", "z") and train.labels.dtype == np.int64


@pytest.mark.parametrize("classes", [("y",), ("1",), ("y", "1")])
def test_classes_are_kept_by_name_or_number_without_renumbering(split_npz: str, classes: tuple[str, ...]) -> None:
    loaded = load_images(split_npz, SHAPE, Selection(classes=classes))
    assert (greys(loaded), loaded.labels.tolist(), loaded.label_names) == ([10, 40], [1, 1], ("x", "y", "z"))


def test_limit_counts_after_the_other_selections(split_npz: str) -> None:
    assert greys(load_images(split_npz, SHAPE, Selection(classes=("z", "y"), limit=2))) == [10, 20]
    assert greys(load_images(split_npz, SHAPE, Selection(limit=99))) == [10, 20, 40]


@pytest.mark.parametrize("shape", [(3, 4, 4), (3, 4, 4, 1), (3, 4, 4, 3)])
def test_npz_layouts_of_grey_and_colour(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = np.arange(3, dtype=np.uint8).reshape(3, *[1] * (len(shape) - 1)) * np.ones(shape, np.uint8)
    np.savez(tmp_path / "x.npz", images=images)
    for channels in (1, 3):
        loaded = load_images(str(tmp_path / "x.npz"), (channels, 4, 4))
        assert loaded.images.shape == (3, channels, 4, 4)
        assert greys(loaded) == [0, 1, 2]


@pytest.mark.parametrize("columns", [(), (1,)])
def test_medmnist_layout(tmp_path: Path, columns: tuple[int, ...]) -> None:
    arrays = {}
    for split, values in (("train", [1, 2, 3]), ("val", [4]), ("test", [5, 6])):
        arrays[f"{split}_images"] = stack(values)
        arrays[f"{split}_labels"] = (np.uint8(values) % 2).reshape(len(values), *columns)
    np.savez(tmp_path / "x.npz", **arrays)
    path = str(tmp_path / "x.npz")
    train, val = load_images(path, SHAPE), load_images(path, SHAPE, Selection(split="val"))
    assert (greys(train), train.labels.tolist()) == ([1, 2, 3], [1, 0, 1])
    assert (greys(val), val.labels.tolist()) == ([4], [0])
    assert greys(load_images(path, SHAPE, Selection(classes=("0",), split="test"))) == [6]


def test_multi_label_sets_have_no_class_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", train_images=stack([1, 2]), train_labels=np.zeros((2, 14), np.uint8))
    loaded = load_images(str(tmp_path / "x.npz"), SHAPE)
    assert len(loaded) == 2 and loaded.labels is None


# --- idx


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        ("t10k-images.idx3-ubyte", "t10k-labels.idx1-ubyte"),
        ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
        ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte"),
    ],
)
def test_idx_finds_its_labels_beside_it(tmp_path: Path, images: str, labels: str) -> None:
    for name, array in ((images, stack([5, 6, 7])), (labels, np.array([2, 0, 2]))):
        data = idx(array)
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    loaded = load_images(str(tmp_path / images), SHAPE)
    assert (greys(loaded), loaded.labels.tolist(), loaded.label_names) == ([5, 6, 7], [2, 0, 2], None)
    assert greys(load_images(str(tmp_path / images), SHAPE, Selection(classes=("2",)))) == [5, 7]


def test_idx_without_labels_and_in_colour(tmp_path: Path) -> None:
    colour = stack([5, 6])[..., None] * np.array([1, 2, 3])
    (tmp_path / "x.idx").write_bytes(idx(colour))
    loaded = load_images(str(tmp_path / "x.idx"), (3, 4, 4))
    assert loaded.labels is None
    np.testing.assert_allclose((loaded.images[1, :, 0, 0] + 1) * 127.5, [6, 12, 18], atol=1e-4)


# --- NIfTI


def volume(folder: Path, name: str, voxels: np.ndarray, affine: np.ndarray | None = None) -> str:
    nibabel = pytest.importorskip("nibabel", reason="NIfTI needs nibabel, of the extra [train]")
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4) if affine is None else affine), folder / name)
    return str(folder / name)


def test_nifti_slices_are_axial_upright_and_scaled_as_one_volume(tmp_path: Path) -> None:
    voxels = np.zeros((4, 4, 3), np.int16)
    voxels[3, 0, 1] = 700  # right, back: above the 99.5th percentile of positive values, which is 500
    voxels[0, 3, 1] = 250  # left, front
    voxels[1, 1, 1] = -80
    voxels[:, :, 2] = 500
    loaded = load_images(volume(tmp_path, "head.nii.gz", voxels), SHAPE)
    assert len(loaded) == 2, "the empty slice is dropped"
    first = np.full((4, 4), -1, np.float32)
    first[3, 3], first[0, 0] = 1, 0  # front up, right to the right, negatives black
    white = np.percentile([700.0, 250.0, *[500.0] * 16], 99.5)
    np.testing.assert_allclose(loaded.images[0, 0], np.where(first == 0, 500 / white - 1, first), atol=1e-6)
    np.testing.assert_allclose(loaded.images[1, 0], 1000 / white - 1, atol=1e-6)


def test_nifti_negatives_are_black_before_resizing(tmp_path: Path) -> None:
    voxels = np.full((8, 8, 1), 100, np.int16)
    voxels[::2] = -300
    black = np.where(voxels < 0, 0, voxels).astype(np.int16)
    loaded = [load_images(volume(tmp_path, f"{n}.nii", v), SHAPE).images for n, v in (("a", voxels), ("b", black))]
    np.testing.assert_array_equal(*loaded)
    assert loaded[0].mean() == pytest.approx(0, abs=0.05)


def test_nifti_orientation_comes_from_the_affine(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).uniform(1, 9, (4, 5, 6)).astype(np.float32)
    straight = load_images(volume(tmp_path, "a.nii", voxels), (1, 5, 4))
    turned = np.ascontiguousarray(voxels.transpose(2, 0, 1)[::-1])  # axes: feet, right, front
    affine = np.array([[0, 1, 0, 0], [0, 0, 1, 0], [-1, 0, 0, 5], [0, 0, 0, 1.0]])
    again = load_images(volume(tmp_path, "b.nii", turned, affine), (1, 5, 4))
    assert len(straight) == 6
    np.testing.assert_allclose(again.images, straight.images, atol=1e-6)


def test_nifti_folder_takes_the_same_slices_of_every_volume(tmp_path: Path) -> None:
    heights = np.arange(1, 9, dtype=np.float32)
    ramp = np.zeros((4, 4, 8), np.float32)
    ramp[0, 0], ramp[1:, 1:] = 10, heights  # slice k: brightest 10, tissue k + 1
    volume(tmp_path, "b.nii.gz", ramp)
    volume(tmp_path, "a.nii", ramp[:, :, :4])
    loaded = load_images(str(tmp_path), SHAPE, Selection(slices=(2, 4)))
    white = [np.percentile(part[part > 0], 99.5) for part in (ramp[:, :, :4], ramp)]
    tissue = (loaded.images[:, 0, 0, 3] + 1) / 2 * np.repeat(white, 2)
    np.testing.assert_allclose(tissue, [3, 4, 3, 4], atol=1e-4)
    with pytest.raises(InputError, match=r"slices 2:5 reach beyond .*a\.nii, which has 4"):
        load_images(str(tmp_path), SHAPE, Selection(slices=(2, 5)))
    assert len(load_images(str(tmp_path), SHAPE, Selection(limit=3))) == 3


# --- imports


def test_importing_the_package_loads_no_image_library() -> None:
    code = (
        "import sys, collafuse_edge.data as d; d.load_images('phantom:0:2', (1, 16, 16));"
        "print([m for m in ('PIL', 'nibabel', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
