"""DDPM and DDIM as one linear step; the only home of the sampler arithmetic.

Both samplers are written as
    x_0    = clip((x_t - sqrt_one_minus * eps) * inv_sqrt, value_range)
    x_prev = c_x0 * x_0 + c_xt * x_t + c_eps * eps + sigma * z
with coefficients that depend on (alpha_bar_t, alpha_bar_prev) alone. numpy arrays, torch tensors and the exported
ONNX graph all go through ``apply_step``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

from collafuse_runtimes.errors import InputError
from collafuse_runtimes.noise import Float32Array
from collafuse_runtimes.plan import SplitPlan, Transition

SAMPLERS = ("ddim", "ddpm")
X = TypeVar("X")


@dataclass(frozen=True)
class Sampler:
    """Which sampler, and DDIM's eta (0 deterministic, 1 as noisy as DDPM).

    Raises:
        InputError: unknown name, eta outside [0, 1], or eta given to ddpm.
    """

    name: str = "ddim"
    eta: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in SAMPLERS:
            raise InputError(f"unknown sampler {self.name!r}; valid: {', '.join(SAMPLERS)}")
        if not 0 <= self.eta <= 1:
            raise InputError(f"eta {self.eta} out of range: valid are 0 to 1")
        if self.name == "ddpm" and self.eta:
            raise InputError(f"eta {self.eta} has no meaning for ddpm; leave it out or use ddim")
        object.__setattr__(self, "eta", float(self.eta))

    @property
    def is_stochastic(self) -> bool:
        """Whether a step needs a noise tensor."""
        return self.name == "ddpm" or self.eta > 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return asdict(self)


class StepCoefficients(NamedTuple):
    """One row of the step table; plain floats, or tensors inside an exported graph."""

    sqrt_one_minus: Any
    inv_sqrt: Any
    c_x0: Any
    c_xt: Any
    c_eps: Any
    sigma: Any


def step_coefficients(alpha_bar_t: float, alpha_bar_prev: float, sampler: Sampler) -> StepCoefficients:
    """Coefficients of the step from level t to level prev (float64).

    DDPM: Ho et al. 2020, eqs. 6-7 with alpha_t = alpha_bar_t / alpha_bar_prev (fixed-small variance).
    DDIM: Song et al. 2021, eqs. 12 and 16.
    """
    sqrt_one_minus, inv_sqrt = math.sqrt(1 - alpha_bar_t), 1 / math.sqrt(alpha_bar_t)
    beta = 1 - alpha_bar_t / alpha_bar_prev
    variance = (1 - alpha_bar_prev) / (1 - alpha_bar_t) * beta
    if sampler.name == "ddpm":
        c_x0 = math.sqrt(alpha_bar_prev) * beta / (1 - alpha_bar_t)
        c_xt = math.sqrt(1 - beta) * (1 - alpha_bar_prev) / (1 - alpha_bar_t)
        return StepCoefficients(sqrt_one_minus, inv_sqrt, c_x0, c_xt, 0.0, math.sqrt(variance))
    sigma = sampler.eta * math.sqrt(variance)
    c_eps = math.sqrt(max(1 - alpha_bar_prev - sigma**2, 0.0))
    return StepCoefficients(sqrt_one_minus, inv_sqrt, math.sqrt(alpha_bar_prev), 0.0, c_eps, sigma)


def step_table(plan: SplitPlan, transitions: Sequence[Transition], sampler: Sampler) -> Float32Array:
    """(len(transitions), 6) float32, columns as in StepCoefficients."""
    rows = [step_coefficients(plan.alpha_bar_at(t), plan.alpha_bar_at(prev), sampler) for t, prev in transitions]
    return np.array(rows, dtype=np.float32).reshape(len(rows), len(StepCoefficients._fields))


def apply_step(x_t: X, eps: X, row: StepCoefficients, value_range: tuple[float, float], z: X | None = None) -> X:
    """One denoising step on numpy arrays or torch tensors of any one shape; ``z`` is None for deterministic steps."""
    x: Any = x_t
    e: Any = eps
    x_0 = ((x - row.sqrt_one_minus * e) * row.inv_sqrt).clip(*value_range)
    x_prev = row.c_x0 * x_0 + row.c_xt * x + row.c_eps * e
    result: X = x_prev if z is None else x_prev + row.sigma * z
    return result


def denoise(
    x: X,
    plan: SplitPlan,
    transitions: Sequence[Transition],
    sampler: Sampler,
    predict_epsilon: Callable[[X, int], X],
    *,
    noise: Callable[[int], X] | None = None,
    on_step: Callable[[int, X], None] | None = None,
) -> X:
    """Run a list of transitions with any network.

    Args:
        x: (B, C, H, W) float32 at the level of the first transition.
        predict_epsilon: (x_t, t) -> eps, same shape.
        noise: t -> z, same shape; needed by stochastic samplers only.
        on_step: called after each step with (k, x), k = 0..steps-1; timers and progress bars hang here.

    Raises:
        InputError: the sampler is stochastic and ``noise`` is missing.
    """
    if sampler.is_stochastic and noise is None:
        raise InputError(f"sampler {sampler.name} (eta {sampler.eta}) needs a noise source; give a seed")
    table = step_table(plan, transitions, sampler).tolist()
    for k, (t, _) in enumerate(transitions):
        z = noise(t) if noise is not None and sampler.is_stochastic else None
        x = apply_step(x, predict_epsilon(x, t), StepCoefficients(*table[k]), plan.value_range, z)
        if on_step is not None:
            on_step(k, x)
    return x
