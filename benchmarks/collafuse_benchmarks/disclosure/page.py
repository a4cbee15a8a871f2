"""The page of a disclosure report."""

from collections.abc import Sequence

from collafuse_benchmarks.disclosure.report import CutDisclosure, DisclosureReport, Guarantee, Guess, Identified
from collafuse_benchmarks.pages.document import (
    NOT_MEASURED,
    Block,
    Document,
    Heading,
    Paragraph,
    Picture,
    Table,
    figure,
)
from collafuse_benchmarks.pages.folder import Stamp
from collafuse_benchmarks.pages.sections import opening

PRIVATE = (
    "The pictures show private images: this page is for the site that owns them. report.json and report.md do not."
)
GUESSES = (
    "PSNR in dB against the image, with its standard error over the attacked images, and SSIM. 6 dB more is half the "
    "error. The tensor itself is x_n / sqrt(alpha_bar_n), clipped. The mean image is what a guess without any upload "
    "would be: only what is above it comes from the upload. The filters know mean and covariance, or spectrum, of the "
    "attacker's images."
)
IDENTIFIED = (
    "Who holds the images and one tensor compares the tensor with each of them: how often is the right one the "
    "nearest? One image of each group of near-duplicates takes part. Fewer pixels hide more, so a small plan hides "
    "more than the images' own size would."
)
SECOND = (
    "A second release of the same images under the same key, at any cut, adds nothing. One with fresh noise (another "
    "key, the key lost, or copies with one pixel changed) is a second look, and halves the noise's variance."
)
GUARANTEES = (
    "The Gaussian mechanism: the noise is a formal guarantee whoever looks, for what changes by at most the "
    "sensitivity. zCDP rho = Delta^2 / (2 sigma^2); epsilon is exact at the delta shown. Above about 10 an epsilon "
    "promises nothing."
)


def disclosure_document(report: DisclosureReport, stamp: Stamp, picture: bytes | None = None) -> Document:
    """Args: picture, the PNG of real, released and guessed images; pages made from report.json alone lack it."""
    plan = report.plan
    shape = "x".join(map(str, plan.image_shape))
    what = (
        f"{report.data}: {report.images} images in {report.groups} groups of near-duplicates, as {shape}, T = "
        f"{plan.timesteps}, {plan.schedule} schedule. {report.attacked} images attacked; attacker: {report.attacker}; "
        f"seed {report.seed}; {report.seconds:.0f} s."
    )
    answer = Table(("c", "what is hidden, what is not"), tuple((f"{c.cut_ratio:g}", c.verdict) for c in report.cuts))
    blocks: list[Block] = [
        *opening(stamp, what, complete=report.complete),
        *_pictures(picture),
        Heading("Guesses of the image"),
        Table(("c", "noise level", "device's share", *_GUESSES), tuple(map(_guess_row, report.cuts))),
        Paragraph(GUESSES),
        *map(Paragraph, _missing(report.cuts)),
        Heading("Re-identification"),
        Table(("c", "at the plan's size", "at the images' own size"), tuple(map(_identified_row, report.cuts))),
        Paragraph(IDENTIFIED),
        Heading("A second look"),
        Table(("c", "best guess of both, PSNR", "gain", "re-identified"), tuple(map(_second_row, report.cuts))),
        Paragraph(SECOND),
        Heading("Guarantees"),
        Table(
            ("c", "unit", "sigma", "sensitivity", "rho (zCDP)", "epsilon", "delta"),
            tuple(row for cut in report.cuts for row in _guarantee_rows(cut)),
        ),
        Paragraph(GUARANTEES),
        *(Paragraph(f"{note}.") for note in report.notes),
    ]
    return Document(
        f"What an upload of {report.data} would disclose", tuple(blocks), (answer,), is_private=picture is not None
    )


_GUESSES = ("mean image", "tensor itself", "Wiener filter", "network")


def describe_disclosure(report: DisclosureReport) -> list[str]:
    """Lines for people: the plan's cut in words, then every cut."""
    own = next(cut for cut in report.cuts if cut.cut_ratio == report.plan.cut_ratio)
    rows = [("c", "noise level", "best guess", "mean image", "re-identified", "epsilon, image", "device's steps")]
    rows += [
        (
            f"{cut.cut_ratio:g}",
            f"{cut.noise_level:.3f}",
            f"{cut.best.psnr:.1f} dB",
            f"{cut.mean_image.psnr:.1f} dB",
            f"{cut.most_identified.share:.0%} at {cut.most_identified.height}x{cut.most_identified.width}",
            f"{_of_image(cut).epsilon:,.0f}",
            f"{cut.device_share:.0%}",
        )
        for cut in report.cuts
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [
        f"at c = {own.cut_ratio:g}  {own.verdict}",
        *table,
        f"attacked  {report.attacked} of {report.images} images ({report.groups} groups of near-duplicates)",
        f"attacker  {report.attacker}",
        *(f"note      {note}" for note in report.notes),
    ]


def _of_image(cut: CutDisclosure) -> Guarantee:
    return next(one for one in cut.guarantees if one.unit == "one image")


def _pictures(picture: bytes | None) -> list[Block]:
    if picture is None:
        return []
    caption = "Real images, and for each cut what would be uploaded and the best guess of the image from it."
    return [Picture(f"{caption} {PRIVATE}", picture)]


def _guess_row(cut: CutDisclosure) -> tuple[str, ...]:
    guesses = (cut.mean_image, cut.as_it_is, cut.wiener, cut.network)
    return (f"{cut.cut_ratio:g}", figure(cut.noise_level), f"{cut.device_share:.0%}", *map(_guess_cell, guesses))


def _guess_cell(guess: Guess | None) -> str:
    if guess is None:
        return NOT_MEASURED
    ssim = "" if guess.ssim is None else f", SSIM {guess.ssim:.3f}"
    return f"{guess.psnr:.1f} +- {guess.psnr_error:.1f}{ssim}"


def _missing(cuts: Sequence[CutDisclosure]) -> list[str]:
    reasons = {cut.network_reason for cut in cuts if cut.network_reason is not None}
    patients = {cut.patient_reason for cut in cuts if cut.patient_reason is not None}
    return [
        *(f"Network not measured: {reason}." for reason in sorted(reasons)),
        *(f"Per patient not measured: {reason}." for reason in sorted(patients)),
    ]


def _identified_row(cut: CutDisclosure) -> tuple[str, ...]:
    own = "the plan's size is the images' own" if cut.at_own_size is None else identified_cell(cut.at_own_size)
    return (f"{cut.cut_ratio:g}", identified_cell(cut.at_plan_size), own)


def identified_cell(found: Identified) -> str:
    """A share with its interval, size and chance."""
    return (
        f"{found.share:.1%} ({found.low:.1%} to {found.high:.1%}) of {found.candidates} at "
        f"{found.height}x{found.width}, chance {found.chance:.1%}"
    )


def _second_row(cut: CutDisclosure) -> tuple[str, ...]:
    look = cut.second_look
    return (f"{cut.cut_ratio:g}", f"{look.psnr:.1f}", f"{look.gain:+.1f} dB", identified_cell(look.identified))


def _guarantee_rows(cut: CutDisclosure) -> list[tuple[str, ...]]:
    return [
        (
            f"{cut.cut_ratio:g}",
            one.unit if one.images == 1 else f"{one.unit}, {one.images} images",
            figure(cut.noise_level),
            figure(one.sensitivity),
            figure(one.zcdp),
            figure(one.epsilon),
            f"{one.delta:g}",
        )
        for one in cut.guarantees
    ]
