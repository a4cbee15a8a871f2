"""The Gaussian mechanism's privacy: what adding noise to an image guarantees, whoever looks.

x_n / sqrt(alpha_bar_n) is the Gaussian mechanism on x_0 with standard deviation sigma = the plan's noise level. Two
data sets that differ in one unit move it by at most the sensitivity Delta.
"""

import math

from collafuse_benchmarks.disclosure.report import Guarantee, Unit
from collafuse_runtimes.errors import InputError
from collafuse_runtimes.extras import needs

RANGE = 2.0
"""Of a pixel, -1 to 1."""


def guarantee(unit: Unit, sensitivity: float, sigma: float, delta: float, images: int = 1) -> Guarantee:
    """What holds for one unit.

    zCDP: rho = Delta^2 / (2 sigma^2) (Bun & Steinke 2016, proposition 1.6). epsilon: the smallest for which the
    mechanism is (epsilon, delta)-private, exactly (Balle & Wang 2018, theorem 8), by dp-accounting.

    Args:
        sensitivity: Delta of one image in the Euclidean norm; ``images`` of them move it by sqrt(images) Delta.
        sigma: standard deviation of the noise beside an image in [-1, 1], above 0.
        delta: in (0, 1).

    Raises:
        InputError: ``delta`` or ``images`` is out of range.
        EngineUnavailable: dp-accounting is not installed.
    """
    if not 0 < delta < 1:
        raise InputError(f"delta {delta} out of range: must be above 0 and below 1, for example 1e-5")
    if images < 1:
        raise InputError(f"images per patient {images} out of range: must be at least 1")
    with needs("evidence"):
        from dp_accounting import get_epsilon_gaussian

    moved = math.sqrt(images) * sensitivity
    rho = moved**2 / (2 * sigma**2)
    return Guarantee(unit, images, moved, rho, float(get_epsilon_gaussian(sigma / moved, delta)), delta)


def image_sensitivity(image_shape: tuple[int, int, int]) -> float:
    """Delta of a whole image: every pixel may move by the whole range, 2 sqrt(C H W)."""
    return RANGE * math.sqrt(math.prod(image_shape))
