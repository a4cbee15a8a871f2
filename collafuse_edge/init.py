"""Writing a plan file from a few words."""

from pathlib import Path

from collafuse_edge.settings import PlanSettings
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.disk.found import require_replaceable
from collafuse_runtimes.errors import InputError
from collafuse_runtimes.files.plan_file import FORMAT, read_plan, write_plan


def init_plan(out: Path, size: str, settings: PlanSettings) -> SplitPlan:
    """Write ``out``; writing the same plan again is no error.

    Args:
        size: "32" or "HEIGHTxWIDTH".

    Raises:
        InputError: a value is out of range, or ``out`` holds another plan.
        ArtefactError: ``out`` cannot be written.
    """
    plan = SplitPlan(
        (settings.channels, *sides(size)),
        settings.timesteps,
        settings.schedule,
        settings.prediction or ("v" if settings.cut_ratio == 1 else "epsilon"),
        settings.cut_ratio,
        server_prediction_type=settings.server_prediction or "v",
    )
    require_replaceable(out, FORMAT, overwrite=True)
    if out.exists() and read_plan(out) != plan:
        raise InputError(f"{out} holds another plan; choose another --out, or delete it")
    write_plan(out, plan)
    return plan


def sides(size: str) -> tuple[int, int]:
    """(height, width) from "32" or "HEIGHTxWIDTH".

    Raises:
        InputError: neither of them.
    """
    try:
        height, width = (int(n) for n in (size.split("x") if "x" in size else (size, size)))
    except ValueError:
        raise InputError(f"size {size!r} is not a side or HEIGHTxWIDTH; valid: for example 32 or 64x48") from None
    return height, width


def describe_plan(plan: SplitPlan, path: Path) -> list[str]:
    """Lines for people."""
    n = plan.handover_level
    level = "clean: the server emits finished images"
    if plan.cut:
        level = f"alpha_bar {plan.alpha_bar_at(n):.4f}, {plan.noise_text}"
    server = f"timesteps {plan.timesteps - 1}..{plan.cut}" if plan.t_c else "nothing (c = 1)"
    device = f"timesteps {n}..0" if plan.cut else "nothing (c = 0)"
    return [
        f"server    {plan.t_c} steps, {server}, predicts {plan.server_prediction_type}",
        f"device    {plan.cut} steps, {device}, predicts {plan.prediction_type}",
        f"hand-over level {n}: {level}",
        f"start     noise of level {plan.timesteps - 1}, alpha_bar {plan.alpha_bar_at(plan.timesteps - 1):.2g}",
        f"wrote     {path}, fingerprint {plan.fingerprint[:16]}",
    ]
