"""What a disclosure report holds; it has figures alone, no picture and nothing of an image."""

from dataclasses import dataclass
from typing import Literal

from collafuse_benchmarks.measure.record import Record
from collafuse_runtimes.diffusion.plan import SplitPlan

KIND = "disclosure"
Unit = Literal["one pixel", "one image", "one patient"]


@dataclass(frozen=True)
class Guess(Record):
    """How near a way of guessing comes to the images.

    Attributes:
        attacker: the way, in words.
        psnr: mean over the attacked images, dB.
        psnr_error: its standard error over them.
        ssim: mean structural similarity (Wang et al. 2004), 1 for the image itself; None where sides are below 11.
    """

    attacker: str
    psnr: float
    psnr_error: float
    ssim: float | None


@dataclass(frozen=True)
class Identified(Record):
    """Who holds N images and one tensor: how often the right one is found at the first try.

    Attributes:
        height, width: of images and tensors.
        candidates: N; one of each group of near-duplicates.
        found: right ones.
        share, low, high: found / N, and its 95 % interval (Wilson 1927).
        chance: 1 / N.
    """

    height: int
    width: int
    candidates: int
    found: int
    share: float
    low: float
    high: float
    chance: float


@dataclass(frozen=True)
class SecondLook(Record):
    """The same images released once more with fresh noise: under another key, or as copies with one pixel changed.

    Under the same key a second release tells nothing that the cleaner one did not.

    Attributes:
        psnr: of the best guess from both, dB.
        gain: over the best guess from one.
        identified: from both, at the plan's size.
    """

    psnr: float
    gain: float
    identified: Identified


@dataclass(frozen=True)
class Guarantee(Record):
    """Differential privacy of one release for one unit.

    Attributes:
        unit: what may change between two data sets that cannot be told apart.
        images: of one unit.
        sensitivity: Delta, Euclidean.
        zcdp: rho.
        epsilon: at ``delta``; above 10 or so it means nothing.
    """

    unit: Unit
    images: int
    sensitivity: float
    zcdp: float
    epsilon: float
    delta: float


@dataclass(frozen=True)
class CutDisclosure(Record):
    """One cut.

    Attributes:
        noise_level: sqrt(1 - alpha_bar) / sqrt(alpha_bar) of the hand-over level.
        device_share: the device's share of the timesteps.
        mean_image: the guess that needs no tensor: the mean of the attacker's images.
        as_it_is: the tensor itself, scaled.
        wiener: the better of two linear filters.
        network: a denoiser's guess; None where there is none, and ``network_reason`` says why.
        at_plan_size, at_own_size: re-identification; None where the images' own size is the plan's.
        verdict: what is hidden and what is not, in words.
    """

    cut_ratio: float
    cut: int
    level: int
    alpha_bar: float
    noise_level: float
    device_share: float
    mean_image: Guess
    as_it_is: Guess
    wiener: Guess
    network: Guess | None
    network_reason: str | None
    at_plan_size: Identified
    at_own_size: Identified | None
    second_look: SecondLook
    guarantees: tuple[Guarantee, ...]
    patient_reason: str | None
    verdict: str

    @property
    def best(self) -> Guess:
        """The better of filter and network, by PSNR."""
        if self.network is None or self.wiener.psnr >= self.network.psnr:
            return self.wiener
        return self.network

    @property
    def most_identified(self) -> Identified:
        """At the images' own size where it was tried, else at the plan's."""
        return self.at_own_size or self.at_plan_size


@dataclass(frozen=True)
class DisclosureReport(Record):
    """What an upload of a data set would disclose, cut by cut.

    Attributes:
        data: the last part of where the images came from.
        plan: what was asked about; its own cut is among ``cuts``.
        images, groups: of the data; a group is a set of near-duplicates.
        attacked: images attacked, one of a group each, none of them known to an attacker trained here.
        references: images the attacker learned from.
        attacker: who guesses, in words.
        seed: of the noise, the halves and the attacker's training.
        seconds: that it took.
        notes: on what was bounded or left out.
    """

    data: str
    plan: SplitPlan
    fingerprint: str
    images: int
    groups: int
    attacked: int
    references: int
    attacker: str
    seed: int
    seconds: float
    notes: tuple[str, ...]
    cuts: tuple[CutDisclosure, ...]
    complete: bool = True
