"""DDPM, DDIM and DPM-Solver++ 2M as one linear step; the only home of the sampler arithmetic.

With F what the network predicts from x_t (epsilon or v), every sampler is
    x_0    = clip(x0_scale * (x_t + x0_out * F), value_range)
    x_prev = c_x0 * x_0 + c_xt * x_t + c_out * F + c_old * x_0_old + sigma * z
with coefficients that depend on the levels alone; x_0_old is the x_0 of the step before. numpy arrays, torch tensors
and the exported ONNX graph all go through ``apply_step``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np

from collafuse_runtimes.diffusion.levels import GIVEN, LEVELS
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.diffusion.plan import SplitPlan, Transition
from collafuse_runtimes.diffusion.schedule import log_snr
from collafuse_runtimes.errors import InputError

SAMPLERS = ("ddim", "ddpm", "dpm++2m")
X = TypeVar("X")


@dataclass(frozen=True)
class Sampler:
    """Which sampler, DDIM's eta (0 deterministic, 1 as noisy as DDPM), and how its timesteps are chosen.

    ``fitted``: rows fitted to one head stand in place of the sampler's own (``fitted.FittedRows``).

    Raises:
        InputError: unknown name or levels, eta outside [0, 1], eta given to a sampler without one, or fitted without
            a history.
    """

    name: str = "ddim"
    eta: float = 0.0
    levels: str = "even"
    fitted: bool = False

    def __post_init__(self) -> None:
        if self.name not in SAMPLERS:
            raise InputError(f"unknown sampler {self.name!r}; valid: {', '.join(SAMPLERS)}")
        if not 0 <= self.eta <= 1:
            raise InputError(f"eta {self.eta} out of range: must be 0 to 1")
        if self.name != "ddim" and self.eta:
            raise InputError(f"eta {self.eta} has no meaning for {self.name}; leave it out or use ddim")
        if self.levels not in (*LEVELS, GIVEN):
            raise InputError(f"unknown levels {self.levels!r}; valid: {', '.join(LEVELS)}")
        if self.fitted and not self.has_history:
            raise InputError(f"sampler {self.name} cannot be fitted; valid: dpm++2m, whose steps know the last x_0")
        object.__setattr__(self, "eta", float(self.eta))

    @property
    def is_stochastic(self) -> bool:
        """Whether a step needs a noise tensor."""
        return self.name == "ddpm" or self.eta > 0

    @property
    def has_history(self) -> bool:
        """Whether a step needs the x_0 of the step before."""
        return self.name == "dpm++2m"

    @property
    def text(self) -> str:
        """For people, for example "dpm++2m on karras levels"."""
        note = f" (eta {self.eta:g})" if self.eta else " (fitted)" if self.fitted else ""
        return f"{self.name}{note}" + ("" if self.levels == "even" else f" on {self.levels} levels")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields; ``levels`` and ``fitted`` only where they say something, as files of earlier releases."""
        usual = {"levels": "even", "fitted": False}
        return {name: value for name, value in asdict(self).items() if usual.get(name) != value}


class StepCoefficients(NamedTuple):
    """One row of the step table; plain floats, or tensors inside an exported graph."""

    x0_scale: Any
    x0_out: Any
    c_x0: Any
    c_xt: Any
    c_out: Any
    sigma: Any
    c_old: Any


def step_coefficients(
    alpha_bar_t: float,
    alpha_bar_prev: float,
    sampler: Sampler,
    prediction: str = "epsilon",
    alpha_bar_before: float | None = None,
) -> StepCoefficients:
    """Coefficients of the step from level t to level prev (float64).

    DDPM: Ho et al. 2020, eqs. 6-7 with alpha_t = alpha_bar_t / alpha_bar_prev (fixed-small variance).
    DDIM: Song et al. 2021, eqs. 12 and 16.
    DPM-Solver++ 2M: Lu et al. 2022 (DPM-Solver++), algorithm 2, data prediction, with lambda as in ``log_snr``,
    h = lambda_prev - lambda_t and q = h / (2 h_before); the step to clean (h infinite) is x_prev = x_0.
    v = sqrt(alpha_bar) epsilon - sqrt(1 - alpha_bar) x_0: Salimans & Ho 2022, appendix D.

    Args:
        alpha_bar_t, alpha_bar_prev: 0 < alpha_bar_t < alpha_bar_prev <= 1.
        prediction: what the network predicts, "epsilon" or "v".
        alpha_bar_before: of the level from which the trajectory came to t; None at its start, where 2M has order 1.
    """
    s_t, n_t = math.sqrt(alpha_bar_t), math.sqrt(1 - alpha_bar_t)
    x0_scale, x0_out = (1 / s_t, -n_t) if prediction == "epsilon" else (s_t, -n_t / s_t)
    if sampler.name == "dpm++2m":
        return StepCoefficients(x0_scale, x0_out, *_second_order(alpha_bar_t, alpha_bar_prev, alpha_bar_before))
    beta = 1 - alpha_bar_t / alpha_bar_prev
    variance = (1 - alpha_bar_prev) / (1 - alpha_bar_t) * beta
    if sampler.name == "ddpm":
        c_x0 = math.sqrt(alpha_bar_prev) * beta / (1 - alpha_bar_t)
        c_xt = math.sqrt(1 - beta) * (1 - alpha_bar_prev) / (1 - alpha_bar_t)
        return StepCoefficients(x0_scale, x0_out, c_x0, c_xt, 0.0, math.sqrt(variance), 0.0)
    sigma = sampler.eta * math.sqrt(variance)
    c_eps = math.sqrt(max(1 - alpha_bar_prev - sigma**2, 0.0))
    c_xt, c_out = (0.0, c_eps) if prediction == "epsilon" else (c_eps * n_t, c_eps * s_t)
    return StepCoefficients(x0_scale, x0_out, math.sqrt(alpha_bar_prev), c_xt, c_out, sigma, 0.0)


