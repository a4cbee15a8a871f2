"""Names of classes go from folders to checkpoint and bundle, and come back as labels of `infer`; no shard has them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import done, refusal
from image_trees import tree

from collafuse_edge.data import load_images
from collafuse_runtimes.errors import InputError
from collafuse_runtimes.files.bundle import read_bundle
from collafuse_runtimes.files.checkpoint import read_checkpoint
from collafuse_runtimes.files.sealed import read_json, write_json
from collafuse_runtimes.networks.classes import choose_classes, read_class_names

NAMES = ("glioma", "none", "Hypophyse, groß")
TRAINING = ("--preset", "tiny", "--steps", 1, "--batch-size", 2, "--warmup-steps", 0, "--cpu")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    tree(folder / "data", *(f"train/{name}/{i}.png" for name in NAMES for i in range(2)), "test/glioma/9.png")
    done("init", "--size", 8, "--timesteps", 4, "--cut-ratio", 1, "--out", folder / "plan.json")
    plan = ("--plan", folder / "plan.json")
    said = done("train-client", "--data", folder / "data", *plan, "--conditional", *TRAINING, "--out", folder / "head")
    (folder / "said").write_text(said)
    (folder / "exported").write_text(done("export", folder / "head", "--steps", 1, "--out", folder / "h.head"))
    done("handoff", *plan, "--count", 3, "--out", folder / "x.tc.safetensors")
    return folder


def test_names_are_said_at_training_and_export(site: Path) -> None:
    lines = (site / "said").read_text().splitlines()
    assert "note      classes 0 Hypophyse, groß: 2, 1 glioma: 2, 2 none: 2" in lines
    assert "note      split train taken (folder train); left out: test (1 image of test)" in lines
    assert lines.index("note      classes 0 Hypophyse, groß: 2, 1 glioma: 2, 2 none: 2") == 1
    assert "classes   Hypophyse, groß, glioma, none (names from your data)" in (site / "exported").read_text()


def test_names_are_kept(site: Path) -> None:
    names = tuple(sorted(NAMES))
    assert read_checkpoint(site / "head").class_names == names
    assert read_bundle(site / "h.head").class_names == names
    assert "classes        3: Hypophyse, groß, glioma, none" in done("inspect", site / "h.head")


def test_labels_by_name_and_by_number_make_the_same_images(site: Path, tmp_path: Path) -> None:
    made = {}
    for number, labels in enumerate(["none", "2", "NONE", "none,none,none", "2,none,2", "glioma"]):
        done("infer", site / "h.head", site / "x.tc.safetensors", "--labels", labels, "--out", tmp_path / str(number))
        with np.load(tmp_path / str(number) / "images.npz", allow_pickle=False) as arrays:
            made[labels] = arrays["images"]
    glioma = made.pop("glioma")
    assert len(made) == 5 and all((images == made["none"]).all() for images in made.values())
    assert np.abs(glioma - made["none"]).max() > 1e-6


def test_an_unknown_name_lists_the_valid_ones(site: Path, tmp_path: Path) -> None:
    infer = ("infer", site / "h.head", site / "x.tc.safetensors", "--out", tmp_path / "new", "--labels")
    assert refusal(*infer, "cyst") == (
        "error: label 'cyst' is no class of this head; valid: Hypophyse, groß, glioma, none, or numbers 0 to 2"
    )
    assert refusal(*infer, "glioma,none") == "error: 2 labels for 3 images; valid: one for all, or one for each"


def test_artefacts_of_earlier_releases_are_read(site: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(site / "h.head", tmp_path / "old.head"))
    manifest = read_json(bundle / "manifest.json", "collafuse-head")
    del manifest["class_names"]
    write_json(bundle / "manifest.json", "collafuse-head", manifest)
    found = read_bundle(bundle)
    assert (found.class_names, found.num_classes) == (None, 3)


def test_no_shard_has_a_name(site: Path, tmp_path: Path) -> None:
    done("init", "--size", 8, "--out", tmp_path / "plan.json")
    data = ("--data", site / "data", "--plan", tmp_path / "plan.json", "--key", tmp_path / "k")
    done("upload", *data, "--out", tmp_path / "s")
    for file in ("s", "k.ledger.json"):
        content = (tmp_path / file).read_bytes()
        assert not [name for name in NAMES if name.encode() in content or json.dumps(name).encode() in content]


@pytest.mark.parametrize(
    ("text", "names", "numbers"),
    [
        ("1", None, [1, 1]),
        ("1,0", None, [1, 0]),
        ("b", ("a", "b", "c"), [1, 1]),
        (" c , A ", ("a", "b", "c"), [2, 0]),
        ("1", ("2", "1", "0"), [1, 1]),
        ("2", ("2", "1", "0"), [0, 0]),
        ("a, b", ("x", "a, b", "y"), [1, 1]),
        ('"a, b",y', ("x", "a, b", "y"), [1, 2]),
        ("A", ("a", "A", "b"), [1, 1]),
        ("7,2", ("x", "y", "7"), [2, 2]),
    ],
)
def test_how_labels_are_read(text: str, names: tuple[str, ...] | None, numbers: list[int]) -> None:
    assert choose_classes(text, 2, 3, names).tolist() == numbers


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        ("3", None, "label '3' is no class"),
        ("-1", None, "label '-1' is no class"),
        ("", None, "label '' is no class|0 labels for 2 images"),
        ("0,", None, "label '' is no class"),
        ("0,1,2", None, "3 labels for 2 images"),
        ("²", None, "label '²' is no class"),
        ("a", ("A", "á", "ab"), None),
        ("ss", ("ß", "SS", "x"), "label 'ss' is no class"),
    ],
)
def test_labels_that_are_none(text: str, names: tuple[str, ...] | None, message: str | None) -> None:
    if message is None:
        assert choose_classes(text, 2, 3, names).tolist() == [0, 0]
        return
    with pytest.raises(InputError, match=message):
        choose_classes(text, 2, 3, names)


@pytest.mark.parametrize(
    ("stated", "classes"),
    [
        *((names, 2) for names in (["a"], ["a", "a"], ["a", ""], ["a", 3], ["a", "b\n"], "ab", ["a" * 256, "b"])),
        (["a"], None),
    ],
)
def test_names_that_cannot_be(stated: object, classes: int | None) -> None:
    with pytest.raises(InputError, match="class_names"):
        read_class_names(stated, classes)


def test_an_unconditional_head_keeps_no_names(site: Path) -> None:
    data = ("--data", site / "data", "--plan", site / "plan.json")
    done("train-client", *data, *TRAINING, "--out", site / "plain")
    assert read_checkpoint(site / "plain").class_names is None
    assert load_images(str(site / "data"), (1, 8, 8)).class_names == tuple(sorted(NAMES))
