"""The split plan: what is split where, and the timestep lists of both sides.

Vocabulary (see docs/architecture.md): T timesteps with indices 0..T-1; ``cut_ratio`` c is the device's share;
cut = round(c*T); the server runs timesteps T-1..cut (t_c = T - cut steps), the device runs cut-1..0. The hand-over
tensor x_{t_c} always stands at level n = cut-1, whatever strides the two sides use.
"""

import hashlib
import json
import math
import reprlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from typing import Any

from collafuse_runtimes.diffusion.levels import spaced_timesteps
from collafuse_runtimes.diffusion.schedule import SCHEDULES, FloatArray, alpha_bar
from collafuse_runtimes.errors import InputError, PlanMismatch

CLEAN = -1
"""The level below timestep 0: no noise left, alpha_bar = 1."""

Transition = tuple[int, int]
"""(t, t_prev): the network is called at timestep t and the tensor moves from level t to level t_prev < t."""

PREDICTION_TYPES = ("epsilon", "v")
MIN_TIMESTEPS, MAX_TIMESTEPS = 2, 1000
MAX_SIDE = 4096


@dataclass(frozen=True)
class SplitPlan:
    """Everything both sides must agree on.

    Attributes:
        image_shape: (C, H, W); C is 1 or 3.
        timesteps: T, 2..1000.
        schedule: "cosine" or "linear".
        prediction_type: what the networks predict, "epsilon" (Ho et al. 2020) or "v" (Salimans & Ho 2022).
        cut_ratio: c in [0, 1], the device's share of the T timesteps.
        value_range: range of x_0, (-1.0, 1.0).
        server_prediction_type: the same for the server's network; None takes ``prediction_type``.

    Raises:
        InputError: a field is outside its range; the message names field, value and what is valid.
    """

    image_shape: tuple[int, int, int]
    timesteps: int = 100
    schedule: str = "cosine"
    prediction_type: str = "epsilon"
    cut_ratio: float = 0.2
    value_range: tuple[float, float] = (-1.0, 1.0)
    server_prediction_type: str | None = None

    def __post_init__(self) -> None:
        _check_image_shape(self.image_shape)
        if not _is_int(self.timesteps) or not MIN_TIMESTEPS <= self.timesteps <= MAX_TIMESTEPS:
            raise _invalid("timesteps", self.timesteps, f"an integer from {MIN_TIMESTEPS} to {MAX_TIMESTEPS}")
        if self.schedule not in SCHEDULES:
            raise _invalid("schedule", self.schedule, " or ".join(SCHEDULES))
        if self.server_prediction_type is None:
            object.__setattr__(self, "server_prediction_type", self.prediction_type)
        for name in ("prediction_type", "server_prediction_type"):
            if getattr(self, name) not in PREDICTION_TYPES:
                raise _invalid(name, getattr(self, name), " or ".join(PREDICTION_TYPES))
        c = self.cut_ratio
        if isinstance(c, bool) or not isinstance(c, int | float) or not 0 <= c <= 1:
            raise _invalid("cut_ratio", c, "a number in [0, 1] (the device's share of the timesteps)")
        if self.value_range != (-1.0, 1.0):
            raise _invalid("value_range", self.value_range, "(-1.0, 1.0)")
        # One spelling per value (0, 0.0 and -0.0; -1 and -1.0), so that equal plans have equal fingerprints.
        object.__setattr__(self, "cut_ratio", abs(float(c)))
        object.__setattr__(self, "value_range", (-1.0, 1.0))

    @property
    def cut(self) -> int:
        """First timestep of the server, 0..T: c*T in float64, rounded half to even."""
        return round(self.cut_ratio * self.timesteps)

    @property
    def t_c(self) -> int:
        """Denoising steps the server performs at full stride, T - cut."""
        return self.timesteps - self.cut

    @property
    def handover_level(self) -> int:
        """n = cut - 1: the level of the hand-over tensor; -1 (clean) when the server does everything."""
        return self.cut - 1

    @property
    def alpha_bar(self) -> FloatArray:
        """(T,) float64."""
        return alpha_bar(self.schedule, self.timesteps)

    def alpha_bar_at(self, level: int) -> float:
        """alpha_bar of a level, 1.0 for CLEAN."""
        return 1.0 if level == CLEAN else float(self.alpha_bar[level])

    @property
    def noise_level(self) -> float:
        """sigma_n / sqrt(alpha_bar_n) = sqrt((1 - alpha_bar_n) / alpha_bar_n) of what is handed over: the standard
        deviation of its noise beside an image in [-1, 1]; 0.0 where that is the image itself (c = 0)."""
        alpha_bar_n = self.alpha_bar_at(self.handover_level)
        return math.sqrt((1 - alpha_bar_n) / alpha_bar_n)

    @property
    def noise_text(self) -> str:
        """``noise_level`` in words."""
        return f"noise of standard deviation {self.noise_level:.3f} beside an image in [-1, 1]"

    def prediction_at(self, t: int) -> str:
        """What the network that runs timestep t predicts: the server's from ``cut`` on, the head's below."""
        prediction = self.server_prediction_type if t >= self.cut else self.prediction_type
        assert prediction is not None
        return prediction

    def server_transitions(self, steps: int | None = None, levels: str = "even") -> tuple[Transition, ...]:
        """The server's part: from level T-1 to exactly level cut-1 in ``steps`` steps (default: all t_c).

        Args:
            levels: how the timesteps are spaced, as in ``levels.spaced_timesteps``.

        Raises:
            InputError: ``steps`` is not in 1..t_c (0 only when t_c is 0).
        """
        return self._spaced("server", self.timesteps - 1, self.cut, steps, levels)

    def client_transitions(self, steps: int | None = None, levels: str = "even") -> tuple[Transition, ...]:
        """The device's part: from exactly level cut-1 to CLEAN in ``steps`` steps (default: all cut).

        Raises:
            InputError: ``steps`` is not in 1..cut (0 only when cut is 0).
        """
        return self._spaced("device", self.cut - 1, 0, steps, levels)

    def server_transitions_at(self, timesteps: Sequence[int]) -> tuple[Transition, ...]:
        """The server's part through exactly these timesteps, to level cut-1.

        Raises:
            InputError: they do not begin at T-1, do not fall strictly, or go below cut.
        """
        return _given("server", self.timesteps - 1, self.cut, timesteps)

    def client_transitions_at(self, timesteps: Sequence[int]) -> tuple[Transition, ...]:
        """The device's part through exactly these timesteps, to CLEAN.

        Raises:
            InputError: they do not begin at cut-1, do not fall strictly, or go below 0.
        """
        return _given("device", self.cut - 1, 0, timesteps)

    def _spaced(self, side: str, first: int, last: int, steps: int | None, levels: str) -> tuple[Transition, ...]:
        """A list that would end clean keeps timestep 0, whose step to clean is x_0 itself, unless it is even."""
        span = first - last + 1
        steps = span if steps is None else steps
        if not _is_int(steps) or not min(span, 1) <= steps <= span:
            valid = f"1 to {span}" if span else f"0 (it leaves the {side} no step)"
            raise InputError(f"{side} steps {steps} out of range: this plan allows {valid}")
        if not steps:
            return ()
        if levels == "even" or last > 0:
            timesteps = spaced_timesteps(self.alpha_bar, first, last - 1, steps + 1, levels)[:-1]
        else:
            timesteps = spaced_timesteps(self.alpha_bar, first, last, steps, levels)
        return tuple(pairwise((*timesteps, last - 1)))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields; ``server_prediction_type`` only where it differs, so that older plans keep their
        fingerprint."""
        data = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        if self.server_prediction_type == self.prediction_type:
            del data["server_prediction_type"]
        return data

    @classmethod
    def from_dict(cls, data: Any) -> "SplitPlan":
        """Inverse of ``to_dict``.

        Raises:
            InputError: fields missing or unknown, or a value outside its range.
        """
        names = {f.name for f in fields(cls)} - {"server_prediction_type"}
        if not isinstance(data, dict):
            raise InputError(f"a plan needs the fields {', '.join(sorted(names))}; found {type(data).__name__}")
        if missing := sorted(names - data.keys()):
            raise InputError(f"the plan lacks {', '.join(missing)}; valid: exactly {', '.join(sorted(names))}")
        if unknown := sorted(map(str, data.keys() - names - {"server_prediction_type"})):
            raise InputError(f"the plan has unknown fields {unknown!r}; valid: exactly {', '.join(sorted(names))}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**values)

    @classmethod
    def from_payload(cls, payload: dict[str, Any]) -> "SplitPlan":
        """The plan of an artefact, from its fields ``plan`` and ``fingerprint``.

        Raises:
            InputError: a field is missing, the plan is invalid, or the fingerprint is another plan's.
        """
        plan = cls.from_dict(payload.get("plan"))
        if payload.get("fingerprint") != plan.fingerprint:
            raise InputError("the fingerprint is not that of the plan beside it; make the file again")
        return plan

    def canonical_json(self) -> str:
        """The one text form: sorted keys, no spaces."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @property
    def fingerprint(self) -> str:
        """sha256 of ``canonical_json``, hex."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()

    def with_cut_ratio(self, cut_ratio: float) -> "SplitPlan":
        """The same plan cut elsewhere."""
        return replace(self, cut_ratio=cut_ratio)


def require_same_plan(
    first: SplitPlan, first_name: str, second: SplitPlan, second_name: str, *, except_cut: bool = False
) -> None:
    """Refuse to combine artefacts of different plans.

    Raises:
        PlanMismatch: names the first differing field with both values.
    """
    for field in fields(SplitPlan):
        if except_cut and field.name == "cut_ratio":
            continue
        a, b = getattr(first, field.name), getattr(second, field.name)
        if a != b:
            raise PlanMismatch(
                f"plans disagree on {field.name}: {first_name} has {a}, {second_name} has {b}; "
                "use artefacts made from one plan file"
            )


def _given(side: str, first: int, last: int, timesteps: Sequence[int]) -> tuple[Transition, ...]:
    chain = (*timesteps, last - 1)
    integers = all(map(_is_int, chain))
    starts = chain[0] == first  # where the side has no step, first is last - 1
    if not (starts and integers and all(a > b for a, b in pairwise(chain))):
        raise InputError(
            f"{side} timesteps {reprlib.repr(list(timesteps))} do not fit the plan; valid: integers that fall from "
            f"{first} to at least {last}"
        )
    return tuple(pairwise(chain))


def _check_image_shape(shape: object) -> None:
    valid = isinstance(shape, tuple) and len(shape) == 3 and all(_is_int(n) and 1 <= n <= MAX_SIDE for n in shape)
    if not valid or shape[0] not in (1, 3):  # type: ignore[index]
        raise _invalid("image_shape", shape, f"(C, H, W) with C 1 or 3 and sides 1 to {MAX_SIDE}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _invalid(field: str, value: object, valid: str) -> InputError:
    shown = "NaN" if isinstance(value, float) and math.isnan(value) else repr(value)
    return InputError(f"plan field {field} is {shown}; valid: {valid}")
