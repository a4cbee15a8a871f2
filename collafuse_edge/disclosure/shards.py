"""A finished shard under attack: its own tensors in place of drawn ones."""

from pathlib import Path

import numpy as np

from collafuse_benchmarks.disclosure.attacks import psnr
from collafuse_edge.upload.key import default_key_path, image_digest, load_or_create_upload_key
from collafuse_edge.upload.make import make_shard
from collafuse_edge.upload.shard import Shard
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.errors import CheckFailed, InputError

_ROUNDING = 2e-2
"""Largest difference of a float16 shard's tensors, relative to the largest of them."""


def released_rows(shard: Shard, name: str, images: Float32Array, key: Path | None) -> Float32Array:
    """(N, C, H, W): for each image its tensor of the shard, as y = x_n / sqrt(alpha_bar_n).

    Args:
        images: x_0, those the shard was made from.
        key: the noise key's file, which says which tensor is which image's; default as for `upload`.

    Raises:
        InputError: the shard was not made of these images under this key.
        ArtefactError: there is no key, or it is damaged.
        CheckFailed: the shard is of the paper's protocol.
    """
    if shard.protocol == "paper":
        raise CheckFailed(_exactly(shard, name, images))
    path = key or default_key_path()
    if not path.exists():
        raise InputError(f"there is no key {path}, which says which tensor is which image's; give the shard's --key")
    secret = load_or_create_upload_key(path).key
    made = make_shard(images, shard.plan, secret)
    other = f"{name} was not made of these images under this key; give the same --data, selection and --key"
    if made.images.shape != shard.images.shape:
        raise InputError(f"{other} ({len(shard)} tensors, {len(images)} images)")
    if np.abs(made.images - shard.images).max() > _ROUNDING * np.abs(made.images).max():
        raise InputError(other)
    digests = [image_digest(secret, x_0) for x_0 in images]
    order = sorted(range(len(images)), key=digests.__getitem__)
    y = np.empty_like(images)
    y[order] = shard.images / np.sqrt(shard.plan.alpha_bar_at(shard.plan.handover_level), dtype=np.float32)
    return y


def _exactly(shard: Shard, name: str, images: Float32Array) -> str:
    """What the paper's protocol gives away: x_0 = (x_t - sqrt(1 - alpha_bar_t) epsilon) / sqrt(alpha_bar_t)."""
    assert shard.epsilon is not None and shard.t is not None
    alpha_bar_t = shard.plan.alpha_bar[shard.t].astype(np.float32)[:, None, None, None]
    best = int(alpha_bar_t.argmax())
    x_0 = (shard.images[best] - np.sqrt(1 - alpha_bar_t[best]) * shard.epsilon[best]) / np.sqrt(alpha_bar_t[best])
    nearest = max(float(psnr(x_0[None], image[None])[0]) for image in images)
    return (
        f"{name} is of the paper's protocol and DISCLOSES every image: the first one tried was computed from it alone "
        f"to {nearest:.0f} dB; make a shard with --protocol upload"
    )
