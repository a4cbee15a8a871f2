"""The whole line on drawn phantoms: two clients, one server, finished images on this machine in minutes."""

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.diffusion.samplers import Sampler
from collafuse_runtimes.errors import InputError
from collafuse_runtimes.extras import missing

if TYPE_CHECKING:
    from collafuse_edge.training.tasks import Task

CLIENTS = (0, 2)
"""Phantom populations of the two clients."""

IMAGE_SHAPE = (1, 32, 32)
TIMESTEPS, CUT_RATIO, SERVER_PREDICTION = 100, 0.2, "v"
TRAINING_IMAGES = 768
SERVER_PRESET, SERVER_STEPS = "small", 800
HEAD_PRESET, HEAD_STEPS = "edge", 1000
SERVER_WAY, SERVER_WAY_STEPS = Sampler("dpm++2m", levels="karras"), 20
HEAD_WAY, HEAD_WAY_STEPS = Sampler("dpm++2m", levels="karras"), 5
"""Samplers and the steps they take, at most: a plan may leave a side fewer."""
BATCH_SIZE, WARMUP_STEPS, EMA_DECAY = 16, 50, 0.99
NEEDS = ("torch", "diffusers", "accelerate", "onnx", "onnxscript")
PREVIEW = 8
"""Images per client in the picture."""

Say = Callable[[str], None]
OnStep = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ClientResult:
    """One row of the demo's table.

    Attributes:
        server_ms, head_ms: median time per image of the server's and the head's part on this machine, one image at
            a time for the head, PREVIEW at a time for the server.
        parity_max_abs: largest difference between the exported graph and the torch network over the trajectory.
    """

    name: str
    images: int
    shard_bytes: int
    handover_bytes: int
    head_parameters: int
    loss: float
    parity_max_abs: float
    server_ms: float
    head_ms: float


@dataclass(frozen=True)
class DemoResult:
    """What the demo made: table rows, the picture, the folder."""

    clients: tuple[ClientResult, ...]
    picture: Path
    out: Path
    seconds: float


@dataclass(frozen=True)
class _Site:
    """One client's private images and folder."""

    name: str
    source: str
    x_0: Float32Array
    folder: Path
    shard: Path


def run_demo(out: Path, say: Say, on_step: OnStep) -> DemoResult:
    """Upload, train, hand over, export, verify, infer and time.

    Args:
        say: called with the command that each stage stands for.
        on_step: called with (what, step, steps) during training.

    Raises:
        EngineUnavailable: a library of the [train] or [export] extra is not installed.
        InputError: ``out`` exists.
        CheckFailed: the exported graph does not reproduce the network.
    """
    from collafuse_edge.init import init_plan
    from collafuse_edge.settings import PlanSettings
    from collafuse_runtimes.disk.atomic import write_bytes
    from collafuse_runtimes.files.images import encode_rows

    for name in NEEDS:
        if importlib.util.find_spec(name) is None:
            raise missing(name, "all")
    if out.exists():
        raise InputError(f"{out} exists already; choose another --out, or delete it")
    started = time.monotonic()
    out.mkdir(parents=True)
    size = str(IMAGE_SHAPE[1])
    say(f"init --size {size} --timesteps {TIMESTEPS} --cut-ratio {CUT_RATIO} --server-prediction {SERVER_PREDICTION}")
    settings = PlanSettings(IMAGE_SHAPE[0], TIMESTEPS, cut_ratio=CUT_RATIO, server_prediction=SERVER_PREDICTION)
    plan = init_plan(out / "plan.json", size, settings)
    sites = [_upload(out, i, plan, say) for i in range(len(CLIENTS))]
    _train_server(out, sites, say, on_step)
    finished = [_finish(site, _train_head(site, plan, say, on_step), plan, out / "server", say) for site in sites]
    picture = out / "demo.png"
    cells = [part for _, *parts in finished for part in parts]
    write_bytes(picture, encode_rows(list(zip(_captions(), cells, strict=True))))
    return DemoResult(tuple(row for row, *_ in finished), picture, out, time.monotonic() - started)


def _captions() -> list[str]:
    """Three rows a client."""
    return [
        caption
        for i in range(len(CLIENTS))
        for caption in (
            f"client {i}: its own images; they stay with it",
            f"client {i}: handed over by the server (x_tc), which saw no image without noise",
            f"client {i}: finished from these on the device, by the client's own head",
        )
    ]


def demo_table(result: DemoResult) -> list[str]:
    """Lines for people."""
    head = f"{'client':8} {'images':>6} {'shard kB':>8} {'x_tc kB':>7} {'head M':>6} {'loss':>6} {'parity':>8} "
    lines = [f"{head} {'server ms':>9} {'head ms':>8}"]
    for c in result.clients:
        lines.append(
            f"{c.name:8} {c.images:6d} {c.shard_bytes / 1e3:8.0f} {c.handover_bytes / 1e3:7.1f} "
            f"{c.head_parameters / 1e6:6.2f} {c.loss:6.4f} {c.parity_max_abs:8.1e}  {c.server_ms:9.1f} {c.head_ms:8.1f}"
        )
    return [*lines, "ms per image on this machine's CPU; parity: largest |exported - torch| over the trajectory"]


