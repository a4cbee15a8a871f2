"""Attacking one cut: noise the images as an upload would, guess them, find them, and say what that means."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from collafuse_benchmarks.disclosure.accounting import RANGE, guarantee, image_sensitivity
from collafuse_benchmarks.disclosure.attacks import (
    FloatArray,
    LinearPrior,
    identify,
    psnr,
    wiener_by_covariance,
    wiener_by_spectrum,
)
from collafuse_benchmarks.disclosure.report import CutDisclosure, Guarantee, Guess, Identified, SecondLook
from collafuse_benchmarks.disclosure.verdict import verdict
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.extras import needs

NetworkGuess = Callable[[Float32Array, int], Float32Array]
"""(x_t, t) -> a guess of x_0, (B, C, H, W) float32 in [-1, 1]."""
BATCH = 64
SSIM_SIDE = 11
"""Of its window (Wang et al. 2004)."""
NO_PATIENTS = "the data do not say which images are one patient's: give --images-per-patient"


@dataclass(frozen=True)
class Material:
    """What is attacked, and with what.

    Attributes:
        attacked: (N, C, H, W), the images whose guesses are judged.
        candidates: (M, C, H, W), one of each group of near-duplicates, the attacked ones first: what is identified.
        released: (M, C, H, W), y of the candidates as a shard holds them; None draws them.
        own_size: the candidates at their own size; None where that is the plan's.
        prior: of the attacker's images.
        network: a denoiser's guess, and the highest level it was trained for.
    """

    attacked: Float32Array
    candidates: Float32Array
    own_size: Float32Array | None
    prior: LinearPrior
    network: NetworkGuess | None
    network_level: int
    no_network: str | None
    released: Float32Array | None = None


@dataclass(frozen=True)
class Attacked:
    """A cut's figures, with what the pictures show of the attacked images."""

    cut: CutDisclosure
    released: Float32Array
    best_guess: Float32Array


def attack_cut(
    material: Material, plan: SplitPlan, *, seed: int, delta: float, images_per_patient: int | None
) -> Attacked:
    """Everything one cut discloses; see ``CutDisclosure``.

    Args:
        plan: cut where it is asked about, with a noisy hand-over level.

    Raises:
        InputError: ``delta`` or ``images_per_patient`` is out of range.
        EngineUnavailable: the [evidence] extra is not installed.
    """
    level, x_0 = plan.handover_level, material.attacked
    s = plan.noise_level**2
    noise = _Noise(seed, level)
    released = noise.released(material.candidates, s) if material.released is None else material.released
    y = released[: len(x_0)]
    wiener = _wiener(material.prior, x_0, y, s)
    network, reason = _network(material, plan, y, level)
    mean_image = np.broadcast_to(material.prior.mean, x_0.shape).astype(np.float32)
    mean_guess = _judged("mean image", mean_image, x_0)
    best, best_guess = _better(wiener, network, x_0)
    at_plan = _identified(material.candidates, released)
    at_own = None if material.own_size is None else _identified_when_noised(material.own_size, s, noise)
    of_units = _guarantees(plan, delta, images_per_patient)
    cut = CutDisclosure(
        cut_ratio=plan.cut_ratio,
        cut=plan.cut,
        level=level,
        alpha_bar=plan.alpha_bar_at(level),
        noise_level=plan.noise_level,
        device_share=plan.cut / plan.timesteps,
        mean_image=mean_guess,
        as_it_is=_judged("the tensor itself", y.clip(-1, 1), x_0),
        wiener=_judged(*wiener, x_0),
        network=None if network is None else _judged(*network, x_0),
        network_reason=reason,
        at_plan_size=at_plan,
        at_own_size=at_own,
        second_look=_second_look(material, plan, y, noise, best),
        guarantees=of_units,
        patient_reason=NO_PATIENTS if images_per_patient is None else None,
        verdict=verdict(mean_guess, best, at_own or at_plan, of_units),
    )
    return Attacked(cut, y.clip(-1, 1), best_guess)


@dataclass
class _Noise:
    """Draws that differ, the same ones for a seed and a level whatever else is asked."""

    seed: int
    level: int
    draws: int = 0

    def released(self, x_0: Float32Array, variance: float) -> Float32Array:
        """x_0 + w, w normal of this variance."""
        self.draws += 1
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, self.level, self.draws])))
        result: Float32Array = x_0 + math.sqrt(variance) * random.standard_normal(x_0.shape, dtype=np.float32)
        return result


def _wiener(prior: LinearPrior, x_0: Float32Array, y: Float32Array, s: float) -> tuple[str, Float32Array]:
    by_covariance, by_spectrum = wiener_by_covariance(prior, y, s), wiener_by_spectrum(prior, y, s)
    if psnr(by_covariance, x_0).mean() >= psnr(by_spectrum, x_0).mean():
        return "Wiener filter, covariance of the attacker's images", by_covariance
    return "Wiener filter, spectrum of the attacker's images", by_spectrum


