"""The hand-over file ``*.tc.safetensors``: x_{t_c} and what is needed to finish it (docs/formats.md)."""

import reprlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from collafuse_runtimes.checks import check_images
from collafuse_runtimes.diffusion.noise import Float32Array, check_sample_index, check_seed
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.errors import ArtefactError, CollafuseError, InputError
from collafuse_runtimes.files.sealed import read_tensors, write_tensors

FORMAT = "collafuse-handover"
DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class Handover:
    """A batch of hand-over tensors.

    Attributes:
        x_tc: (N, C, H, W) float32 at level ``plan.handover_level``.
        plan: the split plan.
        seed: of all noise, the server's and the device's; 0..2^64-1.
        first_index: sample index of row 0; row i has index first_index + i.
        sampler: the server's sampler as JSON fields.
        timesteps: the absolute timesteps the server ran, descending.
        server_sha256: of the server weights; None where no server ran (c = 1).
    """

    x_tc: Float32Array
    plan: SplitPlan
    seed: int
    first_index: int
    sampler: dict[str, Any]
    timesteps: tuple[int, ...]
    server_sha256: str | None

    def __len__(self) -> int:
        return len(self.x_tc)


def write_handover(path: Path, handover: Handover, dtype: str = "float32") -> None:
    """Write a hand-over file; ``dtype`` float16 halves the transfer and rounds the tensor.

    Raises:
        InputError: a field is outside its range, the tensor does not fit the plan or is not finite in ``dtype``.
        ArtefactError: the file cannot be written.
    """
    if dtype not in DTYPES:
        raise InputError(f"unknown dtype {dtype!r}; valid: {', '.join(DTYPES)}")
    with np.errstate(over="ignore"):
        x_tc = handover.x_tc.astype(dtype)
    check_images("x_tc", x_tc, handover.plan.image_shape)
    _check_fields(handover)
    payload = {
        "plan": handover.plan.to_dict(),
        "fingerprint": handover.plan.fingerprint,
        **_derived_fields(handover),
        "seed": handover.seed,
        "first_index": handover.first_index,
        "sampler": handover.sampler,
        "timesteps": list(handover.timesteps),
        "server_sha256": handover.server_sha256,
    }
    write_tensors(path, FORMAT, {"x_tc": x_tc}, payload)


def read_handover(path: Path) -> Handover:
    """Read and check a hand-over file; float16 is widened to float32.

    Raises:
        ArtefactError: missing, truncated, damaged, of another format or version, or its tensor does not fit its plan.
    """
    tensors, payload = read_tensors(path, FORMAT)
    try:
        plan = SplitPlan.from_payload(payload)
        x_tc = tensors.pop("x_tc")
        check_images("x_tc", x_tc, plan.image_shape)
        handover = Handover(
            x_tc=x_tc.astype(np.float32),
            plan=plan,
            seed=payload["seed"],
            first_index=payload["first_index"],
            sampler=payload["sampler"],
            timesteps=tuple(payload["timesteps"]),
            server_sha256=payload["server_sha256"],
        )
        _check_fields(handover)
        _check_derived(handover, payload)
    except (KeyError, TypeError) as error:
        raise ArtefactError(
            f"{path} lacks or garbles a field ({error}); make it again with `collafuse-edge handoff`"
        ) from None
    except CollafuseError as error:
        raise ArtefactError(f"{path}: {error}") from None
    if tensors:
        raise ArtefactError(
            f"{path} holds {len(tensors)} other tensors beside x_tc; make it again with `collafuse-edge handoff`"
        )
    return handover


def _check_fields(handover: Handover) -> None:
    plan = handover.plan
    check_seed(handover.seed)
    check_sample_index(handover.first_index)
    check_sample_index(handover.first_index + len(handover) - 1)
    if not isinstance(handover.sampler, dict):
        raise InputError(f"sampler is {reprlib.repr(handover.sampler)}; valid: the server's sampler as JSON fields")
    if not isinstance(handover.server_sha256, str | None):
        raise InputError(f"server_sha256 is {reprlib.repr(handover.server_sha256)}; valid: a hex digest or null")
    _check_timesteps(plan, handover.timesteps)


def _check_timesteps(plan: SplitPlan, timesteps: tuple[int, ...]) -> None:
    """The server ran from T-1 (nothing at all only where the plan leaves it nothing), descending, not below cut."""
    top = plan.timesteps - 1
    starts = timesteps[0] == top if timesteps else plan.t_c == 0
    integers = all(isinstance(t, int) for t in timesteps)
    if not (starts and integers and all(a > b for a, b in pairwise((*timesteps, plan.cut - 1)))):
        valid = f"integers descending from {top} to at least {plan.cut}" if plan.t_c else "none at cut_ratio 1"
        raise InputError(f"server timesteps {reprlib.repr(list(timesteps))} do not fit the plan; valid: {valid}")


def _derived_fields(handover: Handover) -> dict[str, Any]:
    plan = handover.plan
    return {"cut": plan.cut, "level": plan.handover_level, "count": len(handover)}


def _check_derived(handover: Handover, payload: dict[str, Any]) -> None:
    """Fields that repeat what plan and tensor say are for other readers; here they must agree."""
    for key, value in _derived_fields(handover).items():
        if payload[key] != value:
            found = reprlib.repr(payload[key])
            raise InputError(
                f"{key} is {found} but its plan and tensor give {value!r}; make it again with `collafuse-edge handoff`"
            )