def _upload(out: Path, number: int, plan: SplitPlan, say: Say) -> _Site:
    from collafuse_edge.data import load_images
    from collafuse_edge.settings import UploadSettings
    from collafuse_edge.upload import upload_images

    name, source = f"client{number}", f"phantom:{CLIENTS[number]}:{TRAINING_IMAGES}"
    site = _Site(name, source, load_images(source, IMAGE_SHAPE).images, out / name, out / f"{name}.shard.safetensors")
    site.folder.mkdir()
    say(f"upload --data {source} --plan plan.json --key {name}/upload.key --out {site.shard.name}")
    upload_images(site.shard, site.x_0, plan, UploadSettings(key=site.folder / "upload.key"))
    return site


def _train_server(out: Path, sites: list[_Site], say: Say, on_step: OnStep) -> None:
    from collafuse_edge.training.tasks import ServerTask

    names = " ".join(site.shard.name for site in sites)
    say(f"train-server {names} {_training_options(SERVER_PRESET, SERVER_STEPS)} --out server")
    _train(ServerTask.from_files([site.shard for site in sites]), SERVER_PRESET, SERVER_STEPS, out / "server", on_step)


def _train_head(site: _Site, plan: SplitPlan, say: Say, on_step: OnStep) -> float:
    """The head's last loss."""
    from collafuse_edge.training.tasks import ClientTask

    options = _training_options(HEAD_PRESET, HEAD_STEPS)
    say(f"train-client --data {site.source} --plan plan.json {options} --out {site.name}/head")
    return _train(ClientTask(plan, site.x_0), HEAD_PRESET, HEAD_STEPS, site.folder / "head", on_step)


def _training_options(preset: str, steps: int) -> str:
    from collafuse_edge.training.presets import PRESETS

    return (
        f"--preset {preset} --steps {steps} --batch-size {BATCH_SIZE} --warmup-steps {WARMUP_STEPS} "
        f"--ema-decay {EMA_DECAY} --learning-rate {PRESETS[preset].learning_rate:g} --cpu"
    )


def _train(task: "Task", preset: str, steps: int, out: Path, on_step: OnStep) -> float:
    from collafuse_edge.training.loop import TrainRun, train
    from collafuse_edge.training.presets import PRESETS, network_config
    from collafuse_edge.training.settings import TrainSettings

    settings = TrainSettings(
        steps=steps,
        batch_size=BATCH_SIZE,
        warmup_steps=WARMUP_STEPS,
        ema_decay=EMA_DECAY,
        learning_rate=PRESETS[preset].learning_rate,
    )
    run = TrainRun(task, network_config(preset, task.plan), settings, out, cpu=True)
    what = out.name if task.role == "server" else f"{out.parent.name}/{out.name}"
    checkpoint = train(run, lambda progress, _: on_step(f"train {what}", progress.step, steps))
    return float(checkpoint.training["losses"][-1][1])


def _finish(
    site: _Site, loss: float, plan: SplitPlan, server: Path, say: Say
) -> tuple[ClientResult, Float32Array, Float32Array, Float32Array]:
    """Hand-over, export, verify and inference of one client: table row, real, x_{t_c} and finished images."""
    from collafuse_benchmarks.measure.trajectory import trajectory_ms
    from collafuse_edge.handoff.server_steps import HandoverSettings, make_handover
    from collafuse_export import ExportSettings, export_head
    from collafuse_runtimes.files.handover import write_handover
    from collafuse_runtimes.infer import run_inference
    from collafuse_runtimes.verify import verify_bundle

    tc_file, head, seed = site.folder / "x.tc.safetensors", site.folder / "head", int(site.name[-1])
    server_steps, head_steps = min(SERVER_WAY_STEPS, plan.t_c), min(HEAD_WAY_STEPS, plan.cut)
    where = f"{_options_of(SERVER_WAY, server_steps)} --device cpu --out {site.name}/{tc_file.name}"
    say(f"handoff --plan plan.json --server server --count {PREVIEW} --seed {seed} {where}")
    begun = time.perf_counter()
    handover = make_handover(
        plan, server, HandoverSettings(count=PREVIEW, seed=seed, steps=server_steps, sampler=SERVER_WAY, device="cpu")
    )
    server_ms = (time.perf_counter() - begun) * 1e3 / PREVIEW
    write_handover(tc_file, handover)
    say(f"export {site.name}/head {_options_of(HEAD_WAY, head_steps)} --out {site.name}/edge.head")
    bundle = export_head(head, site.folder / "edge.head", ExportSettings(step_counts=(head_steps,), sampler=HEAD_WAY))
    say(f"verify {site.name}/edge.head")
    report = verify_bundle(bundle)
    report.require_passed(str(bundle.path))
    say(f"infer {site.name}/edge.head {site.name}/{tc_file.name} --out {site.name}/images")
    result = run_inference(bundle, handover, site.folder / "images")
    row = ClientResult(
        name=site.name,
        images=len(site.x_0),
        shard_bytes=site.shard.stat().st_size,
        handover_bytes=tc_file.stat().st_size // PREVIEW,
        head_parameters=bundle.network.parameters,
        loss=loss,
        parity_max_abs=max(r.worst.max_abs or 0.0 for r in report.ranges),
        server_ms=server_ms,
        head_ms=float(np.median(trajectory_ms(bundle, handover))),
    )
    return row, site.x_0[:PREVIEW], handover.x_tc.clip(-1, 1), result.images


def _options_of(sampler: Sampler, steps: int) -> str:
    return f"--sampler {sampler.name} --levels {sampler.levels} --steps {steps}"
