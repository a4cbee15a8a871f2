"""A checkpoint folder comes back whole, or is refused in one line: a file of it is missing, torn or another's."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.errors import ArtefactError, EngineUnavailable
from collafuse_runtimes.files.checkpoint import (
    CONFIG_FORMAT,
    TRAINING_FORMAT,
    VERSION,
    Description,
    NetworkConfig,
    load_network,
    load_weights,
    read_checkpoint,
    write_checkpoint,
)
from collafuse_runtimes.files.sealed import Tensors, read_json, sha256_file, write_json

PLAN = SplitPlan((1, 8, 8), timesteps=20, cut_ratio=0.5)
UNET: dict[str, Any] = {
    "sample_size": [8, 8],
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "add_attention": False,
    "norm_num_groups": 4,
}
NETWORK = NetworkConfig("test", UNET)
WEIGHTS = "diffusion_pytorch_model.safetensors"
FILES = {"model.safetensors", WEIGHTS, "config.json", "checkpoint.json", "training.json"}


def weights(scale: float) -> Tensors:
    return {"b.weight": np.full((2, 3), scale, np.float32), "a.bias": np.arange(3, dtype=np.float32) * scale}


def write(path: Path, scale: float = 1.0, **changes: Any) -> Path:
    is_what = {name: changes.pop(name) for name in ("role", "plan", "network") if name in changes}
    content: dict[str, Any] = {
        "model": weights(scale),
        "ema": weights(scale / 2),
        "training": {"steps": 3, "losses": [[1, 0.5]]},
    }
    write_checkpoint(path, replace(Description("client", PLAN, NETWORK), **is_what), **{**content, **changes})
    return path


def refusal(path: Path, role: str | None = None) -> str:
    with pytest.raises(ArtefactError) as caught:
        read_checkpoint(path, role)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert str(path) in message
    return message


def reseal(path: Path, name: str, format_name: str, change: dict[str, Any]) -> None:
    """Edit a sealed file as its writer could, and name its new sha256 in training.json."""
    payload = {**read_json(path / name, format_name, VERSION), **change}
    write_json(
        path / name, format_name, {key: value for key, value in payload.items() if value is not Ellipsis}, VERSION
    )
    if name != "training.json":
        training = read_json(path / "training.json", TRAINING_FORMAT, VERSION)
        files = {**training["files"], name: sha256_file(path / name)}
        write_json(path / "training.json", TRAINING_FORMAT, {**training, "files": files}, VERSION)


def test_round_trip(tmp_path: Path) -> None:
    path = write(tmp_path / "head")
    found = read_checkpoint(path, "client")
    assert {p.name for p in path.iterdir()} == FILES
    assert (found.path, found.role, found.plan, found.network) == (path, "client", PLAN, NETWORK)
    assert found.training == {"steps": 3, "losses": [[1, 0.5]]}
    assert found.weights_sha256 == sha256_file(path / WEIGHTS)
    loaded = load_weights(found)
    assert loaded.keys() == weights(1).keys()
    for name, value in weights(0.5).items():
        np.testing.assert_array_equal(loaded[name], value)


def test_a_newer_checkpoint_replaces_an_older_one_whole(tmp_path: Path) -> None:
    write(tmp_path / "head", 1.0)
    write(tmp_path / "head", 4.0)
    assert load_weights(read_checkpoint(tmp_path / "head"))["b.weight"][0, 0] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["head"]


def test_a_failed_write_leaves_the_older_one(tmp_path: Path) -> None:
    write(tmp_path / "head", 1.0)
    with pytest.raises(ArtefactError, match="a value is NaN or infinite"):
        write(tmp_path / "head", 4.0, training={"losses": [[1, float("nan")]]})
    assert load_weights(read_checkpoint(tmp_path / "head"))["b.weight"][0, 0] == 0.5
    assert [p.name for p in tmp_path.iterdir()] == ["head"]


def test_another_role_is_named(tmp_path: Path) -> None:
    assert "is a client checkpoint; valid here: a server checkpoint" in refusal(write(tmp_path / "head"), "server")
    write(tmp_path / "odd", role="teacher")
    assert "is a teacher checkpoint; valid here: a server or client checkpoint" in refusal(tmp_path / "odd")


def test_what_is_no_folder_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name in ("missing", "file"):
        assert "valid is a folder written by train-server, train-client, distill or import" in refusal(tmp_path / name)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "head")
    (path / name).unlink()
    assert f"cannot read {path / name}: No such file" in refusal(path)


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_truncation_and_flip_of_a_file_is_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "head")
    data = (path / name).read_bytes()
    for position in range(0, len(data) - 1, max(len(data) // 40, 1)):
        flipped = bytearray(data)
        flipped[position] ^= 1
        for damaged in (data[:position], bytes(flipped)):
            (path / name).write_bytes(damaged)
            if name != "training.json":
                assert "is not the file training.json names: damaged or mixed; copy the folder again" in refusal(path)
                continue
            refusal(path)


@pytest.mark.parametrize("name", sorted(FILES - {"training.json", "config.json"}))
def test_a_file_of_another_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "head")
    other = write(tmp_path / "other", 2.0, plan=PLAN.with_cut_ratio(0.2))
    shutil.copy(other / name, path / name)
    assert f"{path / name} is not the file training.json names" in refusal(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"role": ...}, "'role'"),
        ({"role": ["client"]}, "is a ['client'] checkpoint"),
        ({"plan": ...}, "found NoneType"),
        ({"plan": {**PLAN.to_dict(), "timesteps": 0}}, "plan field timesteps is 0"),
        ({"fingerprint": "0" * 64}, "the fingerprint is not that of the plan beside it"),
        ({"network": ...}, "'network'"),
        ({"network": {"preset": "x"}}, "missing 1 required positional argument: 'unet'"),
        ({"network": {"preset": "x", "unet": {}, "depth": 3}}, "unexpected keyword argument 'depth'"),
        ({"network": 3}, "must be a mapping, not int"),
    ],
)
def test_a_well_sealed_config_with_bad_fields_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "head")
    reseal(path, "checkpoint.json", CONFIG_FORMAT, change)
    assert message in refusal(path)


@pytest.mark.parametrize("files", [..., None, [], "x", {}, {"config.json": 3}])
def test_a_well_sealed_training_file_with_bad_digests_is_refused(tmp_path: Path, files: Any) -> None:
    path = write(tmp_path / "head")
    reseal(path, "training.json", TRAINING_FORMAT, {"files": files})
    assert "is not the file training.json names" in refusal(path)


def test_the_network_computes_with_the_moving_average(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    original = UNet2DModel(**UNET).eval()
    ema = {name: value.detach().numpy() for name, value in original.named_parameters()}
    path = write(tmp_path / "head", model={name: 0 * value for name, value in ema.items()}, ema=ema)
    network = load_network(read_checkpoint(path))
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    x = torch.randn(2, 1, 8, 8)
    with torch.inference_mode():
        assert torch.equal(network(x, 3).sample, original(x, 3).sample)


@pytest.mark.parametrize(
    "unet", [{**UNET, "block_out_channels": [8, 8]}, {**UNET, "depth": 3}, {**UNET, "down_block_types": ["X", "Y"]}]
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, unet: dict[str, Any]) -> None:
    pytest.importorskip("diffusers")
    path = write(tmp_path / "head", network=NetworkConfig("test", unet))
    with pytest.raises(ArtefactError) as caught:
        load_network(read_checkpoint(path))
    assert str(caught.value).startswith(f"{path}: weights do not fit the network (")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["torch", "diffusers"])
def test_without_torch_the_description_reads_and_the_network_says_what_to_install(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    checkpoint = read_checkpoint(write(tmp_path / "head"))
    with pytest.raises(EngineUnavailable, match=f"^{name} is not installed; pip install 'collafuse-edge\\[train\\]'$"):
        load_network(checkpoint)
