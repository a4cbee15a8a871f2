"""The training targets, and what mixes clients of different cuts. Targets take numpy arrays and torch tensors.

alpha_bar arguments have shape (B, 1, 1, 1) (or anything that broadcasts against the images) and lie in (0, 1].
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from collafuse_runtimes.diffusion.schedule import FloatArray, diffuse

WEIGHT_CAP = 10.0
"""Largest weight of one image's loss, in units of the weight that clients of the smallest cut have alone."""


def exact_server_pair(x_n: Any, eta: Any, alpha_bar_n: Any, alpha_bar_t: Any) -> tuple[Any, Any]:
    """Noise data that was released once at level n further, to level t > n.

    x_t = sqrt(rho) x_n + sqrt(1 - rho) eta with rho = alpha_bar_t / alpha_bar_n, and
    r_t = sqrt((1 - rho) / (1 - alpha_bar_t)). The loss || eta - r_t eps_theta(x_t, t) ||^2 has the true
    E[epsilon | x_t] as its minimiser, because E[eta | x_t] = r_t E[epsilon | x_t] (denoising score matching with
    q(x_t | x_n); Vincent 2011; Daras et al. 2024, arXiv 2404.10177).

    Args:
        x_n: (B, C, H, W), each image noised once to its level n.
        eta: standard normal, same shape.
        alpha_bar_n: at each image's level n.
        alpha_bar_t: at each image's t > n.

    Returns:
        (x_t, r_t); r_t has the shape of the alpha_bar arguments and lies in (0, 1].
    """
    rho = alpha_bar_t / alpha_bar_n
    return diffuse(x_n, eta, rho), ((1 - rho) / (1 - alpha_bar_t)) ** 0.5


def v_target(x_0: Any, epsilon: Any, alpha_bar_t: Any) -> Any:
    """v = sqrt(alpha_bar_t) epsilon - sqrt(1 - alpha_bar_t) x_0 of an x_t by ``diffuse`` (Salimans & Ho 2022, app. D).

    epsilon = sqrt(alpha_bar_t) v + sqrt(1 - alpha_bar_t) x_t and x_0 = sqrt(alpha_bar_t) x_t - sqrt(1 - alpha_bar_t) v.
    """
    return alpha_bar_t**0.5 * epsilon - (1 - alpha_bar_t) ** 0.5 * x_0


def exact_server_v_target(x_n: Any, eta: Any, alpha_bar_n: Any, alpha_bar_t: Any) -> Any:
    """What a network F of v has to meet on data that was released once: || target - r_t F(x_t, t) ||^2.

    With epsilon_theta = sqrt(alpha_bar_t) F + sqrt(1 - alpha_bar_t) x_t and r_t of ``exact_server_pair``,

        eta - r_t epsilon_theta = sqrt(alpha_bar_t) (target - r_t F),
        target = (sqrt(rho) eta - sqrt(1 - rho) x_n) / sqrt(alpha_bar_n),    rho = alpha_bar_t / alpha_bar_n,

    because r_t sqrt(1 - alpha_bar_t) x_t = sqrt(1 - rho) x_t. So its minimiser is the F of the true E[epsilon | x_t],
    which is E[v | x_t], and the target is v of the pair (x_n, eta) at rho, over sqrt(alpha_bar_n): bounded where
    alpha_bar_t is not, at the end of pure noise. As the pull on F is r_t^2 as well, ``mixture_weights`` hold for it.
    """
    return v_target(x_n, eta, alpha_bar_t / alpha_bar_n) / alpha_bar_n**0.5


def v_of_triple(x_t: Any, epsilon: Any, alpha_bar_t: Any) -> Any:
    """v from a noisy image and the noise in it: v = (epsilon - sqrt(1 - alpha_bar_t) x_t) / sqrt(alpha_bar_t)."""
    return (epsilon - (1 - alpha_bar_t) ** 0.5 * x_t) / alpha_bar_t**0.5


def mixture_weights(alpha_bar: FloatArray, cuts: Sequence[int], *, exact: bool) -> FloatArray:
    """Weights of the loss of images whose shards have different cuts, so that the server learns their plain mixture.

    An image of cut k is met at level t >= k with density 1 / (T - k), and its loss || eta - r_kt eps_theta ||^2 pulls
    eps_theta towards E[epsilon | x_t] of its shard with r_kt^2. So unweighted, shards mix by

        pull_kt = r_kt^2 / (T - k)                      (exact_server_pair; r = 1 for plain epsilon-prediction)

    and not by their numbers of images. The weights w_kt = pull_0t / pull_kt, 0 being the smallest cut, make w pull the
    same for all: at every t the minimiser is E[epsilon | x_t] of the mixture of all images that exist at t. Just above
    its cut an image's r is small and w large; where the largest w of a level exceeds WEIGHT_CAP, all of that level
    shrink by one factor. That keeps the minimiser and costs emphasis: the level counts for less in the sum over levels.

    Args:
        alpha_bar: (T,) of all timesteps.
        cuts: different ones, ascending, each 0..T-1 (1..T-1 where ``exact``).
        exact: whether the shards' loss is that of ``exact_server_pair``.

    Returns:
        (K, T) float64 in 0..WEIGHT_CAP; zero where t is below a row's cut, one wherever a single cut exists.
    """
    timesteps = len(alpha_bar)
    exists = np.arange(timesteps) >= np.array(cuts)[:, None]
    pull = np.ones((len(cuts), timesteps)) / (timesteps - np.array(cuts))[:, None]
    if exact:
        pull *= 1 - alpha_bar / alpha_bar[np.array(cuts) - 1][:, None]  # (1 - alpha_bar_t) is common to all rows
    weights = np.divide(pull[0], pull, out=np.zeros_like(pull), where=exists)
    largest = np.maximum(weights.max(axis=0), 1.0)
    capped: FloatArray = weights * np.minimum(1.0, WEIGHT_CAP / largest)
    return capped
