"""A folder of diffusers -> a checkpoint that handoff, export and verify take."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collafuse_edge.importing.scheduler import SchedulerMatch, check_scheduler
from collafuse_runtimes.device.versions import git_commit, versions
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.errors import ArtefactError, InputError
from collafuse_runtimes.extras import needs
from collafuse_runtimes.files.checkpoint import ROLES, Description, read_checkpoint, write_checkpoint
from collafuse_runtimes.files.sealed import sha256_file
from collafuse_runtimes.networks.foreign import class_name, read_config, require_no_monai, require_no_pickle
from collafuse_runtimes.text import one_line

if TYPE_CHECKING:
    import torch

CONDITIONS = ("vae", "vqvae", "text_encoder", "tokenizer", "transformer", "image_encoder", "controlnet")
"""Parts of pipelines whose network works on latents or needs a text."""


@dataclass(frozen=True)
class ImportReport:
    """What was imported.

    Attributes:
        checkpoint: the folder written.
        role, plan: as given.
        network: class and cost, for people.
        parameters: of the network.
        weight_types: types in the source's files, e.g. ("F16",); the checkpoint's are float32.
        scheduler: its class in diffusers.
        alpha_bar_error: largest difference of a coefficient of x_t to the plan's.
        notes: what the user should know, in lines.
        weights_sha256: of the checkpoint's weights.
    """

    checkpoint: str
    role: str
    plan: SplitPlan
    network: str
    parameters: int
    weight_types: tuple[str, ...]
    scheduler: str
    alpha_bar_error: float
    notes: tuple[str, ...]
    weights_sha256: str


def import_network(source: Path, out: Path, role: str, plan: SplitPlan, scheduler: Path | None = None) -> ImportReport:
    """Check a network of diffusers against a plan and write it as a checkpoint.

    Args:
        source: folder of a ``UNet2DModel`` (config.json and safetensors), or of a pipeline of such a network and a
            scheduler.
        out: the checkpoint folder, which must not exist.
        role: "server" or "client".
        scheduler: the scheduler's configuration, a file or its folder; default the one in ``source``.

    Raises:
        InputError: an unknown role, ``out`` exists, or no scheduler's configuration is given or found.
        ArtefactError: ``source`` is none of these, pickled, damaged, or of a kind this release cannot run.
        PlanMismatch: it was trained with another alpha_bar than the plan's.
        EngineUnavailable: torch or diffusers is not installed.
    """
    if role not in ROLES:
        raise InputError(f"unknown role {role!r}; valid: {' or '.join(ROLES)}")
    if out.exists():
        raise InputError(f"{out} exists already; choose another --out, or delete it")
    folder, scheduler_file = _find(source, scheduler)
    with needs("train"):
        import torch
        from diffusers.utils import logging

        from collafuse_edge.importing.unet import image_shape, load_unet, network_of

    logging.set_verbosity_error()
    config = read_config(folder / "config.json")
    match = check_scheduler(read_config(scheduler_file), scheduler_file, plan, role, image_shape(config, plan))
    network = network_of(config, folder / "config.json", plan, role)
    loaded, types, files = load_unet(folder, network)
    parameters, text = _cost(loaded, folder, plan)
    weights = {name: weight.to(torch.float32).numpy() for name, weight in loaded.named_parameters()}
    record = _record(match, files, types)
    write_checkpoint(out, Description(role, plan, network), model=None, ema=weights, training=record)
    widened = [] if types == ("F32",) else [f"weights of type {', '.join(types)} were converted to float32"]
    return ImportReport(
        checkpoint=str(out),
        role=role,
        plan=plan,
        network=text,
        parameters=parameters,
        weight_types=types,
        scheduler=match.name,
        alpha_bar_error=match.alpha_bar_error,
        notes=(*widened, *match.notes),
        weights_sha256=read_checkpoint(out, role).weights_sha256,
    )


def _cost(network: "torch.nn.Module", folder: Path, plan: SplitPlan) -> tuple[int, str]:
    """(parameters, class and cost in words).

    Raises:
        ArtefactError: it does not take the plan's images.
    """
    from collafuse_runtimes.networks.network import network_cost

    try:
        parameters, flops = network_cost(network, plan.image_shape)
    except RuntimeError as error:
        reason = one_line(error, 200)
        raise ArtefactError(f"{folder}: the network does not take images of {plan.image_shape}: {reason}") from None
    return parameters, f"UNet2DModel: {parameters / 1e6:.2f} M parameters, {flops / 1e9:.3f} GFLOP a step"


def _record(match: SchedulerMatch, files: tuple[Path, ...], types: tuple[str, ...]) -> dict[str, Any]:
    """What training.json keeps of an import: no path, no name of a file of the user's."""
    return {
        "imported": {
            "library": "diffusers",
            "class": "UNet2DModel",
            "scheduler": match.name,
            "alpha_bar_error": match.alpha_bar_error,
            "weights_sha256": [sha256_file(file) for file in files],
            "weight_types": list(types),
        },
        "versions": versions("collafuse-edge", "torch", "diffusers", "numpy"),
        "git_commit": git_commit(),
    }


