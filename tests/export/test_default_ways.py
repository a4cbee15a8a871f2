"""Unless told, a head is exported with the few steps that measurements favour, and never with more than there are."""

from pathlib import Path

import pytest
from command_line import done
from heads import checkpoint
from hypothesis import given
from hypothesis import strategies as st

from collafuse_export.to_bundle import DEFAULT_SAMPLER, default_step_counts
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.diffusion.samplers import Sampler
from collafuse_runtimes.files.bundle import read_bundle


@pytest.mark.parametrize(
    ("words", "steps", "sampler"),
    [
        ((), [8, 5], Sampler("dpm++2m", levels="karras")),
        (("--steps", 4), [4], Sampler("dpm++2m", levels="karras")),
        (("--levels", "log-snr"), [8, 5], Sampler("dpm++2m", levels="log-snr")),
        (("--sampler", "ddim"), [20], Sampler("ddim")),
        (("--sampler", "ddpm", "--steps", 6), [6], Sampler("ddpm")),
    ],
)
def test_a_head_is_exported_as_measurements_favour(
    words: tuple[object, ...], steps: list[int], sampler: Sampler, tmp_path: Path
) -> None:
    done("export", checkpoint(levels=1), *words, "--out", tmp_path / "x.head")
    bundle = read_bundle(tmp_path / "x.head")
    assert [rows.steps for rows in bundle.row_ranges] == steps
    assert bundle.sampler == sampler


@given(timesteps=st.integers(2, 200), cut_ratio=st.floats(0.01, 1), is_fitted=st.booleans())
def test_default_steps_are_never_more_than_the_plan_leaves(timesteps: int, cut_ratio: float, is_fitted: bool) -> None:
    plan = SplitPlan((1, 8, 8), timesteps=timesteps, cut_ratio=cut_ratio)
    if plan.cut:
        counts = default_step_counts(plan, DEFAULT_SAMPLER, is_fitted)
        assert 1 <= max(counts) <= min(plan.cut, 8)
        assert len(set(counts)) == len(counts)
        assert default_step_counts(plan, Sampler(), False) == (plan.cut,)
