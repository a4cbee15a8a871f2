"""Which layers stay in float: measured, by what each one alone does to the finished image."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from collafuse_export.quantize import Quantiser
from collafuse_runtimes.diffusion.noise import Float32Array

ERROR_TO_REMOVE = 0.9
"""Share of the summed squared error that float layers must take away."""

Run = Callable[[bytes], Float32Array]
"""A serialised graph to the images it makes of the check tensors."""


@dataclass(frozen=True)
class Sensitivity:
    """What one layer in int8 does, everything else in float.

    Attributes:
        layer: name of the graph's node.
        rms: root mean square of the change of the finished images.
        share: of the squared error of all layers, 0 to 1.
    """

    layer: str
    rms: float
    share: float


def measure_sensitivity(
    quantiser: Quantiser, run: Run, reference: Float32Array, on_layer: Callable[[int, int], None]
) -> tuple[Sensitivity, ...]:
    """One trajectory per layer; the most sensitive layer first.

    Args:
        reference: what the float32 graph makes of the same tensors.
        on_layer: called with (layers done, layers in all).
    """
    errors = {}
    for number, layer in enumerate(quantiser.layers):
        images = run(quantiser.quantise([other for other in quantiser.layers if other != layer]))
        errors[layer] = float(np.sqrt(np.mean((images.astype(np.float64) - reference) ** 2)))
        on_layer(number + 1, len(quantiser.layers))
    total = sum(error**2 for error in errors.values()) or 1.0
    ordered = sorted(errors.items(), key=lambda item: -item[1])
    return tuple(Sensitivity(layer, error, error**2 / total) for layer, error in ordered)


def layers_to_keep_float(sensitivities: tuple[Sensitivity, ...]) -> tuple[str, ...]:
    """The fewest layers that carry ERROR_TO_REMOVE of the squared error, at most a quarter of all."""
    kept: list[str] = []
    removed = 0.0
    for entry in sensitivities[: len(sensitivities) // 4]:
        if removed >= ERROR_TO_REMOVE:
            break
        kept.append(entry.layer)
        removed += entry.share
    return tuple(kept)
