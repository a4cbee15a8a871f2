"""A cut's figures in plain words."""

from collafuse_benchmarks.disclosure.report import Guarantee, Guess, Identified

MEANINGLESS_EPSILON = 10.0
"""From here on (epsilon, delta) bounds no attack that matters: exp(10) is 22,000."""


def verdict(mean_image: Guess, best: Guess, identified: Identified, guarantees: tuple[Guarantee, ...]) -> str:
    """What is hidden and what is not: guess, re-identification, formal guarantee."""
    return f"{_of_guess(best.psnr - mean_image.psnr)} {_of_matching(identified)} {_of_guarantee(guarantees)}"


def _of_guess(gain: float) -> str:
    if gain >= 3:
        return f"The image can be made out: the best guess is {gain:.1f} dB nearer to it than the mean image."
    if gain >= 1:
        return f"Coarse features show: the best guess is {gain:.1f} dB nearer to the image than the mean image."
    return f"A guess of the image is hardly better than the mean image ({gain:+.1f} dB)."


def _of_matching(found: Identified) -> str:
    who = f"Who holds the image among {found.candidates} finds it in {found.share:.0%} of the cases"
    if found.share >= 0.5:
        return f"{who}: an upload is as good as named."
    if found.low > 2 * found.chance:
        return f"{who}, chance is {found.chance:.1%}: some uploads can be named."
    return f"{who}, chance is {found.chance:.1%}: no better than that by much."


def _of_guarantee(guarantees: tuple[Guarantee, ...]) -> str:
    image = next(one for one in guarantees if one.unit == "one image")
    if image.epsilon >= MEANINGLESS_EPSILON:
        return f"No guarantee for an image (epsilon {image.epsilon:,.0f})."
    return f"Guaranteed for an image: epsilon {image.epsilon:.1f} at delta {image.delta:g}."
