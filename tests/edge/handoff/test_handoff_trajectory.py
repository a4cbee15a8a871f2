"""The hand-over is the server's part of one trajectory: it ends at the plan's level and each sample is its own."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import done
from small_training import SHAPE, untrained

from collafuse_edge.handoff.server_steps import HandoverSettings, make_handover, start_noise
from collafuse_runtimes.diffusion.noise import gaussian_noise, noise_batch
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.diffusion.samplers import Sampler
from collafuse_runtimes.files.checkpoint import load_network, read_checkpoint
from collafuse_runtimes.files.handover import read_handover
from collafuse_runtimes.files.plan_file import write_plan

PLAN = SplitPlan(SHAPE, timesteps=20, cut_ratio=0.25)
LOCAL = PLAN.with_cut_ratio(1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained for every cut, by its plan."""
    return untrained(tmp_path_factory.mktemp("server") / "server", "server", PLAN.with_cut_ratio(0))


@pytest.mark.parametrize("sampler", [Sampler(), Sampler("ddim", 0.7), Sampler("ddpm")], ids=str)
def test_a_sample_depends_on_its_index_alone(server: Path, tmp_path: Path, sampler: Sampler) -> None:
    """To rounding, which the division by sqrt(alpha_bar) at t = 19 magnifies, and exactly without a network's own."""
    silent = untrained(tmp_path / "silent", "server", PLAN, scale=0)
    for checkpoint, tolerance in ((server, 1e-3), (silent, 0)):
        whole = make_handover(PLAN, checkpoint, HandoverSettings(count=7, seed=5, sampler=sampler)).x_tc
        in_threes = make_handover(
            PLAN, checkpoint, HandoverSettings(count=7, seed=5, sampler=sampler, batch_size=3)
        ).x_tc
        later = make_handover(PLAN, checkpoint, HandoverSettings(count=3, seed=5, sampler=sampler, first_index=4)).x_tc
        assert np.abs(whole - in_threes).max() <= tolerance
        assert np.abs(whole[4:] - later).max() <= tolerance
        other = make_handover(PLAN, checkpoint, HandoverSettings(count=7, seed=6, sampler=sampler)).x_tc
        assert np.abs(whole - other).mean() > 0.1
        assert np.abs(whole[0] - whole[1]).mean() > 0.1


def test_without_server_steps_the_handover_is_the_noise_itself() -> None:
    handover = make_handover(LOCAL, None, HandoverSettings(count=5, seed=2**64 - 1, first_index=2**40, batch_size=2))
    z = noise_batch(2**64 - 1, range(2**40, 2**40 + 5), 20, SHAPE)
    np.testing.assert_allclose(handover.x_tc, (1 - LOCAL.alpha_bar[-1]) ** 0.5 * z, rtol=1e-6)
    assert (handover.timesteps, handover.server_sha256) == ((), None)


@pytest.mark.parametrize(("timesteps", "schedule"), [(2, "linear"), (2, "cosine"), (100, "linear")])
def test_the_start_has_the_noise_that_training_met_at_the_last_timestep(timesteps: int, schedule: str) -> None:
    plan = SplitPlan((1, 64, 64), timesteps, schedule)
    found = float(start_noise(plan, 0, range(200)).std())
    assert found == pytest.approx((1 - plan.alpha_bar[-1]) ** 0.5, rel=5 / (2 * 200 * 64 * 64) ** 0.5)


@pytest.mark.parametrize(("steps", "timesteps"), [(None, list(range(19, 4, -1))), (3, [19, 14, 9]), (1, [19])])
def test_timesteps_are_absolute_and_stop_at_the_cut(server: Path, steps: int | None, timesteps: list[int]) -> None:
    handover = make_handover(PLAN, server, HandoverSettings(count=2, seed=0, steps=steps, sampler=Sampler()))
    assert list(handover.timesteps) == timesteps
    assert handover.server_sha256 == read_checkpoint(server).weights_sha256


