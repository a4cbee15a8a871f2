"""A checkpoint's config says what to build: it is held against the weights and the plan before memory is taken."""

import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import refusal
from small_product import copy_product, listing, words

from collafuse_edge.training.resume import TrainState, read_resume
from collafuse_runtimes.errors import ArtefactError, InputError
from collafuse_runtimes.files.sealed import read_json, read_tensors, sha256_file, write_json, write_tensors
from collafuse_runtimes.networks.network import build_unet

UNET: dict[str, Any] = {
    "sample_size": [8, 8],
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "add_attention": False,
    "norm_num_groups": 8,
}
SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def shapes() -> dict[str, tuple[int, ...]]:
    from diffusers import UNet2DModel

    return {name: tuple(value.shape) for name, value in UNet2DModel(**UNET).state_dict().items()}


BAD = [
    ({"block_out_channels": [10**9, 16]}, "block_out_channels is 1000000000; its file holds"),
    ({"block_out_channels": [10**400, 16]}, "block_out_channels is 1000"),
    ({"block_out_channels": [60_000, 60_000]}, "has shape"),
    ({"block_out_channels": [0, 0]}, ""),
    ({"block_out_channels": [-8, 16]}, ""),
    ({"block_out_channels": []}, ""),
    ({"block_out_channels": [8] * 10_000}, "block_out_channels has 10000 entries; there are"),
    ({"block_out_channels": "8"}, ""),
    ({"block_out_channels": None}, ""),
    ({"block_out_channels": [8.5, 16]}, ""),
    ({"layers_per_block": 10**9}, "layers_per_block is 1000000000"),
    ({"layers_per_block": 5000}, "layers_per_block is 5000; there are"),
    ({"layers_per_block": 0}, ""),
    ({"layers_per_block": 2}, "is missing"),
    ({"norm_num_groups": 0}, ""),
    ({"norm_num_groups": 3}, ""),
    ({"in_channels": 3}, "weight conv_in.weight has shape (8, 1, 3, 3), the network needs (8, 3, 3, 3)"),
    ({"in_channels": 0}, ""),
    ({"add_attention": True}, ""),
    ({"down_block_types": ["NoSuchBlock", "DownBlock2D"]}, ""),
    ({"down_block_types": 7}, ""),
    ({"time_embedding_type": "none"}, ""),
    ({"act_fn": "none"}, ""),
    ({"norm_eps": 1e300}, "norm_eps is 1e+300"),
    ({"norm_eps": float("nan")}, "norm_eps is nan"),
    ({"colour": "red"}, "unexpected keyword argument 'colour'"),
    ({"num_class_embeds": 4}, "weight class_embedding.weight is missing"),
    ({"num_class_embeds": 10**9}, "num_class_embeds is 1000000000"),
]


@pytest.mark.parametrize(("change", "said"), BAD, ids=[str(change)[:60] for change, _ in BAD])
def test_a_config_that_does_not_fit_is_refused(
    change: dict[str, Any], said: str, shapes: dict[str, tuple[int, ...]]
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError) as caught:
        build_unet({**UNET, **change}, shapes, SHAPE, None)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB; 60,000 channels would be 130 GB
    assert said in str(caught.value)
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("image", "classes", "said"),
    [
        ((3, 8, 8), None, "does not take images of (3, 8, 8)"),
        ((1, 7, 7), None, "does not take images of (1, 7, 7)"),
        (SHAPE, 4, "the network has no classes, num_classes says 4"),
    ],
)
def test_a_network_that_does_not_fit_its_plan_is_refused(
    image: tuple[int, int, int], classes: int | None, said: str, shapes: dict[str, tuple[int, ...]]
) -> None:
    with pytest.raises(InputError) as caught:
        build_unet(UNET, shapes, image, classes)
    assert said in str(caught.value)


def test_a_config_that_fits_is_built_with_real_weights(shapes: dict[str, tuple[int, ...]]) -> None:
    network = build_unet(UNET, shapes, SHAPE, None)
    assert {parameter.device.type for parameter in network.parameters()} == {"cpu"}
    with pytest.raises(InputError, match=r"weight conv_in\.bias is missing"):
        build_unet(UNET, {name: shape for name, shape in shapes.items() if name != "conv_in.bias"}, SHAPE, None)
    with pytest.raises(InputError, match="weight 'more' is none of this network's"):
        build_unet(UNET, {**shapes, "more": (1,)}, SHAPE, None)


