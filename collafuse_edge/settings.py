"""What a plan and an upload may be told; apart from the work, so that `--help` costs no import of it.

The text beside each field says what it is, here and in ``--help``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

SCHEDULES = ("cosine", "linear")
PREDICTIONS = ("epsilon", "v")
PROTOCOLS = ("upload", "paper")
SHARD_DTYPES = ("float16", "float32")


@dataclass(frozen=True)
class PlanSettings:
    """Of a plan, but for the sides of its images; ``SplitPlan`` says what is valid.

    What heads and server predict is, where it is None, what few steps need (benchmarks/results/front.md): v for
    whoever starts from noise alone, the server, or the heads at c = 1; epsilon for other heads.
    """

    channels: Annotated[int, "1 (grey) or 3 (colour)."] = 1
    timesteps: Annotated[int, "T, the number of timesteps, 2 to 1000."] = 100
    schedule: Annotated[str, "How noise grows over the timesteps.", SCHEDULES] = "cosine"
    cut_ratio: Annotated[float, "Cut ratio c: the device's share of the timesteps, 0 to 1."] = 0.2
    prediction: Annotated[str | None, "What heads predict. Default: epsilon, v at c = 1.", PREDICTIONS] = None
    server_prediction: Annotated[str | None, "What the server predicts. Default: v.", PREDICTIONS] = None


@dataclass(frozen=True)
class UploadSettings:
    """How images are noised into a shard; ``upload_images`` says what is valid."""

    protocol: Annotated[str, "upload sends x_n only; paper discloses x_0.", PROTOCOLS] = "upload"
    key: Annotated[Path | None, "Secret noise key; default in your configuration folder."] = None
    draws: Annotated[int, "paper only: noisy copies per image."] = 8
    seed: Annotated[int, "paper only: seed of the noise."] = 0
    dtype: Annotated[str, "Type of the shard's numbers.", SHARD_DTYPES] = "float16"
    strict: Annotated[bool, "Refuse (exit code 1) what is warned of."] = False
