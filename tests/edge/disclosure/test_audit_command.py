"""`audit` of networks that hardly learned anything, and what it refuses."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from command_line import done, refusal

from collafuse_edge.data import Selection, load_images
from collafuse_edge.disclosure.audit import _apart, _sees
from collafuse_runtimes.engines.torch_engine import predict_function
from collafuse_runtimes.files.checkpoint import load_network, read_checkpoint

MEMBERS, OTHERS = "phantom:0:90", "phantom:0:90:7"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head and a server, each of two steps."""
    here = tmp_path_factory.mktemp("audit")
    done("init", "--size", 16, "--cut-ratio", 0.4, "--out", here / "plan.json")
    common = ("--data", MEMBERS, "--plan", here / "plan.json")
    training = ("--preset", "tiny", "--steps", 2, "--batch-size", 4)
    done("upload", *common, "--key", here / "a.key", "--out", here / "a.shard.safetensors")
    done("train-server", here / "a.shard.safetensors", *training, "--out", here / "server")
    done("train-client", *common, *training, "--out", here / "head")
    done("train-client", *common, *training, "--conditional", "--out", here / "classes")
    return here


@pytest.mark.parametrize(("name", "levels"), [("head", range(40)), ("server", range(40, 100))])
def test_a_network_that_learned_nothing_tells_nothing(folder: Path, name: str, levels: range) -> None:
    found = json.loads(done("audit", folder / name, "--data", MEMBERS, "--others", OTHERS, "--json"))
    assert found["role"] == {"head": "client", "server": "server"}[name]
    assert found["membership"]["low"] < 0.5 < found["membership"]["high"]
    assert found["membership"]["level"] in levels
    assert (found["copies"], found["copies_reason"]) == (None, "no generated images were given: --generated")


@pytest.mark.slow
def test_a_head_that_knows_its_images_by_heart_gives_them_away(tmp_path: Path) -> None:
    """1500 steps on 48 images, about a minute."""
    done("init", "--size", 16, "--cut-ratio", 0.9, "--out", tmp_path / "plan.json")
    training = ("--preset", "small", "--steps", 1500, "--batch-size", 24, "--ema-decay", 0.99)
    done("train-client", "--data", "phantom:0:48", "--plan", tmp_path / "plan.json", *training, "--out", tmp_path / "h")
    found = json.loads(done("audit", tmp_path / "h", "--data", "phantom:0:48", "--others", "phantom:0:48:9", "--json"))
    assert found["membership"]["low"] > 0.95
    assert found["membership"]["tpr_low"] > 0.8


def test_the_first_line_is_the_answer(folder: Path) -> None:
    first = done("audit", folder / "head", "--data", MEMBERS, "--others", OTHERS).splitlines()[0]
    assert first.startswith("members cannot be told from others: AUC 0.")


def test_copies_are_found_among_generated_images(folder: Path, tmp_path: Path) -> None:
    images = load_images(MEMBERS, (1, 16, 16), Selection()).images
    np.savez(tmp_path / "images.npz", images=images[:40])
    arguments = (
        "audit",
        folder / "head",
        "--data",
        MEMBERS,
        "--others",
        OTHERS,
        "--generated",
        tmp_path / "images.npz",
    )
    found = json.loads(done(*arguments, "--json"))["copies"]
    assert (found["generated"], found["compared"]) == (40, found["compared"])
    assert found["low"] > 0.5
    assert found["ratio"] < 0.5
    assert "nearer to what it was trained on than chance has it: " in done(*arguments)


def test_no_image_is_both_member_and_other() -> None:
    images = load_images("phantom:0:120", (1, 16, 16), Selection()).images
    inside, outside = _apart(images[:80], np.concatenate([images[60:], images[:1] * 0.99]).astype(np.float32))
    assert len(outside) <= 40
    assert not {image.tobytes() for image in inside} & {image.tobytes() for image in outside}


def test_what_a_v_network_sees_is_the_noise(folder: Path) -> None:
    """Of x_t = sqrt(a) x_0 + sqrt(1 - a) epsilon a perfect v gives epsilon back; here the identity of the formula."""
    server = read_checkpoint(folder / "server")
    x_t = load_images(OTHERS, (1, 16, 16), Selection(limit=3)).images
    a = server.plan.alpha_bar_at(60)
    v = predict_function(load_network(server))(x_t, 60)
    x_0 = math.sqrt(a) * x_t - math.sqrt(1 - a) * v
    assert np.abs(math.sqrt(a) * x_0 + math.sqrt(1 - a) * _sees(server)(x_t, 60) - x_t).max() < 1e-5


def test_what_cannot_be_asked_is_refused(folder: Path) -> None:
    assert "give images it never saw" in refusal("audit", folder / "head", "--data", MEMBERS)
    few = refusal("audit", folder / "head", "--data", "phantom:0:20", "--others", OTHERS)
    assert "too few for a membership test; valid: at least 40 of each" in few
    assert "class-conditional" in refusal("audit", folder / "classes", "--data", MEMBERS, "--others", OTHERS)
    assert "no checkpoint at" in refusal("audit", folder / "nothing", "--data", MEMBERS, "--others", OTHERS)
