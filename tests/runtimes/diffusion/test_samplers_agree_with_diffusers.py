"""DDPM and DDIM move every tensor of a trajectory as diffusers' schedulers do, at full and at reduced stride.

diffusers computes 1 - alpha_bar in float32, which costs it up to 3e-4 over 1000 steps. So its formulas are run here in
float64 on our float64 schedule as the reference for our float32 chains; one test takes its schedulers as they come.
"""

from collections.abc import Callable
from typing import Any

import pytest

from collafuse_runtimes.diffusion.plan import SplitPlan, Transition
from collafuse_runtimes.diffusion.samplers import Sampler, denoise
from collafuse_runtimes.diffusion.schedule import linear_betas

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers import DDIMScheduler, DDPMScheduler  # noqa: E402

SHAPE = (1, 8, 8)
BATCH = 3
SCHEDULES = ("cosine", "linear")
# With ten timesteps one step spans alpha_bar ratios of 1e4, and x_0 = (x_t - ... eps) / sqrt(alpha_bar) of float32
# tensors keeps fewer digits.
TOLERANCE = {10: 5e-5, 100: 1e-5, 1000: 1e-5}


def make_plan(schedule: str, timesteps: int, cut_ratio: float = 0.2) -> SplitPlan:
    return SplitPlan(SHAPE, timesteps=timesteps, schedule=schedule, cut_ratio=cut_ratio)


def whole(plan: SplitPlan, steps: int) -> tuple[Transition, ...]:
    return plan.with_cut_ratio(0).server_transitions(steps)


def network(plan: SplitPlan, dtype: Any) -> Callable[..., Any]:
    """A smooth eps_theta like a trained network's: the best one for Gaussian data around an image, 2 % short, plus a
    term of the neighbourhood. So x_0 is clipped where there is much noise, and is sharp where there is little."""
    image = 0.7 * torch.cos(torch.arange(64, dtype=dtype)).reshape(SHAPE)
    kernel = torch.tensor([[0.1, 0.2, 0.1], [0.2, 0.6, 0.2], [0.1, 0.2, 0.1]], dtype=dtype).reshape(1, 1, 3, 3)

    def predict(x_t: Any, t: int) -> Any:
        alpha_bar = plan.alpha_bar_at(t)
        best = (1 - alpha_bar) ** 0.5 * (x_t - alpha_bar**0.5 * image) / (0.1 * alpha_bar + 1 - alpha_bar)
        return 0.98 * best + 0.05 * torch.tanh(torch.nn.functional.conv2d(x_t, kernel, padding=1))

    return predict


class Draws:
    """One stream of Gaussian tensors per trajectory, drawn in ``dtype``."""

    def __init__(self, dtype: Any) -> None:
        self.dtype, self.generator = dtype, torch.Generator().manual_seed(1)

    def __call__(self) -> Any:
        return torch.randn(BATCH, *SHAPE, generator=self.generator, dtype=self.dtype)


def start() -> Any:
    return torch.randn(BATCH, *SHAPE, generator=torch.Generator().manual_seed(0))


def ours(plan: SplitPlan, chain: tuple[Transition, ...], sampler: Sampler, drawn_in: Any) -> list[Any]:
    draws, trajectory = Draws(drawn_in), []
    denoise(
        start(),
        plan,
        chain,
        sampler,
        network(plan, torch.float32),
        noise=lambda _: draws().float(),
        on_step=lambda _, x: trajectory.append(x),
    )
    return trajectory


def scheduler_for(plan: SplitPlan, sampler: Sampler, dtype: Any) -> Any:
    """diffusers' scheduler; its linear schedule has no clip at 0.999, so our betas are handed over."""
    config: dict[str, Any] = {"num_train_timesteps": plan.timesteps, "clip_sample": True}
    if plan.schedule == "cosine":
        config["beta_schedule"] = "squaredcos_cap_v2"
    else:
        config["trained_betas"] = linear_betas(plan.timesteps)
    if sampler.name == "ddpm":
        scheduler = DDPMScheduler(**config, variance_type="fixed_small", prediction_type="epsilon")
    else:
        scheduler = DDIMScheduler(
            **config, set_alpha_to_one=True, timestep_spacing="trailing", prediction_type="epsilon"
        )
    if dtype == torch.float64:
        scheduler.alphas_cumprod = torch.from_numpy(plan.alpha_bar.copy())
    return scheduler


