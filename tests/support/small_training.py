"""What the training tests share: a network of a few thousand weights, easy images, and what the optimizer saw."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from collafuse_edge.training.loop import TrainRun
from collafuse_edge.training.presets import build_network
from collafuse_edge.training.settings import TrainSettings
from collafuse_edge.training.tasks import ClientTask, Task
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.files.checkpoint import Description, NetworkConfig, write_checkpoint

torch.set_num_threads(1)

SHAPE = (1, 8, 8)
PLAN = SplitPlan(SHAPE, timesteps=20, cut_ratio=0.5)


def small_network(num_classes: int | None = None, shape: tuple[int, int, int] = SHAPE) -> NetworkConfig:
    unet: dict[str, Any] = {
        "sample_size": list(shape[1:]),
        "in_channels": shape[0],
        "out_channels": shape[0],
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D"],
        "add_attention": False,
        "norm_num_groups": 4,
    }
    if num_classes is not None:
        unet["num_class_embeds"] = num_classes
    return NetworkConfig("test", unet, num_classes)


def easy_images(count: int = 24, shape: tuple[int, int, int] = SHAPE) -> Float32Array:
    """Left half dark, right half bright, each image with a contrast of its own."""
    contrast = np.linspace(0.5, 1, count, dtype=np.float32)[:, None, None, None]
    side = np.where(np.arange(shape[2]) < shape[2] // 2, -1, 1).astype(np.float32)
    return np.ascontiguousarray(np.broadcast_to(contrast * side, (count, *shape)))


def small_run(out: Path, task: Task | None = None, network: NetworkConfig | None = None, **options: Any) -> TrainRun:
    """A run of a few steps; ``options`` are settings, or fields of TrainRun."""
    of_run = {name: options.pop(name) for name in ("checkpoint_minutes", "resume") if name in options}
    settings = TrainSettings(**{"steps": 4, "batch_size": 8, "warmup_steps": 0, "lr_schedule": "constant", **options})
    task = task or ClientTask(PLAN, easy_images())
    return TrainRun(task, network or small_network(), settings, out, cpu=True, **of_run)


def untrained(path: Path, role: str, plan: SplitPlan, scale: float = 1) -> Path:
    """A checkpoint of random weights; ``scale`` 0 makes a network that predicts zero."""
    weights = {name: value.detach().numpy() for name, value in build_network(small_network(), 0).named_parameters()}
    weights |= {name: scale * value for name, value in weights.items() if name.startswith("conv_out")}
    write_checkpoint(
        path, Description(role=role, plan=plan, network=small_network()), model=weights, ema=weights, training={}
    )
    return path


@dataclass
class Optimizer:
    """What the optimizer got and made, one entry per step."""

    learning_rates: list[float] = field(default_factory=list)
    gradients: list[torch.Tensor] = field(default_factory=list)
    weights: list[torch.Tensor] = field(default_factory=list)

    def norms(self) -> list[float]:
        return [float(gradient.norm()) for gradient in self.gradients]


@contextmanager
def watched_optimizer() -> Iterator[Optimizer]:
    seen = Optimizer()

    def before(optimizer: torch.optim.Optimizer, *_: object) -> None:
        group = optimizer.param_groups[0]
        seen.learning_rates.append(group["lr"])
        seen.gradients.append(torch.cat([p.grad.flatten().clone() for p in group["params"]]))

    def after(optimizer: torch.optim.Optimizer, *_: object) -> None:
        seen.weights.append(torch.cat([p.detach().flatten().clone() for p in optimizer.param_groups[0]["params"]]))

    hooks = register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
