"""The demo, with a hundredth of its steps: every artefact, the table, the picture, and commands that are true."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import done, refusal, run_cli
from PIL import Image

from collafuse_edge import demo
from collafuse_edge.data import load_images
from collafuse_edge.upload.shard import read_shard
from collafuse_runtimes.files.bundle import read_bundle
from collafuse_runtimes.files.checkpoint import read_checkpoint
from collafuse_runtimes.files.handover import read_handover
from collafuse_runtimes.files.plan_file import read_plan

torch.set_num_threads(1)

SIDE, TIMESTEPS, CUT, IMAGES, SHOWN = 16, 20, 4, 24, 3
SMALL = {
    "IMAGE_SHAPE": (1, SIDE, SIDE),
    "TIMESTEPS": TIMESTEPS,
    "TRAINING_IMAGES": IMAGES,
    "SERVER_STEPS": 2,
    "HEAD_STEPS": 3,
    "PREVIEW": SHOWN,
}
CLIENT_FILES = {"upload.key", "upload.key.ledger.json", "head", "x.tc.safetensors", "edge.head", "images"}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object], list[str], list[str]]:
    """Folder, JSON result, commands shown, lines for people of one small run."""
    out = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setattr(demo, name, value)
        result = run_cli("demo", "--out", out, "--json")
    assert result.code == 0, result
    found = json.loads(result.out)
    clients = tuple(demo.ClientResult(**client) for client in found["clients"])
    table = demo.demo_table(demo.DemoResult(clients, Path(found["picture"]), out, found["seconds"]))
    commands = [line.removeprefix("$ ") for line in result.err.splitlines() if line.startswith("$ ")]
    return out, found, commands, table


Ran = tuple[Path, dict[str, object], list[str], list[str]]


def test_every_artefact_is_there_and_private_files_stay_with_their_client(ran: Ran) -> None:
    out = ran[0]
    shared = {"plan.json", "server", "demo.png", "client0", "client1", "client0.shard.safetensors"}
    assert {path.name for path in out.iterdir()} == {*shared, "client1.shard.safetensors"}
    plan = read_plan(out / "plan.json")
    assert (plan.image_shape, plan.timesteps, plan.cut) == ((1, SIDE, SIDE), TIMESTEPS, CUT)
    assert read_checkpoint(out / "server", "server").training["steps"] == 2
    assert read_checkpoint(out / "server").training["images"] == 2 * IMAGES
    for name in ("client0", "client1"):
        folder = out / name
        assert {path.name for path in folder.iterdir()} == CLIENT_FILES
        assert (folder / "upload.key").stat().st_mode & 0o777 == 0o600
        assert read_checkpoint(folder / "head", "client").training["steps"] == 3
        assert read_handover(folder / "x.tc.safetensors").plan == plan
        assert read_bundle(folder / "edge.head").parity["passed"] is True
        assert len(list((folder / "images").glob("0*.png"))) == SHOWN
    assert (out / "client0/upload.key").read_bytes() != (out / "client1/upload.key").read_bytes()


def test_clients_draw_different_populations_and_upload_them_noised(ran: Ran) -> None:
    shards = [read_shard(ran[0] / f"client{i}.shard.safetensors") for i in range(2)]
    originals = [load_images(f"phantom:{population}:{IMAGES}", (1, SIDE, SIDE)).images for population in demo.CLIENTS]
    assert not np.array_equal(*originals)
    alpha_bar = shards[0].plan.alpha_bar_at(CUT - 1)
    for shard, x_0 in zip(shards, originals, strict=True):
        assert (len(shard), shard.protocol) == (IMAGES, "upload")
        expected = alpha_bar * np.square(x_0).mean() + 1 - alpha_bar  # E[x_n^2]
        assert np.square(shard.images).mean() == pytest.approx(expected, rel=0.1)


def test_the_table_has_a_row_per_client_with_its_numbers(ran: Ran) -> None:
    out, found, _, table = ran
    assert (found["out"], found["picture"]) == (str(out), str(out / "demo.png"))
    assert [line.split()[0] for line in table[1:3]] == ["client0", "client1"]
    assert len(table) == 4
    clients = found["clients"]
    assert isinstance(clients, list)
    for i, client in enumerate(clients):
        bundle = read_bundle(out / f"client{i}" / "edge.head")
        assert client["shard_bytes"] == (out / f"client{i}.shard.safetensors").stat().st_size
        assert client["handover_bytes"] == (out / f"client{i}/x.tc.safetensors").stat().st_size // SHOWN
        assert client["head_parameters"] == bundle.network.parameters
        assert client["images"] == IMAGES
        assert client["loss"] == read_checkpoint(out / f"client{i}/head").training["losses"][-1][1]
        assert client["parity_max_abs"] < 1e-4
        assert client["server_ms"] > 0
        assert client["head_ms"] > 0
        assert table[1 + i].split()[1:2] == [str(IMAGES)]


def test_the_picture_shows_real_noisy_and_finished_images_of_both(ran: Ran) -> None:
    out = ran[0]
    picture = np.asarray(Image.open(out / "demo.png"))
    scale, gap, caption = -(-64 // SIDE), 2, 14
    side = scale * SIDE
    cell_height = side + gap + caption
    assert picture.shape[0] == 6 * cell_height
    for client in range(2):
        with np.load(out / f"client{client}/images/images.npz") as archive:
            finished = archive["images"]
        real = load_images(f"phantom:{demo.CLIENTS[client]}:{IMAGES}", (1, SIDE, SIDE)).images
        x_tc = read_handover(out / f"client{client}/x.tc.safetensors").x_tc
        for row, images in enumerate((real, x_tc, finished)):
            y = (3 * client + row) * cell_height + caption
            for column in range(SHOWN):
                x = column * (side + gap)
                expected = (
                    np.rint((images[column, 0].clip(-1, 1) + 1) * 127.5).repeat(scale, axis=0).repeat(scale, axis=1)
                )
                np.testing.assert_array_equal(picture[y : y + side, x : x + side, 0], expected)


def test_the_commands_it_shows_make_the_same_artefacts(
    ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _, commands, _ = ran
    assert [line.split()[1] for line in commands] == [
        *("init", "upload", "upload", "train-server"),
        *("train-client", "handoff", "export", "verify", "infer") * 2,
    ]
    (tmp_path / "client0").mkdir()
    shutil.copy(out / "client0/upload.key", tmp_path / "client0/upload.key")
    shutil.copy(out / "client1.shard.safetensors", tmp_path)
    shutil.copytree(out / "client0/edge.head", tmp_path / "client0/edge.head")
    monkeypatch.chdir(tmp_path)
    for line in commands[:9]:
        if "client1/" not in line and " export " not in line:
            done(*line.split()[1:])
    for name in ("plan.json", "client0.shard.safetensors", "client0/x.tc.safetensors", "client0/images/00000.png"):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes(), name
    for name in ("server", "client0/head"):
        assert read_checkpoint(tmp_path / name).weights_sha256 == read_checkpoint(out / name).weights_sha256, name


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "exists already; choose another --out" in refusal("demo", "--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
