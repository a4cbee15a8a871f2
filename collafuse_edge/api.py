"""The product's functions for programs: paths as str or Path, heavy libraries loaded by the function that needs them.

``import collafuse_edge`` offers these names and loads none of them. On a device everything that reads, verifies and
infers works on the base install.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from collafuse_edge.evaluation.kid import Features, kid_on_reference_scale  # noqa: F401  a public name
from collafuse_edge.evaluation.pyramid import pyramid_score  # noqa: F401  a public name
from collafuse_edge.training.settings import TrainSettings
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.diffusion.samplers import Sampler
from collafuse_runtimes.engines import DEFAULTS, Engine, EngineOptions
from collafuse_runtimes.engines import open_engine as _open_engine
from collafuse_runtimes.files import bundle as _bundle
from collafuse_runtimes.files import handover as _handover
from collafuse_runtimes.files import plan_file as _plan_file
from collafuse_runtimes.files.bundle import HeadBundle
from collafuse_runtimes.files.checkpoint import Checkpoint, NetworkConfig
from collafuse_runtimes.files.handover import Handover
from collafuse_runtimes.verify import VerifyReport

if TYPE_CHECKING:
    from collafuse_edge.data import ImageSet
    from collafuse_edge.evaluation.evaluate import KidScore
    from collafuse_edge.training.loop import OnStep
    from collafuse_edge.upload.release import Uploaded

StrPath = str | os.PathLike[str]


def read_plan(path: StrPath) -> SplitPlan:
    """The plan of a plan file.

    Raises:
        ArtefactError: missing, damaged, or of a version that this release does not read.
    """
    return _plan_file.read_plan(Path(path))


def write_plan(path: StrPath, plan: SplitPlan) -> None:
    """Write a plan file; a plan file that is there is replaced.

    Raises:
        ArtefactError: it cannot be written, or something else is there.
    """
    _plan_file.write_plan(Path(path), plan)


def read_bundle(path: StrPath) -> HeadBundle:
    """A head bundle, every file of it checked against its digest.

    Raises:
        ArtefactError: missing, damaged, or of a version that this release does not read.
    """
    return _bundle.read_bundle(Path(path))


def read_handover(path: StrPath) -> Handover:
    """A hand-over file: ``x_tc`` is (N, C, H, W) float32 at the plan's hand-over level.

    Raises:
        ArtefactError: missing, damaged, or its tensor does not fit its plan.
    """
    return _handover.read_handover(Path(path))


def write_handover(path: StrPath, handover: Handover, dtype: str = "float32") -> None:
    """Write a hand-over file; a hand-over file that is there is replaced.

    Args:
        handover: ``x_tc`` is (N, C, H, W) float16 or float32, N at least 1, at the plan's hand-over level.
        dtype: "float32", or "float16", which halves the file and rounds each value once.

    Raises:
        InputError: a field or ``dtype`` is out of range, or the tensor does not fit the plan or is not finite.
        ArtefactError: it cannot be written, or something else is there.
    """
    _handover.write_handover(Path(path), handover, dtype)


def open_engine(bundle: HeadBundle | StrPath, engine: str = "ort-cpu", options: EngineOptions = DEFAULTS) -> Engine:
    """An engine for a head, to be used as ``with open_engine(head) as engine: engine.denoise(x_tc, steps)``.

    Args:
        bundle: a head bundle, or where it lies.
        engine: "ort-cpu", "ort-cuda", "openvino", "tensorrt" ...; `collafuse-edge doctor` lists them.
        options: threads (1 to 1024), spinning, gpu (index of the GPU, from 0), cache, trust_bundle, checkpoint: e.g.
            ``EngineOptions(threads=2)``. Each engine takes some of them.

    Raises:
        EngineUnavailable: the engine cannot run here; the message says why.
        InputError: an option that this engine does not take, or a precision that it does not run.
        ArtefactError: the bundle is damaged.
    """
    return _open_engine(_read(bundle), engine, options)


def verify(bundle: HeadBundle | StrPath, engine: str = "ort-cpu", options: EngineOptions = DEFAULTS) -> VerifyReport:
    """Whether an engine computes what the trained network computed: its golden trajectories, step by step.

    ``report.passed`` says it; ``report.require_passed(name)`` raises CheckFailed with the figures.

    Raises:
        EngineUnavailable, InputError, ArtefactError: as ``open_engine``.
    """
    from collafuse_runtimes.verify import verify_bundle

    return verify_bundle(_read(bundle), engine, options)


def infer(
    bundle: HeadBundle | StrPath,
    handover: Handover | StrPath,
    out: StrPath | None = None,
    *,
    engine: str = "ort-cpu",
    options: EngineOptions = DEFAULTS,
    steps: int | None = None,
    labels: npt.NDArray[Any] | None = None,
    batch_size: int = 8,
    overwrite: bool = False,
    on_step: Callable[[int, int], None] | None = None,
) -> Float32Array:
    """Finish hand-over tensors: (N, C, H, W) float32 images in [-1, 1].

    Args:
        handover: N hand-over tensors of the head's plan, or their file.
        out: a new folder for the images as PNG and npz; None writes nothing.
        engine, options: as ``open_engine``.
        steps: a step count that is baked into the head; None is its first.
        labels: (N,) integers, 0 to num_classes - 1, exactly for conditional heads.
        batch_size: images at once, at least 1; changes speed and memory, not the images.
        overwrite: whether ``out`` may be a folder that an earlier call wrote.
        on_step: called with (steps done, steps in all).

    Raises:
        PlanMismatch: head and tensors were made for different plans.
        InputError, EngineUnavailable, ArtefactError: as ``open_engine``; ``out`` holds something.
        CheckFailed: the engine does not compute the head's network, or an image holds NaN or Inf.
    """
    from collafuse_runtimes.infer import InferSettings, finish_tensors, run_inference

    head, settings = _read(bundle), InferSettings(engine, options, steps, batch_size)
    tensors = handover if isinstance(handover, Handover) else read_handover(handover)
    if out is None:
        return finish_tensors(head, tensors, settings, labels=labels, on_step=on_step)
    where = Path(out)
    done = run_inference(head, tensors, where, settings, labels=labels, on_step=on_step, overwrite=overwrite)
    return done.images


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


def evaluate(generated: StrPath, real: "Float32Array | ImageSet", extractor: StrPath) -> "KidScore":
    """The kernel inception distance of generated images to real ones, with all that names the score.

    Args:
        generated: a folder written by ``infer``, its images.npz, or a hand-over file.
        real: (N, C, H, W) float32 in [-1, 1], N at least 2, or what ``load_images`` gave.
        extractor: an ONNX file: (N, 3, H, W) RGB in 0..255 to (N, D) features.

    Raises:
        InputError, ArtefactError: too few images, or the extractor or the images cannot be read.
    """
    from collafuse_edge.data import ImageSet
    from collafuse_edge.evaluation.evaluate import kid, read_generated

    data = real if isinstance(real, ImageSet) else ImageSet(real, None, None, "an array")
    return kid(
        data.images, read_generated(Path(generated)), Path(extractor), real_name=data.source,
        generated_name=os.fspath(generated),
    )  # fmt: skip


def image_features(images: Float32Array, extractor: StrPath) -> Features:
    """Features of images, (N, D) float64, to be compared by ``kid_on_reference_scale``: those of real images once.

    Args:
        images: (N, C, H, W) float32 in [-1, 1]; values beyond are clipped, grey is repeated.
        extractor: as ``evaluate``.

    Raises:
        InputError, ArtefactError: as ``evaluate``.
    """
    from collafuse_edge.evaluation.extractor import features_of

    return features_of(Path(extractor), images)


def _network(network: str | NetworkConfig, plan: SplitPlan, num_classes: int | None = None) -> NetworkConfig:
    from collafuse_edge.training.presets import network_config

    return network if isinstance(network, NetworkConfig) else network_config(network, plan, num_classes)


def _settings(settings: TrainSettings | None, network: NetworkConfig) -> TrainSettings:
    from collafuse_edge.training.presets import PRESETS

    if settings is not None or network.preset not in PRESETS:
        return settings or TrainSettings()
    return TrainSettings(learning_rate=PRESETS[network.preset].learning_rate)


def _read(bundle: HeadBundle | StrPath) -> HeadBundle:
    return bundle if isinstance(bundle, HeadBundle) else read_bundle(bundle)


def _plan(plan: SplitPlan | StrPath) -> SplitPlan:
    return plan if isinstance(plan, SplitPlan) else read_plan(plan)
