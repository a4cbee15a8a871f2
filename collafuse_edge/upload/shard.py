"""The shard file ``*.shard.safetensors``: what a client uploads for server training (docs/formats.md)."""

import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from collafuse_edge.settings import PROTOCOLS
from collafuse_runtimes.checks import check_images
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.disk.atomic import BeforeRename
from collafuse_runtimes.errors import ArtefactError, CollafuseError, InputError
from collafuse_runtimes.files.sealed import Tensors, read_tensors, write_tensors

FORMAT = "collafuse-shard"
TENSORS = {"upload": ("x_n",), "paper": ("x_t", "epsilon", "t")}
NOISE_POLICY = {
    "upload": "one Brownian path per image over s = (1 - alpha_bar) / alpha_bar, keyed by a client secret",
    "paper": "fresh draws, sent along: x_0 can be computed from (x_t, epsilon, t)",
}
OLDER_NOISE_POLICY = {**NOISE_POLICY, "upload": "one draw per image and level, keyed by a client secret"}
"""Of earlier releases; read, never written."""


@dataclass(frozen=True)
class Shard:
    """One client's contribution.

    Attributes:
        plan: the client's plan.
        protocol: "upload": ``images`` is x_n, nothing else; "paper": ``images`` is x_t, with epsilon and t.
        images: (N, C, H, W) float32.
        epsilon: (N, C, H, W) float32, paper only.
        t: (N,) int64 in cut..T-1, paper only.
    """

    plan: SplitPlan
    protocol: str
    images: Float32Array
    epsilon: Float32Array | None = None
    t: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.images)


def write_shard(path: Path, shard: Shard, dtype: str = "float16", *, before_rename: BeforeRename | None = None) -> None:
    """Write a shard.

    Args:
        before_rename: called with the file's bytes when only the rename is left; nothing is written if it raises.

    Raises:
        InputError: a tensor does not fit the plan, or is not finite.
        ArtefactError: the file cannot be written.
    """
    _check_shard(shard)
    images = shard.images.astype(dtype)
    check_images("shard images", images, shard.plan.image_shape)
    tensors: Tensors = {"x_n": images}
    if shard.protocol == "paper" and shard.epsilon is not None and shard.t is not None:
        tensors = {"x_t": images, "epsilon": shard.epsilon.astype(dtype), "t": shard.t.astype(np.int32)}
    payload = {
        "plan": shard.plan.to_dict(),
        "fingerprint": shard.plan.fingerprint,
        "protocol": shard.protocol,
        **_derived(shard),
    }
    write_tensors(path, FORMAT, tensors, payload, before_rename=before_rename)


def read_shard(path: Path) -> Shard:
    """Read and check a shard; float16 is widened to float32.

    Raises:
        ArtefactError: missing, damaged, of another format or version, or its tensors do not fit its plan.
    """
    tensors, payload = read_tensors(path, FORMAT)
    try:
        shard = _shard_from(tensors, payload)
        _check_shard(shard)
        for key, value in _derived(shard).items():
            older = OLDER_NOISE_POLICY[shard.protocol] if key == "noise_policy" else value
            if payload[key] not in (value, older):
                found = reprlib.repr(payload[key])
                raise InputError(f"{key} is {found} but its plan and tensors give {value!r}; make the shard again")
    except KeyError as error:
        raise ArtefactError(f"{path} lacks {error}; make it again with `collafuse-edge upload`") from None
    except CollafuseError as error:
        raise ArtefactError(f"{path}: {error}") from None
    return shard


def _shard_from(tensors: Tensors, payload: dict[str, Any]) -> Shard:
    plan, protocol = SplitPlan.from_payload(payload), payload["protocol"]
    if protocol not in PROTOCOLS:
        raise InputError(f"unknown protocol {reprlib.repr(protocol)}; valid: {', '.join(PROTOCOLS)}")
    if extra := sorted(tensors.keys() - set(TENSORS[protocol])):
        raise InputError(f"{protocol} shards hold {', '.join(TENSORS[protocol])} alone; found {reprlib.repr(extra)}")
    for name in set(TENSORS[protocol]) - {"t"}:
        check_images(name, tensors[name], plan.image_shape)
    if protocol == "upload":
        return Shard(plan, protocol, tensors["x_n"].astype(np.float32))
    images, epsilon, t = tensors["x_t"].astype(np.float32), tensors["epsilon"].astype(np.float32), tensors["t"]
    if t.dtype.kind not in "iu":
        raise InputError(f"t has dtype {t.dtype}; valid: integers")
    return Shard(plan, protocol, images, epsilon, t.astype(np.int64))


def _check_shard(shard: Shard) -> None:
    plan = shard.plan
    if plan.t_c == 0 or (plan.cut == 0 and shard.protocol == "upload"):
        raise InputError(f"cut_ratio {plan.cut_ratio} leaves nothing to upload; make the shard again with another plan")
    if shard.protocol == "upload":
        return
    if shard.epsilon is None or shard.t is None or shard.epsilon.shape != shard.images.shape:
        raise InputError("x_t, epsilon and t must be one triple per row; make the shard again")
    if shard.t.shape != (len(shard),) or shard.t.min() < plan.cut or shard.t.max() >= plan.timesteps:
        raise InputError(f"t must be one timestep in {plan.cut}..{plan.timesteps - 1} per row; make the shard again")


def _derived(shard: Shard) -> dict[str, Any]:
    """Fields that follow from the others; spelt out for readers without this package."""
    return {
        "level": shard.plan.handover_level,
        "count": len(shard),
        "noise_policy": NOISE_POLICY[shard.protocol],
    }
