"""Golden vectors: synthetic inputs and the torch network's own trajectories, without the exported graph."""

from typing import TYPE_CHECKING

import numpy as np

from collafuse_runtimes.diffusion.noise import Float32Array, noise_batch
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.diffusion.samplers import denoise
from collafuse_runtimes.diffusion.schedule import diffuse
from collafuse_runtimes.engines.torch_engine import predict_function
from collafuse_runtimes.files.bundle import HeadBundle
from collafuse_runtimes.files.golden import Golden

if TYPE_CHECKING:
    import torch

BATCH, BLOBS = 2, 6
SHAPE_SEED, HANDOVER_SEED, STEP_SEED = 1, 2, 3


def make_golden(network: "torch.nn.Module", bundle: HeadBundle) -> Golden:
    """Denoise synthetic images with ``network`` (float32) along every row range; holds no private data."""
    plan, num_classes = bundle.plan, bundle.num_classes
    x_tc = handover_of(blob_images(plan.image_shape), plan)
    labels = None if num_classes is None else (np.arange(BATCH) % num_classes).astype(np.int32)
    trajectories = {}
    for rows in bundle.row_ranges:
        states: list[Float32Array] = []
        denoise(
            x_tc,
            plan,
            rows.transitions,
            bundle.sampler,
            predict_function(network, labels),
            table=bundle.table_of(rows),
            noise=lambda t: noise_batch(STEP_SEED, range(BATCH), t, plan.image_shape),
            on_step=lambda _, x, states=states: states.append(x),  # type: ignore[misc]
        )
        trajectories[rows.steps] = np.stack(states)
    return Golden(x_tc, trajectories, labels, STEP_SEED)


def blob_images(image_shape: tuple[int, int, int]) -> Float32Array:
    """(BATCH, C, H, W) float32 in [-1, 1]: sums of Gaussian blobs of random place, size and sign."""
    channels, height, width = image_shape
    rng = np.random.Generator(np.random.Philox(SHAPE_SEED))
    centre_y, centre_x, size = rng.uniform(0.1, 0.9, (3, BATCH, channels, BLOBS, 1, 1))
    weight = rng.uniform(-1, 1, (BATCH, channels, BLOBS, 1, 1))
    y, x = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)
    blobs = weight * np.exp(-((y - centre_y) ** 2 + (x - centre_x) ** 2) / (0.05 * size))  # (B, C, blobs, H, W)
    images: Float32Array = np.tanh(2 * blobs.sum(axis=2)).astype(np.float32)
    return images


def handover_of(x_0: Float32Array, plan: SplitPlan) -> Float32Array:
    """x_0 noised to the hand-over level; noise of HANDOVER_SEED."""
    level = plan.handover_level
    eps = noise_batch(HANDOVER_SEED, range(len(x_0)), level, plan.image_shape)
    x_n: Float32Array = diffuse(x_0, eps, np.float32(plan.alpha_bar_at(level)))
    return x_n
