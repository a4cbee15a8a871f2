"""A UNet2DModel of diffusers as network of a checkpoint: its configuration checked against a plan, its weights read."""

import inspect
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collafuse_edge.importing.refusals import init_command, refused
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.errors import ArtefactError
from collafuse_runtimes.files.checkpoint import NetworkConfig
from collafuse_runtimes.networks.foreign import PICKLES, require_no_pickle
from collafuse_runtimes.text import one_line

if TYPE_CHECKING:
    import torch

STEM = "diffusion_pytorch_model"
AVERAGING = {
    "decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup",
}  # fmt: skip
"""Keys that diffusers' EMAModel adds to the configuration of the network it averaged."""
MOST = 1 << 16
"""No number of a configuration (channels, layers, classes) is larger."""


def network_of(config: dict[str, Any], path: Path, plan: SplitPlan, role: str) -> NetworkConfig:
    """The network that a config.json of diffusers describes, for one side of a plan.

    Raises:
        ArtefactError: another class, a field this release cannot run, or another image shape than the plan's.
    """
    from diffusers import UNet2DModel

    if config.get("_class_name") != "UNet2DModel":
        raise refused(path, "_class_name", config.get("_class_name"), "UNet2DModel, a network without text or latents")
    arguments = set(inspect.signature(UNet2DModel.__init__).parameters) - {"self"}
    unet = {key: value for key, value in config.items() if not key.startswith("_") and key not in AVERAGING}
    for field in sorted(unet.keys() - arguments):
        raise refused(
            path, field, unet[field], f"no such field: the installed diffusers' UNet2DModel has none; {_UPDATE}"
        )
    _require_moderate(unet, path)
    _check_shape(unet, path, plan)
    _check_conditions(unet, path, plan, role)
    height, width = plan.image_shape[1:]
    return NetworkConfig("imported UNet2DModel", {**unet, "sample_size": [height, width]}, unet.get("num_class_embeds"))


_UPDATE = "install the release of diffusers that wrote it"


def _require_moderate(unet: dict[str, Any], path: Path) -> None:
    for field, value in unet.items():
        parts = value if isinstance(value, list) else [value]
        numbers = [part for part in parts if isinstance(part, int | float) and not isinstance(part, bool)]
        if len(parts) > 64 or any(not abs(number) <= MOST for number in numbers):
            raise refused(path, field, value, f"at most 64 entries, numbers up to {MOST}")
    layers = unet.get("layers_per_block", 2)
    if isinstance(layers, bool) or not isinstance(layers, int) or not 1 <= layers <= 64:
        raise refused(path, "layers_per_block", layers, "an integer from 1 to 64")


def image_shape(unet: dict[str, Any], plan: SplitPlan) -> tuple[int, int, int]:
    """(C, H, W) of a network's configuration; what it does not say is the plan's."""
    channels, height, width = plan.image_shape
    size = unet.get("sample_size")
    sides = [size, size] if isinstance(size, int) else size
    if isinstance(sides, list) and len(sides) == 2 and all(isinstance(side, int) for side in sides):
        height, width = sides
    found = unet.get("in_channels", 3)
    return (found if isinstance(found, int) else channels, height, width)


def _check_shape(unet: dict[str, Any], path: Path, plan: SplitPlan) -> None:
    channels, height, width = plan.image_shape
    size = unet.get("sample_size")
    if size is not None and (not isinstance(size, int | list) or image_shape(unet, plan)[1:] != (height, width)):
        predictions = plan.prediction_type, plan.server_prediction_type
        other = init_command(image_shape(unet, plan), plan.timesteps, plan.schedule, plan.cut_ratio, predictions)
        raise refused(path, "sample_size", size, f"the plan's, {height}x{width}; or another plan: {other}")
    found = unet.get("out_channels", 3)
    if found == 2 * channels:
        raise refused(
            path,
            "out_channels",
            found,
            f"{channels}: a network that also predicts its variance (twice as many) has no use here",
        )
    for field in ("in_channels", "out_channels"):
        if unet.get(field, 3) != channels:
            raise refused(path, field, unet.get(field, 3), f"the plan's {channels} channels")
    if unet.get("center_input_sample"):
        raise refused(path, "center_input_sample", True, "false: a plan's images lie in [-1, 1] already")


