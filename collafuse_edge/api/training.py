"""What needs [train] or [export]: images, uploads, training, the server's part, export."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collafuse_edge.api.device import StrPath, read_handover, read_plan
from collafuse_edge.training.settings import TrainSettings
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.diffusion.samplers import Sampler
from collafuse_runtimes.files.bundle import HeadBundle
from collafuse_runtimes.files.checkpoint import Checkpoint, NetworkConfig
from collafuse_runtimes.files.handover import Handover

if TYPE_CHECKING:
    from collafuse_edge.data import ImageSet
    from collafuse_edge.training.loop import OnStep
    from collafuse_edge.upload.release import Uploaded


def load_images(source: StrPath, image_shape: tuple[int, int, int], **selection: Any) -> "ImageSet":
    """Images of any kind that --data takes, as (N, C, H, W) float32 in [-1, 1] with their labels (docs/data.md).

    Args:
        source: a folder, .npz, idx, NIfTI or DICOM source, or "phantom:POPULATION:COUNT".
        image_shape: (C, H, W) of the plan; C is 1 or 3, H and W are 1 to 4096.
        selection: fields of ``Selection``, e.g. ``split="train"``.

    Returns:
        ``images`` (N, C, H, W) float32 in [-1, 1], ``labels`` (N,) int64 or None, ``notes`` of what was done to them.

    Raises:
        InputError, ArtefactError: the source cannot be read, or holds no such images.
    """
    from collafuse_edge.data import Selection, load_images

    return load_images(os.fspath(source), image_shape, Selection(**selection))


def upload_images(
    out: StrPath, images: Float32Array, plan: SplitPlan | StrPath, *, key: StrPath | None = None, strict: bool = False
) -> "Uploaded":
    """Write the shard a server trains on: each image once, noised to the hand-over level by its keyed path.

    A shard that is there is replaced; the ledger beside the key remembers what was released.

    Args:
        images: (N, C, H, W) float32 in [-1, 1], N at least 1, of the plan's image shape.
        key: file of the secret noise key, made if missing; None is the one in the user's configuration folder.
        strict: whether to refuse where there is something to warn of.

    Raises:
        InputError: the plan leaves nothing to upload, the images do not fit it, or ``out`` is the key or its ledger.
        ArtefactError: key, ledger or shard cannot be read or written.
        CheckFailed: ``strict``, and there is something to warn of.
    """
    from collafuse_edge.settings import UploadSettings
    from collafuse_edge.upload import upload_images

    settings = UploadSettings(key=None if key is None else Path(key), strict=strict)
    return upload_images(Path(out), images, _plan(plan), settings)


def train_head(
    images: "Float32Array | ImageSet",
    plan: SplitPlan | StrPath,
    out: StrPath,
    *,
    network: str | NetworkConfig = "small",
    settings: TrainSettings | None = None,
    conditional: bool = False,
    resume: bool = False,
    cpu: bool = False,
    on_step: "OnStep | None" = None,
) -> Checkpoint:
    """Train a head on one's own images; they stay here.

    Args:
        images: (N, C, H, W) float32 in [-1, 1], or what ``load_images`` gave.
        out: the checkpoint folder, which must not exist.
        network: a preset's name ("tiny", "small", "base", "paper", "edge"), or how to build the network.
        settings: how to train; None trains 10,000 steps of 32 images at the preset's learning rate.
        conditional: whether the head asks for a class; ``images`` must have labels.
        resume: whether to go on from the state that an interrupted run left.
        cpu: whether to stay off a GPU that is there.
        on_step: called after each step with the progress and the images per second.

    Raises:
        InputError: what is given does not fit together, or ``out`` exists.
        CheckFailed: the loss became NaN or Inf, or a signal stopped the run (its state is saved).
        EngineUnavailable: the [train] extra is not installed.
    """
    from collafuse_edge.data import ImageSet
    from collafuse_edge.training.client import client_task
    from collafuse_edge.training.loop import TrainRun, train

    data = images if isinstance(images, ImageSet) else ImageSet(images, None, None, "an array")
    task, num_classes = client_task(_plan(plan), data, conditional)
    config, names = _network(network, task.plan, num_classes), data.class_names if conditional else None
    run = TrainRun(task, config, _settings(settings, config), Path(out), resume=resume, cpu=cpu, class_names=names)
    return train(run, on_step)


def train_server(
    shards: Sequence[StrPath],
    out: StrPath,
    *,
    network: str | NetworkConfig = "server-small",
    settings: TrainSettings | None = None,
    resume: bool = False,
    cpu: bool = False,
    on_step: "OnStep | None" = None,
) -> Checkpoint:
    """Train a server on the shards of its clients.

    Args:
        shards: files written by ``upload_images``, of plans that differ in the cut at most.
        out: the checkpoint folder, which must not exist.
        network: a preset's name ("server-small", "server-base", "server-large" ...), or how to build the network.
        settings: how to train; None trains 10,000 steps of 32 images at the preset's learning rate.
        resume: whether to go on from the state that an interrupted run left.
        cpu: whether to stay off a GPU that is there.
        on_step: called after each step with the progress and the images per second.

    Raises:
        InputError, CheckFailed, EngineUnavailable: as ``train_head``.
        PlanMismatch: the shards' plans differ in more than the cut.
        ArtefactError: a shard is damaged.
    """
    from collafuse_edge.training.loop import TrainRun, train
    from collafuse_edge.training.tasks import ServerTask

    task = ServerTask.from_files([Path(shard) for shard in shards])
    config = _network(network, task.plan)
    return train(TrainRun(task, config, _settings(settings, config), Path(out), resume=resume, cpu=cpu), on_step)


def make_handover(
    plan: SplitPlan | StrPath,
    server: StrPath | None,
    *,
    count: int,
    seed: int = 0,
    first_index: int = 0,
    steps: int | None = None,
    sampler: Sampler | None = None,
    device: str | None = None,
) -> Handover:
    """The server's part: noise in, ``count`` hand-over tensors out (``write_handover`` keeps them).

    Args:
        server: its checkpoint folder; None exactly where the plan leaves the server no step (c = 1).
        count: images to begin, at least 1.
        seed: of all noise, the device's too; 0 to 2^64 - 1.
        first_index: sample index of the first image, from 0; another range gives other images.
        steps: of the server, 1 to the plan's ``t_c``; None is 20, or as many as the plan has where those are fewer or
            the sampler is another one.
        sampler: None is DPM-Solver++ 2M on Karras levels.
        device: torch device, "cpu", "cuda" or "cuda:N"; None takes a GPU where there is one.

    Returns:
        ``x_tc`` is (count, C, H, W) float32 at the plan's hand-over level.

    Raises:
        InputError: a number is out of range, the device cannot be used, or the server is missing.
        PlanMismatch: the server was not trained down to this plan's cut, or for another plan.
        ArtefactError: the checkpoint is damaged.
        EngineUnavailable: the [train] extra is not installed.
    """
    from collafuse_edge.handoff.server_steps import DEFAULT_SAMPLER, HandoverSettings, make_handover

    where, way = None if server is None else Path(server), sampler or DEFAULT_SAMPLER
    return make_handover(_plan(plan), where, HandoverSettings(count, seed, first_index, steps, way, device=device))


def export_head(
    checkpoint: StrPath,
    out: StrPath,
    *,
    cut_ratio: float | None = None,
    steps: Sequence[int] | None = None,
    sampler: Sampler | None = None,
    precision: str = "fp32",
    opset: int = 20,
    calibration: Handover | StrPath | None = None,
    overwrite: bool = False,
) -> HeadBundle:
    """Turn a trained head into a head bundle, published only if its graph computes what the network computes.

    Args:
        checkpoint: folder written by ``train_head``.
        out: the bundle folder; a bundle of the same head is replaced.
        cut_ratio: of the plan to serve, above 0, at most the head's own; None is its own.
        steps: step counts to bake in, each 1 to the plan's ``cut``, the first is the default; None is 8 and 5 of
            DPM-Solver++ 2M, every step of other samplers, never more than the plan has.
        precision: "fp32", "fp16", "int8-cpu" or "int8-trt"; int8 needs ``calibration``.
        opset: 20, or 17 for older libraries (JetPack 5).
        calibration: a server's hand-over tensors of the plan.
        overwrite: whether to replace a bundle of another head.

    Raises:
        InputError: a value is out of range, or a bundle of another head is at ``out``.
        PlanMismatch: the cut is larger than the head was trained for, or the tensors are of another plan.
        ArtefactError: the checkpoint is damaged, or ``out`` cannot be written.
        CheckFailed: the graph differs from the network, or a lower precision is not worth it.
        EngineUnavailable: the [export] extra is not installed.
    """
    from collafuse_export import ExportSettings, export_head

    tensors = calibration if calibration is None or isinstance(calibration, Handover) else read_handover(calibration)
    settings = ExportSettings(cut_ratio, steps, sampler, None, precision, opset, tensors)
    return export_head(Path(checkpoint), Path(out), settings, overwrite=overwrite)


def _network(network: str | NetworkConfig, plan: SplitPlan, num_classes: int | None = None) -> NetworkConfig:
    from collafuse_edge.training.presets import network_config

    return network if isinstance(network, NetworkConfig) else network_config(network, plan, num_classes)


def _settings(settings: TrainSettings | None, network: NetworkConfig) -> TrainSettings:
    from collafuse_edge.training.presets import PRESETS

    if settings is not None or network.preset not in PRESETS:
        return settings or TrainSettings()
    return TrainSettings(learning_rate=PRESETS[network.preset].learning_rate)


def _plan(plan: SplitPlan | StrPath) -> SplitPlan:
    return plan if isinstance(plan, SplitPlan) else read_plan(plan)
