"""Clients that cut at different c feed one server, and it learns the mixture of all their images, not another one."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from collafuse_edge.training.losses import WEIGHT_CAP, exact_server_pair, mixture_weights
from collafuse_edge.training.tasks import ServerTask
from collafuse_edge.upload import make_paper_shard, make_shard
from collafuse_edge.upload.shard import Shard
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.diffusion.schedule import alpha_bar
from collafuse_runtimes.errors import InputError

SHAPE = (1, 4, 4)
PLAN = SplitPlan(SHAPE, timesteps=100)


def pulls(table: np.ndarray, cuts: tuple[int, ...], t: int, *, exact: bool) -> np.ndarray:
    """What each image of a cut adds to the squared error in epsilon at level t, per draw, unweighted."""
    existing = [cut for cut in cuts if cut <= t]  # cuts ascend
    r = [exact_server_pair(0.0, 0.0, table[cut - 1], table[t])[1] if exact else 1.0 for cut in existing]
    found = [r_k**2 / (len(table) - cut) for r_k, cut in zip(r, existing, strict=True)]
    return np.array(found + [0.0] * (len(cuts) - len(existing)))


def test_unweighted_the_later_client_would_have_29_percent_of_its_half() -> None:
    share = pulls(PLAN.alpha_bar, (20, 80), 80, exact=True)
    assert share[1] / share.sum() == pytest.approx(0.295, abs=5e-4)
    weighted = share * mixture_weights(PLAN.alpha_bar, (20, 80), exact=True)[:, 80]
    assert weighted[1] / weighted.sum() == pytest.approx(0.5, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    timesteps=st.integers(5, 1000),
    schedule=st.sampled_from(["cosine", "linear"]),
    exact=st.booleans(),
)
def test_at_every_level_the_images_that_exist_mix_by_their_numbers(
    data: st.DataObject, timesteps: int, schedule: str, exact: bool
) -> None:
    cuts = tuple(sorted(data.draw(st.sets(st.integers(int(exact), timesteps - 1), min_size=1, max_size=5))))
    counts = np.array(data.draw(st.lists(st.integers(1, 900), min_size=len(cuts), max_size=len(cuts))))
    table = alpha_bar(schedule, timesteps)
    weights = mixture_weights(table, cuts, exact=exact)
    for t in range(cuts[0], timesteps):
        exists = np.array(cuts) <= t
        share = counts * weights[:, t] * pulls(table, cuts, t, exact=exact)
        np.testing.assert_allclose(share / share.sum(), counts * exists / counts[exists].sum(), rtol=1e-8)
    assert (weights[:, : cuts[0]] == 0).all()
    assert weights.max() <= WEIGHT_CAP * (1 + 1e-12)
    alone = slice(cuts[0], cuts[1] if len(cuts) > 1 else timesteps)
    assert (weights[0, alone] == 1).all()
    below_the_cap = weights.max(axis=0)[cuts[0] :] < WEIGHT_CAP * (1 - 1e-12)
    assert (weights[0, cuts[0] :][below_the_cap] == 1).all()


@pytest.mark.parametrize("sizes", [(100, 100), (30, 170)])
@pytest.mark.parametrize("t", [80, 83, 99])
def test_the_minimiser_is_the_expected_epsilon_of_the_whole_mixture(t: int, sizes: tuple[int, int]) -> None:
    """Two clients of Gaussian images, N(m_k, s_k^2), with cuts 20 and 80."""
    cuts, means, deviations = (20, 80), np.array([-0.6, 0.5]), np.array([0.2, 0.35])
    table = PLAN.alpha_bar
    x_t, a = np.linspace(-2.5, 2.5, 41)[:, None], table[t]
    variance = a * deviations**2 + 1 - a
    of_client = (1 - a) ** 0.5 * (x_t - a**0.5 * means) / variance
    density = np.exp(-((x_t - a**0.5 * means) ** 2) / (2 * variance)) / variance**0.5 * sizes
    whole = (density * of_client).sum(1) / density.sum(1)
    pull = density * pulls(table, cuts, t, exact=True)
    weighted = pull * mixture_weights(table, cuts, exact=True)[:, t]
    np.testing.assert_allclose((weighted * of_client).sum(1) / weighted.sum(1), whole, rtol=0, atol=1e-12)
    unweighted = (pull * of_client).sum(1) / pull.sum(1)
    assert (np.abs(unweighted - whole).max() > 0.01) or t == 99


def constant_images(level: float, count: int) -> np.ndarray:
    return np.full((count, *SHAPE), level, np.float32)


def fitted_shares(task: ServerTask, levels: np.ndarray, t_to: int, *, weigh: bool) -> np.ndarray:
    """Least squares on the task's own batches: of all E[epsilon | x_t] of mixtures of these point masses, the best."""
    batch = task.batch(np.tile(np.arange(len(task)), 160), torch.Generator().manual_seed(4))
    kept = (batch.t >= 80) & (batch.t < t_to)
    a = torch.from_numpy(task.plan.alpha_bar.copy())[batch.t[kept]][:, None, None, None, None]
    x_t, target = batch.x_t[kept][..., None].double(), batch.target[kept].double()
    scale = 1.0 if batch.scale is None else batch.scale[kept].double()
    weight = batch.weight[kept].double() if weigh and batch.weight is not None else 1.0
    away = x_t - a.sqrt() * torch.from_numpy(levels)
    logits = torch.zeros(len(levels), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=30, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        posterior = torch.softmax(logits - away**2 / (2 * (1 - a)), dim=-1)
        epsilon = (posterior * away).sum(-1) / (1 - a[..., 0]).sqrt()
        loss = (weight * (scale * epsilon - target) ** 2).mean()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return torch.softmax(logits.detach(), 0).numpy()


@pytest.mark.parametrize(
    ("cuts", "counts"), [((20, 80), (500, 500)), ((20, 50, 80), (500, 200, 300))], ids=["equal pair", "unequal three"]
)
def test_least_squares_on_the_tasks_own_batches_finds_the_mixture(
    cuts: tuple[int, ...], counts: tuple[int, ...]
) -> None:
    levels, random, shards = np.linspace(-3, 3, len(cuts)), np.random.default_rng(2), []
    for level, count, cut in zip(levels, counts, cuts, strict=True):
        a, epsilon = PLAN.alpha_bar[cut - 1], random.standard_normal((count, *SHAPE))
        x_n = a**0.5 * level + (1 - a) ** 0.5 * epsilon
        shards.append(Shard(PLAN.with_cut_ratio(cut / 100), "upload", x_n.astype(np.float32)))
    task = ServerTask(shards, list("abc")[: len(cuts)])
    whole = np.array(counts) / sum(counts)
    found = fitted_shares(task, levels, 82, weigh=True)
    unweighted = fitted_shares(task, levels, 82, weigh=False)
    assert np.abs(found - whole).max() < 0.02
    assert np.abs(unweighted - whole).max() > 0.08


def test_paper_shards_mix_by_their_rows() -> None:
    """Every row is met once an epoch whatever its cut, so the later client's rows crowd the late levels."""
    cuts, counts = (20, 60), (4000, 4000)
    shards = [
        make_paper_shard(constant_images(0.5, count), SplitPlan(SHAPE, cut_ratio=cut / 100), 1, i)
        for i, (cut, count) in enumerate(zip(cuts, counts, strict=True))
    ]
    task = ServerTask(shards, ["a", "b"])
    batch = task.batch(np.arange(8000), torch.Generator())
    assert batch.weight is not None
    weight, late = batch.weight.flatten().numpy(), batch.t.numpy() >= 60
    assert set(np.unique(weight).round(6)) == {0.5, 1.0}
    first, second = weight[:4000][late[:4000]], weight[4000:]
    assert second.sum() / first.sum() == pytest.approx(1, abs=5 * math.sqrt(1 / 2000))


@pytest.mark.parametrize("make", [make_shard, make_paper_shard])
def test_clients_of_one_cut_are_not_weighed_at_all(make: object) -> None:
    """The loss is then the plain mean square, bit for bit what it was for shards of one cut."""
    images = constant_images(0.2, 5)
    shards = [
        make_shard(images, PLAN, bytes(32)) if make is make_shard else make_paper_shard(images, PLAN, 1, 0)
        for _ in range(2)
    ]
    batch = ServerTask(shards, ["a", "b"]).batch(np.arange(10), torch.Generator().manual_seed(0))
    assert batch.weight is None


def test_the_training_loss_is_the_weighted_square() -> None:
    cuts = (20, 80)
    shards = [
        make_shard(constant_images(0.1 * i, 6), PLAN.with_cut_ratio(cut / 100), bytes(32)) for i, cut in enumerate(cuts)
    ]
    batch = ServerTask(shards, ["a", "b"]).batch(np.arange(12), torch.Generator().manual_seed(0))
    assert batch.weight is not None and batch.scale is not None

    for own in (slice(0, None, 2), slice(1, None, 2)):
        error = batch.scale[own] * 2 * batch.x_t[own] - batch.target[own]
        expected = float((batch.weight[own] * error**2).mean())
        assert float(batch.rows(own).loss(2 * batch.x_t[own])) == pytest.approx(expected, rel=1e-6)
    table = mixture_weights(PLAN.alpha_bar, cuts, exact=True)
    rows = np.repeat([0, 1], 6)
    np.testing.assert_array_equal(batch.weight.flatten().numpy(), table[rows, batch.t.numpy()].astype(np.float32))


def test_shards_of_both_protocols_are_refused_together() -> None:
    images = constant_images(0.2, 3)
    both = [make_shard(images, PLAN, bytes(32)), make_paper_shard(images, PLAN, 1, 0)]
    with pytest.raises(InputError, match=r"shards mix the protocols \['paper', 'upload'\]; train on shards of one"):
        ServerTask(both, ["a", "b"])
