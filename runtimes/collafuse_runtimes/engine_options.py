"""What an engine may be told; apart from the engines, so that it costs no import of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated


@dataclass(frozen=True)
class EngineOptions:
    """What an engine may be told; None leaves the choice to it. Which engine takes which option: ``ENGINES``.

    The text beside each field says what it is, here and in ``--help``. Paths may be given as str.
    """

    threads: Annotated[int | None, "CPU threads of one step, 1 to 1024."] = None
    spinning: Annotated[bool | None, "ort-cpu: idle threads wait busily. Faster steps, more energy."] = None
    checkpoint: Annotated[Path | None, "The head's checkpoint, for the engine torch only."] = None
    gpu: Annotated[int | None, "Index of the GPU, as CUDA counts, for engines that use one."] = None
    cache: Annotated[Path | None, "Folder of the TensorRT engines built on this machine."] = None
    trust_bundle: Annotated[bool | None, "Run the TensorRT engine that the bundle brings along."] = None

    def __post_init__(self) -> None:
        for name in ("checkpoint", "cache"):
            path: str | Path | None = getattr(self, name)
            if path is not None:
                object.__setattr__(self, name, Path(path))
