"""The head that every peer runs, and the tensors it starts from: `small`, 64x64, trained on drawn phantoms."""

import importlib.util
from pathlib import Path

import numpy as np

from collafuse_edge import TrainSettings, export_head, load_images, train_head
from collafuse_runtimes.diffusion.noise import Float32Array, noise_batch
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.diffusion.samplers import Sampler
from collafuse_runtimes.diffusion.schedule import diffuse
from collafuse_runtimes.files.bundle import HeadBundle, read_bundle
from collafuse_runtimes.files.handover import Handover

PLAN = SplitPlan((1, 64, 64), timesteps=100, cut_ratio=0.2)
PRESET, STEPS, TRAIN_STEPS, TRAIN_IMAGES = "small", 20, 100, 128
CALIBRATION_SEED, CALIBRATION_TENSORS = 1, 24


def trained_head(work: Path) -> tuple[Path, HeadBundle]:
    """Checkpoint and float32 bundle; those already in ``work`` are taken."""
    head, bundle = work / PRESET, work / f"{PRESET}.head"
    if not bundle.exists():
        _require_torch(work)
        settings = TrainSettings(steps=TRAIN_STEPS, batch_size=16, warmup_steps=20, ema_decay=0.9)
        images = _phantoms(TRAIN_IMAGES, 0)
        train_head(images, PLAN, head, network=PRESET, settings=settings, resume=True, cpu=True)
        export_head(head, bundle, steps=(STEPS,), sampler=Sampler())
    return head, read_bundle(bundle)


def lowered_head(work: Path, precision: str) -> HeadBundle:
    """The same head in a lower precision, kept whatever its speed; int8 is fitted to tensors that no peer runs."""
    bundle = work / f"{PRESET}.{precision}.head"
    if not bundle.exists():
        _require_torch(work)
        from collafuse_export import ExportSettings
        from collafuse_export import export_head as export

        calibration = Handover(
            x_tc=handover_tensors(CALIBRATION_TENSORS, CALIBRATION_SEED),
            plan=PLAN,
            seed=CALIBRATION_SEED,
            first_index=0,
            sampler=Sampler().to_dict(),
            timesteps=tuple(t for t, _ in PLAN.server_transitions()),
            server_sha256=None,
        )
        head, _ = trained_head(work)
        settings = ExportSettings(step_counts=(STEPS,), precision=precision, calibration=calibration)
        export(head, bundle, settings, force=True)
    return read_bundle(bundle)


def handover_tensors(count: int, seed: int = 0) -> Float32Array:
    """(count, C, H, W): phantoms at the level at which a server hands over."""
    noise = noise_batch(seed, range(count), PLAN.timesteps, PLAN.image_shape)
    alpha_bar_n = np.float32(PLAN.alpha_bar_at(PLAN.handover_level))
    tensors: Float32Array = diffuse(_phantoms(count, seed), noise, alpha_bar_n)
    return tensors


def _phantoms(count: int, seed: int) -> Float32Array:
    return load_images(f"phantom:0:{count}:{seed}", PLAN.image_shape).images


def _require_torch(work: Path) -> None:
    if importlib.util.find_spec("torch") is None:
        raise SystemExit(
            f"{work} lacks a head and there is no torch here to train it: make the folder on a workstation with "
            "`python benchmarks/peers/gpu_latency.py --work DIR --prepare`, copy it here and name it with --work"
        )
