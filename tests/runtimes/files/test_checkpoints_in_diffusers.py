"""A checkpoint folder is a diffusers folder too; checkpoints of version 1 are still read."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from places import DATA
from small_training import PLAN, SHAPE, small_network

from collafuse_edge.training.presets import build_network, network_config
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.errors import ArtefactError
from collafuse_runtimes.files.checkpoint import (
    Description,
    NetworkConfig,
    load_network,
    read_checkpoint,
    write_checkpoint,
)
from collafuse_runtimes.files.sealed import sha256_file

OLD = DATA / "checkpoint-v1"


def outputs(network: torch.nn.Module, classes: int | None, shape: tuple[int, int, int]) -> torch.Tensor:
    x = torch.randn((2, *shape), generator=torch.Generator().manual_seed(1))
    labels = None if classes is None else torch.tensor([0, classes - 1])
    with torch.inference_mode():
        found: torch.Tensor = network(x, torch.tensor([3, 17]), class_labels=labels).sample
    return found


@pytest.mark.parametrize(
    ("network", "plan"),
    [
        (small_network(), PLAN),
        (small_network(num_classes=3), PLAN),
        (network_config("tiny", SplitPlan((3, 16, 8), 20)), SplitPlan((3, 16, 8), 20)),
        (network_config("server-small", SplitPlan((1, 8, 8), 20)), SplitPlan((1, 8, 8), 20)),
    ],
    ids=["small", "with classes", "tiny in colour", "with attention"],
)
def test_diffusers_loads_the_averaged_weights_bit_for_bit(
    tmp_path: Path, network: NetworkConfig, plan: SplitPlan
) -> None:
    ema = {name: value.detach().numpy() for name, value in build_network(network, 5).named_parameters()}
    trained = {name: 2 * value for name, value in ema.items()}
    write_checkpoint(
        tmp_path / "c",
        Description(role="client", plan=plan, network=network),
        model=trained,
        ema=ema,
        training={"steps": 1},
    )
    theirs, report = UNet2DModel.from_pretrained(tmp_path / "c", output_loading_info=True)
    assert {key: len(found) for key, found in report.items() if found} == {}
    found = [
        outputs(loaded, network.num_classes, plan.image_shape)
        for loaded in (theirs, load_network(read_checkpoint(tmp_path / "c")), build_network(network, 5))
    ]
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[1], found[2], rtol=0, atol=1e-5)


def test_an_imported_one_keeps_no_second_copy_of_its_weights(tmp_path: Path) -> None:
    ema = {name: value.detach().numpy() for name, value in build_network(small_network(), 0).named_parameters()}
    write_checkpoint(
        tmp_path / "c", Description(role="server", plan=PLAN, network=small_network()), model=None, ema=ema, training={}
    )
    assert not (tmp_path / "c" / "model.safetensors").exists()
    assert torch.equal(
        outputs(load_network(read_checkpoint(tmp_path / "c")), None, SHAPE),
        outputs(build_network(small_network(), 0), None, SHAPE),
    )
    (tmp_path / "c" / "model.safetensors").write_bytes(b"from elsewhere")
    with pytest.raises(ArtefactError, match=r"model\.safetensors is not the file training\.json names"):
        read_checkpoint(tmp_path / "c")


def test_a_checkpoint_of_version_1_is_read() -> None:
    checkpoint = read_checkpoint(OLD, "client")
    assert checkpoint.plan == PLAN
    assert checkpoint.training == {"steps": 3, "losses": [[1, 0.5]], "images": 4, "settings": {}}
    assert checkpoint.weights_sha256 == sha256_file(OLD / "ema.safetensors")
    network = load_network(checkpoint)
    assert torch.equal(outputs(network, None, SHAPE), outputs(build_network(checkpoint.network, 7), None, SHAPE))


@pytest.mark.parametrize("name", ["config.json", "ema.safetensors", "model.safetensors", "training.json"])
def test_damage_to_version_1_is_still_refused(tmp_path: Path, name: str) -> None:
    for file in OLD.iterdir():
        data = bytearray(file.read_bytes())
        if file.name == name:
            data[len(data) // 2] ^= 1
        (tmp_path / file.name).write_bytes(data)
    with pytest.raises(ArtefactError) as caught:
        read_checkpoint(tmp_path)
    assert name in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_what_is_on_disk_once(tmp_path: Path) -> None:
    """Both kinds of weights, each once; the rest is text."""
    ema = {name: value.detach().numpy() for name, value in build_network(small_network(), 0).named_parameters()}
    write_checkpoint(
        tmp_path / "c", Description(role="client", plan=PLAN, network=small_network()), model=ema, ema=ema, training={}
    )
    numbers = sum(np.prod(value.shape) for value in ema.values())
    assert sum(file.stat().st_size for file in (tmp_path / "c").iterdir()) < 2 * 4 * numbers + 30_000


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    ema = {name: value.detach().numpy() for name, value in build_network(small_network(), 0).named_parameters()}
    digests = set()
    for number in range(4):
        path = tmp_path / str(number)
        write_checkpoint(
            path, Description(role="client", plan=PLAN, network=small_network()), model=ema, ema=ema, training={}
        )
        digests.add(sha256_file(path / "training.json"))
    assert len(digests) == 1
