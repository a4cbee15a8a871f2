"""Several sets of images against several sets of real ones, and what makes one set better than another."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from collafuse_edge.evaluation.evaluate import Generated, ImageScore, Real, score
from collafuse_edge.evaluation.extractor import features_of
from collafuse_edge.evaluation.kid import kid_difference
from collafuse_runtimes.errors import InputError
from collafuse_runtimes.files.image_record import ImageRecord


@dataclass(frozen=True)
class Difference:
    """One set less the first one, against the same real images; below 0 it is nearer to them.

    Attributes:
        paired: whether image i of both was made from the same noise, so that its share of luck cancels.
        pyramid: of ``ImageScore.pyramid``; None where that is.
        kid, kid_error, kid_low, kid_high: of ``kid_mean``, its standard error and 95 % interval; None without an
            extractor, the last three with few images.
    """

    real: str
    first: str
    second: str
    paired: bool
    pyramid: float | None
    kid: float | None
    kid_error: float | None
    kid_low: float | None
    kid_high: float | None


@dataclass(frozen=True)
class Comparison:
    """Every set against every set of real images, and each set but the first less the first."""

    scores: tuple[ImageScore, ...]
    differences: tuple[Difference, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def compare(reals: list[Real], sets: dict[str, Generated], extractor: Path | None) -> Comparison:
    """Judge all sets.

    Args:
        sets: name to images; the first is what the others are compared with.

    Raises:
        InputError, ArtefactError: as ``score``; sets of another size than the first.
    """
    (first, of_first), *others = sets.items()
    shape = of_first.images.shape[1:]
    for name, other in others:
        if other.images.shape[1:] != shape:
            raise InputError(f"{name} has images of {other.images.shape[1:]}, {first} of {shape}; compare one size")
    scores = tuple(score(real, generated, name, extractor) for real in reals for name, generated in sets.items())
    by_name = {(one.real, one.generated): one for one in scores}
    features = {} if extractor is None else {name: features_of(extractor, one.images) for name, one in sets.items()}
    differences = []
    for real in reals:
        for name, other in others:
            a, b = by_name[real.name, first], by_name[real.name, name]
            paired = is_paired(of_first, other)
            kid = None
            if real.features is not None:
                kid = kid_difference(real.features, features[first], features[name], paired=paired)
            low, high = (None, None) if kid is None else kid.interval or (None, None)
            differences.append(
                Difference(
                    real.name, first, name, paired,
                    None if a.pyramid is None or b.pyramid is None else b.pyramid - a.pyramid,
                    None if kid is None else kid.value, None if kid is None else kid.error, low, high,
                )
            )  # fmt: skip
    return Comparison(scores, tuple(differences))


def is_paired(first: Generated, second: Generated) -> bool:
    """Whether both began with the same noise, image by image."""

    def noise(record: ImageRecord | None) -> tuple[object, ...] | None:
        return None if record is None else (record.seed, record.first_index, record.plan.with_cut_ratio(0).fingerprint)

    return (
        len(first.images) == len(second.images)
        and noise(first.record) is not None
        and noise(first.record) == noise(second.record)
    )
