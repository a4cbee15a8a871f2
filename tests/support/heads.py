"""Small client heads with lively random weights, their checkpoints and bundles, each made once per test run."""

import hashlib
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from made_once import made_once

from collafuse_export import ExportSettings, Fit, export_head
from collafuse_export.to_bundle import NO_FIT
from collafuse_runtimes.diffusion.noise import Float32Array, noise_batch
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.diffusion.samplers import Sampler, denoise
from collafuse_runtimes.engines.torch_engine import predict_function
from collafuse_runtimes.files.bundle import HeadBundle, read_bundle
from collafuse_runtimes.files.checkpoint import (
    Description,
    NetworkConfig,
    load_network,
    read_checkpoint,
    write_checkpoint,
)
from collafuse_runtimes.files.handover import Handover

CLASSES = 3
PLAN = SplitPlan((1, 16, 16), timesteps=50, cut_ratio=0.4)  # cut 20
RGB_PLAN = SplitPlan((3, 8, 12), timesteps=200, cut_ratio=0.1, schedule="linear")  # cut 20
DDPM, NOISY_DDIM = Sampler("ddpm"), Sampler("ddim", 0.5)
SECOND_ORDER = Sampler("dpm++2m", levels="karras")


@lru_cache
def checkpoint(plan: SplitPlan = PLAN, conditional: bool = False, seed: int = 0, levels: int = 2) -> Path:
    """A client checkpoint; conditional heads have attention too. One of one level is exported in half the time."""
    return made_once(
        f"{plan.fingerprint[:8]}-{conditional}-{seed}-{levels}.checkpoint",
        lambda path: _write_checkpoint(path, plan, conditional, seed, levels),
    )


def _write_checkpoint(path: Path, plan: SplitPlan, conditional: bool, seed: int, levels: int) -> None:
    import torch
    from diffusers import UNet2DModel

    attention = "Attn" if conditional else ""
    unet: dict[str, Any] = {
        "sample_size": plan.image_shape[1],
        "in_channels": plan.image_shape[0],
        "out_channels": plan.image_shape[0],
        "block_out_channels": [8, 16][:levels],
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", f"{attention}DownBlock2D"][:levels],
        "up_block_types": [f"{attention}UpBlock2D", "UpBlock2D"][-levels:],
        "norm_num_groups": 4,
        "add_attention": conditional,
        "attention_head_dim": 8,
        "num_class_embeds": CLASSES if conditional else None,
    }
    torch.manual_seed(seed)
    network = UNet2DModel(**unet)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "norm" in name:  # as after training: gains not 1, shifts not 0
                weight.add_(0.3 * torch.randn_like(weight))
        network.conv_out.weight *= 2  # more, and float32 rounding itself grows past 1e-4 in 20 steps
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    config = NetworkConfig("test", unet, CLASSES if conditional else None)
    write_checkpoint(
        path, Description(role="client", plan=plan, network=config), model=weights, ema=weights, training={"steps": 0}
    )


@lru_cache
def head(
    plan: SplitPlan = PLAN,
    conditional: bool = False,
    sampler: Sampler | None = None,
    step_counts: tuple[int, ...] | None = None,
    precision: str = "fp32",
    opset: int = 20,
) -> HeadBundle:
    """An exported bundle; copy it before you damage it. int8 is calibrated on six tensors, its speed is no matter.

    Step counts are 20 (default), 7 and 1, of int8 10 and 4, where none are given.
    """
    sampler, is_int8 = sampler or Sampler(), precision.startswith("int8")
    step_counts = step_counts or ((10, 4) if is_int8 else (20, 7, 1))
    words = repr((plan, conditional, sampler, step_counts, precision, opset))
    return exported(
        f"{hashlib.sha256(words.encode()).hexdigest()[:16]}.head",
        checkpoint(plan, conditional),
        ExportSettings(
            step_counts=step_counts,
            sampler=sampler,
            precision=precision,
            opset=opset,
            calibration=calibration(plan, 6) if is_int8 else None,
        ),
        force=precision != "fp32",
    )


def exported(
    name: str, source: Path, settings: ExportSettings, fit: Fit = NO_FIT, *, force: bool = False
) -> HeadBundle:
    """``export_head`` of ``source`` once per test run; ``name`` stands for source and options."""
    return read_bundle(made_once(name, lambda path: export_head(source, path, settings, fit, force=force)))


def default_head() -> HeadBundle:
    """DDIM, unconditional, opset 20, fp32, step counts 20 (default), 7 and 1."""
    return head()


def conditional_head() -> HeadBundle:
    """DDPM, conditional, with attention, opset 17."""
    return head(conditional=True, sampler=DDPM, step_counts=(20,), opset=17)


def rgb_head() -> HeadBundle:
    """DDIM with eta 0.5, RGB, not square, opset 17, linear schedule, strided."""
    return head(RGB_PLAN, sampler=NOISY_DDIM, step_counts=(20, 6), opset=17)


def second_order_head() -> HeadBundle:
    """DPM-Solver++ 2M on Karras levels, conditional; step counts 6 (default), 3 and 1."""
    return head(conditional=True, sampler=SECOND_ORDER, step_counts=(6, 3, 1))


def copy_of(bundle: HeadBundle, folder: Path) -> Path:
    return Path(shutil.copytree(bundle.path, folder / bundle.path.name))


def checkpoint_of(bundle: HeadBundle) -> Path:
    return checkpoint(bundle.plan, bundle.num_classes is not None)


def inputs(bundle: HeadBundle, batch: int, seed: int = 11) -> tuple[Float32Array, Any]:
    """(x_tc, labels) that were never part of an export; labels None for unconditional heads."""
    x_tc = noise_batch(seed, range(batch), bundle.plan.handover_level, bundle.plan.image_shape)
    labels = None if bundle.num_classes is None else np.arange(batch, dtype=np.int64)[::-1] % bundle.num_classes
    return x_tc, labels


def torch_trajectory(
    bundle: HeadBundle, steps: int, x_tc: Float32Array, labels: Any, seed: int, source: Path | None = None
) -> list[Float32Array]:
    """The checkpoint's network and samplers.denoise: no engine, no graph, no baked table."""
    network = load_network(read_checkpoint(source or checkpoint_of(bundle)))
    shape, states = bundle.plan.image_shape, []
    denoise(
        x_tc,
        bundle.plan,
        bundle.row_range(steps).transitions,
        bundle.sampler,
        predict_function(network, None if labels is None else labels.astype(np.int32)),
        noise=lambda t: noise_batch(seed, range(len(x_tc)), t, shape),
        on_step=lambda _, x: states.append(x),
    )
    return states


def handover(bundle: HeadBundle, count: int, **changes: Any) -> Handover:
    return calibration(bundle.plan, count, **changes)


def calibration(plan: SplitPlan, count: int, /, **changes: Any) -> Handover:
    fields: dict[str, Any] = {
        "x_tc": noise_batch(11, range(count), plan.handover_level, plan.image_shape),
        "plan": plan,
        "seed": 5,
        "first_index": 100,
        "sampler": Sampler().to_dict(),
        "timesteps": tuple(t for t, _ in plan.server_transitions()),
        "server_sha256": None,
    }
    return Handover(**{**fields, **changes})
