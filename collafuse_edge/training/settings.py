"""Training settings, saved beside the weights."""

import math
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from collafuse_runtimes.errors import InputError
from collafuse_runtimes.extras import needs

LR_SCHEDULES = ("cosine", "constant")
MIXED_PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True)
class TrainSettings:
    """How to train; the same settings, data and seed give the same weights on the same CPU, almost on a GPU.

    The text beside each field says what it is, here and in ``--help``; Adam's betas are 0.9 and 0.99.
    """

    steps: Annotated[int, "Optimizer steps."] = 10_000
    batch_size: Annotated[int, "Images per step, over all processes and accumulation parts."] = 32
    accumulation: Annotated[int, "Parts a process's share of a batch is split into, to save memory."] = 1
    learning_rate: Annotated[float, "Peak learning rate of Adam."] = 1e-3
    lr_schedule: Annotated[str, "After the warm-up: cosine to 0, or constant.", LR_SCHEDULES] = "cosine"
    warmup_steps: Annotated[int, "Steps of linear warm-up."] = 100
    ema_decay: Annotated[float, "Decay of the weights' moving average; it warms up as (1 + k)/(10 + k)."] = 0.999
    clip_norm: Annotated[float, "Largest gradient norm."] = 1.0
    seed: Annotated[int, "Seed of initialisation, order, noise and timesteps."] = 0
    mixed_precision: Annotated[str, "bf16 suits a GPU that has it; no suits all else.", MIXED_PRECISIONS] = "no"
    channels_last: Annotated[bool, "Memory format of network and batches; on suits a GPU."] = False
    compile: Annotated[bool, "Run torch.compile (needs a C compiler)."] = False

    def __post_init__(self) -> None:
        from collafuse_runtimes.diffusion.noise import check_seed

        for name in ("steps", "batch_size", "accumulation"):
            _require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        _require("warmup_steps", self.warmup_steps, self.warmup_steps >= 0, "at least 0")
        for name in ("learning_rate", "clip_norm"):
            _require(name, getattr(self, name), 0 < getattr(self, name) < math.inf, "positive numbers")
        _require("ema_decay", self.ema_decay, 0 <= self.ema_decay < 1, "0 to below 1")
        _require("lr_schedule", self.lr_schedule, self.lr_schedule in LR_SCHEDULES, ", ".join(LR_SCHEDULES))
        valid = ", ".join(MIXED_PRECISIONS)
        _require("mixed_precision", self.mixed_precision, self.mixed_precision in MIXED_PRECISIONS, valid)
        check_seed(self.seed)

    def learning_rate_at(self, step: int) -> float:
        """The rate of Adam in optimizer step ``step``, counted from 1: linear warm-up, then the schedule."""
        if step < self.warmup_steps:
            return self.learning_rate * (step / self.warmup_steps)
        if self.lr_schedule == "constant":
            return self.learning_rate
        done = (step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
        return self.learning_rate * max(0.5 * (1 + math.cos(math.pi * done)), 0.0)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return asdict(self)


def device_defaults(cpu: bool) -> tuple[str, bool]:
    """(mixed precision, channels_last) that suit the device: bf16 where a GPU has it, channels_last on any GPU.

    Raises:
        EngineUnavailable: torch is not installed.
    """
    with needs("train"):
        import torch
    gpu = not cpu and torch.cuda.is_available()
    return ("bf16" if gpu and torch.cuda.is_bf16_supported() else "no"), gpu


def _require(name: str, value: object, holds: bool, valid: str) -> None:
    if not holds:
        raise InputError(f"training setting {name} is {value}; valid: {valid}")