@pytest.mark.parametrize("steps", [None, 4])
def test_the_chain_is_ddim_down_to_the_handover_level(server: Path, steps: int | None) -> None:
    """Song et al. 2021, eq. 12 with sigma = 0 and x_0 clipped, written out in float64 torch."""
    handover = make_handover(PLAN, server, HandoverSettings(count=3, seed=1, steps=steps, sampler=Sampler()))
    network = load_network(read_checkpoint(server)).double()
    z = np.stack([gaussian_noise(1, i, 20, SHAPE) for i in range(3)])
    x = torch.from_numpy(np.float32((1 - PLAN.alpha_bar[-1]) ** 0.5) * z).double()
    levels = [*handover.timesteps, PLAN.handover_level]
    with torch.inference_mode():
        for t, prev in pairwise(levels):
            epsilon = network(x, t, return_dict=False)[0]
            x_0 = ((x - (1 - PLAN.alpha_bar[t]) ** 0.5 * epsilon) / PLAN.alpha_bar[t] ** 0.5).clamp(-1, 1)
            x = PLAN.alpha_bar[prev] ** 0.5 * x_0 + (1 - PLAN.alpha_bar[prev]) ** 0.5 * epsilon
    assert np.abs(handover.x_tc - x.numpy()).max() < 3e-4  # float32, and 1 / sqrt(alpha_bar) = 406 at the start


def test_unless_told_a_server_takes_few_steps_of_the_second_order_solver(tmp_path: Path) -> None:
    plan = SplitPlan(SHAPE, timesteps=60, cut_ratio=0.5, server_prediction_type="v")
    handover = make_handover(plan, untrained(tmp_path / "s", "server", plan), HandoverSettings(count=1, seed=0))
    assert handover.sampler == {"name": "dpm++2m", "eta": 0.0, "levels": "karras"}
    assert len(handover.timesteps) == 20
    assert (handover.timesteps[0], min(handover.timesteps) >= 30) == (59, True)
    assert handover.timesteps == tuple(t for t, _ in plan.server_transitions(20, "karras"))
    every = make_handover(plan, tmp_path / "s", HandoverSettings(count=1, seed=0, sampler=Sampler()))
    assert every.timesteps == tuple(range(59, 29, -1))


def test_at_c_0_the_server_finishes_the_images(server: Path) -> None:
    whole = PLAN.with_cut_ratio(0)
    handover = make_handover(whole, server, HandoverSettings(count=4, seed=0))
    assert handover.timesteps == tuple(range(19, -1, -1))
    assert np.abs(handover.x_tc).max() <= 1
    assert whole.handover_level == -1


def test_every_step_of_every_batch_is_reported_as_it_ends(server: Path) -> None:
    seen: list[int] = []
    make_handover(PLAN, server, HandoverSettings(count=7, seed=0, steps=2, batch_size=3), on_step=seen.append)
    assert seen == [1, 2, 3, 4, 5, 6]


def test_the_command_writes_what_the_function_makes(server: Path, tmp_path: Path) -> None:
    write_plan(tmp_path / "plan.json", PLAN)
    out_file = tmp_path / "x.tc.safetensors"
    options = ("--seed", 9, "--first-index", 2, "--steps", 5, "--sampler", "ddpm", "--device", "cpu", "--out", out_file)
    out = done("handoff", "--plan", tmp_path / "plan.json", "--server", server, "--count", 3, *options)
    size = out_file.stat().st_size
    assert out.splitlines() == [
        "server    5 of 15 steps, timesteps 19..5",
        f"wrote     {out_file}: 3 tensors at level 4, {size} bytes",
    ]
    written = read_handover(out_file)
    made = make_handover(
        PLAN, server, HandoverSettings(count=3, seed=9, first_index=2, steps=5, sampler=Sampler("ddpm"), device="cpu")
    )
    assert np.array_equal(written.x_tc, made.x_tc)
    assert (written.plan, written.seed, written.first_index) == (PLAN, 9, 2)
    assert (written.timesteps, written.server_sha256) == (made.timesteps, made.server_sha256)
    assert written.sampler == {"name": "ddpm", "eta": 0.0}