def _find(source: Path, scheduler: Path | None) -> tuple[Path, Path]:
    """(folder of the network, configuration file of its scheduler)."""
    if not source.exists():
        raise ArtefactError(f"no folder {source}; give a folder written by `save_pretrained` of diffusers")
    if source.is_file():
        require_no_pickle(source)
        raise ArtefactError(f"{source} is a single file; give the folder that holds it and its config.json")
    if (source / "checkpoint.json").exists():
        raise ArtefactError(
            f"{source} is a checkpoint of collafuse-edge already; give it to handoff or export as it is"
        )
    require_no_monai(source)
    folder = source
    if class_name(source, "model_index.json") is not None:
        folder = _unet_of(source)
    if class_name(folder, "config.json") is None:
        for file in sorted(folder.iterdir()) if folder.is_dir() else ():
            require_no_pickle(file)
        raise ArtefactError(
            f"{folder} holds no config.json; give a folder written by `save_pretrained` of diffusers: a UNet2DModel, "
            "or a DDPM or DDIM pipeline"
        )
    if scheduler is None:
        places = [source / "scheduler", source, folder, folder.parent / "scheduler"]
        scheduler = next((place for place in places if (place / "scheduler_config.json").is_file()), None)
    if scheduler is None:
        raise InputError(
            f"{source} holds no scheduler_config.json, where schedule and prediction stand; name it with --scheduler"
        )
    return folder, scheduler / "scheduler_config.json" if scheduler.is_dir() else scheduler


def _unet_of(pipeline: Path) -> Path:
    index = read_config(pipeline / "model_index.json")
    name = index.get("_class_name")
    other = [part for part in CONDITIONS if index.get(part) not in (None, [None, None])]
    if other:
        raise ArtefactError(
            f"{pipeline} is a {name} with {', '.join(other)}: its network works on latents or needs a text; valid: a "
            "pipeline of unet and scheduler alone, such as DDPMPipeline and DDIMPipeline"
        )
    if "unet" not in index:
        raise ArtefactError(f"{pipeline} is a {name} without unet; valid: DDPMPipeline, DDIMPipeline")
    return pipeline / "unet"


def describe_import(report: ImportReport) -> list[str]:
    """Lines for people."""
    plan = report.plan
    at = f"timesteps {plan.timesteps - 1}..{plan.cut}" if report.role == "server" else f"timesteps {plan.cut - 1}..0"
    return [
        f"network   {report.network}",
        f"scheduler {report.scheduler}: {plan.timesteps} timesteps, {plan.schedule}; coefficients of x_t within "
        f"{report.alpha_bar_error:.1e} of the plan's",
        *(f"note      {note}" for note in report.notes),
        f"wrote     {report.checkpoint}: a {report.role} checkpoint for {at}",
    ]
