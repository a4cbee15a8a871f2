"""The checkpoint directory: weights of one denoiser, its network and its plan (docs/formats.md).

config.json, diffusion_pytorch_model.safetensors  a diffusers folder: the network, and the moving average of its
                                                  weights, which everything downstream uses
checkpoint.json    role, plan, network            model.safetensors  the weights as trained, not averaged
training.json      steps, losses, versions, sha256 of the files above
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from collafuse_runtimes.diffusion.distilled import Distilled
from collafuse_runtimes.diffusion.plan import SplitPlan, require_same_plan
from collafuse_runtimes.disk.atomic import new_directory, write_bytes
from collafuse_runtimes.errors import ArtefactError, CollafuseError, EngineUnavailable, InputError, PlanMismatch
from collafuse_runtimes.files.sealed import Tensors, read_json, read_tensors, sha256_file, write_json, write_tensors
from collafuse_runtimes.networks.classes import read_class_names
from collafuse_runtimes.networks.foreign import refuse_foreign
from collafuse_runtimes.networks.network import NETWORKS, build_unet
from collafuse_runtimes.text import one_line

if TYPE_CHECKING:
    import torch

CONFIG_FORMAT = "collafuse-checkpoint"
TRAINING_FORMAT = "collafuse-training"
WEIGHTS_FORMAT = "collafuse-weights"
VERSION = 2
"""Of the folder's layout; in version 1 checkpoint.json was config.json, and the moving average ema.safetensors."""
ROLES = ("server", "client")
DESCRIPTION, WEIGHTS, TRAINED = "checkpoint.json", "diffusion_pytorch_model.safetensors", "model.safetensors"


@dataclass(frozen=True)
class NetworkConfig:
    """How to build a network.

    Attributes:
        preset: the preset's name, for people.
        unet: keyword arguments of its class.
        num_classes: classes of a conditional head, None otherwise.
        kind: its class, one of ``NETWORKS``; not written where it is UNet2DModel, as older releases wrote it.
    """

    preset: str
    unet: dict[str, Any]
    num_classes: int | None = None
    kind: str = "UNet2DModel"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        fields = asdict(self)
        if self.kind == "UNet2DModel":
            del fields["kind"]
        return fields


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint directory holds, weights apart.

    Attributes:
        path: the directory.
        role: "server" or "client".
        plan: the split plan; a server's has the smallest cut it was trained for, a client's the largest.
        network: what to build.
        training: steps, losses, versions (training.json without its seal).
        weights_path: the moving average of the weights.
        weights_sha256: of that file.
        class_names: of a conditional head's classes, where they have names and the release that trained it kept them.
        distilled: of a head that was distilled; None for all others.
    """

    path: Path
    role: str
    plan: SplitPlan
    network: NetworkConfig
    training: dict[str, Any]
    weights_path: Path
    weights_sha256: str
    class_names: tuple[str, ...] | None = None
    distilled: Distilled | None = None


@dataclass(frozen=True)
class Description:
    """What a network is, as checkpoint.json says it; fields as in ``Checkpoint``."""

    role: str
    plan: SplitPlan
    network: NetworkConfig
    class_names: tuple[str, ...] | None = None
    distilled: Distilled | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {
            "role": self.role,
            "plan": self.plan.to_dict(),
            "fingerprint": self.plan.fingerprint,
            "network": self.network.to_dict(),
            "class_names": None if self.class_names is None else list(self.class_names),
            **({} if self.distilled is None else {"distilled": asdict(self.distilled)}),
        }


def write_checkpoint(
    path: Path, description: Description, *, model: Tensors | None, ema: Tensors, training: dict[str, Any]
) -> None:
    """Write a checkpoint directory, replacing an older one of the same name in one step.

    Args:
        model: the weights as trained; None where only ``ema`` is known.

    Raises:
        ArtefactError: it cannot be written; an older one is untouched.
    """
    with new_directory(path) as aside:
        for name, tensors, kind in ((TRAINED, model, "model"), (WEIGHTS, ema, "ema")):
            if tensors is not None:
                write_tensors(aside / name, WEIGHTS_FORMAT, tensors, {"weights": kind}, metadata={"format": "pt"})
        write_json(aside / DESCRIPTION, CONFIG_FORMAT, description.to_dict(), VERSION)
        write_bytes(aside / "config.json", _diffusers_config(description.network))
        files = {file.name: sha256_file(file) for file in sorted(aside.iterdir())}
        write_json(aside / "training.json", TRAINING_FORMAT, {**training, "files": files}, VERSION)


def _diffusers_config(network: NetworkConfig) -> bytes:
    """config.json as ``from_pretrained`` of the network's class reads it."""
    return json.dumps({"_class_name": network.kind, **network.unet}, indent=2, sort_keys=True).encode() + b"\n"