def _second_order(a: float, b: float, before: float | None) -> tuple[float, float, float, float, float]:
    """(c_x0, c_xt, c_out, sigma, c_old) of DPM-Solver++ 2M from alpha_bar a to b."""
    if b == 1:
        return 1.0, 0.0, 0.0, 0.0, 0.0
    lambda_t, lambda_prev = log_snr(np.array([a, b])).tolist()
    h = lambda_prev - lambda_t
    q = 0.0 if before is None else h / (2 * (lambda_t - float(log_snr(np.array(before)))))
    grown = math.sqrt(b) * -math.expm1(-h)
    return grown * (1 + q), math.sqrt((1 - b) / (1 - a)), 0.0, 0.0, -grown * q


def step_table(plan: SplitPlan, transitions: Sequence[Transition], sampler: Sampler) -> Float32Array:
    """(len(transitions), 7) float32, columns as in StepCoefficients.

    A transition that does not begin where the one before it ended begins a trajectory of its own.
    """
    before = [None, *(t if prev == start else None for (t, prev), (start, _) in pairwise(transitions))]
    rows = [
        step_coefficients(
            plan.alpha_bar_at(t),
            plan.alpha_bar_at(prev),
            sampler,
            plan.prediction_at(t),
            None if came_from is None else plan.alpha_bar_at(came_from),
        )
        for (t, prev), came_from in zip(transitions, before, strict=False)
    ]
    return np.array(rows, dtype=np.float32).reshape(len(rows), len(StepCoefficients._fields))


def apply_step(
    x_t: X,
    out: X,
    row: StepCoefficients,
    value_range: tuple[float, float],
    z: X | None = None,
    x_0_old: X | None = None,
) -> tuple[X, X]:
    """One denoising step on numpy arrays or torch tensors of any one shape.

    Args:
        out: what the network predicts from x_t.
        z: standard normal; None for deterministic steps.
        x_0_old: of the step before; None for samplers without history.

    Returns:
        (x_prev, x_0).
    """
    x: Any = x_t
    f: Any = out
    x_0 = ((x + row.x0_out * f) * row.x0_scale).clip(*value_range)
    x_prev = row.c_x0 * x_0 + row.c_xt * x + row.c_out * f
    if x_0_old is not None:
        x_prev = x_prev + row.c_old * x_0_old
    if z is not None:
        x_prev = x_prev + row.sigma * z
    return x_prev, x_0


def zeros_like(x: X) -> X:
    """Zeros of the shape, type and device of finite ``x``, numpy or torch: the x_0 before a trajectory's first step."""
    values: Any = x
    zeros: X = 0.0 * values
    return zeros


def denoise(
    x: X,
    plan: SplitPlan,
    transitions: Sequence[Transition],
    sampler: Sampler,
    predict: Callable[[X, int], X],
    *,
    table: Float32Array | None = None,
    noise: Callable[[int], X] | None = None,
    on_step: Callable[[int, X], None] | None = None,
) -> X:
    """Run a list of transitions with any network.

    Args:
        x: (B, C, H, W) float32 at the level of the first transition.
        predict: (x_t, t) -> epsilon or v as the plan says, same shape.
        table: (len(transitions), 7) float32 rows to use in place of the sampler's own.
        noise: t -> z, same shape; needed by stochastic samplers only.
        on_step: called after each step with (k, x), k = 0..steps-1; timers and progress bars hang here.

    Raises:
        InputError: the sampler is stochastic and ``noise`` is missing.
    """
    if sampler.is_stochastic and noise is None:
        raise InputError(f"sampler {sampler.name} (eta {sampler.eta}) needs a noise source; give a seed")
    rows = (step_table(plan, transitions, sampler) if table is None else table).tolist()
    x_0 = zeros_like(x) if sampler.has_history else None
    for k, (t, _) in enumerate(transitions):
        z = noise(t) if noise is not None and sampler.is_stochastic else None
        x, new = apply_step(x, predict(x, t), StepCoefficients(*rows[k]), plan.value_range, z, x_0)
        x_0 = new if sampler.has_history else None
        if on_step is not None:
            on_step(k, x)
    return x
