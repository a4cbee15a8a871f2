"""Whether a scheduler of diffusers trained its network on a plan's alpha_bar, prediction and value range."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from collafuse_edge.importing.refusals import init_command, refused
from collafuse_runtimes.diffusion.plan import MAX_TIMESTEPS, MIN_TIMESTEPS, SplitPlan
from collafuse_runtimes.diffusion.schedule import SCHEDULES, FloatArray, alpha_bar
from collafuse_runtimes.errors import ArtefactError, PlanMismatch
from collafuse_runtimes.text import one_line

SCHEDULER_CLASSES = (
    "DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler", "PNDMScheduler",
    "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler",
    "SASolverScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler",
    "LMSDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
)  # fmt: skip
"""Those whose network was trained on x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) epsilon (Ho et al. 2020,
eq. 4), however they sample."""
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}
"""diffusers' names of what a network predicts to a plan's."""
TOLERANCE = 1e-5
"""Largest difference of a coefficient of x_t, sqrt(alpha_bar_t) or sqrt(1 - alpha_bar_t), between scheduler and plan.
diffusers computes in float32, which differs by 2.4e-6 at most (cosine, T = 1000)."""


@dataclass(frozen=True)
class SchedulerMatch:
    """A scheduler that fits a plan.

    Attributes:
        name: its class in diffusers.
        alpha_bar_error: largest difference of a coefficient of x_t to the plan's.
        notes: what it does otherwise when it samples, in lines for people.
    """

    name: str
    alpha_bar_error: float
    notes: tuple[str, ...]


def check_scheduler(
    config: dict[str, Any], path: Path, plan: SplitPlan, role: str, shape: tuple[int, int, int]
) -> SchedulerMatch:
    """Compare a scheduler's configuration (scheduler_config.json) with a plan.

    Args:
        path: of the configuration, for messages.
        role: "server" or "client": whose prediction type the network's must be.
        shape: of the network's images, (C, H, W), for the command that writes a plan that fits.

    Raises:
        ArtefactError: it is of a kind this release cannot continue, or not one that diffusers makes.
        PlanMismatch: the plan has another alpha_bar, or its networks of that role predict something else; the message
            says which plan fits, where one does.
    """
    name = config.get("_class_name")
    if name not in SCHEDULER_CLASSES:
        raise refused(path, "_class_name", name, f"one of {', '.join(SCHEDULER_CLASSES)}")
    steps = config.get("num_train_timesteps", 1000)
    if isinstance(steps, bool) or not isinstance(steps, int) or not MIN_TIMESTEPS <= steps <= MAX_TIMESTEPS:
        raise refused(path, "num_train_timesteps", steps, f"an integer from {MIN_TIMESTEPS} to {MAX_TIMESTEPS}")
    fields, levels = _built(name, config, path)
    _check_fields(fields, path)
    _check_prediction(fields, path, plan, role)
    if len(levels) != steps:
        raise refused(path, "trained_betas", f"{len(levels)} numbers", f"num_train_timesteps, {steps}")
    error = _distance(levels, plan.alpha_bar)
    if error > TOLERANCE:
        raise PlanMismatch(_other_levels(levels, fields, path, plan, shape))
    return SchedulerMatch(name, error, tuple(_notes(fields)))


def _built(name: str, config: dict[str, Any], path: Path) -> tuple[dict[str, Any], FloatArray]:
    """(configuration with diffusers' defaults, alpha_bar as diffusers computes it, (T,) float64)."""
    import diffusers

    given = {key: value for key, value in config.items() if not key.startswith("_")}
    diffusers.utils.logging.set_verbosity_error()
    try:
        scheduler = getattr(diffusers, name).from_config(given)
        levels = scheduler.alphas_cumprod.double().numpy()
    except Exception as error:  # whatever diffusers thinks of bad values
        raise ArtefactError(f"{path}: diffusers refuses it: {one_line(error, 200)}") from None
    return {**given, **scheduler.config}, levels


def _check_prediction(fields: dict[str, Any], path: Path, plan: SplitPlan, role: str) -> None:
    stated = fields.get("prediction_type", "epsilon")
    if stated not in PREDICTIONS:
        raise refused(path, "prediction_type", stated, f"{' or '.join(PREDICTIONS)}: what heads and servers predict")
    asked = plan.server_prediction_type if role == "server" else plan.prediction_type
    if PREDICTIONS[stated] != asked:
        option = "--server-prediction" if role == "server" else "--prediction"
        raise PlanMismatch(
            f"{path} has prediction_type {stated}; the plan's {role} predicts {asked}: "
            f"write a plan with {option} {PREDICTIONS[stated]}"
        )


def _check_fields(fields: dict[str, Any], path: Path) -> None:
    if fields.get("variance_type") in ("learned", "learned_range"):
        raise refused(
            path,
            "variance_type",
            fields["variance_type"],
            "a fixed variance: a learned one doubles the network's output",
        )
    unfit = {
        "rescale_betas_zero_snr": "false: at alpha_bar 0 epsilon tells nothing of the image",
        "use_flow_sigmas": "false: flow matching has another schedule",
    }
    for field, valid in unfit.items():
        if fields.get(field):
            raise refused(path, field, fields[field], valid)
    if fields.get("timestep_type", "discrete") != "discrete":
        raise refused(path, "timestep_type", fields["timestep_type"], "discrete timesteps")
    if fields.get("clip_sample") and fields.get("clip_sample_range", 1.0) != 1.0:
        raise refused(path, "clip_sample_range", fields["clip_sample_range"], "1.0: a plan's images lie in [-1, 1]")


def _notes(fields: dict[str, Any]) -> list[str]:
    found = []
    if fields.get("clip_sample") is False:
        found.append("the scheduler does not clip (clip_sample false); here x_0 is clipped to [-1, 1] at every step")
    if fields.get("thresholding"):
        found.append("the scheduler thresholds (thresholding true); here x_0 is clipped to [-1, 1] instead")
    if fields.get("variance_type", "fixed_small") != "fixed_small":
        found.append(f"variance_type {fields['variance_type']} is the scheduler's; ddpm here takes fixed_small")
    return found


def _distance(levels: FloatArray, ours: FloatArray) -> float:
    """Largest difference of a coefficient of x_t; infinite for another number of timesteps, or levels that are none."""
    if levels.shape != ours.shape or not np.isfinite(levels).all() or levels.min() < 0 or levels.max() > 1:
        return math.inf
    signal, noise = np.abs(np.sqrt(levels) - np.sqrt(ours)), np.abs(np.sqrt(1 - levels) - np.sqrt(1 - ours))
    return float(max(signal.max(), noise.max()))


def _other_levels(
    levels: FloatArray, fields: dict[str, Any], path: Path, plan: SplitPlan, shape: tuple[int, int, int]
) -> str:
    steps = len(levels)
    shown = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end")
    has = ", ".join(f"{field} {fields.get(field)}" for field in shown)
    if fields.get("trained_betas") is not None:
        has = f"num_train_timesteps {steps}, trained_betas of its own"
    for schedule in SCHEDULES:
        if _distance(levels, alpha_bar(schedule, steps)) <= TOLERANCE:
            predictions = plan.prediction_type, plan.server_prediction_type
            fit = f"a plan that fits: {init_command(shape, steps, schedule, plan.cut_ratio, predictions)}"
            break
    else:
        fit = (
            "no plan of this release fits: they have beta_schedule squaredcos_cap_v2 (cosine), or linear with "
            f"beta_start {0.1 / steps:g} and beta_end {20 / steps:g} for {steps} timesteps"
        )
    return f"{path} has {has}; the plan has {plan.timesteps} timesteps, {plan.schedule}; {fit}"