def read_checkpoint(path: Path, role: str | None = None) -> Checkpoint:
    """Read a checkpoint's description and check every file's sha256.

    Raises:
        ArtefactError: missing, damaged or mixed files, another tool's network, an invalid plan, or another role than
            ``role``.
    """
    refuse_foreign(path, role)
    if not path.is_dir():
        raise ArtefactError(
            f"no checkpoint at {path}: valid is a folder written by train-server, train-client, distill or import"
        )
    old = not (path / DESCRIPTION).exists() and not (path / WEIGHTS).exists()
    version, description, weights = (1, "config.json", "ema.safetensors") if old else (VERSION, DESCRIPTION, WEIGHTS)
    training = read_json(path / "training.json", TRAINING_FORMAT, version)
    files = _require_files(path, training.pop("files", None), {description, weights, "config.json"})
    config = read_json(path / description, CONFIG_FORMAT, version)
    try:
        found = config["role"]
        plan = SplitPlan.from_payload(config)
        network = _network_from(config["network"])
        class_names = read_class_names(config.get("class_names"), network.num_classes)
        distilled = Distilled.from_dict(config.get("distilled"), plan)
    except (KeyError, TypeError, CollafuseError) as error:
        raise ArtefactError(f"{path / description}: {error}; train again with this release") from None
    if found != role if role is not None else found not in ROLES:
        raise ArtefactError(f"{path} is a {found} checkpoint; valid here: a {role or ' or '.join(ROLES)} checkpoint")
    return Checkpoint(path, found, plan, network, training, path / weights, files[weights], class_names, distilled)


def _network_from(fields: Any) -> NetworkConfig:
    network = NetworkConfig(**fields)
    for field, valid, words in (
        ("preset", isinstance(network.preset, str), "a text"),
        ("unet", isinstance(network.unet, dict), "the arguments of a network"),
        ("num_classes", network.num_classes is None or _is_count(network.num_classes), "null or an integer from 1"),
        ("kind", network.kind in NETWORKS, " or ".join(NETWORKS)),
    ):
        if not valid:
            raise InputError(f"network field {field} is {one_line(repr(getattr(network, field)), 60)}; valid: {words}")
    return network


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _require_files(path: Path, files: Any, needed: set[str]) -> dict[str, str]:
    """What training.json says of the other files: ``needed``, and the trained weights where there are any."""
    stated = files if isinstance(files, dict) else {}
    trained = {TRAINED} if TRAINED in stated or (path / TRAINED).exists() else set()
    for name in sorted(needed | trained):
        if stated.get(name) != sha256_file(path / name):
            raise ArtefactError(
                f"{path / name} is not the file training.json names: damaged or mixed; copy the folder again"
            )
    return stated


def require_trained_for(checkpoint: Checkpoint, plan: SplitPlan, plan_name: str) -> None:
    """Require that a network was trained for every timestep its side runs in a plan.

    A server was trained for its own plan's cut and above, so it serves larger cuts too; a client for all below its own
    plan's cut, so it serves smaller ones.

    Raises:
        PlanMismatch: the plans differ in more than the cut, or the cut asks for timesteps never trained for.
    """
    trained, asked = checkpoint.plan, f"{plan_name}'s cut_ratio {plan.cut_ratio} asks for timesteps"
    require_same_plan(plan, plan_name, trained, str(checkpoint.path), except_cut=True)
    if checkpoint.role == "server" and plan.cut < trained.cut:
        raise PlanMismatch(
            f"{asked} down to {plan.cut}, but {checkpoint.path} was trained for {trained.cut} and above; "
            f"valid: cut_ratio at least {trained.cut_ratio}"
        )
    if checkpoint.role == "client" and plan.cut > trained.cut:
        raise PlanMismatch(
            f"{asked} up to {plan.cut - 1}, but {checkpoint.path} was trained for {trained.cut - 1} and below; "
            f"valid: cut_ratio above 0, at most {trained.cut_ratio}"
        )


def load_weights(checkpoint: Checkpoint) -> Tensors:
    """The moving-average weights, by parameter name, float32.

    Raises:
        ArtefactError: damaged, missing, or not finite.
    """
    path = checkpoint.weights_path
    weights = read_tensors(path, WEIGHTS_FORMAT)[0]
    for name, value in weights.items():
        if not np.isfinite(value).all():
            raise ArtefactError(f"{path}: weight {name} holds NaN or Inf; train again")
    return weights


def load_network(checkpoint: Checkpoint, device: str = "cpu") -> "torch.nn.Module":
    """The network with its moving-average weights, in eval mode on ``device``.

    Raises:
        EngineUnavailable: torch or diffusers is not installed.
        ArtefactError: weights, network and plan do not fit each other.
    """
    network, tensors = checkpoint.network, load_weights(checkpoint)
    try:
        shapes = {name: value.shape for name, value in tensors.items()}
        module = build_unet(network.unet, shapes, checkpoint.plan.image_shape, network.num_classes, network.kind)
    except EngineUnavailable:
        raise
    except InputError as error:
        raise ArtefactError(f"{checkpoint.path}: weights do not fit the network ({error}); train again") from None
    import torch

    module.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})
    return module.eval().requires_grad_(False).to(device)
