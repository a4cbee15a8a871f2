"""Making a shard from private images: the only place where anything of x_0 is prepared for the server."""

from pathlib import Path

import numpy as np

from collafuse_edge.shard import DTYPES, PROTOCOLS, Shard, write_shard
from collafuse_edge.training.losses import diffuse
from collafuse_edge.upload_key import default_key_path, image_digest, load_or_create_upload_key, noise_from_digest
from collafuse_runtimes.errors import InputError
from collafuse_runtimes.noise import Float32Array, check_seed
from collafuse_runtimes.plan import SplitPlan


def upload_images(
    out: Path,
    images: Float32Array,
    plan: SplitPlan,
    protocol: str,
    *,
    key: Path | None = None,
    draws: int = 8,
    seed: int = 0,
    dtype: str = "float16",
) -> Shard:
    """Make a shard and write it; see ``make_shard`` and ``make_paper_shard``.

    Args:
        key: file of the secret noise key, made if missing; default in the user's configuration folder.

    Raises:
        InputError: unknown protocol or dtype, or the plan leaves nothing to upload.
        ArtefactError: key or shard cannot be read or written.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"unknown protocol {protocol!r}; valid: {', '.join(PROTOCOLS)}")
    if dtype not in DTYPES:
        raise InputError(f"unknown dtype {dtype!r}; valid: {', '.join(DTYPES)}")
    if protocol == "paper":
        shard = make_paper_shard(images, plan, draws, seed)
    else:
        _require_noisy_level(plan)  # before a key is made for nothing
        shard = make_shard(images, plan, load_or_create_upload_key(key or default_key_path()))
    write_shard(out, shard, dtype)
    return shard


def describe_shard(shard: Shard, path: Path) -> list[str]:
    """Lines for people: what was written and what it discloses."""
    lines = [f"wrote     {path}: {len(shard)} tensors, protocol {shard.protocol}, {path.stat().st_size} bytes"]
    if shard.protocol == "paper":
        return [*lines, "warning   this shard DISCLOSES every image: x_0 follows from (x_t, epsilon, t)"]
    return [
        *lines,
        f"contains  each image once, with {shard.plan.noise_text}; no clean image, noise, label or file name",
        "note      noise hides detail, it is no proof of privacy: at small c a shard still resembles its images",
    ]


def make_shard(images: Float32Array, plan: SplitPlan, key: bytes) -> Shard:
    """The `upload` protocol: noise each image once, to level n = cut - 1, and keep the noise.

    Rows come in the order of their keyed digests, so their order tells nothing of the data folder's (classes lie
    together there).

    Args:
        images: x_0, (N, C, H, W) float32 in [-1, 1].

    Raises:
        InputError: at c = 0 level n is the clean image, at c = 1 the server has nothing to learn.
    """
    _require_noisy_level(plan)
    alpha_bar_n = plan.alpha_bar_at(plan.handover_level)
    digests = [image_digest(key, x_0, alpha_bar_n) for x_0 in images]
    order = sorted(range(len(images)), key=digests.__getitem__)
    x_n = images[order]
    x_n *= alpha_bar_n**0.5
    for row, source in enumerate(order):
        x_n[row] += (1 - alpha_bar_n) ** 0.5 * noise_from_digest(digests[source], plan.image_shape)
    return Shard(plan, "upload", x_n)


def make_paper_shard(images: Float32Array, plan: SplitPlan, draws: int, seed: int) -> Shard:
    """The paper's protocol: ``draws`` triples (x_t, epsilon, t), t uniform in cut..T-1, per image.

    For comparison only: x_0 = (x_t - sqrt(1 - alpha_bar_t) epsilon) / sqrt(alpha_bar_t), so the server can compute
    every image.

    Raises:
        InputError: at c = 1 the server has nothing to learn, ``draws`` is below 1, or the seed is out of range.
    """
    _require_server_part(plan)
    if draws < 1:
        raise InputError(f"draws {draws} out of range: valid are 1 and more")
    random = np.random.Generator(np.random.Philox(check_seed(seed)))
    x_0 = np.repeat(images, draws, axis=0)[random.permutation(len(images) * draws)]
    t = random.integers(plan.cut, plan.timesteps, len(x_0))
    epsilon = random.standard_normal(x_0.shape, dtype=np.float32)
    alpha_bar_t = plan.alpha_bar[t].astype(np.float32)[:, None, None, None]
    return Shard(plan, "paper", diffuse(x_0, epsilon, alpha_bar_t), epsilon, t)


def _require_server_part(plan: SplitPlan) -> None:
    if plan.t_c == 0:
        raise InputError(
            f"cut_ratio {plan.cut_ratio} leaves no step to the server: nothing to upload; choose a smaller one"
        )


def _require_noisy_level(plan: SplitPlan) -> None:
    _require_server_part(plan)
    if plan.cut == 0:
        raise InputError(
            f"cut_ratio {plan.cut_ratio} hands over at the clean level: an upload would be the images themselves; "
            "choose a larger cut_ratio"
        )
