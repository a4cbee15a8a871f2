"""Membership and copies where the answer is known: networks that never saw the images, and one that knows them all."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collafuse_benchmarks.disclosure.membership import auc, copies, membership, nearest
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.errors import InputError

PLAN = SplitPlan((1, 8, 8))
LEVELS = (5, 20, 60)


def images(seed: int, count: int) -> np.ndarray:
    draws = np.random.Generator(np.random.Philox(seed)).standard_normal((count, 1, 8, 8))
    return (0.4 * draws).clip(-1, 1).astype(np.float32)


def memory_of(known: np.ndarray):
    """The noise an ideal network sees that knows these images and no others: E[epsilon | x_t] over them."""

    def predict(x: np.ndarray, t: int) -> np.ndarray:
        a = PLAN.alpha_bar_at(t)
        flat, seen = x.reshape(len(x), -1), known.reshape(len(known), -1)
        distances = ((flat[:, None] - math.sqrt(a) * seen[None]) ** 2).sum(axis=2) / (2 * (1 - a))
        weights = np.exp(distances.min(axis=1, keepdims=True) - distances)
        mean = weights @ seen / weights.sum(axis=1, keepdims=True)
        return ((flat - math.sqrt(a) * mean) / math.sqrt(1 - a)).reshape(x.shape).astype(np.float32)

    return predict


def test_a_network_that_never_saw_the_images_tells_nothing() -> None:
    found = membership(memory_of(images(9, 60)), images(1, 400), images(2, 400), LEVELS)
    assert found.low < 0.5 < found.high
    assert abs(found.auc - 0.5) < 0.08
    assert found.tpr_low <= 0.02


def test_a_network_that_knows_its_images_by_heart_gives_them_away() -> None:
    members = images(1, 100)
    found = membership(memory_of(members), members, images(2, 100), LEVELS)
    assert found.low > 0.99
    assert found.tpr_low > 0.9


def test_the_figures_are_of_images_that_did_not_choose_the_level() -> None:
    found = membership(memory_of(images(9, 60)), images(1, 41), images(2, 60), LEVELS)
    assert (found.members, found.non_members) == (21, 30)
    assert found.level in LEVELS


@settings(max_examples=50)
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=30), st.lists(st.integers(-5, 5), min_size=1, max_size=30))
def test_auc_is_the_share_of_pairs_in_order(inside: list[int], outside: list[int]) -> None:
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in inside for b in outside]
    assert auc(np.array(inside, float), np.array(outside, float)) == pytest.approx(np.mean(pairs))


def test_the_interval_of_the_area_holds_chance_in_95_of_100_draws() -> None:
    nobody = memory_of(images(9, 30))
    inside = [membership(nobody, images(s, 80), images(1000 + s, 80), (20,), seed=s) for s in range(300)]
    assert sum(one.low <= 0.5 <= one.high for one in inside) >= 273  # P(fewer | 95 %) is 1 in 1000


def test_independent_images_are_no_copies() -> None:
    found = copies(images(3, 200), images(1, 150), images(2, 100))
    assert found.compared == 100
    assert found.low < 0.5 < found.high
    assert found.ratio == pytest.approx(1, abs=0.02)


def test_one_image_that_is_the_nearest_of_all_is_no_evidence() -> None:
    """Generated noise of one kind has one nearest image: it lies in one half or in the other, by chance."""
    hub = (0.1 * images(7, 1)).astype(np.float32)
    generated = (hub + 0.01 * images(8, 60)).astype(np.float32)
    found = copies(generated, np.concatenate([images(1, 59), hub]), images(2, 60))
    assert found.nearer_to_trained == 1.0
    assert found.low < 0.5


def test_the_interval_of_the_share_holds_a_half_in_95_of_100_draws() -> None:
    """Also where few images are the nearest of many."""
    inside = 0
    for s in range(200):
        made = (0.3 * images(3 * s, 60)).astype(np.float32)
        found = copies(made, images(3 * s + 1, 40), images(3 * s + 2, 40), seed=s)
        inside += found.low <= 0.5 <= found.high
    assert inside >= 180  # P(fewer | 95 %) is 1 in 1000


def test_copies_are_seen() -> None:
    trained = images(1, 100)
    generated = trained[:50] + 0.02 * images(5, 50)
    found = copies(generated.astype(np.float32), trained, images(2, 100))
    assert found.nearer_to_trained == 1.0
    assert found.ratio < 0.1
    assert found.closest < 0.02 < found.closest_held_out


def test_the_nearest_is_the_nearest() -> None:
    some, others = images(1, 5), images(2, 300)
    wanted = [min(math.sqrt(((a - b) ** 2).mean()) for b in others) for a in some]
    found, whose = nearest(some, others)
    assert found == pytest.approx(np.array(wanted), rel=1e-6)
    assert [((some[k] - others[row]) ** 2).mean() ** 0.5 for k, row in enumerate(whose)] == pytest.approx(wanted)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(InputError, match="39 members and 40 others are too few"):
        membership(memory_of(images(9, 4)), images(1, 39), images(2, 40), LEVELS)
    with pytest.raises(InputError, match="19 held-out images are too few"):
        copies(images(1, 20), images(2, 20), images(3, 19))
