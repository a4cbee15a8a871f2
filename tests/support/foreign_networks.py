"""Folders as diffusers writes them, of a network of some thousand random weights."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

from collafuse_runtimes.diffusion.plan import SplitPlan

torch.set_num_threads(1)

PLAN = SplitPlan((3, 8, 8), timesteps=50, schedule="cosine", cut_ratio=0.5)
COSINE = {"num_train_timesteps": 50, "beta_schedule": "squaredcos_cap_v2"}
UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 8,
    "norm_num_groups": 4,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "downsample_padding": 0,
}


def unet(seed: int = 0, **changes: Any) -> UNet2DModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: UNet2DModel = UNet2DModel(**{**UNET, **changes}).eval()
    return network


def pipeline(path: Path, seed: int = 0, scheduler: Any = None, **changes: Any) -> Path:
    """A DDPMPipeline's folder: model_index.json, unet/, scheduler/."""
    DDPMPipeline(unet(seed, **changes), scheduler or DDPMScheduler(**COSINE)).save_pretrained(path)
    return path


def network_folder(path: Path, seed: int = 0, **changes: Any) -> Path:
    """A UNet2DModel's folder with its scheduler's configuration beside its own."""
    unet(seed, **changes).save_pretrained(path)
    DDIMScheduler(**COSINE).save_pretrained(path)
    return path


def edit(path: Path, **changes: Any) -> None:
    """Other values in a JSON file; ... takes a key out."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))
