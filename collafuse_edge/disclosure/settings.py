"""What `disclose` is asked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from collafuse_runtimes.diffusion.noise import check_seed
from collafuse_runtimes.errors import InputError


@dataclass(frozen=True)
class DisclosureSettings:
    """What is attacked, by whom; the text beside each field says what it is, here and in ``--help``."""

    cuts: Annotated[str, "Cut ratios to try, e.g. 0.2,0.6; the plan's is tried in any case."] = "0.2,0.4,0.6,0.8"
    attacker: Annotated[
        Path | None, "Head that guesses: the site's own is the strongest. Default: one trained here."
    ] = None
    shard: Annotated[Path | None, "Finished shard of these images to attack, at its own cut alone."] = None
    key: Annotated[Path | None, "--shard only: its noise key; default as for upload."] = None
    attacked: Annotated[int, "Images to attack and to tell apart, at most."] = 500
    attacker_steps: Annotated[int, "Training steps of the attacker's network; 0: filters alone."] = 600
    delta: Annotated[float, "Delta of (epsilon, delta); below one in the number of people."] = 1e-5
    images_per_patient: Annotated[int | None, "Images of one patient at most, for guarantees per patient."] = None
    seed: Annotated[int, "Seed of the noise, the halves and the attacker's training."] = 0

    def __post_init__(self) -> None:
        check_seed(self.seed)
        self.cut_ratios  # noqa: B018  they are numbers
        if self.attacked < 2:
            raise InputError(f"attacked {self.attacked} out of range: must be at least 2")
        if self.attacker_steps < 0:
            raise InputError(f"attacker steps {self.attacker_steps} out of range: must be at least 0")
        if not 0 < self.delta < 1:
            raise InputError(f"delta {self.delta} out of range: must be above 0 and below 1, for example 1e-5")
        if self.images_per_patient is not None and self.images_per_patient < 1:
            raise InputError(f"images per patient {self.images_per_patient} out of range: must be at least 1")

    @property
    def cut_ratios(self) -> tuple[float, ...]:
        """``cuts`` as numbers."""
        try:
            return tuple(float(part) for part in self.cuts.split(","))
        except ValueError:
            raise InputError(f"cuts {self.cuts!r} are no numbers; valid: for example 0.2,0.6") from None
