"""Cutting a trajectory changes no bit of it: not the cut, not the file between, not the batch, not the order."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from collafuse_runtimes.diffusion.noise import Float32Array, noise_batch
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.diffusion.samplers import Sampler, denoise
from collafuse_runtimes.errors import InputError
from collafuse_runtimes.files.handover import Handover, read_handover, write_handover

SHAPE = (1, 6, 6)
SEED = 2**64 - 5
COUNT = 3
CUTS = (0.0, 0.2, 0.5, 0.8, 1.0)
SAMPLERS = (Sampler("ddim"), Sampler("ddim", 0.5), Sampler("ddim", 1), Sampler("ddpm"))
sampler_cases = pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: f"{s.name}-{s.eta}")


def network(x_t: Float32Array, t: int) -> Float32Array:
    """Deterministic and nonlinear, mixing neighbours; of exactly rounded operations only."""
    mixed = x_t + np.float32(0.5) * np.roll(x_t, 1, axis=-1) - np.float32(0.01 * t)
    return mixed / (np.float32(1) + np.abs(mixed)) + np.float32(0.3) * x_t


def noise_of(plan: SplitPlan, indices: range) -> Callable[[int], Float32Array]:
    def at(t: int) -> Float32Array:
        return noise_batch(SEED, indices, t, plan.image_shape)

    return at


def unsplit(plan: SplitPlan, sampler: Sampler, indices: range) -> Float32Array:
    chain = plan.with_cut_ratio(0).server_transitions()
    noise = noise_of(plan, indices)
    return denoise(noise(plan.timesteps), plan, chain, sampler, network, noise=noise)


def through_a_file(plan: SplitPlan, sampler: Sampler, path: Path) -> Float32Array:
    indices = range(5, 5 + COUNT)
    noise, transitions = noise_of(plan, indices), plan.server_transitions()
    x_tc = denoise(noise(plan.timesteps), plan, transitions, sampler, network, noise=noise)
    timesteps = tuple(t for t, _ in transitions)
    write_handover(path, Handover(x_tc, plan, SEED, indices.start, sampler.to_dict(), timesteps, None))
    received = read_handover(path)
    rows = range(received.first_index, received.first_index + len(received))
    client_noise = partial(noise_batch, received.seed, rows, shape=received.plan.image_shape)
    return denoise(
        received.x_tc,
        received.plan,
        received.plan.client_transitions(),
        Sampler(**received.sampler),
        network,
        noise=client_noise,
    )


@sampler_cases
@pytest.mark.parametrize("cut_ratio", CUTS)
def test_split_equals_unsplit_bit_for_bit(cut_ratio: float, sampler: Sampler, tmp_path: Path) -> None:
    plan = SplitPlan(SHAPE, timesteps=50, cut_ratio=cut_ratio)
    split = through_a_file(plan, sampler, tmp_path / "x.tc.safetensors")
    whole = unsplit(plan, sampler, range(5, 5 + COUNT))
    assert split.dtype == whole.dtype == np.float32
    assert split.tobytes() == whole.tobytes()
    assert np.std(whole) > 0.05


@sampler_cases
def test_a_sample_does_not_depend_on_its_batch_or_the_order(sampler: Sampler) -> None:
    plan = SplitPlan(SHAPE, timesteps=20)
    batch = unsplit(plan, sampler, range(4))
    alone = {i: unsplit(plan, sampler, range(i, i + 1))[0] for i in (3, 1, 0, 2)}
    assert all(batch[i].tobytes() == alone[i].tobytes() for i in range(4))
    assert len({row.tobytes() for row in batch}) == 4


@sampler_cases
def test_the_strides_of_one_side_leave_the_others_start_alone(sampler: Sampler) -> None:
    """Five client steps and ten begin from the same bytes, and a strided server ends on the same level."""
    plan = SplitPlan(SHAPE, timesteps=50, cut_ratio=0.4)
    levels = {plan.server_transitions(steps)[-1][1] for steps in range(1, 31)}
    starts = {plan.client_transitions(steps)[0][0] for steps in range(1, 21)}
    assert levels == starts == {plan.handover_level} == {19}
    noise = noise_of(plan, range(2))
    x_tc = denoise(noise(50), plan, plan.server_transitions(), sampler, network, noise=noise)
    before = x_tc.tobytes()
    for steps in (5, 10):
        denoise(x_tc, plan, plan.client_transitions(steps), sampler, network, noise=noise)
        assert x_tc.tobytes() == before


def test_callback_sees_every_step_and_changes_nothing() -> None:
    plan = SplitPlan(SHAPE, timesteps=10, cut_ratio=0.5)
    x, seen = noise_of(plan, range(1))(10), []
    result = denoise(
        x, plan, plan.server_transitions(3), Sampler(), network, on_step=lambda k, x_k: seen.append((k, x_k))
    )
    assert [k for k, _ in seen] == [0, 1, 2]
    assert seen[-1][1] is result
    assert result.tobytes() == denoise(x, plan, plan.server_transitions(3), Sampler(), network).tobytes()


@sampler_cases
def test_noise_is_asked_for_exactly_by_stochastic_samplers(sampler: Sampler) -> None:
    plan, asked = SplitPlan(SHAPE, timesteps=10), []

    def noise(t: int) -> Float32Array:
        asked.append(t)
        return np.zeros((1, *SHAPE), np.float32)

    x = np.zeros((1, *SHAPE), np.float32)
    denoise(x, plan, plan.server_transitions(4), sampler, network, noise=noise)
    assert asked == ([t for t, _ in plan.server_transitions(4)] if sampler.is_stochastic else [])
    if sampler.is_stochastic:
        with pytest.raises(InputError, match=f"^sampler {sampler.name} .* needs a noise source; give a seed$"):
            denoise(x, plan, plan.server_transitions(4), sampler, network)


@pytest.mark.parametrize(
    ("name", "eta", "message"),
    [
        ("euler", 0.0, "unknown sampler 'euler'; valid: ddim, ddpm, dpm\\+\\+2m"),
        ("ddim", 1.5, "eta 1.5 out of range: must be 0 to 1"),
        ("ddim", -0.1, "eta -0.1 out of range: must be 0 to 1"),
        ("ddim", float("nan"), "eta nan out of range: must be 0 to 1"),
        ("ddpm", 0.5, "eta 0.5 has no meaning for ddpm; leave it out or use ddim"),
    ],
)
def test_bad_samplers_are_refused(name: str, eta: float, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}$"):
        Sampler(name, eta)
