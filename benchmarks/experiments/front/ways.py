"""The ways to an image that the front compares: network, cut, how the head was made, solver, steps, precision."""

from dataclasses import dataclass

from collafuse_runtimes.diffusion.samplers import Sampler

DDIM, DDPM, TWO_M = Sampler(), Sampler("ddpm"), Sampler("dpm++2m", levels="karras")


@dataclass(frozen=True)
class Way:
    """One point.

    Attributes:
        made: "trained", "fitted" (coefficients, from the client's images) or "distilled".
    """

    network: str
    cut_ratio: float
    sampler: Sampler
    steps: int
    made: str = "trained"
    precision: str = "fp32"

    @property
    def name(self) -> str:
        made = "" if self.made == "trained" else f" {self.made}"
        precision = "" if self.precision == "fp32" else f" {self.precision}"
        return f"{self.network}, c = {self.cut_ratio:g}:{made} {self.steps} {self.sampler.name}{precision}"

    @property
    def bundle(self) -> "tuple[str, float, str, str, str, int]":
        """What two ways of one head bundle share; a distilled or fitted head is made for one step count."""
        alone = 0 if self.made == "trained" else self.steps
        return (self.network, self.cut_ratio, self.sampler.name, self.made, self.precision, alone)


def _plain(network: str, cut_ratio: float, sampler: Sampler, *steps: int) -> list[Way]:
    return [Way(network, cut_ratio, sampler, count) for count in steps]


def _distilled(network: str, cut_ratio: float, *steps: int, precision: str = "fp32") -> list[Way]:
    return [Way(network, cut_ratio, DDIM, count, "distilled", precision) for count in steps]


def _fitted(network: str, cut_ratio: float, *steps: int) -> list[Way]:
    return [Way(network, cut_ratio, TWO_M, count, "fitted") for count in steps]


TODAY = Way("small", 0.2, DDIM, 20)
"""What a device did before there were few steps; times and figures are relative to it."""
WAYS = (
    *_plain("small", 0.2, DDIM, 20, 5), *_plain("small", 0.2, DDPM, 20), *_plain("small", 0.2, TWO_M, 5, 4, 3),
    *_fitted("small", 0.2, 3, 2), *_distilled("small", 0.2, 2, 1), *_distilled("small", 0.2, 2, precision="int8-cpu"),
    *_plain("tiny", 0.2, DDIM, 20), *_plain("tiny", 0.2, TWO_M, 5), *_distilled("tiny", 0.2, 2),
    *_distilled("tiny", 0.2, 2, precision="int8-cpu"),
    *_plain("edge", 0.2, DDIM, 20), *_plain("edge", 0.2, TWO_M, 5), *_distilled("edge", 0.2, 2),
    *_distilled("edge", 0.2, 2, precision="int8-cpu"),
    *_plain("small", 0.4, DDIM, 40), *_plain("small", 0.4, TWO_M, 5),
    *_plain("small", 0.6, DDIM, 60), *_plain("small", 0.6, TWO_M, 8, 5),
    *_plain("small", 0.8, DDIM, 80), *_plain("small", 0.8, TWO_M, 10, 8, 6),
    *_plain("small", 1.0, DDIM, 20), *_plain("small", 1.0, TWO_M, 10, 8, 5),
)  # fmt: skip


def together(ways: tuple[Way, ...]) -> dict[tuple[object, ...], tuple[Way, ...]]:
    """The ways of each bundle."""
    return {key: tuple(way for way in ways if way.bundle == key) for key in dict.fromkeys(way.bundle for way in ways)}
