"""Commands say what they read and converted, and `inspect` shows a data set as the network will see it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import done, refusal
from image_trees import load, tree
from PIL import Image
from places import ROOT

from collafuse_edge.data import load_images
from collafuse_edge.data.sheet import chosen_rows


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Two classes: grey of two sizes, colour, grey stored as colour, and a copy of one in the other class."""
    folder = tmp_path / "data"
    for name, mode, size, colour in (
        ("a/grey.png", "L", (8, 8), 90),
        ("a/wide.png", "L", (40, 20), 91),
        ("a/red.png", "RGB", (16, 16), (255, 0, 0)),
        ("b/flat.png", "RGB", (16, 16), (40, 40, 40)),
        ("b/copy.bmp", "L", (8, 8), 90),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, colour).save(folder / name)
    return folder


NOTES = [
    "5 images from {data}",
    "classes 0 a: 3, 1 b: 2",
    "colour made grey: 1 image",
    "resized from 16x16 to 20x40 to 8x8: 3 images, 1 of them padded with black bars",
    "equal to an earlier one after conversion: 1 image (first: b/copy.bmp is a/grey.png)",
    "equal to one of another class: 1 image",
]


def test_every_conversion_is_said_once(mixed: Path) -> None:
    loaded = load_images(str(mixed), (1, 8, 8))
    assert list(loaded.notes) == [line.format(data=mixed) for line in NOTES]
    colour = load_images(str(mixed), (3, 8, 8))
    assert "grey repeated to three channels: 3 images" in colour.notes
    assert not [line for line in colour.notes if "made grey" in line]


def test_a_limit_is_said(mixed: Path) -> None:
    assert load(mixed, limit=2).notes[0] == f"2 of 5 images from {mixed}"


def test_phantoms_say_what_they_are() -> None:
    loaded = load_images("phantom:5:3", (1, 16, 16))
    assert loaded.notes == (
        "3 images from phantom:5:3",
        "classes 1 ring_lesion: 3; no image of 0 round_lesion, 2 large_ventricles, 3 paired_lesions",
    )


def test_many_classes_stay_one_short_line(tmp_path: Path) -> None:
    loaded = load(tree(tmp_path, *(f"class{i:03d}/1.png" for i in range(30))))
    line = next(line for line in loaded.notes if line.startswith("classes"))
    assert line.endswith("11 class011: 1 and 18 more")


def test_names_that_break_lines(tmp_path: Path) -> None:
    tree(tmp_path / "data", "a\nb/1.png", "c\x1b[2J/2.png")
    done("init", "--size", 8, "--out", tmp_path / "plan.json")
    shown = done("inspect", tmp_path / "data", "--size", 8)
    assert "note      classes 0 a?b: 1, 1 c?[2J: 1\n" in shown
    data = ("--data", tmp_path / "data", "--plan", tmp_path / "plan.json", "--out", tmp_path / "h")
    assert "class_names ['a\\nb', 'c\\x1b[2J'] are not one name of" in refusal("train-client", *data, "--conditional")


def test_upload_and_training_say_it(mixed: Path, tmp_path: Path) -> None:
    done("init", "--size", 8, "--out", tmp_path / "plan.json")
    data = ("--data", mixed, "--plan", tmp_path / "plan.json")
    notes = [line.format(data=mixed) for line in NOTES]
    shown = [f"note      {line}" for line in notes]
    upload = ("upload", *data, "--key", tmp_path / "k")
    assert done(*upload, "--out", tmp_path / "s").splitlines()[: len(NOTES)] == shown
    found = json.loads(done(*upload, "--out", tmp_path / "again", "--json"))["notes"]
    assert [note["text"] for note in found if note["kind"] == "data"] == notes
    training = ("--preset", "tiny", "--steps", 1, "--batch-size", 2, "--warmup-steps", 0, "--cpu")
    assert done("train-client", *data, *training, "--out", tmp_path / "h").splitlines()[: len(NOTES)] == shown
    assert json.loads(done("train-client", *data, *training, "--out", tmp_path / "j", "--json"))["notes"] == notes


