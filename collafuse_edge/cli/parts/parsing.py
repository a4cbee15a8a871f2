"""Small texts on the command line to values."""

from typing import TYPE_CHECKING

from collafuse_runtimes.errors import InputError

if TYPE_CHECKING:
    from collafuse_runtimes.diffusion.samplers import Sampler


def comma_integers(option: str, text: str) -> tuple[int, ...]:
    """ "20,10,5" -> (20, 10, 5).

    Raises:
        InputError: not integers separated by commas.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--{option} {text!r} is not a list of integers; valid: for example 20,10,5") from None


def usual_levels(sampler: str) -> str:
    """Where a sampler's steps lie unless told (benchmarks/results/solvers.md)."""
    return "karras" if sampler == "dpm++2m" else "even"


def levels_or_timesteps(text: str) -> tuple[str, tuple[int, ...] | None]:
    """ "karras" -> ("karras", None); "19,9,4,1,0" -> ("given", (19, 9, 4, 1, 0)).

    Raises:
        InputError: neither the name of levels nor integers separated by commas.
    """
    from collafuse_runtimes.diffusion.levels import GIVEN, LEVELS

    if text in LEVELS:
        return text, None
    try:
        return GIVEN, tuple(int(part) for part in text.split(","))
    except ValueError:
        valid = ", ".join(LEVELS)
        raise InputError(f"unknown levels {text!r}; valid: {valid}, or timesteps, e.g. 19,9,4,1,0") from None


def way_named(sampler: str, eta: float, levels: str | None, steps: object) -> "tuple[Sampler, tuple[int, ...] | None]":
    """(sampler, timesteps where --levels names them).

    Raises:
        InputError: unusable levels, or timesteps and a number of steps.
    """
    from collafuse_runtimes.diffusion.samplers import Sampler

    spacing, timesteps = levels_or_timesteps(levels or usual_levels(sampler))
    if timesteps is not None and steps is not None:
        raise InputError(f"--levels {levels} names every timestep; leave out --steps")
    return Sampler(sampler, eta, spacing), timesteps


def value_window(text: str) -> tuple[float, float]:
    """ "-160:240" -> (-160.0, 240.0).

    Raises:
        InputError: not LOW:HIGH.
    """
    try:
        low, high = text.split(":")
        return float(low), float(high)
    except ValueError:
        raise InputError(f"--window {text!r} is not LOW:HIGH; valid: for example -160:240") from None


def slice_range(text: str) -> tuple[int, int]:
    """ "60:100" -> (60, 100).

    Raises:
        InputError: not START:STOP.
    """
    try:
        start, stop = text.split(":")
        return int(start), int(stop)
    except ValueError:
        raise InputError(f"--slices {text!r} is not START:STOP; valid: for example 60:100") from None
