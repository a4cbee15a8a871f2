"""Checks on tensors before they reach a network or a file; one place, one wording."""

from typing import Any

import numpy as np
import numpy.typing as npt

from collafuse_runtimes.errors import InputError


def check_images(name: str, value: npt.NDArray[Any], image_shape: tuple[int, int, int]) -> None:
    """Require (N >= 1, C, H, W) float16/float32, finite.

    Raises:
        InputError: names the tensor, what was found and what is valid.
    """
    if value.dtype not in (np.float32, np.float16):
        raise InputError(f"{name} has dtype {value.dtype}; valid: float32 or float16")
    if value.ndim != 4 or value.shape[1:] != tuple(image_shape) or value.shape[0] < 1:
        wanted = ", ".join(str(n) for n in image_shape)
        raise InputError(f"{name} has shape {tuple(value.shape)}; valid: (N >= 1, {wanted})")
    bad = np.flatnonzero(~np.isfinite(value).all(axis=(1, 2, 3)))
    if bad.size:
        raise InputError(
            f"{name} holds NaN or Inf in {bad.size} of {len(value)} samples (first: {bad[0]}); make it again"
        )


def check_labels(labels: npt.NDArray[Any] | None, count: int, num_classes: int | None) -> None:
    """Require one class index per sample exactly when the head is class-conditional.

    Raises:
        InputError: labels missing, not wanted, of the wrong count or outside 0..num_classes-1.
    """
    if num_classes is None:
        if labels is not None:
            raise InputError("labels were given but this head is not class-conditional; leave them out")
        return
    if labels is None:
        raise InputError(f"this head is class-conditional: give one label from 0 to {num_classes - 1} per sample")
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise InputError(f"labels have shape {labels.shape}, dtype {labels.dtype}; valid: ({count},) integers")
    if labels.size and not (labels.min() >= 0 and labels.max() < num_classes):
        bad = labels[(labels < 0) | (labels >= num_classes)][0]
        raise InputError(f"label {bad} out of range: must be 0 to {num_classes - 1}")