def test_inspect_reports_and_writes_a_sheet_for_its_owner_alone(mixed: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    found = json.loads(done("inspect", mixed, "--size", 8, "--out", sheet, "--json"))
    assert found.pop("range_before") == [0.0, 1.0]
    low, high = found.pop("range_after")
    assert low == -1 and 2 * 91 / 255 - 1 <= high < 2 * 94 / 255 - 1, (
        "the brightest is 91, and LANCZOS overshoots a bit"
    )
    assert found == {
        "kind": "data",
        "source": str(mixed),
        "image_shape": [1, 8, 8],
        "count": 5,
        "classes": {"a": 3, "b": 2},
        "sizes": {"8x8": 2, "16x16": 2, "20x40": 1},
        "duplicates": [["b/copy.bmp", "a/grey.png"]],
        "notes": [line.format(data=mixed) for line in NOTES],
        "sheet": str(sheet),
    }
    assert sheet.stat().st_mode & 0o777 == 0o600
    text = done("inspect", mixed, "--size", 8, "--out", tmp_path / "other.png")
    assert "warning   the sheet shows private images: it is for the site that owns them" in text
    assert "twice     b/copy.bmp is a/grey.png" in text
    assert (tmp_path / "other.png").read_bytes() == sheet.read_bytes()


def test_the_sheet_shows_what_the_network_sees(tmp_path: Path) -> None:
    """Two classes of one grey each, 32 pixels enlarged twice: a title line, then the images."""
    data = tree(tmp_path / "data", "a/1.png", "b/2.png")
    done("inspect", data, "--size", 32, "--out", tmp_path / "sheet.png")
    pixels = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert pixels.shape[0] == 2 * (14 + 66)
    for place, grey in ((0, 10), (1, 20)):
        top = place * 80 + 14
        assert (pixels[top : top + 64, :64] == grey).all()
        assert (pixels[top - 14 : top] < 128).any(), "the class's name"


def test_a_sheet_shows_at_most_64_of_all_classes_alike() -> None:
    labels = np.repeat([0, 1, 2], [500, 500, 4])
    rows = chosen_rows(labels, 1004, 0)
    assert np.bincount(labels[rows]).tolist() == [30, 30, 4]
    assert rows.tolist() == chosen_rows(labels, 1004, 0).tolist() != chosen_rows(labels, 1004, 1).tolist()
    assert len(chosen_rows(None, 1004, 0)) == len(set(chosen_rows(None, 1004, 0).tolist())) == 64
    assert len(chosen_rows(np.arange(200), 200, 0)) == 64


def test_inspect_refuses_in_one_line(mixed: Path, tmp_path: Path) -> None:
    assert "give --plan PLAN.json, or --size SIDE" in refusal("inspect", mixed)
    assert "give --plan PLAN.json, or --size SIDE" in refusal("inspect", mixed, "--plan", "x", "--size", 8)
    line = refusal("inspect", mixed, "--size", 8, "--out", mixed / "a" / "grey.png")
    assert "lies in what this command reads" in line
    line = refusal("inspect", mixed, "--size", 8, "--out", mixed / "sheet.png")
    assert "lies in what this command reads" in line
    (tmp_path / "empty").mkdir()
    assert "holds no image; valid: files ending in .png" in refusal("inspect", tmp_path / "empty", "--size", 8)
    assert "is no phantom source" in refusal("inspect", "phantom:x", "--size", 8)


def test_the_picture_of_the_documentation_is_the_one_the_script_draws(tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "experiments" / "data_sheet.py"
    subprocess.run([sys.executable, script, tmp_path / "sheet.png"], check=True)
    new, kept = (
        np.asarray(Image.open(path)).astype(int) for path in (tmp_path / "sheet.png", ROOT / "docs/data_sheet.png")
    )
    assert new.shape == kept.shape
    assert np.abs(new - kept)[14:78].max() <= 2, "the first row of images, below its title"
    assert (np.abs(new - kept) > 2).mean() < 0.05, "titles are in Pillow's font, which may change"
