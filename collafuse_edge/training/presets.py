"""Network presets for heads and server backbones: configurations of diffusers' UNet2DModel, and of EdgeUNet."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.errors import InputError
from collafuse_runtimes.files.checkpoint import NetworkConfig
from collafuse_runtimes.networks.network import network_class, network_cost

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Preset:
    """One U-Net layout: channels per resolution, residual blocks per resolution, attention at the coarsest ones.

    ``EdgeUNet`` has the blocks it has, and no attention. ``learning_rate`` is the peak rate of Adam that suits a head.
    """

    channels: tuple[int, ...]
    layers_per_block: int = 1
    attention_levels: int = 0
    kind: str = "UNet2DModel"
    learning_rate: float = 1e-3


PRESETS = {
    "tiny": Preset((16, 32, 32), 1),
    "small": Preset((32, 32, 64), 1),
    "base": Preset((32, 64, 128), 2),
    "paper": Preset((16, 32, 64, 128), 1),
    "server-small": Preset((32, 64, 128), 2, attention_levels=1),
    "server-base": Preset((64, 128, 256), 2, attention_levels=1),
    "server-large": Preset((128, 256, 256, 512), 2, attention_levels=2),
    "edge": Preset((16, 32, 64), kind="EdgeUNet", learning_rate=3e-3),
}


def network_config(preset: str, plan: SplitPlan, num_classes: int | None = None) -> NetworkConfig:
    """The network of a preset for a plan's image shape.

    Raises:
        InputError: unknown preset, or H or W not divisible by the network's total down-sampling.
    """
    if preset not in PRESETS:
        raise InputError(f"unknown preset {preset!r}; valid: {', '.join(PRESETS)}")
    layout = PRESETS[preset]
    channels, height, width = plan.image_shape
    factor = 2 ** (len(layout.channels) - 1)
    if height % factor or width % factor:
        raise InputError(
            f"preset {preset} halves the image {len(layout.channels) - 1} times: height and width must be multiples "
            f"of {factor}, the plan has {height}x{width}; choose another preset or write a plan with another size"
        )
    if layout.kind == "EdgeUNet":
        edge: dict[str, Any] = {
            "sample_size": [height, width],
            "in_channels": channels,
            "block_out_channels": list(layout.channels),
        }
        return NetworkConfig(preset, _with_classes(edge, num_classes), num_classes, layout.kind)
    plain = len(layout.channels) - layout.attention_levels
    kinds = [""] * plain + ["Attn"] * layout.attention_levels
    unet: dict[str, Any] = {
        "sample_size": [height, width],
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": list(layout.channels),
        "layers_per_block": layout.layers_per_block,
        "down_block_types": [f"{kind}DownBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(kinds)],
        "add_attention": layout.attention_levels > 0,
        "attention_head_dim": 32,
        "norm_num_groups": 8,
    }
    return NetworkConfig(preset, _with_classes(unet, num_classes), num_classes)


def _with_classes(unet: dict[str, Any], num_classes: int | None) -> dict[str, Any]:
    return unet if num_classes is None else {**unet, "num_class_embeds": num_classes}


def build_network(config: NetworkConfig, seed: int) -> "torch.nn.Module":
    """A freshly initialised network; the same seed gives the same weights.

    Raises:
        EngineUnavailable: torch or diffusers is not installed.
    """
    build = network_class(config.kind)
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: torch.nn.Module = build(**config.unet)
    return network


def describe_cost(config: NetworkConfig, plan: SplitPlan) -> str:
    """ "small: 0.74 M parameters, 1.21 GFLOP a step", for people."""
    parameters, flops = network_cost(build_network(config, 0), plan.image_shape)
    return f"{config.preset}: {parameters / 1e6:.2f} M parameters, {flops / 1e9:.3f} GFLOP a step"
