"""The resume state ``NAME.resume.safetensors``: one file that is replaced whole, so a killed run never loses it.

Randomness needs no state: order, noise and timesteps of a step are functions of (seed, step).
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from collafuse_runtimes.errors import ArtefactError, InputError
from collafuse_runtimes.files.sealed import Tensors, read_tensors, write_tensors
from collafuse_runtimes.text import one_line

if TYPE_CHECKING:
    import torch
    from diffusers.training_utils import EMAModel

FORMAT = "collafuse-resume"
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: optimizer steps done.
        loss_sum: sum of the losses since the last entry of ``losses``.
        loss_count: steps in that sum.
        losses: (step, mean loss since the entry before) pairs.
        seconds: wall time spent so far, over all resumptions.
    """

    step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    losses: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, loss: float, every: int) -> None:
        """Count a step with its loss; each ``every`` steps their mean becomes an entry of ``losses``."""
        self.step += 1
        self.loss_sum += loss
        self.loss_count += 1
        if self.step % every == 0:
            self.losses.append((self.step, self.loss_sum / self.loss_count))
            self.loss_sum, self.loss_count = 0.0, 0


@dataclass(frozen=True)
class TrainState:
    """The live objects a resume state is taken from and put back into."""

    network: "torch.nn.Module"
    ema: "EMAModel"
    optimizer: "torch.optim.Optimizer"
    scaler: "torch.amp.GradScaler | None"

    def parameters(self) -> list[tuple[str, "torch.nn.Parameter"]]:
        """Named parameters in the network's order."""
        return list(self.network.named_parameters())

    def ema_tensors(self) -> Tensors:
        """Moving averages by parameter name."""
        pairs = zip(self.parameters(), self.ema.shadow_params, strict=True)
        return {name: _numpy(value) for (name, _), value in pairs}

    def model_tensors(self) -> Tensors:
        """Weights by parameter name."""
        return {name: _numpy(value) for name, value in self.parameters()}


def resume_path(checkpoint: Path) -> Path:
    """Where the resume state of a checkpoint directory lives: beside it."""
    return checkpoint.with_name(f"{checkpoint.name}.resume.safetensors")


def write_resume(path: Path, state: TrainState, progress: Progress, identity: dict[str, Any]) -> None:
    """Write the resume state.

    Args:
        identity: everything that must be the same for a run to continue (settings, plan, network, data digest).

    Raises:
        ArtefactError: the file cannot be written; an older one is untouched.
    """
    import torch

    tensors = {f"model.{k}": v for k, v in state.model_tensors().items()}
    tensors |= {f"ema.{k}": v for k, v in state.ema_tensors().items()}
    for name, parameter in state.parameters():
        moments = state.optimizer.state.get(parameter, {})
        tensors |= {f"{moment}.{name}": _numpy(moments.get(moment, torch.zeros_like(parameter))) for moment in _MOMENTS}
    scaler = state.scaler.state_dict() if state.scaler is not None else None
    payload = {
        "identity": identity,
        "progress": {**vars(progress), "losses": [list(pair) for pair in progress.losses]},
        "optimizer_step": float(state.optimizer.state.get(state.parameters()[0][1], {}).get("step", 0)),
        "ema_step": state.ema.optimization_step,
        "scaler": scaler,
    }
    write_tensors(path, FORMAT, tensors, payload)


def read_resume(path: Path, state: TrainState, identity: dict[str, Any]) -> Progress:
    """Put a resume state back into the live objects and return where it stands.

    Raises:
        ArtefactError: missing, damaged or incomplete.
        InputError: the run was started with other settings, plan, network or data; names the first difference.
    """
    import torch

    tensors, payload = read_tensors(path, FORMAT)
    try:
        require_identity(path, payload["identity"], identity)
        _require_shapes(tensors, state)
        with torch.no_grad():
            for (name, parameter), shadow in zip(state.parameters(), state.ema.shadow_params, strict=True):
                parameter.copy_(torch.from_numpy(tensors[f"model.{name}"]))
                shadow.copy_(torch.from_numpy(tensors[f"ema.{name}"]))
                moments = {
                    m: torch.empty_like(parameter).copy_(torch.from_numpy(tensors[f"{m}.{name}"])) for m in _MOMENTS
                }
                step = torch.tensor(_number(payload["optimizer_step"]), dtype=torch.float32)
                state.optimizer.state[parameter] = {"step": step, **moments}
        state.ema.optimization_step = int(_number(payload["ema_step"]))
        if state.scaler is not None and payload["scaler"] is not None:
            state.scaler.load_state_dict(payload["scaler"])
        return _progress_from(payload["progress"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        raise ArtefactError(f"{path} lacks or garbles {one_line(error, 200)}; delete it and train again") from None


def _number(value: Any) -> float:
    """Raises TypeError or ValueError for what is no number from 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"a step counter: {value!r}")
    return value


def _require_shapes(tensors: Tensors, state: TrainState) -> None:
    """torch's ``copy_`` would repeat a tensor of one value over a whole weight.

    Raises:
        KeyError, ValueError: a tensor is missing, of another shape, or not finite.
    """
    for name, parameter in state.parameters():
        for part in ("model", "ema", *_MOMENTS):
            found = tensors[f"{part}.{name}"]
            if found.shape != tuple(parameter.shape) or not np.isfinite(found).all():
                raise ValueError(f"{part}.{name}, {found.shape}: must be finite numbers of {tuple(parameter.shape)}")


def _progress_from(stored: dict[str, Any]) -> Progress:
    """Raises TypeError or ValueError where a field has no sense."""
    progress = Progress(**{**stored, "losses": [(int(step), float(loss)) for step, loss in stored["losses"]]})
    counts = (progress.step, progress.loss_count)
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in counts):
        raise ValueError(f"progress: step {counts[0]!r}, {counts[1]!r} losses")
    if not (math.isfinite(progress.loss_sum) and math.isfinite(progress.seconds)):
        raise ValueError("progress: a figure is not finite")
    return progress


def require_identity(path: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Do nothing where every part of ``wanted`` is stored.

    Raises:
        InputError: names the first difference with both values.
    """
    for part, value in wanted.items():
        name, old, new = _first_difference(part, stored.get(part), value)
        if old != new:
            raise InputError(
                f"{path} cannot be continued: {name} was {old}, now {new}; repeat the first command with --resume, "
                "or delete it to start anew"
            )


def _first_difference(name: str, old: Any, new: Any) -> tuple[str, Any, Any]:
    if old != new and isinstance(old, dict) and isinstance(new, dict):
        key = next(k for k in sorted({**old, **new}) if old.get(k) != new.get(k))
        return _first_difference(f"{name} {key}", old.get(key), new.get(key))
    return name, old, new


def _numpy(tensor: "torch.Tensor") -> np.ndarray[Any, Any]:
    result: np.ndarray[Any, Any] = tensor.detach().float().contiguous().cpu().numpy()
    return result
