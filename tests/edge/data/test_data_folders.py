"""Which files of a folder are images, which are masks or litter, and what class each has."""

from pathlib import Path, PurePath

import pytest
from image_trees import load, notes, taken, tree

from collafuse_edge.data.folders.globs import matcher, matches
from collafuse_edge.data.folders.masks import is_mask
from collafuse_runtimes.errors import InputError


def refusal(root: Path, **selection: object) -> str:
    with pytest.raises(InputError) as caught:
        load(root, **selection)
    return str(caught.value)


# --- patterns


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("*.png", "a/b/x.png", True),
        ("*.png", "a/b/x.jpg", False),
        ("x.*", "x/y.png", False),
        ("a", "a/b/x.png", True),
        ("b", "a/b/x.png", True),
        ("a/*", "a/b/x.png", True),
        ("a/*.png", "a/b/x.png", False),
        ("a/**", "a/b/x.png", True),
        ("a/**", "b/a/x.png", False),
        ("**/b/*.png", "b/x.png", True),
        ("**/b/*.png", "a/c/b/x.png", True),
        ("a/**/x.png", "a/x.png", True),
        ("a/**/x.png", "a/b/c/x.png", True),
        ("/a", "a/x.png", True),
        ("/b", "a/b/x.png", False),
        ("./a/", "a/x.png", True),
        ("**", "a/x.png", True),
        ("?.png", "a/x.png", True),
        ("?.png", "a/xy.png", False),
        ("[ab]/*", "b/x.png", True),
        ("[!ab]/*", "b/x.png", False),
        ("A/*", "a/x.png", False),
        ("x(1).png", "x(1).png", True),
        ("[].png", "[].png", True),
        ("a+b/*", "a+b/x.png", True),
    ],
)
def test_patterns(pattern: str, path: str, fits: bool) -> None:
    assert matches(matcher("include", pattern), PurePath(path)) is fits


@pytest.mark.parametrize("pattern", ["", " ", "/", "[z-a]"])
def test_patterns_that_are_none(pattern: str) -> None:
    with pytest.raises(InputError, match="--exclude"):
        matcher("exclude", pattern)


