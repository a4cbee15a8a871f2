"""The three training targets. Every formula broadcasts over numpy arrays and torch tensors alike.

alpha_bar arguments have shape (B, 1, 1, 1) (or anything that broadcasts against the images) and lie in (0, 1].
"""

from typing import Any


def diffuse(x_0: Any, epsilon: Any, alpha_bar_t: Any) -> Any:
    """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) epsilon (Ho et al. 2020, eq. 4)."""
    return alpha_bar_t**0.5 * x_0 + (1 - alpha_bar_t) ** 0.5 * epsilon


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
