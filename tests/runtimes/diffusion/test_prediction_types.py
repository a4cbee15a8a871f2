"""epsilon and v are two ways to say one thing: the same function gives the same images, on every engine."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from heads import PLAN, checkpoint
from small_training import easy_images

from collafuse_edge.handoff.server_steps import HandoverSettings, make_handover
from collafuse_edge.training.loop import TrainRun, train
from collafuse_edge.training.presets import network_config
from collafuse_edge.training.settings import TrainSettings
from collafuse_edge.training.tasks import ServerTask
from collafuse_edge.upload import make_shard
from collafuse_export import ExportSettings, export_head
from collafuse_runtimes.diffusion.noise import Float32Array, noise_batch
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.diffusion.samplers import Sampler, denoise
from collafuse_runtimes.engines import EngineOptions, open_engine
from collafuse_runtimes.files.checkpoint import read_checkpoint
from collafuse_runtimes.verify import verify_bundle

EPSILON = SplitPlan((1, 16, 16), cut_ratio=0.8)
V = replace(EPSILON, prediction_type="v", server_prediction_type="v")
SAMPLERS = [Sampler(), Sampler("ddim", 0.5), Sampler("ddpm"), Sampler("dpm++2m", levels="karras")]


def best_epsilon(x_t: Float32Array, t: int) -> Float32Array:
    """Of Gaussian images around a slope, a little short: x_0 is clipped where there is much noise."""
    a, image = EPSILON.alpha_bar_at(t), np.linspace(-0.8, 0.8, 256, dtype=np.float32).reshape(1, 16, 16)
    return np.float32(0.97 * (1 - a) ** 0.5 / (0.1 * a + 1 - a)) * (x_t - np.float32(a**0.5) * image)


def as_v(predict: Callable[[Float32Array, int], Float32Array]) -> Callable[[Float32Array, int], Float32Array]:
    def v(x_t: Float32Array, t: int) -> Float32Array:
        a = EPSILON.alpha_bar_at(t)
        out: Float32Array = ((predict(x_t, t) - (1 - a) ** 0.5 * x_t.astype(np.float64)) / a**0.5).astype(np.float32)
        return out

    return v


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.text)
@pytest.mark.parametrize("steps", [4, 20, 80])
def test_a_head_of_v_and_one_of_epsilon_give_the_same_trajectory(sampler: Sampler, steps: int) -> None:
    trajectories: list[list[Float32Array]] = []
    for plan, predict in ((EPSILON, best_epsilon), (V, as_v(best_epsilon))):
        states: list[Float32Array] = []
        denoise(
            noise_batch(1, range(4), 100, plan.image_shape),
            plan,
            plan.client_transitions(steps, sampler.levels),
            sampler,
            predict,
            noise=lambda t: noise_batch(2, range(4), t, EPSILON.image_shape),
            on_step=lambda _, x, states=states: states.append(x),  # type: ignore[misc]
        )
        trajectories.append(states)
    assert np.abs(np.stack(trajectories[0]) - np.stack(trajectories[1])).max() < 1e-5


@pytest.mark.parametrize("sampler", SAMPLERS[1:], ids=lambda s: s.text)
def test_an_exported_head_of_v_computes_what_torch_computes(sampler: Sampler, tmp_path: Path) -> None:
    plan = replace(PLAN, prediction_type="v")
    source = checkpoint(plan, levels=1)
    bundle = export_head(source, tmp_path / "v.head", ExportSettings(sampler=sampler, step_counts=(5,)))
    assert bundle.plan.prediction_type == "v"
    for engine in ("ort-cpu", "openvino", "torch"):
        options = EngineOptions(checkpoint=source) if engine == "torch" else EngineOptions(threads=1)
        assert verify_bundle(bundle, engine, options).passed
    as_epsilon = replace(bundle, plan=PLAN)
    assert np.abs(bundle.table[:, :2] - as_epsilon.table[:, :2]).max() > 0.1  # the rows hold the difference
    with open_engine(bundle, "fake") as engine_of_v, open_engine(as_epsilon, "fake") as engine_of_epsilon:
        x_tc = noise_batch(3, range(2), plan.handover_level, plan.image_shape)
        images = [engine.denoise(x_tc, seed=4) for engine in (engine_of_v, engine_of_epsilon)]
    np.testing.assert_allclose(*images, atol=1e-5)  # the exact denoiser, told in both ways


def test_a_server_of_v_is_trained_from_shards_and_hands_over(tmp_path: Path) -> None:
    plan = SplitPlan((1, 8, 8), timesteps=20, cut_ratio=0.25, server_prediction_type="v")
    task = ServerTask([make_shard(easy_images(32), plan, bytes(32))], ["shard"])
    run = TrainRun(task, network_config("tiny", plan), TrainSettings(steps=3, batch_size=8), tmp_path / "s", cpu=True)
    train(run)
    stored = read_checkpoint(tmp_path / "s", "server").plan
    assert (stored.prediction_type, stored.server_prediction_type) == ("epsilon", "v")
    handover = make_handover(plan, tmp_path / "s", HandoverSettings(count=2, seed=0, steps=4))
    assert np.isfinite(handover.x_tc).all() and handover.plan == plan
