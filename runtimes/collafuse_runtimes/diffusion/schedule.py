"""Noise schedules: alpha_bar[t] for t = 0..T-1, float64, and the one q(x_t | x_0)."""

from functools import lru_cache
from typing import Any, cast

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

SCHEDULES = ("cosine", "linear")
MAX_BETA = 0.999


def cosine_betas(timesteps: int) -> FloatArray:
    """Nichol & Dhariwal 2021, eq. 17: alpha_bar(t) = f(t)/f(0), f(t) = cos^2((t/T + s)/(1 + s) * pi/2), s = 0.008;
    beta_t is clipped at 0.999."""
    s = 0.008
    t = np.arange(timesteps + 1, dtype=np.float64) / timesteps
    f = np.cos((t + s) / (1 + s) * np.pi / 2) ** 2
    return cast(FloatArray, np.minimum(1 - f[1:] / f[:-1], MAX_BETA))


def linear_betas(timesteps: int) -> FloatArray:
    """Ho et al. 2020, section 4 (1e-4 to 0.02 at T = 1000), scaled by 1000/T and clipped at 0.999."""
    scale = 1000 / timesteps
    return np.minimum(np.linspace(1e-4 * scale, 0.02 * scale, timesteps, dtype=np.float64), MAX_BETA)


@lru_cache(maxsize=16)
def alpha_bar(schedule: str, timesteps: int) -> FloatArray:
    """alpha_bar[t] = prod_{s<=t} (1 - beta_s) (Ho et al. 2020, eq. 4).

    Args:
        schedule: "cosine" or "linear".
        timesteps: T.

    Returns:
        (T,) float64, strictly decreasing, in (0, 1); read-only.
    """
    betas = {"cosine": cosine_betas, "linear": linear_betas}[schedule](timesteps)
    result = cast(FloatArray, np.cumprod(1.0 - betas))
    result.flags.writeable = False
    return result


def log_snr(alpha_bar: FloatArray) -> FloatArray:
    """lambda = 1/2 ln(alpha_bar / (1 - alpha_bar)), half the logarithm of the signal-to-noise ratio (Lu et al. 2022,
    DPM-Solver, section 3.1); infinite where alpha_bar is 1."""
    with np.errstate(divide="ignore"):
        return 0.5 * (np.log(alpha_bar) - np.log1p(-alpha_bar))


def diffuse(x_0: Any, epsilon: Any, alpha_bar_t: Any) -> Any:
    """A draw of q(x_t | x_0): x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) epsilon (Ho et al. 2020, eq. 4).

    Args:
        x_0, epsilon: (B, C, H, W), numpy arrays or torch tensors; epsilon is standard normal.
        alpha_bar_t: in (0, 1], a number or anything that broadcasts against the images.
    """
    return alpha_bar_t**0.5 * x_0 + (1 - alpha_bar_t) ** 0.5 * epsilon
