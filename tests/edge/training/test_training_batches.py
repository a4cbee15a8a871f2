"""What the network is trained on: each task's timesteps, noisy images, targets and weights, number by number."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_training import SHAPE, easy_images

from collafuse_edge.settings import UploadSettings
from collafuse_edge.training.tasks import ClientTask, ServerTask, batch_indices
from collafuse_edge.upload import make_paper_shard, make_shard, upload_images
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.errors import InputError

PLAN = SplitPlan(SHAPE, timesteps=50, cut_ratio=0.2)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (30, *SHAPE)).astype(np.float32)
EVERY = np.arange(30)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_uniform(t: np.ndarray, first: int, last: int) -> None:
    """Chi-square against the uniform law on first..last, at five standard deviations."""
    assert (t.min(), t.max()) == (first, last)
    cells = last - first + 1
    expected = len(t) / cells
    chi_square = ((np.bincount(t - first, minlength=cells) - expected) ** 2 / expected).sum()
    assert abs(chi_square - (cells - 1)) <= 5 * (2 * (cells - 1)) ** 0.5


def test_client_batches_are_epsilon_prediction_below_the_cut() -> None:
    task = ClientTask(PLAN, IMAGES)
    batch = task.batch(EVERY[::-1].copy(), generator(7))
    replay = generator(7)
    t = torch.randint(0, 10, (30,), generator=replay)
    epsilon = torch.randn((30, *SHAPE), generator=replay)
    assert torch.equal(batch.t, t)
    assert torch.equal(batch.target, epsilon)
    alpha_bar_t = PLAN.alpha_bar[t.numpy()][:, None, None, None]
    x_t = alpha_bar_t**0.5 * IMAGES[::-1] + (1 - alpha_bar_t) ** 0.5 * epsilon.numpy()
    assert batch.x_t.dtype == torch.float32
    assert np.abs(batch.x_t.numpy() - x_t).max() < 1e-6
    assert (batch.scale, batch.labels) == (None, None)


def test_v_targets_hold_the_same_images_and_noise() -> None:
    """Both tasks, from what epsilon-prediction draws with the same seed: the pair (x_t, v) leads back to it."""
    plan = replace(PLAN, prediction_type="v", server_prediction_type="v")
    (of_epsilon, of_v), alpha_bar = (
        (ClientTask(p, IMAGES).batch(EVERY, generator(7)) for p in (PLAN, plan)),
        PLAN.alpha_bar,
    )
    a = torch.from_numpy(alpha_bar[of_v.t.numpy()]).reshape(-1, 1, 1, 1)
    assert torch.equal(of_v.x_t, of_epsilon.x_t)
    found = a**0.5 * of_v.target + (1 - a) ** 0.5 * of_v.x_t
    assert float((found - of_epsilon.target).abs().max()) < 1e-6
    shards = [make_shard(IMAGES, p, b"k" * 32) for p in (PLAN, plan)]
    of_epsilon, of_v = (ServerTask([shard], ["s"]).batch(EVERY, generator(7)) for shard in shards)
    a = torch.from_numpy(alpha_bar[of_v.t.numpy()]).reshape(-1, 1, 1, 1)
    assert torch.equal(of_v.x_t, of_epsilon.x_t) and torch.equal(of_v.scale, of_epsilon.scale)
    eta = a**0.5 * of_v.target + of_v.scale * (1 - a) ** 0.5 * of_v.x_t
    assert float((eta - of_epsilon.target).abs().max()) < 2e-6


@pytest.mark.parametrize("cut_ratio", [0.02, 0.2, 1.0])
def test_client_timesteps_are_uniform_below_the_cut(cut_ratio: float) -> None:
    task = ClientTask(PLAN.with_cut_ratio(cut_ratio), IMAGES)
    t = task.batch(np.zeros(5000, np.int64), generator()).t.numpy()
    assert_uniform(t, 0, task.plan.cut - 1)


def test_labels_reach_conditional_heads_alone() -> None:
    labels = np.arange(30) % 3
    batch = ClientTask(PLAN, IMAGES, labels, 3).batch(np.array([4, 0, 29]), generator())
    assert batch.labels is not None
    assert batch.labels.tolist() == [1, 0, 2]
    for wrong, classes, message in (
        (labels, None, "not class-conditional"),
        (None, 3, "give one label from 0 to 2"),
        (labels, 2, "label 2 out of range: must be 0 to 1"),
        (labels[:7], 3, r"labels have shape \(7,\)"),
    ):
        with pytest.raises(InputError, match=message):
            ClientTask(PLAN, IMAGES, wrong, classes)


def test_no_head_where_the_client_has_no_step() -> None:
    with pytest.raises(InputError, match=r"cut_ratio 0\.0 leaves the device no step, so there is no head"):
        ClientTask(PLAN.with_cut_ratio(0), IMAGES)


def test_server_batches_start_at_each_shards_own_cut() -> None:
    """Three clients with cuts 10, 25 and 45 feed one server."""
    plans = [PLAN.with_cut_ratio(c) for c in (0.9, 0.2, 0.5)]
    shards = [make_shard(IMAGES[10 * i : 10 * i + 10], plan, bytes(32)) for i, plan in enumerate(plans)]
    task = ServerTask(shards, ["a", "b", "c"])
    assert (task.plan.cut, len(task)) == (10, 30)
    indices = np.tile(EVERY, 400)
    batch = task.batch(indices, generator(3))
    t = batch.t.numpy()
    for client, cut in enumerate((45, 10, 25)):
        assert_uniform(t[indices // 10 == client], cut, 49)

    replay = generator(3)
    torch.rand(len(indices), generator=replay)
    eta = torch.randn((len(indices), *SHAPE), generator=replay)
    assert torch.equal(batch.target, eta)
    x_n = np.concatenate([shard.images for shard in shards])[indices]
    alpha_bar_n = PLAN.alpha_bar[np.array([44, 9, 24])[indices // 10]][:, None, None, None]
    alpha_bar_t = PLAN.alpha_bar[t][:, None, None, None]
    rho = alpha_bar_t / alpha_bar_n
    assert np.abs(batch.x_t.numpy() - (rho**0.5 * x_n + (1 - rho) ** 0.5 * eta.numpy())).max() < 1e-5
    assert batch.scale is not None
    assert batch.scale.shape == (len(indices), 1, 1, 1)
    assert np.abs(batch.scale.numpy() - ((1 - rho) / (1 - alpha_bar_t)) ** 0.5).max() < 1e-6
    assert 0 < batch.scale.min() < batch.scale.max() <= 1


def test_server_inputs_have_the_noise_level_of_their_timestep() -> None:
    """x_t of a constant image: mean sqrt(alpha_bar_t) x_0, variance 1 - alpha_bar_t, as if noised in one go."""
    count = 4000
    noised = make_shard(
        np.random.default_rng(2).choice([-0.5, 0.5], (count, *SHAPE)).astype(np.float32), PLAN, bytes(32)
    )
    batch = ServerTask([noised], ["a"]).batch(np.arange(count), generator())
    alpha_bar_t = PLAN.alpha_bar[batch.t.numpy()]
    power = (batch.x_t.numpy().astype(np.float64) ** 2).mean(axis=(1, 2, 3))
    assert abs((power - (0.25 * alpha_bar_t + 1 - alpha_bar_t)).mean()) < 0.01


def test_paper_batches_are_the_uploaded_triples() -> None:
    shards = [make_paper_shard(IMAGES[:10], PLAN, 2, 0), make_paper_shard(IMAGES[10:], PLAN.with_cut_ratio(0.6), 1, 1)]
    task = ServerTask(shards, ["a", "b"])
    indices = np.array([39, 0, 20, 19])
    batch = task.batch(indices, generator())
    for name, found in (("images", batch.x_t), ("epsilon", batch.target), ("t", batch.t)):
        stored = np.concatenate([getattr(shard, name) for shard in shards])
        assert np.array_equal(found.numpy(), stored[indices])
    assert batch.scale is None
    assert task.plan.cut == 10


def test_data_digests_tell_data_apart(tmp_path: Path) -> None:
    labels = np.arange(30) % 2
    digests = [
        ClientTask(PLAN, IMAGES).digest(),
        ClientTask(PLAN, IMAGES[::-1].copy()).digest(),
        ClientTask(PLAN, IMAGES, labels, 2).digest(),
        ClientTask(PLAN, IMAGES, 1 - labels, 2).digest(),
        ServerTask([make_shard(IMAGES, PLAN, bytes(32))], ["a"]).digest(),
        ServerTask([make_shard(IMAGES, PLAN.with_cut_ratio(0.4), bytes(32))], ["a"]).digest(),
        ServerTask([make_paper_shard(IMAGES, PLAN, 1, 0)], ["a"]).digest(),
    ]
    assert len(set(digests)) == len(digests)
    upload_images(tmp_path / "s", IMAGES, PLAN, UploadSettings(key=tmp_path / "key", dtype="float32"))
    assert ServerTask.from_files([tmp_path / "s"]).digest() == ServerTask.from_files([tmp_path / "s"]).digest()


@settings(max_examples=100, deadline=None)
@given(
    count=st.integers(1, 60),
    batch_size=st.integers(1, 90),
    seed=st.one_of(st.integers(0, 5), st.integers(2**63 - 2, 2**64 - 1)),
)
def test_every_epoch_sees_every_image_once(count: int, batch_size: int, seed: int) -> None:
    epochs = 3
    steps = -(-epochs * count // batch_size)
    seen = np.concatenate([batch_indices(count, batch_size, seed, step) for step in range(steps)])
    for epoch in range(epochs):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    seeds = (0, 1, 2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1)
    orders = {tuple(batch_indices(50, 50, seed, epoch)) for seed in seeds for epoch in range(3)}
    assert len(orders) == 3 * len(seeds)


def test_easy_images_fit_the_plan() -> None:
    images = easy_images()
    assert (images.shape, images.dtype, np.abs(images).max()) == ((24, *SHAPE), np.float32, 1)
