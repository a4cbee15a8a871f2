"""Scores in lines for people, the answer first."""

from collafuse_edge.evaluation.compare import Comparison, Difference
from collafuse_edge.evaluation.evaluate import ImageScore
from collafuse_runtimes.diffusion.samplers import Sampler


def describe_score(score: ImageScore) -> list[str]:
    """Lines of one set; the first is the score."""
    lines = [
        *_kid_lines(score),
        _pyramid_line(score),
        *_kid_details(score),
        f"real      {score.real_count} images: {score.real}",
        f"generated {score.generated_count} images: {score.generated}",
        f"made by   {_describe_maker(score)}",
    ]
    if score.extractor is None:
        return [*lines, f"KID       not measured: {score.kid_error_reason}"]
    return [
        *lines,
        f"extractor {score.extractor} ({str(score.extractor_sha256)[:16]}); not comparable with scores of another "
        "extractor",
    ]


def _kid_lines(score: ImageScore) -> list[str]:
    if score.kid_mean is None:
        return []
    error = (
        score.kid_error_reason
        if score.kid_error is None
        else f"standard error {score.kid_error:.2g}, 95 % interval {score.kid_low:.3g} to {score.kid_high:.3g}"
    )
    return [f"KID       {score.kid_mean:.4g} ({error})"]


def _pyramid_line(score: ImageScore) -> str:
    if score.pyramid is None:
        return f"pyramid   not measured: {score.pyramid_reason}"
    floor = "" if score.pyramid_floor is None else f", {score.pyramid_floor:.3f} between halves of the real ones"
    return (
        f"pyramid   {score.pyramid:.3f} (0: no difference{floor}), sharpness {score.sharpness:.2f} of the real ones, "
        f"brightness {score.brightness:+.3f}"
    )


def _kid_details(score: ImageScore) -> list[str]:
    if score.kid_mean is None:
        return []
    lines = [
        "scale     KID 0: no difference; 1: as if every feature had moved by half its deviation over the real images",
        f"raw       KID {score.kid_raw:.4g} in the extractor's own units",
    ]
    if score.manifold_precision is None:
        return lines
    return [
        *lines,
        f"precision {score.manifold_precision:.1%} of the generated lie among the real images, recall "
        f"{score.manifold_recall:.1%} of the real among the generated (k = {score.neighbour}, "
        f"{score.neighbour_count} of each)",
    ]


def _describe_maker(score: ImageScore) -> str:
    if score.fingerprint is None:
        return f"unknown: {score.unknown}"
    server = f"{score.server_steps} server steps, c = {score.cut_ratio:g}, seed {score.seed}"
    if score.sampler is None:
        return f"{server}; no head"
    return f"{score.head}, {score.steps} steps of {Sampler(**score.sampler).text} by {score.engine}, after {server}"


def describe_comparison(comparison: Comparison) -> list[str]:
    """Differences first, then a line for each score."""
    return [
        *map(_difference_line, comparison.differences),
        *(
            f"{one.generated} against {one.real}: "
            + "; ".join(" ".join(line.split()) for line in (*_kid_lines(one), _pyramid_line(one)))
            for one in comparison.scores
        ),
    ]


def _difference_line(one: Difference) -> str:
    parts = []
    if one.kid is not None:
        interval = (
            "no interval of so few images" if one.kid_low is None else f"{one.kid_low:+.3g} to {one.kid_high:+.3g}"
        )
        parts.append(f"KID {one.kid:+.4g} ({interval})")
    if one.pyramid is not None:
        parts.append(f"pyramid {one.pyramid:+.3f}")
    how = "on the same noise" if one.paired else "on other noise"
    return f"{one.second} less {one.first}, {how}, against {one.real}: {', '.join(parts) or 'nothing measured'}"
