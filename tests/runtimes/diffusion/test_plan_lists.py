"""The two sides' timestep lists cover the trajectory exactly once, whatever the cut and the strides."""

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collafuse_runtimes.diffusion.plan import CLEAN, SplitPlan, Transition
from collafuse_runtimes.errors import InputError

SHAPE = (1, 8, 8)


@st.composite
def plans_and_steps(draw: st.DrawFn) -> tuple[SplitPlan, int, int]:
    plan = SplitPlan(
        SHAPE,
        timesteps=draw(st.integers(2, 1000)),
        cut_ratio=draw(st.one_of(st.sampled_from([0, 0.2, 0.5, 0.8, 1]), st.floats(0, 1))),
    )
    server = draw(st.integers(min(plan.t_c, 1), plan.t_c))
    client = draw(st.integers(min(plan.cut, 1), plan.cut))
    return plan, server, client


def assert_descends(transitions: tuple[Transition, ...], first: int, end: int) -> None:
    """A chain from level ``first`` to level ``end``: each step starts where the one before ended, and goes down."""
    assert transitions[0][0] == first
    assert transitions[-1][1] == end
    assert all(t > prev for t, prev in transitions)
    assert all(before[1] == after[0] for before, after in pairwise(transitions))


@settings(max_examples=300, deadline=None)
@given(plans_and_steps())
def test_lists_are_disjoint_ordered_and_meet_at_the_boundary(drawn: tuple[SplitPlan, int, int]) -> None:
    plan, server_steps, client_steps = drawn
    server, client = plan.server_transitions(server_steps), plan.client_transitions(client_steps)
    assert (len(server), len(client)) == (server_steps, client_steps)
    if server:
        assert_descends(server, plan.timesteps - 1, plan.cut - 1)
        assert all(plan.cut <= t < plan.timesteps for t, _ in server)
    if client:
        assert_descends(client, plan.cut - 1, CLEAN)
        assert all(0 <= t < plan.cut for t, _ in client)
    assert_descends(server + client, plan.timesteps - 1, CLEAN)
    crossings = [(t, prev) for t, prev in server + client if t >= plan.cut > prev]
    assert len(crossings) == (1 if server else 0)


@settings(max_examples=100, deadline=None)
@given(plans_and_steps())
def test_full_stride_is_every_timestep(drawn: tuple[SplitPlan, int, int]) -> None:
    plan = drawn[0]
    chain = plan.server_transitions() + plan.client_transitions()
    assert chain == tuple((t, t - 1) for t in range(plan.timesteps - 1, -1, -1))
    assert (len(plan.server_transitions()), len(plan.client_transitions())) == (plan.t_c, plan.cut)


@settings(max_examples=200, deadline=None)
@given(plans_and_steps())
def test_strides_of_one_side_differ_by_at_most_one(drawn: tuple[SplitPlan, int, int]) -> None:
    plan, server_steps, client_steps = drawn
    for side in (plan.server_transitions(server_steps), plan.client_transitions(client_steps)):
        strides = {t - prev for t, prev in side}
        assert not strides or max(strides) - min(strides) <= 1


@pytest.mark.parametrize(
    ("cut_ratio", "cut"), [(0, 0), (0.2, 20), (0.5, 50), (0.8, 80), (1, 100), (0.004, 0), (0.006, 1), (0.995, 100)]
)
def test_cut_is_the_clients_share(cut_ratio: float, cut: int) -> None:
    plan = SplitPlan(SHAPE, timesteps=100, cut_ratio=cut_ratio)
    assert (plan.cut, plan.t_c, plan.handover_level) == (cut, 100 - cut, cut - 1)


def test_a_halfway_cut_rounds_to_even() -> None:
    assert [SplitPlan(SHAPE, timesteps=n, cut_ratio=0.5).cut for n in (3, 5, 7, 9)] == [2, 2, 4, 4]


def test_known_strided_list() -> None:
    plan = SplitPlan(SHAPE, timesteps=100, cut_ratio=0.2)
    assert plan.client_transitions(5) == ((19, 15), (15, 11), (11, 7), (7, 3), (3, -1))
    assert plan.server_transitions(3) == ((99, 72), (72, 46), (46, 19))


@pytest.mark.parametrize("side", ["server", "device"])
@pytest.mark.parametrize("steps", [0, -1, 51, 1000, True, 2.0, "5"])
def test_step_counts_out_of_range_are_refused(side: str, steps: object) -> None:
    plan = SplitPlan(SHAPE, timesteps=100, cut_ratio=0.5)
    transitions = plan.server_transitions if side == "server" else plan.client_transitions
    with pytest.raises(InputError, match=re.escape(f"{side} steps {steps} out of range: this plan allows 1 to 50")):
        transitions(steps)


@pytest.mark.parametrize(("cut_ratio", "side"), [(0, "device"), (1, "server")])
def test_a_side_without_steps_accepts_none_and_zero_only(cut_ratio: float, side: str) -> None:
    plan = SplitPlan(SHAPE, timesteps=100, cut_ratio=cut_ratio)
    transitions = plan.server_transitions if side == "server" else plan.client_transitions
    assert transitions() == transitions(0) == ()
    with pytest.raises(
        InputError, match=rf"^{side} steps 1 out of range: this plan allows 0 \(it leaves the {side} no step\)$"
    ):
        transitions(1)
