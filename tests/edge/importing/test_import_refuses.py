"""What import refuses, by field, value and what is valid; and what other commands say to a foreign folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import refusal
from diffusers import DDPMScheduler
from foreign_networks import COSINE, PLAN, edit, network_folder, pipeline, unet
from safetensors.torch import load_file, save_file

from collafuse_edge.importing.network import import_network
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.errors import ArtefactError, CollafuseError, PlanMismatch
from collafuse_runtimes.files.plan_file import write_plan

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def refused(source: Path, role: str = "client", plan: SplitPlan = PLAN, scheduler: Path | None = None) -> str:
    """The one line; nothing is written."""
    before = sorted(source.parent.rglob("*"))
    with pytest.raises(CollafuseError) as caught:
        import_network(source, source.parent / "new", role, plan, scheduler)
    assert sorted(source.parent.rglob("*")) == before
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and len(message) < 1200
    return message


SCHEDULERS: dict[str, tuple[dict[str, Any], str]] = {
    "another class": ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "Scheduler'; valid: one of DDPM"),
    "no class": ({"_class_name": ...}, "_class_name is 'None'"),
    "too many steps": ({"num_train_timesteps": 4000}, "num_train_timesteps is '4000'; valid: an integer from 2"),
    "steps of no number": ({"num_train_timesteps": "50"}, "num_train_timesteps is '50'; valid: an integer from 2"),
    "v": ({"prediction_type": "v_prediction"}, "the plan's client predicts epsilon: write a plan with --prediction v"),
    "sample": ({"prediction_type": "sample"}, "prediction_type is 'sample'; valid: epsilon or v_prediction"),
    "learned variance": ({"variance_type": "learned_range"}, "variance_type is 'learned_range'; valid: a fixed"),
    "zero SNR": ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr is 'True'; valid: false"),
    "another range": ({"clip_sample_range": 4.0}, "clip_sample_range is '4.0'; valid: 1.0: a plan's images"),
    "betas of no kind": ({"beta_schedule": "wavy"}, "diffusers refuses it: wavy is not implemented"),
    "betas of no number": ({"beta_schedule": "linear", "beta_start": "x"}, "diffusers refuses it"),
    "too few betas": ({"trained_betas": [0.1, 0.2]}, "trained_betas is '2 numbers'; valid: num_train_timesteps, 50"),
    "betas outside 0 to 1": ({"trained_betas": [1.5] * 50}, "trained_betas of its own; the plan has 50"),
    "scaled linear": ({"beta_schedule": "scaled_linear"}, "scaled_linear, beta_start 0.0001, beta_end 0.02; the plan"),
    "linear with other ends": ({"beta_schedule": "linear"}, "or linear with beta_start 0.002 and beta_end 0.4 for 50"),
    "more steps": ({"num_train_timesteps": 200}, "`collafuse-edge init --size 8x8 --channels 3 --timesteps 200 --sch"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_scheduler_that_does_not_fit(kind: str, tmp_path: Path) -> None:
    changes, words = SCHEDULERS[kind]
    source = pipeline(tmp_path / "theirs")
    edit(source / "scheduler" / "scheduler_config.json", **changes)
    message = refused(source)
    assert words in message and str(source / "scheduler" / "scheduler_config.json") in message


def test_the_plan_named_in_the_refusal_fits(tmp_path: Path) -> None:
    source = pipeline(
        tmp_path / "theirs", scheduler=DDPMScheduler(num_train_timesteps=200, beta_start=5e-4, beta_end=0.1)
    )
    with pytest.raises(PlanMismatch, match="--timesteps 200 --schedule linear"):
        import_network(source, tmp_path / "new", "client", PLAN)
    fitting = SplitPlan((3, 8, 8), 200, "linear", cut_ratio=0.5)
    assert import_network(source, tmp_path / "new", "client", fitting).alpha_bar_error < 1e-6


NETWORKS: dict[str, tuple[dict[str, Any], str]] = {
    "a text's network": ({"_class_name": "UNet2DConditionModel"}, "'UNet2DConditionModel'; valid: UNet2DModel"),
    "an unknown field": ({"cross_attention_dim": 77}, "cross_attention_dim is '77'; valid: no such field"),
    "quantised": ({"quantization_config": {"bits": 4}}, "quantization_config"),
    "another size": ({"sample_size": 32}, "or another plan: `collafuse-edge init --size 32x32 --channels 3"),
    "a size of no number": ({"sample_size": "big"}, "sample_size is 'big'"),
    "grey": ({"in_channels": 1}, "in_channels is '1'; valid: the plan's 3 channels"),
    "a variance beside it": ({"out_channels": 6}, "out_channels is '6'; valid: 3: a network that also predicts"),
    "images in 0 to 1": ({"center_input_sample": True}, "center_input_sample is 'True'; valid: false"),
    "continuous times": ({"time_embedding_type": "fourier"}, "time_embedding_type is 'fourier'; valid: positional"),
    "too few times": ({"time_embedding_type": "learned", "num_train_timesteps": 9}, "'9'; valid: the plan's 50"),
    "classes as vectors": ({"class_embed_type": "identity"}, "class_embed_type is 'identity'; valid: null"),
    "no class": ({"num_class_embeds": 0}, "num_class_embeds is '0'; valid: null or an integer from 1"),
    "absurd channels": ({"block_out_channels": [8, 10**9]}, "is '[8, 1000000000]'; valid: at most 64"),
    "absurd layers": ({"layers_per_block": 10**6}, "layers_per_block is '1000000'"),
    "no layers": ({"layers_per_block": 0}, "layers_per_block is '0'; valid: an integer from 1 to 64"),
    "not a number": ({"norm_eps": float("nan")}, "norm_eps is 'nan'"),
    "a negative one": ({"block_out_channels": [8, -16]}, "diffusers cannot build this network"),
    "unknown blocks": ({"down_block_types": ["DownBlock2D", "EvilBlock"]}, "diffusers cannot build this network"),
    "other weights": ({"block_out_channels": [8, 24]}, "copy both again"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_network_that_does_not_fit(kind: str, tmp_path: Path) -> None:
    changes, words = NETWORKS[kind]
    source = pipeline(tmp_path / "theirs")
    edit(source / "unet" / "config.json", **changes)
    message = refused(source)
    assert words in message and str(source / "unet") in message


def renamed(weights: dict[str, torch.Tensor]) -> None:
    weights["conv_in.wait"] = weights.pop("conv_in.weight")


def broken(weights: dict[str, torch.Tensor]) -> None:
    weights["conv_in.bias"][3] = float("nan")


def transposed(weights: dict[str, torch.Tensor]) -> None:
    weights["time_embedding.linear_1.weight"] = weights["time_embedding.linear_1.weight"].t().contiguous()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (renamed, "weight conv_in.weight is missing"),
        (broken, "weight conv_in.bias holds NaN or Inf"),
        (transposed, "time_embedding.linear_1.weight"),
    ],
)
def test_weights_that_do_not_fit(change: Callable[[dict[str, torch.Tensor]], None], words: str, tmp_path: Path) -> None:
    source = pipeline(tmp_path / "theirs")
    weights = load_file(source / WEIGHTS)
    change(weights)
    save_file(weights, source / WEIGHTS, metadata={"format": "pt"})
    assert words in refused(source)


@pytest.mark.parametrize("keep", [0, 7, 300, -8])
def test_truncated_weights(keep: int, tmp_path: Path) -> None:
    source = pipeline(tmp_path / "theirs")
    (source / WEIGHTS).write_bytes((source / WEIGHTS).read_bytes()[:keep])
    assert f"{source / WEIGHTS} is not a readable safetensors file" in refused(source)


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.PTH", "pytorch_model.bin", "weights.pkl"])
def test_a_pickle_is_never_opened(name: str, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    path = tmp_path / "theirs" / name
    path.write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")
    for source in (path, path.parent):
        message = refused(source)
        assert f"{path} is a pickle, which runs code when it is opened" in message and "save_pretrained" in message
    with pytest.raises(ArtefactError, match="is a pickle"):
        import_network(path, tmp_path / "new", "client", PLAN)


def test_a_network_folder_with_pickled_weights(tmp_path: Path) -> None:
    source = network_folder(tmp_path / "theirs")
    (source / "diffusion_pytorch_model.safetensors").rename(source / "diffusion_pytorch_model.bin")
    assert "diffusion_pytorch_model.bin is a pickle" in refused(source)


def test_folders_that_are_something_else(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no config.json; give a folder written by `save_pretrained`" in refused(tmp_path / "empty")
    assert "no folder" in refused(tmp_path / "missing")
    latent = pipeline(tmp_path / "latent")
    edit(latent / "model_index.json", _class_name="LDMPipeline", vqvae=["diffusers", "VQModel"])
    assert "is a LDMPipeline with vqvae: its network works on latents" in refused(latent)
    alone = tmp_path / "alone"
    unet().save_pretrained(alone)
    assert "holds no scheduler_config.json, where schedule and prediction stand; name it with --scheduler" in refused(
        alone
    )
    DDPMScheduler(**COSINE).save_pretrained(alone)
    assert "unknown role 'teacher'; valid: server or client" in refused(alone, role="teacher")
    import_network(alone, tmp_path / "ours", "client", PLAN)
    assert "is a checkpoint of collafuse-edge already" in refused(tmp_path / "ours")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("configs/metadata.json", {"monai_version": "1.6.1", "network_data_format": {}}),
        ("config.json", {"_target_": "monai.networks.nets.DiffusionModelUNet", "channels": [32, 64]}),
        ("config.json", {"spatial_dims": 2, "in_channels": 1, "out_channels": 1}),
    ],
)
def test_a_network_of_monai_is_named(name: str, content: dict[str, Any], tmp_path: Path) -> None:
    source = tmp_path / "bundle"
    (source / name).parent.mkdir(parents=True)
    (source / name).write_text(json.dumps(content))
    (source / "model.pt").write_bytes(b"x")
    assert f"{source} is a network of MONAI, which is not taken: its weights are a pickle" in refused(source)
    assert "is a network of MONAI" in refusal("export", source, "--out", tmp_path / "new")


@pytest.mark.parametrize("content", ["", "[]", "{", "3", "[" * 100_000, '{"_class_name": ' + "1" * 5000 + "}"])
@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_configurations_that_are_none(name: str, content: str, tmp_path: Path) -> None:
    source = pipeline(tmp_path / "theirs")
    (source / name).write_text(content)
    refused(source)


def test_a_configuration_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    source = pipeline(tmp_path / "theirs")
    (source / "unet" / "config.json").write_text(json.dumps({"_class_name": "x" * (1 << 20)}))
    assert "a configuration has at most 1048576" in refused(source)


def test_other_commands_say_to_import_first(tmp_path: Path) -> None:
    write_plan(tmp_path / "plan.json", PLAN)
    whole, network = pipeline(tmp_path / "pipeline"), network_folder(tmp_path / "network")
    (tmp_path / "head.ckpt").write_bytes(b"x")
    weights = network / "diffusion_pytorch_model.safetensors"
    for source, words in (
        (whole, "is a pipeline of diffusers (DDPMPipeline), no checkpoint yet: `collafuse-edge import"),
        (network, "is a network of diffusers (UNet2DModel), no checkpoint yet: `collafuse-edge import"),
        (weights, "is a single safetensors file of another tool, no checkpoint yet"),
        (tmp_path / "head.ckpt", "is a pickle, which runs code when it is opened"),
    ):
        new = tmp_path / "new"
        assert words in refusal("export", source, "--out", new)
        server = refusal("handoff", "--plan", tmp_path / "plan.json", "--server", source, "--count", 1, "--out", new)
        assert words in server and ("--role server" in server or "pickle" in server)
        assert not new.exists()
