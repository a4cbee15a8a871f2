"""Making a shard from private images: the only place where anything of x_0 is prepared for the server."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from collafuse_edge.upload.brownian import level_time, path_value, path_weights
from collafuse_edge.upload.key import image_digest
from collafuse_edge.upload.shard import Shard
from collafuse_runtimes.device.cpus import usable_cpus
from collafuse_runtimes.diffusion.noise import Float32Array, check_seed
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.diffusion.schedule import diffuse
from collafuse_runtimes.errors import InputError


def make_shard(images: Float32Array, plan: SplitPlan, key: bytes) -> Shard:
    """The `upload` protocol: x_n = sqrt(alpha_bar_n) (x_0 + W(s_n)), n = cut - 1; W, the image's path, is not kept.

    Rows come in the order of their keyed digests, so their order tells nothing of the data folder's (classes lie
    together there).

    Args:
        images: x_0, (N, C, H, W) float32 in [-1, 1].

    Raises:
        InputError: at c = 0 level n is the clean image, at c = 1 the server has nothing to learn.
    """
    require_noisy_level(plan)
    alpha_bar_n = plan.alpha_bar_at(plan.handover_level)
    weights = path_weights(level_time(alpha_bar_n))
    digests = [image_digest(key, x_0) for x_0 in images]
    order = sorted(range(len(images)), key=digests.__getitem__)
    x_n = np.empty_like(images)

    def fill(row: int) -> None:
        source = order[row]
        x_n[row] = alpha_bar_n**0.5 * (images[source] + path_value(digests[source], weights, plan.image_shape))

    with ThreadPoolExecutor(usable_cpus()) as pool:  # numpy draws without holding the interpreter
        list(pool.map(fill, range(len(order))))
    return Shard(plan, "upload", x_n)


def make_paper_shard(images: Float32Array, plan: SplitPlan, draws: int, seed: int) -> Shard:
    """The paper's protocol: ``draws`` triples (x_t, epsilon, t), t uniform in cut..T-1, per image.

    For comparison only: x_0 = (x_t - sqrt(1 - alpha_bar_t) epsilon) / sqrt(alpha_bar_t), so the server can compute
    every image.

    Raises:
        InputError: at c = 1 the server has nothing to learn, ``draws`` is below 1, or the seed is out of range.
    """
    require_server_part(plan)
    if draws < 1:
        raise InputError(f"draws {draws} out of range: must be at least 1")
    random = np.random.Generator(np.random.Philox(check_seed(seed)))
    x_0 = np.repeat(images, draws, axis=0)[random.permutation(len(images) * draws)]
    t = random.integers(plan.cut, plan.timesteps, len(x_0))
    epsilon = random.standard_normal(x_0.shape, dtype=np.float32)
    alpha_bar_t = plan.alpha_bar[t].astype(np.float32)[:, None, None, None]
    return Shard(plan, "paper", diffuse(x_0, epsilon, alpha_bar_t), epsilon, t)


def require_server_part(plan: SplitPlan) -> None:
    """Refuse c = 1.

    Raises:
        InputError: the plan leaves nothing to upload.
    """
    if plan.t_c == 0:
        raise InputError(
            f"cut_ratio {plan.cut_ratio} leaves the server no step, so there is nothing to upload; choose a smaller one"
        )


def require_noisy_level(plan: SplitPlan) -> None:
    """Refuse c = 0 and c = 1.

    Raises:
        InputError: the plan leaves nothing to upload, or the images themselves.
    """
    require_server_part(plan)
    if plan.cut == 0:
        raise InputError(
            f"cut_ratio {plan.cut_ratio} hands over at the clean level: an upload would be the images themselves; "
            "choose a larger cut_ratio"
        )