def seal_again(folder: Path, change: dict[str, Any]) -> None:
    """The checkpoint with other network fields and every digest right."""
    description, training = folder / "checkpoint.json", folder / "training.json"
    config, record = read_json(description, "collafuse-checkpoint", 2), read_json(training, "collafuse-training", 2)
    description.unlink()
    training.unlink()
    write_json(description, "collafuse-checkpoint", {**config, "network": {**config["network"], **change}}, 2)
    record["files"]["checkpoint.json"] = sha256_file(description)
    write_json(training, "collafuse-training", record, 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"unet": {}}, "weights do not fit the network (weight "),
        ({"unet": None}, "network field unet is None; valid: the arguments of a network"),
        ({"unet": [1]}, "network field unet is [1]"),
        ({"preset": 3}, "network field preset is 3; valid: a text"),
        ({"num_classes": 0}, "network field num_classes is 0; valid: null or an integer from 1"),
        ({"num_classes": True}, "network field num_classes is True"),
        ({"num_classes": 7}, "the network has no classes, num_classes says 7"),
        ({"more": 1}, "unexpected keyword argument 'more'"),
        ({"unet": {"block_out_channels": [10**9]}}, "block_out_channels is 1000000000"),
    ],
)
def test_every_command_refuses_in_one_line(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    site = copy_product(tmp_path / "site")
    for role in ("server", "head"):
        seal_again(site / role, change)
    before = listing(site)
    handoff = words("handoff --plan @plan.json --server @server --count 1 --out @new", site)
    for command in (handoff, words("export @head --out @new", site)):
        assert said in refusal(*command)
    assert listing(site) == before


def state() -> TrainState:
    import torch
    from diffusers.training_utils import EMAModel

    torch.manual_seed(0)
    network = torch.nn.Linear(3, 2)
    return TrainState(network, EMAModel(network.parameters()), torch.optim.Adam(network.parameters()), None)


def resume_file(path: Path, tensors: dict[str, Any], progress: dict[str, Any], **more: Any) -> Path:
    good = {
        f"{part}.{name}": np.zeros(shape, np.float32)
        for part in ("model", "ema", "exp_avg", "exp_avg_sq")
        for name, shape in (("weight", (2, 3)), ("bias", (2,)))
    }
    payload: dict[str, Any] = {
        "identity": {},
        "progress": {"step": 1, "loss_sum": 0.0, "loss_count": 0, "losses": [[1, 0.5]], "seconds": 1.0, **progress},
        "optimizer_step": 1.0,
        "ema_step": 1,
        "scaler": None,
        **more,
    }
    write_tensors(path, "collafuse-resume", {**good, **tensors}, payload)
    return path


@pytest.mark.parametrize(
    ("tensors", "progress", "more"),
    [
        ({"model.weight": np.zeros(1, np.float32)}, {}, {}),  # torch would repeat it over the whole weight
        ({"ema.bias": np.zeros((2, 1), np.float32)}, {}, {}),
        ({"exp_avg.bias": np.full(2, np.nan, np.float32)}, {}, {}),
        ({}, {"step": -1}, {}),
        ({}, {"step": "1"}, {}),
        ({}, {"step": True}, {}),
        ({}, {"loss_count": 1.5}, {}),
        ({}, {"losses": 3}, {}),
        ({}, {"losses": [[1]]}, {}),
        ({}, {"seconds": "long"}, {}),
        ({}, {"more": 1}, {}),
        ({}, {}, {"identity": 3}),
        ({}, {}, {"optimizer_step": "x"}),
        ({}, {}, {"optimizer_step": [1, 2]}),
        ({}, {}, {"ema_step": None}),
        ({}, {}, {"ema_step": -1}),
        ({}, {}, {"scaler": None, "optimizer_step": None}),
    ],
)
def test_a_sealed_resume_state_with_wrong_fields_is_refused(
    tensors: dict[str, Any], progress: dict[str, Any], more: dict[str, Any], tmp_path: Path
) -> None:
    path = resume_file(tmp_path / "r", tensors, progress, **more)
    with pytest.raises(ArtefactError, match=r"lacks or garbles .*; delete it and train again"):
        read_resume(path, state(), {"data": 1} if "identity" in more else {})


def test_a_sealed_resume_state_is_read(tmp_path: Path) -> None:
    progress = read_resume(resume_file(tmp_path / "r", {}, {}), state(), {})
    assert (progress.step, progress.losses) == (1, [(1, 0.5)])
    assert read_tensors(tmp_path / "r", "collafuse-resume")[1]["ema_step"] == 1
