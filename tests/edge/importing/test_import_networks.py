"""A network that diffusers trained becomes a checkpoint, computes the same there, and goes all the way to a device."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import done, refusal, run_cli
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, UNet2DModel
from foreign_networks import COSINE, PLAN, edit, network_folder, pipeline, unet
from places import ROOT
from safetensors.torch import load_file, save_file

from collafuse_edge.importing.network import import_network
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.diffusion.samplers import Sampler, denoise
from collafuse_runtimes.engines.torch_engine import predict_function
from collafuse_runtimes.files.checkpoint import load_network, read_checkpoint
from collafuse_runtimes.files.plan_file import write_plan

WEIGHTS = "diffusion_pytorch_model.safetensors"


def predicted(network: torch.nn.Module, labels: bool = False) -> torch.Tensor:
    x = torch.randn((2, 3, 8, 8), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found: torch.Tensor = network(
            x, torch.tensor([3, 24]), class_labels=torch.tensor([0, 2]) if labels else None
        ).sample
    return found


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    write_plan(tmp_path / "plan.json", PLAN)
    return tmp_path / "plan.json"


@pytest.mark.parametrize("role", ["server", "client"])
@pytest.mark.parametrize("make", [network_folder, pipeline])
def test_what_was_imported_computes_the_same_and_goes_back_to_diffusers(tmp_path: Path, make: Any, role: str) -> None:
    report = import_network(make(tmp_path / "theirs"), tmp_path / "ours", role, PLAN)
    assert (report.role, report.weight_types, report.notes) == (role, ("F32",), ())
    assert report.parameters == sum(weight.numel() for weight in unet().parameters())
    assert report.alpha_bar_error < 1e-6
    checkpoint = read_checkpoint(tmp_path / "ours", role)
    assert (checkpoint.plan, checkpoint.network.num_classes) == (PLAN, None)
    expected = predicted(unet())
    assert torch.equal(predicted(load_network(checkpoint)), expected)
    assert torch.equal(predicted(UNet2DModel.from_pretrained(tmp_path / "ours")), expected)


def test_the_whole_way_from_a_pipeline_to_images(tmp_path: Path, plan: Path) -> None:
    pipeline(tmp_path / "theirs")
    both = ("import", tmp_path / "theirs", "--plan", plan)
    done(*both, "--role", "server", "--out", tmp_path / "server")
    out = done(*both, "--role", "client", "--out", tmp_path / "head")
    assert "scheduler DDPMScheduler: 50 timesteps, cosine; coefficients of x_t within" in out
    assert f"wrote     {tmp_path / 'head'}: a client checkpoint for timesteps 24..0" in out
    handover = tmp_path / "x.tc.safetensors"
    done("handoff", "--plan", plan, "--server", tmp_path / "server", "--count", 2, "--steps", 5, "--out", handover)
    done("export", tmp_path / "head", "--steps", 5, "--out", tmp_path / "a.head")
    assert "passed" in done("verify", tmp_path / "a.head")
    done("verify", tmp_path / "a.head", "--engine", "torch", "--checkpoint", tmp_path / "head")
    done("infer", tmp_path / "a.head", handover, "--out", tmp_path / "images")
    with np.load(tmp_path / "images" / "images.npz") as images:
        assert images["images"].shape == (2, 3, 8, 8)


def test_json_names_what_was_imported(tmp_path: Path, plan: Path) -> None:
    pipeline(tmp_path / "theirs")
    found = json.loads(
        done("import", tmp_path / "theirs", "--plan", plan, "--role", "client", "--out", tmp_path / "h", "--json")
    )
    row = next(line for line in (ROOT / "docs/command_line.md").read_text().splitlines() if "| `import`" in line)
    assert [key.strip("` ") for key in row.split("|")[2].split(",")] == list(found)
    assert found["weights_sha256"] == read_checkpoint(tmp_path / "h").weights_sha256


def test_our_steps_are_the_schedulers_own(tmp_path: Path) -> None:
    """DDIM by diffusers over the client's part, from the same tensor: the imported network at the same levels."""
    import_network(pipeline(tmp_path / "theirs"), tmp_path / "ours", "client", PLAN)
    network, original = load_network(read_checkpoint(tmp_path / "ours")), unet()
    scheduler = DDIMScheduler(**COSINE, timestep_spacing="leading")
    scheduler.set_timesteps(50)
    x_t = torch.randn((2, 3, 8, 8), generator=torch.Generator().manual_seed(3))
    x = x_t.clone()
    with torch.inference_mode():
        for t in scheduler.timesteps[-PLAN.cut :]:
            x = scheduler.step(original(x, t).sample, t, x).prev_sample

    def predict(x: Any, t: int) -> Any:
        with torch.inference_mode():
            return network(torch.from_numpy(x), t).sample.numpy()

    ours = denoise(x_t.numpy(), PLAN, PLAN.client_transitions(), Sampler(), predict)
    np.testing.assert_allclose(ours, x.numpy(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["ddim", "dpm++2m"])
def test_a_network_of_v_takes_the_steps_of_its_scheduler(name: str, tmp_path: Path) -> None:
    """diffusers' scheduler with v_prediction, and ours with the plan that says v, from the same tensor."""
    source = pipeline(tmp_path / "theirs", scheduler=DDPMScheduler(**COSINE, prediction_type="v_prediction"))
    plan = replace(PLAN, prediction_type="v")
    import_network(source, tmp_path / "ours", "client", plan)
    network = load_network(read_checkpoint(tmp_path / "ours"))
    sampler, transitions = Sampler(name), plan.client_transitions(5)
    if name == "ddim":
        scheduler = DDIMScheduler(**COSINE, prediction_type="v_prediction", timestep_spacing="leading")
        scheduler.set_timesteps(50)
        transitions = plan.client_transitions()
        timesteps = scheduler.timesteps[-plan.cut :]
    else:
        scheduler = DPMSolverMultistepScheduler(
            **{**COSINE, "prediction_type": "v_prediction"}, final_sigmas_type="zero", solver_order=2
        )
        scheduler.set_timesteps(timesteps=[t for t, _ in transitions])
        timesteps = scheduler.timesteps
    network.conv_out.weight *= 0.2  # so that no x_0 meets the clip, which diffusers' second solver has not
    network.conv_out.bias *= 0.2
    x_t = 0.15 * torch.randn((2, 3, 8, 8), generator=torch.Generator().manual_seed(3))
    x = x_t.clone()
    with torch.inference_mode():
        for t in timesteps:
            x = scheduler.step(network(x, t).sample, t, x).prev_sample
    assert float(x.abs().max()) < 1
    ours = denoise(x_t.numpy(), plan, transitions, sampler, predict_function(network))
    np.testing.assert_allclose(ours, x.numpy(), rtol=0, atol=2e-5)


def test_half_precision_is_widened_and_said(tmp_path: Path, plan: Path) -> None:
    source = pipeline(tmp_path / "theirs")
    half = {name: value.half() for name, value in load_file(source / "unet" / WEIGHTS).items()}
    (source / "unet" / WEIGHTS).unlink()
    save_file(half, source / "unet" / "diffusion_pytorch_model.fp16.safetensors", metadata={"format": "pt"})
    out = done("import", source, "--role", "client", "--plan", plan, "--out", tmp_path / "h")
    assert "note      weights of type F16 were converted to float32" in out
    network = load_network(read_checkpoint(tmp_path / "h"))
    assert all(torch.equal(weight, half[name].float()) for name, weight in network.named_parameters())


def test_weights_in_several_files(tmp_path: Path) -> None:
    unet().save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    DDPMScheduler(**COSINE).save_pretrained(tmp_path / "theirs")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    import_network(tmp_path / "theirs", tmp_path / "h", "client", PLAN)
    assert torch.equal(predicted(load_network(read_checkpoint(tmp_path / "h"))), predicted(unet()))


def test_averaged_weights_as_the_training_scripts_of_diffusers_keep_them(tmp_path: Path) -> None:
    """unet_ema/: EMAModel adds its own keys to the network's configuration."""
    from diffusers.training_utils import EMAModel

    network = unet()
    EMAModel(network.parameters(), model_cls=UNet2DModel, model_config=network.config).save_pretrained(
        tmp_path / "unet_ema"
    )
    DDPMScheduler(**COSINE).save_pretrained(tmp_path / "scheduler")
    import_network(tmp_path / "unet_ema", tmp_path / "h", "client", PLAN)
    assert torch.equal(predicted(load_network(read_checkpoint(tmp_path / "h"))), predicted(unet()))


def test_a_head_with_classes(tmp_path: Path, plan: Path) -> None:
    source = pipeline(tmp_path / "theirs", num_class_embeds=3)
    import_network(source, tmp_path / "h", "client", PLAN)
    checkpoint = read_checkpoint(tmp_path / "h")
    assert checkpoint.network.num_classes == 3
    assert torch.equal(
        predicted(load_network(checkpoint), labels=True), predicted(unet(num_class_embeds=3), labels=True)
    )
    message = refusal("import", source, "--role", "server", "--plan", plan, "--out", tmp_path / "s")
    assert "num_class_embeds is '3'; valid: null for a server" in message


@pytest.mark.parametrize(
    ("timesteps", "schedule"), [(50, "cosine"), (1000, "cosine"), (1000, "linear"), (100, "linear")]
)
def test_a_plan_of_the_schedulers_levels_fits(tmp_path: Path, timesteps: int, schedule: str) -> None:
    betas = {
        "cosine": {"beta_schedule": "squaredcos_cap_v2"},
        "linear": {"beta_start": 0.1 / timesteps, "beta_end": 20 / timesteps},
    }
    scheduler = EulerDiscreteScheduler(num_train_timesteps=timesteps, **betas[schedule])
    source = pipeline(tmp_path / "theirs", scheduler=DDPMScheduler(num_train_timesteps=timesteps, **betas[schedule]))
    scheduler.save_pretrained(tmp_path / "euler")
    plan = SplitPlan((3, 8, 8), timesteps, schedule, cut_ratio=0.1)
    for number, own in enumerate((None, tmp_path / "euler", tmp_path / "euler" / "scheduler_config.json")):
        report = import_network(source, tmp_path / str(number), "client", plan, own)
        assert report.scheduler == ("DDPMScheduler" if own is None else "EulerDiscreteScheduler")
        assert report.alpha_bar_error < 3e-6


def test_what_the_scheduler_samples_otherwise_is_said(tmp_path: Path) -> None:
    scheduler = DDPMScheduler(**COSINE, clip_sample=False, variance_type="fixed_large")
    notes = import_network(pipeline(tmp_path / "theirs", scheduler=scheduler), tmp_path / "h", "client", PLAN).notes
    assert [note.split(";")[0] for note in notes] == [
        "the scheduler does not clip (clip_sample false)",
        "variance_type fixed_large is the scheduler's",
    ]


def test_nothing_of_the_users_paths_is_kept(tmp_path: Path) -> None:
    source = pipeline(tmp_path / "home-of-dr-jones")
    edit(source / "unet" / "config.json", _name_or_path="/home/dr-jones/secret-study")
    import_network(source, tmp_path / "h", "client", PLAN)
    for file in (tmp_path / "h").iterdir():
        assert b"jones" not in file.read_bytes()


def test_an_existing_output_is_left_alone(tmp_path: Path, plan: Path) -> None:
    source = pipeline(tmp_path / "theirs")
    (tmp_path / "h").mkdir()
    message = refusal("import", source, "--role", "client", "--plan", plan, "--out", tmp_path / "h")
    assert "exists already" in message and list((tmp_path / "h").iterdir()) == []
    assert run_cli("import", "--help").code == 0
