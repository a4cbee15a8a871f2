"""`bench split` names the cheapest way that keeps every limit, or what would have to give."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import done
from hypothesis import given
from hypothesis import strategies as st

from collafuse_benchmarks.split.choice import choose
from collafuse_benchmarks.split.parts import Part, Row, Weights
from collafuse_benchmarks.split.settings import Limits
from collafuse_benchmarks.split.table import Side, SplitRow, join
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.errors import InputError


def way(
    c: float, total_ms: float | None, noise: float, total_j: float | None = None, kid: float | None = None
) -> SplitRow:
    weights = Weights("small", 1, "ab" * 32)
    edge = None if c == 0 else Side(f"{c:g}.head", round(100 * c), weights, "ort-cpu", "fp32", "bench", None)
    return SplitRow(
        cut_ratio=c, cut=round(100 * c), noise_level=noise, server=None, edge=edge, server_ms=0.0, transfer_bytes=1,
        transfer_ms=None, edge_ms=total_ms, total_ms=total_ms, server_j=None, edge_j=None, total_j=total_j,
        energy_scope=None, energy_reason="no sensor", notes=(), handover_kid=kid,
    )  # fmt: skip


WAYS = (way(0, 100, 0.0), way(0.2, 120, 0.33), way(0.4, 150, 0.6), way(0.8, 220, 0.95), way(1, 250, 1.0))


@pytest.mark.parametrize(
    ("limits", "c"),
    [
        (Limits(max_latency_ms=300), 0),
        (Limits(min_noise_level=0.3), 0.2),
        (Limits(max_latency_ms=230, min_noise_level=0.9), 0.8),
        (Limits(max_latency_ms=250, min_noise_level=1.0), 1),
    ],
)
def test_the_quickest_admissible_way_where_energy_was_not_measured(limits: Limits, c: float) -> None:
    choice = choose(WAYS, limits)
    assert choice.row is not None
    assert (choice.row.cut_ratio, choice.by, choice.advice) == (c, "total_ms", ())


def test_energy_decides_where_every_admissible_way_has_it() -> None:
    ways = (way(0.2, 120, 0.3, total_j=9.0), way(0.4, 150, 0.6, total_j=7.0), way(0, 100, 0.0))
    by_energy, by_time = choose(ways, Limits(min_noise_level=0.2)), choose(ways, Limits(max_latency_ms=200))
    assert by_energy.row is not None and by_time.row is not None
    assert (by_energy.row.cut_ratio, by_energy.by) == (0.4, "total_j")
    assert (by_time.row.cut_ratio, by_time.by) == (0, "total_ms")


def test_what_was_not_measured_keeps_no_limit() -> None:
    choice = choose(WAYS, Limits(max_energy_j=1e9))
    assert choice.row is None
    assert choice.advice == ("--max-energy-j 1e+09 cannot be judged: joules not measured (no sensor)",)
    assert choose([way(0.2, None, 0.3)], Limits(max_latency_ms=1e9)).advice == (
        "no way that makes images was measured on both sides",
    )


def test_advice_names_what_each_limit_would_have_to_be() -> None:
    choice = choose(WAYS, Limits(max_latency_ms=130, min_noise_level=0.5))
    assert choice.row is None
    assert choice.advice == (
        "--max-latency-ms 130 would have to be 150.0: c = 0.4, 0.4.head, 40 steps on ort-cpu",
        "--min-noise-level 0.5 would have to be 0.3300: c = 0.2, 0.2.head, 20 steps on ort-cpu",
    )


def test_where_two_limits_stand_in_the_way_the_nearest_way_is_named() -> None:
    choice = choose(WAYS, Limits(max_latency_ms=50, min_noise_level=0.9, min_handover_kid=1.0))
    assert choice.advice[0].startswith("no single limit is to blame; nearest is c = ")


def test_a_disclosure_limit_goes_by_the_score_of_the_hand_over_tensors() -> None:
    ways = [replace(row, handover_kid=kid) for row, kid in zip(WAYS, (0.03, 0.3, 0.29, 0.28, 0.31), strict=True)]
    choice = choose(ways, Limits(min_handover_kid=0.305))
    assert choice.row is not None
    assert choice.row.cut_ratio == 1


numbers = st.floats(1, 1000)
ways_strategy = st.lists(
    st.builds(
        way, st.sampled_from([0.2, 0.4, 0.6]), numbers, st.floats(0, 1), st.none() | numbers, st.none() | numbers
    ),
    min_size=1,
    max_size=8,
)
limits_strategy = st.builds(
    Limits, st.none() | numbers, st.none() | numbers, st.none() | st.floats(0, 1), st.none() | numbers
)


def keeps(row: SplitRow, limits: Limits) -> bool:
    pairs = (
        (limits.max_latency_ms, row.total_ms, 1),
        (limits.max_energy_j, row.total_j, 1),
        (limits.min_noise_level, row.noise_level, -1),
        (limits.min_handover_kid, row.handover_kid, -1),
    )
    return all(limit is None or (value is not None and sign * value <= sign * limit) for limit, value, sign in pairs)


@given(st.floats(1, 1000), st.floats(0.01, 1))
def test_a_limit_set_as_advised_is_kept(total_ms: float, noise: float) -> None:
    ways = [way(0.2, total_ms, noise)]
    for limits, name in (
        (Limits(max_latency_ms=0.5), "max_latency_ms"),
        (Limits(min_noise_level=1.0), "min_noise_level"),
    ):
        choice = choose(ways, limits)
        if choice.row is None:
            advised = float(re.findall(r"would have to be ([\d.]+):", choice.advice[0])[0])
            assert choose(ways, Limits(**{name: advised})).row is not None


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_latency_ms", math.nan), ("max_latency_ms", math.inf), ("max_latency_ms", 0), ("max_energy_j", -1),
     ("min_noise_level", math.inf), ("min_noise_level", -0.1), ("min_handover_kid", math.nan)],
)  # fmt: skip
def test_limits_that_cannot_be_are_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"^--{name.replace('_', '-')} .* out of range: must be "):
        Limits(**{name: value})


def test_ways_that_make_no_images_are_not_chosen() -> None:
    ways = (replace(WAYS[0], notes=("its images would not be images",)), *WAYS[1:])
    choice = choose(ways, Limits(max_latency_ms=300))
    assert choice.row is not None
    assert (choice.row.cut_ratio, choice.admissible) == (0.2, 4)
    assert choose(ways[:1], Limits(max_latency_ms=300)).advice == (
        "no way that makes images was measured on both sides",
    )


def test_a_way_that_hands_nothing_over_keeps_every_disclosure_limit() -> None:
    alone = replace(WAYS[-1], transfer_bytes=0)
    choice = choose((*WAYS[:-1], alone), Limits(min_noise_level=1.0, min_handover_kid=1e6))
    assert choice.row == alone


def test_scores_that_were_not_given_are_not_judged() -> None:
    choice = choose(WAYS[:2], Limits(min_handover_kid=1.0))
    assert choice.advice == (
        "--min-handover-kid 1 cannot be judged: KID of the hand-over tensors not given (--handover-kid)",
    )


@given(ways_strategy, limits_strategy)
def test_no_admissible_way_is_cheaper_than_the_choice(ways: list[SplitRow], limits: Limits) -> None:
    admissible, choice = [row for row in ways if keeps(row, limits)], choose(ways, limits)
    assert (choice.row is None) == (not admissible)
    assert choice.admissible == len(admissible)
    if choice.row is not None:
        assert keeps(choice.row, limits)
        assert all(getattr(choice.row, choice.by) <= getattr(row, choice.by) for row in admissible)
    else:
        assert choice.advice


def test_init_and_bench_split_mean_the_same_noise_level(tmp_path: Path) -> None:
    """At the number that `init` prints a way is kept, just above it not."""
    plan = json.loads(done("init", "--size", 16, "--cut-ratio", 0.4, "--out", tmp_path / "plan.json", "--json"))
    rows = tuple(Row(c, 1, "s", Weights("small", 1, "ab" * 32), "torch", "fp32", ()) for c in (0.0, 0.4, 1.0))
    of_plan = SplitPlan((1, 16, 16), cut_ratio=0.4)
    part = Part("server", of_plan, of_plan.fingerprint, "m", {}, None, (), "quick", rows, True)
    table = join(of_plan, [part], None)
    assert [row.noise_level for row in table[:2]] == [0.0, plan["noise_level"]]
    assert plan["noise_level"] == pytest.approx((1 / of_plan.alpha_bar[39] - 1) ** 0.5, rel=1e-12)
    whole = [replace(row, total_ms=1.0 + row.cut) for row in table]
    at, above = (Limits(min_noise_level=plan["noise_level"] * factor) for factor in (1, 1.001))
    assert [choose(whole, limits).admissible for limits in (at, above)] == [2, 1]
    assert choose(whole, above).row == whole[2]  # at c = 1 nothing crosses


SCORED = tuple(replace(row, image_kid=kid) for row, kid in zip(WAYS, (0.9, 0.3, 0.25, 0.21, None), strict=True))


@pytest.mark.parametrize(
    ("limits", "c", "admissible"),
    [
        (Limits(max_image_kid=0.35), 0.2, 3),
        (Limits(max_image_kid=0.25), 0.4, 2),
        (Limits(max_kid_above_best=0.0), 0.8, 1),
        (Limits(max_kid_above_best=0.1), 0.2, 3),
        (Limits(max_kid_above_best=0.06, max_latency_ms=160), 0.2, 2),  # the best of those that are quick enough
    ],
)
def test_the_cheapest_way_of_the_quality_asked_for(limits: Limits, c: float, admissible: int) -> None:
    choice = choose(SCORED, limits)
    assert choice.row is not None
    assert (choice.row.cut_ratio, choice.admissible) == (c, admissible)
    assert choice.row.image_kid is not None
    assert choice.quality == f"KID of its images: {choice.row.image_kid:#.3g}."


def test_a_way_of_unknown_quality_is_not_within_any_and_is_said_where_chosen() -> None:
    choice = choose(WAYS, Limits(max_latency_ms=300))
    assert choice.quality is not None and "Nobody scored the images of this way (--image-kid)" in choice.quality
    blind = choose(WAYS, Limits(max_kid_above_best=0.1))
    assert blind.row is None
    assert blind.advice == ("--max-kid-above-best 0.1 cannot be judged: no way's images have a score (--image-kid)",)
    assert choose(WAYS, Limits(max_image_kid=1.0)).advice == (
        "--max-image-kid 1 cannot be judged: KID of the images not given (--image-kid)",
    )
    (line,) = choose(SCORED, Limits(max_image_kid=0.1)).advice
    assert line.startswith("--max-image-kid 0.1 would have to be 0.2100: c = 0.8")


@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan])
def test_a_distance_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(InputError, match=r"--max-kid-above-best .*: must be a finite number of at least 0"):
        Limits(max_kid_above_best=value)