def theirs(plan: SplitPlan, chain: tuple[Transition, ...], sampler: Sampler, dtype: Any) -> list[Any]:
    scheduler, predict, draws = scheduler_for(plan, sampler, dtype), network(plan, dtype), Draws(dtype)
    x, trajectory = start().to(dtype), []
    if sampler.name == "ddpm":
        scheduler.set_timesteps(timesteps=[t for t, _ in chain])
    else:
        scheduler.set_timesteps(len(chain))
    assert scheduler.timesteps.tolist() == [t for t, _ in chain]
    for t, _ in chain:
        if sampler.name == "ddpm":
            x = scheduler.step(predict(x, t), t, x, generator=draws.generator).prev_sample
        else:
            noise = draws() if sampler.is_stochastic else None
            x = scheduler.step(predict(x, t), t, x, eta=sampler.eta, variance_noise=noise).prev_sample
        trajectory.append(x)
    return trajectory


def largest_difference(a: list[Any], b: list[Any]) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


def assert_agree(plan: SplitPlan, chain: tuple[Transition, ...], sampler: Sampler) -> None:
    a, b = ours(plan, chain, sampler, torch.float64), theirs(plan, chain, sampler, torch.float64)
    assert a[0].dtype == torch.float32
    assert largest_difference(a, b) < TOLERANCE[plan.timesteps]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("timesteps", "steps"), [(10, 10), (10, 5), (100, 100), (100, 7), (1000, 1000), (1000, 61)])
def test_ddpm_on_any_list(schedule: str, timesteps: int, steps: int) -> None:
    plan = make_plan(schedule, timesteps)
    assert_agree(plan, whole(plan, steps), Sampler("ddpm"))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("cut_ratio", [0.2, 0.55])
def test_ddpm_across_a_cut_with_two_strides(schedule: str, cut_ratio: float) -> None:
    plan = make_plan(schedule, 100, cut_ratio)
    assert_agree(plan, plan.server_transitions(9) + plan.client_transitions(4), Sampler("ddpm"))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("eta", [0, 0.5, 1])
@pytest.mark.parametrize(("timesteps", "steps"), [(10, 10), (10, 5), (100, 100), (100, 20), (1000, 1000), (1000, 50)])
def test_ddim_where_the_stride_divides_t(schedule: str, eta: float, timesteps: int, steps: int) -> None:
    """diffusers' DDIM always steps by T // steps, so it can only express lists of one stride."""
    plan = make_plan(schedule, timesteps)
    assert_agree(plan, whole(plan, steps), Sampler("ddim", eta))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddim_with_eta_1_is_ddpm_on_uneven_lists(schedule: str) -> None:
    """Song et al. 2021, section 4.1. It holds while x_0 is not clipped, and takes DDIM to lists that diffusers' DDIM
    cannot express."""
    plan = make_plan(schedule, 100, 0.3)
    chain = plan.server_transitions(9) + plan.client_transitions(4)
    chain = tuple((t, prev) for t, prev in chain if t < 80)

    def predict(x_t: Any, t: int) -> Any:
        alpha_bar = plan.alpha_bar_at(t)
        return (1 - alpha_bar) ** 0.5 * x_t / (0.01 * alpha_bar + 1 - alpha_bar)

    draws = Draws(torch.float32)
    noise = {t: draws() for t, _ in chain}
    first = plan.alpha_bar_at(chain[0][0])
    x = (0.01 * first + 1 - first) ** 0.5 * start()
    a, b = (
        denoise(x, plan, chain, sampler, predict, noise=noise.__getitem__)
        for sampler in (Sampler("ddim", 1), Sampler("ddpm"))
    )
    assert float((a - b).abs().max()) < 1e-5
    assert 0.02 < float(a.std()) < 0.2


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["ddim", "ddpm"])
@pytest.mark.parametrize(("timesteps", "tolerance"), [(10, 1e-5), (100, 2e-5), (1000, 5e-4)])
def test_agreement_with_diffusers_as_it_comes(schedule: str, name: str, timesteps: int, tolerance: float) -> None:
    plan, sampler = make_plan(schedule, timesteps), Sampler(name)
    chain = whole(plan, timesteps)
    here, there = (run(plan, chain, sampler, torch.float32) for run in (ours, theirs))
    assert largest_difference(here, there) < tolerance


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [100, 7])
def test_clipping_acts_in_these_trajectories(schedule: str, steps: int) -> None:
    plan = make_plan(schedule, 100)
    chain, predict, x, clipped = whole(plan, steps), network(make_plan(schedule, 100), torch.float32), start(), 0
    for (t, _), after in zip(chain, ours(plan, chain, Sampler(), torch.float32), strict=True):
        alpha_bar = plan.alpha_bar_at(t)
        x_0 = (x - (1 - alpha_bar) ** 0.5 * predict(x, t)) / alpha_bar**0.5
        clipped += int((x_0.abs() > 1).sum())
        x = after
    assert 0.02 < clipped / (steps * x.numel()) < 0.9
    assert float(x.abs().max()) <= 1