def test_include_and_exclude_choose_and_say_so(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.png", "a/2.png", "b/3.png", "c/4.png")
    loaded = load(tmp_path, include=("a", "b/**"), exclude=("2.png", "nothing"))
    assert (taken(loaded), loaded.label_names) == ([1, 3], ("a", "b"))
    assert "included: 3 of 4 images, by a, b/**" in loaded.notes
    assert "excluded: 1 image, by 2.png" in loaded.notes
    assert "excluded: 0 images, by nothing" in loaded.notes


def test_patterns_that_leave_nothing_are_refused(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.png")
    assert "--include 'b' matches no image below" in refusal(tmp_path, include=("b",))
    assert "'a/1.png'" in refusal(tmp_path, include=("b",))
    assert "no image left after --include and --exclude" in refusal(tmp_path, exclude=("*.png",))


# --- masks

MASKS = [
    "x_mask.png", "x-mask.png", "x_MASK.png", "benign (1)_mask.png", "benign (1)_mask_1.png", "ISIC_1_segmentation.png",
    "BraTS_seg.nii.gz", "sub-1_dseg.nii.gz", "x_labels.png", "x_gt.png", "mask_x.png", "seg_1.png", "masks/x.png",
    "a/Masks/x.png", "segmentation/x.png", "labelsTr/x.nii.gz", "labelTr/x.nii.gz", "ground_truth/x.png",
    "annotations/x.png", "x_mask.nii", "x.mask.png", "x mask.png",
]  # fmt: skip
NO_MASKS = [
    "x.png", "unmasked.png", "with_mask/x.png", "x_masked.png", "segment/x.png", "mask.d/x.png", "label_5.png",
    "imagesTr/x.nii.gz", "maskara.png", "x_region.png", "gtx.png", "mask/../x.png"[8:],
]  # fmt: skip


@pytest.mark.parametrize(("name", "mask"), [*((n, True) for n in MASKS), *((n, False) for n in NO_MASKS)])
def test_masks_are_known_by_their_names(name: str, mask: bool) -> None:
    assert is_mask(PurePath(name)) is mask


def test_masks_beside_images_are_left_out_and_named(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.png", "a/1_mask.png", "b/masks/3.png", "b/4.png")
    loaded = load(tmp_path)
    assert taken(loaded) == [1, 4]
    assert (
        "left out as masks: 2 images (first: a/1_mask.png); --include 'a/1_mask.png' or a pattern that matches masks "
        "alone takes them" in loaded.notes
    )
    assert taken(load(tmp_path, include=("**",))) == [1, 4], "a pattern for everything takes no mask"
    assert taken(load(tmp_path, include=("a", "masks"))) == [1, 3]
    assert taken(load(tmp_path, include=("*_mask.png",))) == [2]


def test_masks_alone_are_refused_with_the_way_to_take_them(tmp_path: Path) -> None:
    tree(tmp_path, "labels/1.png")
    assert "masks or labels alone by their names (first: 'labels/1.png')" in refusal(tmp_path)
    assert taken(load(tmp_path, include=("labels/1.png",))) == [1]


def test_decathlon_folders(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel", reason="NIfTI needs nibabel, of the extra [train]")
    import numpy as np

    for place, name in enumerate(["imagesTr/a.nii.gz", "imagesTs/b.nii.gz", "labelsTr/a.nii.gz"]):
        (tmp_path / name).parent.mkdir()
        nibabel.save(nibabel.Nifti1Image(np.full((4, 4, 2 + place), 7, np.int16), np.eye(4)), tmp_path / name)
    loaded = load(tmp_path)
    assert (len(loaded), loaded.labels) == (2, None)
    assert "split train taken (folder imagesTr); left out: test (1 image of imagesTs)" in loaded.notes
    assert "left out as masks: 1 image (first: labelsTr/a.nii.gz)" in notes(loaded)


# --- litter


def test_hidden_and_system_files_are_left_out_and_said(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.png", "a/.2.png", "__MACOSX/a/._3.png", ".DS_Store", "a/Thumbs.db", "a/notes.txt", ".git/4.png")
    loaded = load(tmp_path)
    assert (taken(loaded), loaded.label_names) == ([1], ("a",))
    assert "left out: 1 image in hidden files (.name)" in loaded.notes
    assert "left out: folder __MACOSX" in loaded.notes
    assert "left out: files of other kinds (.txt)" in loaded.notes
    assert len([line for line in loaded.notes if "left out" in line]) == 3


def test_links_in_a_circle_end_and_are_said(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "c").symlink_to(tmp_path / "b")
    loaded = load(tmp_path)
    assert (taken(loaded), loaded.label_names) == ([1, 2], ("a", "b"))
    assert "left out: a/loop, a link to a folder that is here already" in loaded.notes
    assert "left out: c, a link to a folder that is here already" in loaded.notes


def test_a_broken_link_is_named(tmp_path: Path) -> None:
    tree(tmp_path, "1.png")
    (tmp_path / "2.png").symlink_to("nowhere.png")
    assert f"cannot read image {tmp_path / '2.png'}" in refusal(tmp_path)


# --- classes


def test_images_beside_class_folders_leave_no_classes(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.png", "b/2.png", "x.png")
    loaded = load(tmp_path)
    assert (taken(loaded), loaded.labels, loaded.label_names) == ([1, 2, 3], None, None)
    why = "1 of its 3 images lie in no class's folder (first: x.png)"
    assert f"no classes: {why}" in loaded.notes
    assert f"{tmp_path} has no labels ({why}), so classes a cannot be selected" in refusal(tmp_path, classes=("a",))


def test_deeper_folders_are_no_classes_and_that_is_said(tmp_path: Path) -> None:
    loaded = load(tree(tmp_path, "a/1.png", "b/x/2.png", "b/y/3.png"))
    assert (loaded.label_names, loaded.labels.tolist()) == (("a", "b"), [0, 1, 1])
    assert "the first folder is the class; folders below it are none (2 images, first b/x/2.png)" in loaded.notes


@pytest.mark.parametrize(
    "spellings", [("Glioma", "glioma"), ("MRT-Kopf ", "mrt-kopf"), ("M\u00fcll", "Mu\u0308ll"), ("STRASSE", "straße")]
)
def test_one_class_in_several_spellings(tmp_path: Path, spellings: tuple[str, str]) -> None:
    loaded = load(tree(tmp_path, f"{spellings[0]}/1.png", f"{spellings[1]}/2.png", "zebra/3.png"))
    assert sorted(zip(taken(loaded), loaded.labels.tolist(), strict=True)) == [(1, 0), (2, 0), (3, 1)]
    assert len(loaded.label_names) == 2
    assert "one class, in spite of its spellings: " in notes(loaded)


def test_folders_named_by_numbers_are_in_their_order(tmp_path: Path) -> None:
    loaded = load(tree(tmp_path, "0/1.png", "10/2.png", "2/3.png"))
    assert loaded.label_names == ("0", "2", "10")
    assert dict(zip(taken(loaded), loaded.labels.tolist(), strict=True)) == {1: 0, 2: 2, 3: 1}
    assert taken(load(tmp_path, classes=("2",))) == [3], "a name comes before a number"


def test_numbers_stay_those_of_the_source_when_classes_are_chosen(tmp_path: Path) -> None:
    loaded = load(tree(tmp_path, "a/1.png", "b/2.png", "c/3.png"), classes=("c", "b"))
    assert (taken(loaded), loaded.labels.tolist()) == ([2, 3], [1, 2])
    assert "classes 1 b: 1, 2 c: 1; no image of 0 a" in loaded.notes


def test_volumes_have_classes_too(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel", reason="NIfTI needs nibabel, of the extra [train]")
    import numpy as np

    for name, depth in (("a/1", 3), ("a/2", 2), ("b/1", 2)):
        voxels = np.ones((4, 4, depth), np.int16)
        voxels[:, :, 0] = 0  # an empty slice, which is dropped
        (tmp_path / name).parent.mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / f"{name}.nii")
    loaded = load(tmp_path)
    assert (loaded.labels.tolist(), loaded.label_names) == ([0, 0, 0, 1], ("a", "b"))
    assert len(load(tmp_path, classes=("b",))) == 1