def _check_conditions(unet: dict[str, Any], path: Path, plan: SplitPlan, role: str) -> None:
    kind = unet.get("time_embedding_type", "positional")
    if kind not in ("positional", "learned"):
        raise refused(path, "time_embedding_type", kind, "positional or learned; other networks take continuous times")
    if kind == "learned" and unet.get("num_train_timesteps") != plan.timesteps:
        raise refused(path, "num_train_timesteps", unet.get("num_train_timesteps"), f"the plan's {plan.timesteps}")
    if unet.get("class_embed_type") is not None:
        raise refused(
            path, "class_embed_type", unet["class_embed_type"], "null: classes are a table (num_class_embeds)"
        )
    classes = unet.get("num_class_embeds")
    if role == "server" and classes is not None:
        raise refused(path, "num_class_embeds", classes, "null for a server, which knows no labels; or --role client")
    if classes is not None and (isinstance(classes, bool) or not isinstance(classes, int) or classes < 1):
        raise refused(path, "num_class_embeds", classes, "null or an integer from 1")


def load_unet(folder: Path, network: NetworkConfig) -> tuple["torch.nn.Module", tuple[str, ...], tuple[Path, ...]]:
    """The network with its weights in float32, in eval mode; the types its file has; the files read.

    Raises:
        ArtefactError: weights are missing, pickled, damaged, not finite, or of another network.
    """
    import torch
    from diffusers import UNet2DModel

    variant, files = _weight_files(folder)
    types, numbers = _header(files)
    try:
        with torch.device("meta"):
            expected = sum(weight.numel() for weight in UNet2DModel(**network.unet).parameters())
    except Exception as error:  # whatever diffusers and torch think of bad values
        raise _bad(folder, error) from None
    if numbers != expected:
        raise ArtefactError(
            f"{folder}: its weights are {numbers} numbers, the network of its config.json has {expected}; "
            "copy both again"
        )
    try:
        loaded, report = UNet2DModel.from_pretrained(
            folder, variant=variant, use_safetensors=True, local_files_only=True, output_loading_info=True,
            torch_dtype=torch.float32, low_cpu_mem_usage=False,
        )  # fmt: skip
    except Exception as error:
        raise _bad(folder, error) from None
    wrong = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
    if wrong:
        raise ArtefactError(
            f"{folder}: weight {str(wrong[0])[:120]} is missing, unknown or of another shape; copy it again"
        )
    for name, weight in loaded.named_parameters():
        if not torch.isfinite(weight).all():
            raise ArtefactError(f"{folder}: weight {name} holds NaN or Inf; a network that broke in training is no use")
    return loaded.eval().requires_grad_(False), types, files


def _weight_files(folder: Path) -> tuple[str | None, tuple[Path, ...]]:
    """(variant in diffusers' sense, files): the plain ones, else those of the only variant."""
    found: dict[str | None, list[Path]] = {}
    for path in sorted(folder.glob(f"{STEM}*.safetensors")):
        words = path.name.removeprefix(STEM).removesuffix(".safetensors").removeprefix(".").split("-00")[0]
        found.setdefault(words or None, []).append(path)
    if None in found:
        return None, tuple(found[None])
    if len(found) == 1:
        ((variant, files),) = found.items()
        return variant, tuple(files)
    if found:
        raise ArtefactError(f"{folder} holds the variants {', '.join(map(str, found))}; leave one, the one you want")
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in PICKLES:
            require_no_pickle(path)
    raise ArtefactError(f"{folder} holds no {STEM}.safetensors; give a folder written by `save_pretrained`")


def _header(files: tuple[Path, ...]) -> tuple[tuple[str, ...], int]:
    """(types of the tensors, how many numbers they hold), without reading these."""
    from safetensors import safe_open

    types, numbers = set(), 0
    for path in files:
        try:
            with safe_open(path, framework="numpy") as opened:
                for name in opened.keys():  # noqa: SIM118 - it is no dictionary
                    part = opened.get_slice(name)
                    types.add(part.get_dtype())
                    numbers += math.prod(part.get_shape())
        except Exception as error:  # safetensors' own class, or the system's
            raise ArtefactError(
                f"{path} is not a readable safetensors file: {one_line(error, 120)}; copy it again"
            ) from None
    return tuple(sorted(types)), numbers


def _bad(folder: Path, error: Exception) -> ArtefactError:
    reason = one_line(error, 200)
    return ArtefactError(f"{folder}: diffusers cannot build this network: {reason}; check its config.json")