def _network(
    material: Material, plan: SplitPlan, y: Float32Array, level: int
) -> tuple[tuple[str, Float32Array] | None, str | None]:
    if material.network is None or level > material.network_level:
        trained = f"the attacker's network was trained up to level {material.network_level}, this cut is at {level}"
        return None, material.no_network or trained
    return ("network, E[x_0 | x_n] in one call", _in_batches(material.network, plan, y, level)), None


def _in_batches(network: NetworkGuess, plan: SplitPlan, y: Float32Array, level: int) -> Float32Array:
    x_n = (math.sqrt(plan.alpha_bar_at(level)) * y).astype(np.float32)
    return np.concatenate([network(x_n[start : start + BATCH], level) for start in range(0, len(x_n), BATCH)])


def _better(
    wiener: tuple[str, Float32Array], network: tuple[str, Float32Array] | None, x_0: Float32Array
) -> tuple[Guess, Float32Array]:
    ways = [wiener] if network is None else [wiener, network]
    name, guess = max(ways, key=lambda way: float(psnr(way[1], x_0).mean()))
    return _judged(name, guess, x_0), guess


def _judged(attacker: str, guess: Float32Array, x_0: Float32Array) -> Guess:
    values = psnr(guess, x_0)
    return Guess(attacker, float(values.mean()), _standard_error(values), _ssim(guess, x_0))


def _standard_error(values: FloatArray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def _ssim(guess: Float32Array, x_0: Float32Array) -> float | None:
    if min(x_0.shape[2:]) < SSIM_SIDE:
        return None
    with needs("evidence"):
        import torch
        from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    pairs = [
        (torch.from_numpy(np.ascontiguousarray(guess[i : i + BATCH].clip(-1, 1))), torch.from_numpy(x_0[i : i + BATCH]))
        for i in range(0, len(x_0), BATCH)
    ]
    sums = [float(ssim(a, b, data_range=RANGE, reduction="sum")) for a, b in pairs]
    return sum(sums) / len(x_0)


def _identified(candidates: Float32Array, y: Float32Array) -> Identified:
    return _share(int((identify(y, candidates) == np.arange(len(candidates))).sum()), candidates)


def _identified_when_noised(candidates: Float32Array, s: float, noise: _Noise) -> Identified:
    """In blocks: images at their own size may be large."""
    found = 0
    for start in range(0, len(candidates), BATCH):
        block = candidates[start : start + BATCH]
        found += int((identify(noise.released(block, s), candidates) == np.arange(start, start + len(block))).sum())
    return _share(found, candidates)


def _share(found: int, candidates: Float32Array) -> Identified:
    with needs("evidence"):
        from scipy.stats import binomtest

    count, _, height, width = candidates.shape
    interval = binomtest(found, count).proportion_ci(0.95, method="wilson")
    return Identified(height, width, count, found, found / count, float(interval.low), float(interval.high), 1 / count)


def _second_look(material: Material, plan: SplitPlan, y: Float32Array, noise: _Noise, first: Guess) -> SecondLook:
    """The mean of two looks is one look with half the variance; a network gets it at the next noisier level."""
    x_0, s = material.attacked, plan.noise_level**2
    both: Float32Array = ((y + noise.released(x_0, s)) / 2).astype(np.float32)
    guesses = [_wiener(material.prior, x_0, both, s / 2)[1]]
    level = second_look_level(plan)
    if material.network is not None and level <= material.network_level:
        noisier = noise.released(both, max((1 - plan.alpha_bar_at(level)) / plan.alpha_bar_at(level) - s / 2, 0.0))
        guesses.append(_in_batches(material.network, plan, noisier, level))
    best = max(float(psnr(guess, x_0).mean()) for guess in guesses)
    return SecondLook(best, best - first.psnr, _identified_when_noised(material.candidates, s / 2, noise))


def second_look_level(plan: SplitPlan) -> int:
    """The first level at least as noisy as the mean of two looks at ``plan``'s hand-over level."""
    return int(np.searchsorted((1 - plan.alpha_bar) / plan.alpha_bar, plan.noise_level**2 / 2))


def _guarantees(plan: SplitPlan, delta: float, images_per_patient: int | None) -> tuple[Guarantee, ...]:
    sigma, whole = plan.noise_level, image_sensitivity(plan.image_shape)
    pixel = RANGE * math.sqrt(plan.image_shape[0])
    units = [guarantee("one pixel", pixel, sigma, delta), guarantee("one image", whole, sigma, delta)]
    if images_per_patient is not None:
        units.append(guarantee("one patient", whole, sigma, delta, images_per_patient))
    return tuple(units)
