"""What checkpoint and bundle of a distilled head say of it."""

from dataclasses import dataclass, fields
from typing import Any

from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.diffusion.samplers import Sampler
from collafuse_runtimes.errors import InputError


@dataclass(frozen=True)
class Distilled:
    """What a head was made for that takes these steps and no others.

    Attributes:
        timesteps: of the steps, from the hand-over level down; DDIM's steps lead from one to the next.
        teacher_sha256: of the weights of the head it learnt from.
        teacher_sampler, teacher_steps: how that made the trajectories.
        source: what they began with, "images" (noised at the site) or "hand-over".
    """

    timesteps: tuple[int, ...]
    teacher_sha256: str
    teacher_sampler: dict[str, Any]
    teacher_steps: int
    source: str

    @classmethod
    def from_dict(cls, data: Any, plan: SplitPlan) -> "Distilled | None":
        """None for None.

        Raises:
            InputError, TypeError: a field is missing, unknown or of another kind, or the timesteps do not fit the plan.
        """
        if data is None:
            return None
        if not isinstance(data, dict) or data.keys() != {f.name for f in fields(cls)}:
            raise InputError("distilled lacks a field, or has one too many")
        found = cls(**{**data, "timesteps": tuple(data["timesteps"])})
        plan.client_transitions_at(found.timesteps)
        texts = isinstance(found.teacher_sha256, str) and found.source in ("images", "hand-over")
        steps = found.teacher_steps
        counts = isinstance(steps, int) and not isinstance(steps, bool) and 1 <= steps <= plan.cut
        if not (texts and counts and isinstance(found.teacher_sampler, dict)):
            raise InputError("distilled has a field of another kind")
        Sampler(**found.teacher_sampler)
        return found

    @property
    def text(self) -> str:
        """For people."""
        own, name = ", ".join(map(str, self.timesteps)), self.teacher_sampler.get("name")
        return (
            f"{len(self.timesteps)} steps (timesteps {own}), learnt from {self.teacher_steps} of {name}, and no others"
        )
