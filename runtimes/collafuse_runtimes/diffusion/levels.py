"""Which timesteps a side visits: lists of levels between two given ones, both ends always exact."""

from collections.abc import Sequence

import numpy as np

from collafuse_runtimes.diffusion.schedule import FloatArray, log_snr

LEVELS = ("even", "log-snr", "karras")
GIVEN = "given"
"""In place of one of LEVELS: the timesteps were named one by one."""
RHO = 7.0
"""Karras et al. 2022 (EDM), section 3: the exponent of their levels."""


def spaced_timesteps(alpha_bar: FloatArray, first: int, last: int, count: int, levels: str) -> list[int]:
    """``count`` timesteps from ``first`` down to ``last``, strictly decreasing, both ends among them.

    even: equal distances in t, t_k = last + floor((first - last)(count - 1 - k)/(count - 1) + 1/2).
    log-snr: equal distances in lambda = 1/2 ln(alpha_bar / (1 - alpha_bar)) (Lu et al. 2022, DPM-Solver, section 3.3).
    karras: sigma_k^(1/rho) equally far apart, sigma = sqrt((1 - alpha_bar) / alpha_bar), rho = 7 (Karras et al. 2022,
    eq. 5).
    The last two are rounded to the nearest timestep; where two would coincide they are moved apart, away from the end
    that is denser.

    Args:
        alpha_bar: (T,) of the schedule.
        first, last: T-1 >= first >= last >= 0; even levels may end at -1, clean.
        count: 2..first - last + 1; 1 means ``first`` alone.
    """
    if count == 1:
        return [first]
    if levels == "even":
        span, gaps = first - last, count - 1
        return [last + (2 * span * (gaps - k) + gaps) // (2 * gaps) for k in range(count)]
    lambdas = log_snr(alpha_bar)
    share = np.linspace(0.0, 1.0, count)
    if levels == "log-snr":
        wanted = lambdas[first] + share * (lambdas[last] - lambdas[first])
    else:
        high, low = np.exp(-lambdas[[first, last]] / RHO)
        wanted = -RHO * np.log(high + share * (low - high))
    t = np.interp(wanted, lambdas[::-1], np.arange(len(lambdas))[::-1])  # lambda falls with t
    return _apart([round(float(value)) for value in t], first, last)


def _apart(timesteps: Sequence[int], first: int, last: int) -> list[int]:
    """The nearest strictly decreasing list with these ends; there is room for it."""
    count = len(timesteps)
    result = [max(min(t, first), last) for t in timesteps]
    result[0], result[-1] = first, last
    for k in range(1, count):
        result[k] = min(result[k], result[k - 1] - 1)
    result[-1] = last
    for k in range(count - 2, -1, -1):
        result[k] = max(result[k], result[k + 1] + 1)
    return result
