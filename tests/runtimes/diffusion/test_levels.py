"""Lists of timesteps: ends exact, strictly falling, spaced as their name says."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collafuse_runtimes.diffusion.levels import LEVELS
from collafuse_runtimes.diffusion.plan import CLEAN, SplitPlan
from collafuse_runtimes.diffusion.samplers import Sampler
from collafuse_runtimes.diffusion.schedule import SCHEDULES, log_snr
from collafuse_runtimes.errors import InputError

PLAN = SplitPlan((1, 32, 32))


@given(
    st.integers(2, 1000),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from(LEVELS),
    st.sampled_from(SCHEDULES),
    st.sampled_from(["server", "client"]),
)
def test_every_list_falls_strictly_between_exact_ends(
    timesteps: int, cut_ratio: float, share: float, levels: str, schedule: str, side: str
) -> None:
    plan = SplitPlan((1, 4, 4), timesteps, schedule, cut_ratio=cut_ratio)
    first, last = (timesteps - 1, plan.cut) if side == "server" else (plan.cut - 1, 0)
    span = first - last + 1
    steps = min(1 + int(share * span), span)
    way = plan.server_transitions if side == "server" else plan.client_transitions
    transitions = way(steps, levels)
    assert len(transitions) == steps
    if steps:
        chain = [transitions[0][0], *(prev for _, prev in transitions)]
        assert chain[0] == first and chain[-1] == last - 1
        assert all(a > b for a, b in pairwise(chain))
        assert [t for t, _ in transitions] == chain[:-1]
    assert way(span, levels) == way(span)  # at full stride there is one list


@pytest.mark.parametrize(
    ("levels", "steps", "timesteps"),
    [
        ("log-snr", 5, [19, 9, 4, 1, 0]),
        ("log-snr", 2, [19, 0]),
        ("log-snr", 1, [19]),
        ("karras", 5, [19, 10, 5, 2, 0]),
        ("karras", 4, [19, 8, 3, 0]),
        ("even", 4, [19, 14, 9, 4]),
    ],
)
def test_the_lists_at_a_fifth_of_the_steps(levels: str, steps: int, timesteps: list[int]) -> None:
    assert [t for t, _ in PLAN.client_transitions(steps, levels)] == timesteps


@pytest.mark.parametrize("steps", [6, 12, 30])
def test_log_snr_levels_are_equally_far_apart_to_half_a_timestep(steps: int) -> None:
    plan = SplitPlan((1, 4, 4), timesteps=1000, cut_ratio=0.8)
    lambdas = log_snr(plan.alpha_bar)
    chain = [t for t, _ in plan.client_transitions(steps, "log-snr")]
    wanted = np.linspace(lambdas[799], lambdas[0], steps)
    room = np.array([lambdas[max(t - 1, 0)] - lambdas[min(t + 1, 999)] for t in chain])
    assert (np.abs(lambdas[chain] - wanted) <= room).all()


def test_karras_levels_follow_equation_5() -> None:
    plan = SplitPlan((1, 4, 4), timesteps=1000, cut_ratio=0.8)
    sigma = np.sqrt((1 - plan.alpha_bar) / plan.alpha_bar)
    chain = [t for t, _ in plan.client_transitions(8, "karras")]
    high, low = sigma[799] ** (1 / 7), sigma[0] ** (1 / 7)
    wanted = np.array([(high + i / 7 * (low - high)) ** 7 for i in range(8)])
    nearest = [int(np.abs(np.log(sigma) - math.log(w)).argmin()) for w in wanted]
    assert max(abs(a - b) for a, b in zip(chain, nearest, strict=True)) <= 1


def test_a_server_s_list_ends_at_the_hand_over_level_on_any_levels() -> None:
    for levels in LEVELS:
        for steps in (1, 2, 7, 80):
            assert PLAN.server_transitions(steps, levels)[-1][1] == PLAN.handover_level == 19


def test_timesteps_may_be_named_one_by_one() -> None:
    assert PLAN.client_transitions_at([19, 9, 0]) == ((19, 9), (9, 0), (0, CLEAN))
    assert PLAN.server_transitions_at([99, 60]) == ((99, 60), (60, 19))
    assert PLAN.client_transitions_at([19]) == ((19, CLEAN),)


@pytest.mark.parametrize("timesteps", [[18, 9, 0], [19, 9, 9], [19, 20], [19, -1], [19, 4.0], []])
def test_timesteps_that_do_not_fit_are_refused(timesteps: list[int]) -> None:
    with pytest.raises(InputError, match=r"device timesteps \[.*\] do not fit the plan; valid: integers that fall"):
        PLAN.client_transitions_at(timesteps)


def test_unknown_levels_are_refused() -> None:
    with pytest.raises(InputError, match="unknown levels 'cosine'; valid: even, log-snr, karras"):
        Sampler(levels="cosine")


def test_files_of_earlier_releases_name_no_levels() -> None:
    assert Sampler().to_dict() == {"name": "ddim", "eta": 0.0}
    assert Sampler(**Sampler("dpm++2m", levels="karras").to_dict()) == Sampler("dpm++2m", levels="karras")
