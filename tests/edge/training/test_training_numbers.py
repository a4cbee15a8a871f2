"""Optimizer, learning rate, clipping, moving average and precision do what the settings say."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from small_training import PLAN, SHAPE, Optimizer, easy_images, small_network, small_run, watched_optimizer

from collafuse_edge.training.loop import train
from collafuse_edge.training.tasks import ClientTask, ServerTask
from collafuse_edge.training.trainer import LOSS_ENTRIES
from collafuse_edge.upload import make_shard
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.files.checkpoint import load_network


def weights(checkpoint: Path, name: str = "model") -> dict[str, np.ndarray]:
    files = {"model": "model.safetensors", "ema": "diffusion_pytorch_model.safetensors"}
    return load_file(checkpoint / files[name])


def flat(tensors: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([tensors[name].ravel() for name in sorted(tensors)])


def watch(out: Path, **options: Any) -> Optimizer:
    with watched_optimizer() as seen:
        train(small_run(out, **options))
    return seen


def test_one_seed_gives_one_set_of_weights(tmp_path: Path) -> None:
    digests = [
        train(small_run(tmp_path / str(i), seed=seed)).weights_sha256 for i, seed in enumerate((0, 0, 1, 2**64 - 1))
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_the_loss_falls_on_easy_images(tmp_path: Path) -> None:
    checkpoint = train(small_run(tmp_path / "c", steps=100, learning_rate=3e-3))
    losses = [loss for _, loss in checkpoint.training["losses"]]
    assert len(losses) == 100
    assert 0.7 < losses[0] < 2.5  # an untrained network predicts about nothing of unit-variance noise
    assert np.mean(losses[-10:]) < 0.5 * losses[0]


def test_the_server_loss_falls_too(tmp_path: Path) -> None:
    task = ServerTask([make_shard(easy_images(), PLAN, bytes(32))], ["a"])
    losses = [
        loss for _, loss in train(small_run(tmp_path / "s", task, steps=100, learning_rate=3e-3)).training["losses"]
    ]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:3])


def test_a_conditional_head_learns_what_its_labels_mean(tmp_path: Path) -> None:
    plan = SplitPlan(SHAPE, timesteps=20, cut_ratio=1)
    labels = np.arange(32) % 2
    images = np.broadcast_to((labels * 1.6 - 0.8).astype(np.float32)[:, None, None, None], (32, *SHAPE)).copy()
    task = ClientTask(plan, images, labels, 2)
    checkpoint = train(small_run(tmp_path / "c", task, small_network(2), steps=150, learning_rate=3e-3, batch_size=16))
    losses = [loss for _, loss in checkpoint.training["losses"]]
    assert losses[-1] < 0.4 * losses[0]
    assert checkpoint.network.num_classes == 2

    network = load_network(checkpoint)
    batch = task.batch(np.tile(np.arange(32), 8), torch.Generator().manual_seed(0))
    assert batch.labels is not None
    loss = {}
    for name, given in (("right", batch.labels), ("wrong", 1 - batch.labels)):
        with torch.inference_mode():
            epsilon = network(batch.x_t, batch.t, class_labels=given, return_dict=False)[0]
        loss[name] = float(torch.nn.functional.mse_loss(epsilon, batch.target))
    assert loss["right"] < 0.7 * loss["wrong"]


def test_learning_rates_of_the_cosine_schedule(tmp_path: Path) -> None:
    seen = watch(tmp_path / "c", steps=12, warmup_steps=4, lr_schedule="cosine", learning_rate=2e-3)
    warm = [2e-3 * step / 4 for step in (1, 2, 3)]
    falling = [2e-3 * 0.5 * (1 + math.cos(math.pi * (step - 4) / 8)) for step in range(4, 13)]
    assert seen.learning_rates == pytest.approx(warm + falling, rel=1e-12, abs=1e-18)
    assert seen.learning_rates[3] == 2e-3
    assert seen.learning_rates[-1] == 0


def test_learning_rates_of_the_constant_schedule(tmp_path: Path) -> None:
    seen = watch(tmp_path / "c", steps=5, warmup_steps=2, learning_rate=2e-3)
    assert seen.learning_rates == pytest.approx([1e-3, 2e-3, 2e-3, 2e-3, 2e-3], rel=1e-12)


def test_the_optimizer_is_adam(tmp_path: Path) -> None:
    """Kingma & Ba 2015, algorithm 1, with betas 0.9 and 0.99, replayed from the gradients."""
    seen = watch(tmp_path / "c", steps=4, learning_rate=1e-3)
    m, v = torch.zeros_like(seen.gradients[0]), torch.zeros_like(seen.gradients[0])
    for k in range(1, 4):
        m, v = 0.9 * m + 0.1 * seen.gradients[k - 1], 0.99 * v + 0.01 * seen.gradients[k - 1] ** 2
        if k > 1:
            update = 1e-3 * (m / (1 - 0.9**k)) / ((v / (1 - 0.99**k)).sqrt() + 1e-8)
            assert torch.allclose(seen.weights[k - 2] - update, seen.weights[k - 1], atol=1e-6)


def test_the_moving_average_is_its_closed_form(tmp_path: Path) -> None:
    """shadow_1 = w_1, then shadow_k = d shadow_{k-1} + (1 - d) w_k with d = min(k / (9 + k), ema_decay)."""
    for decay in (0.999, 0.15):
        seen = watch(tmp_path / str(decay), steps=5, ema_decay=decay)
        shadow = seen.weights[0].clone()
        for k in range(2, 6):
            d = min(k / (9 + k), decay)
            shadow = d * shadow + (1 - d) * seen.weights[k - 1]
        names = [name for name, _ in build().named_parameters()]
        tensors = weights(tmp_path / str(decay), "ema")
        stored = np.concatenate([tensors[name].ravel() for name in names])
        assert np.abs(stored - shadow.numpy()).max() < 1e-6
        last = weights(tmp_path / str(decay))
        assert np.array_equal(np.concatenate([last[name].ravel() for name in names]), seen.weights[-1].numpy())


def build() -> torch.nn.Module:
    from collafuse_edge.training.presets import build_network

    return build_network(small_network(), 0)


def test_clipping_bounds_the_gradient_and_keeps_its_direction(tmp_path: Path) -> None:
    free, clipped = watch(tmp_path / "a", clip_norm=1e9), watch(tmp_path / "b", clip_norm=0.01)
    assert min(free.norms()) > 0.02
    assert clipped.norms() == pytest.approx([0.01] * 4, rel=1e-3)
    cosine = torch.nn.functional.cosine_similarity(free.gradients[0], clipped.gradients[0], dim=0)
    assert float(cosine) > 0.99999


@pytest.mark.parametrize("options", [{"accumulation": 2}, {"accumulation": 8}, {"channels_last": True}])
def test_work_laid_out_otherwise_gives_the_same_losses_and_gradients(tmp_path: Path, options: dict[str, Any]) -> None:
    plain, other = watch(tmp_path / "a", clip_norm=1e9), watch(tmp_path / "b", clip_norm=1e9, **options)
    assert len(other.gradients) == 4  # accumulated parts make one optimizer step
    scale = plain.gradients[0].abs().max()
    assert (plain.gradients[0] - other.gradients[0]).abs().max() < 1e-5 * scale
    curves = [np.array(losses(tmp_path / name)) for name in ("a", "b")]
    assert np.abs(curves[0] - curves[1]).max() < 1e-4


def losses(checkpoint: Path) -> list[float]:
    from collafuse_runtimes.files.checkpoint import read_checkpoint

    return [loss for _, loss in read_checkpoint(checkpoint, "client").training["losses"]]


def test_bf16_rounds_the_network_and_keeps_float32_weights(tmp_path: Path) -> None:
    train(small_run(tmp_path / "a"))
    train(small_run(tmp_path / "b", mixed_precision="bf16"))
    exact, rounded = np.array(losses(tmp_path / "a")), np.array(losses(tmp_path / "b"))
    assert 0 < np.abs(exact - rounded).max() < 0.03
    stored = weights(tmp_path / "b")
    assert {value.dtype for value in stored.values()} == {np.dtype(np.float32)}
    values = flat(stored).view(np.uint32)
    assert np.count_nonzero(values & 0xFFFF) > 0.9 * values.size  # bfloat16 has the upper 16 bits alone


def test_the_loss_curve_is_kept_in_a_limited_number_of_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert LOSS_ENTRIES == 100
    monkeypatch.setattr("collafuse_edge.training.trainer.LOSS_ENTRIES", 5)
    every, means = train(small_run(tmp_path / "5", steps=5)), train(small_run(tmp_path / "12", steps=12))
    single = train(small_run(tmp_path / "4", steps=4)).training["losses"]
    assert [step for step, _ in every.training["losses"]] == [1, 2, 3, 4, 5]
    assert [step for step, _ in means.training["losses"]] == [2, 4, 6, 8, 10, 12]
    assert means.training["losses"][1][1] == pytest.approx((single[2][1] + single[3][1]) / 2, rel=1e-6)
