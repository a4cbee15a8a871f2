"""How an import says no: file, field, value, what is valid."""

from pathlib import Path

from collafuse_runtimes.errors import ArtefactError


def refused(path: Path, field: str, value: object, valid: str) -> ArtefactError:
    """The exception for a field of a configuration file."""
    return ArtefactError(f"{path}: {field} is {str(value)[:80]!r}; valid: {valid}")


def init_command(
    shape: tuple[int, int, int], timesteps: int, schedule: str, cut_ratio: float, predictions: tuple[str | None, ...]
) -> str:
    """The command that writes a plan for images of ``shape``, (C, H, W), heads and server with these predictions."""
    channels, height, width = shape
    return (
        f"`collafuse-edge init --size {height}x{width} --channels {channels} --timesteps {timesteps} "
        f"--schedule {schedule} --cut-ratio {cut_ratio:g} "
        f"--prediction {predictions[0]} --server-prediction {predictions[1]} --out OTHER.json`"
    )
