"""The golden vectors of a head bundle, golden.safetensors: an input and the trajectories expected from it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from collafuse_runtimes.checks import check_images, check_labels
from collafuse_runtimes.diffusion.noise import Float32Array, check_seed
from collafuse_runtimes.errors import ArtefactError, CollafuseError, InputError
from collafuse_runtimes.files.bundle import GOLDEN, HeadBundle
from collafuse_runtimes.files.sealed import read_tensors, write_tensors

FORMAT = "collafuse-golden"


@dataclass(frozen=True)
class Golden:
    """Golden vectors of a bundle.

    Attributes:
        x_tc: (B, C, H, W) float32 at the hand-over level.
        trajectories: by step count, (steps, B, C, H, W) float32: the tensor after each step, from the torch network.
        labels: (B,) int32 for conditional heads, else None.
        seed: of the noise; row i has sample index i.
    """

    x_tc: Float32Array
    trajectories: dict[int, Float32Array]
    labels: npt.NDArray[np.int32] | None
    seed: int


def write_golden(path: Path, golden: Golden) -> None:
    """Write golden.safetensors into the bundle folder ``path``."""
    tensors: dict[str, npt.NDArray[Any]] = {"x_tc": golden.x_tc}
    tensors |= {f"trajectory_{steps}": values for steps, values in golden.trajectories.items()}
    if golden.labels is not None:
        tensors["labels"] = golden.labels
    write_tensors(path / GOLDEN, FORMAT, tensors, {"seed": golden.seed})


def read_golden(bundle: HeadBundle) -> Golden:
    """The bundle's golden vectors.

    Raises:
        ArtefactError: damaged, or not of this bundle's shape and step counts.
    """
    path = bundle.path / GOLDEN
    tensors, payload = read_tensors(path, FORMAT, bundle.content(GOLDEN))
    try:
        check_seed(payload["seed"])
        x_tc, labels = tensors["x_tc"], tensors.get("labels")
        check_images("x_tc", x_tc, bundle.plan.image_shape)
        check_labels(labels, len(x_tc), bundle.num_classes)
        trajectories = {r.steps: tensors[f"trajectory_{r.steps}"] for r in bundle.row_ranges}
        for steps, values in trajectories.items():
            if values.shape != (steps, *x_tc.shape):
                raise InputError(f"trajectory_{steps} has shape {values.shape}; valid: {(steps, *x_tc.shape)}")
            if not np.isfinite(values).all():
                raise InputError(f"trajectory_{steps} holds NaN or Inf")
        return Golden(x_tc, trajectories, labels, payload["seed"])
    except KeyError as error:
        raise ArtefactError(f"{path} lacks {error}; export the head again") from None
    except CollafuseError as error:
        raise ArtefactError(f"{path}: {error}; export the head again") from None
