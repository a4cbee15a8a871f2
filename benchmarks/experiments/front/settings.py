"""Learning rate and moving average by side: what a head's images and a server's tensors owe to each.

One seed's small head of c = 0.2 and its server of v, each trained again with one setting changed. The average warms up
as (1 + k)/(10 + k), so after 600 steps every decay from 0.985 on is the same run.
"""

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measuring import own_images, quality
from servers import distances
from training import CLIENTS, HEADS, SEEDS, SERVER, TRAINING, Folder
from ways import TWO_M, Way

from collafuse_benchmarks.commands import run
from collafuse_edge.handoff.server_steps import HandoverSettings, make_handover
from collafuse_export import ExportSettings, export_head
from collafuse_export.golden import handover_of
from collafuse_runtimes.files.bundle import read_bundle
from collafuse_runtimes.files.plan_file import read_plan

CUT, SIDES = 0.2, ("head", "server")
CHANGES = ((), ("--learning-rate", 5e-4), ("--ema-decay", 0.0), ("--learning-rate", 2e-3))
"""What differs from training.py; the first is its own run."""
WAY, SERVER_STEPS, COUNT = Way("small", CUT, TWO_M, 5), 20, 200


@dataclass(frozen=True)
class Trial:
    """One training with one setting changed."""

    side: str
    change: tuple[object, ...]
    seed: int

    @property
    def name(self) -> str:
        changed = "".join(map(str, self.change)).removeprefix("--")
        return f"{self.side}.{changed or 'as-it-is'}.{self.seed}"

    def checkpoint(self, folder: Folder) -> Path:
        """Where its checkpoint lies; the unchanged one is the front's own."""
        if self.change:
            return folder.out / "settings" / self.name
        return folder.head("small", CUT, self.seed) if self.side == "head" else folder.server("v0.2", self.seed)

    def record(self, folder: Folder) -> Path:
        return folder.out / "settings" / f"{self.name}.json"


TRIALS = tuple(Trial(side, change, seed) for change in CHANGES for seed in SEEDS for side in SIDES)


def train_trials(out: Path, workers: int) -> None:
    """Every training that is not there, ``workers`` at a time."""
    folder = Folder(out)
    (out / "settings").mkdir(exist_ok=True)
    with ThreadPoolExecutor(workers) as pool:
        for future in list(_submitted(folder, pool)):
            future.result()


def _submitted(folder: Folder, pool: ThreadPoolExecutor) -> Iterator["Future[dict[str, Any]]"]:
    plan = folder.plan(CUT)
    steps, rate = HEADS["small"]
    for trial in TRIALS:
        if trial.checkpoint(folder).exists():
            continue
        last = ("--seed", trial.seed, *TRAINING, *trial.change, "--out", trial.checkpoint(folder))
        if trial.side == "server":
            shards = [folder.shard(client, plan) for client in CLIENTS]
            yield pool.submit(run, folder.out, "train-server", *shards, *SERVER, *last)
        else:
            options = ("--plan", plan, "--preset", "small", "--steps", steps, "--learning-rate", rate)
            data = folder.data(CLIENTS[trial.seed])
            yield pool.submit(run, folder.out, "train-client", "--data", data, *options, *last)


def measure_trial(out: Path, extractor: Path, trial: Trial) -> None:
    """Its figures; kept where they are there."""
    folder = Folder(out)
    if trial.record(folder).exists() or not trial.checkpoint(folder).exists():
        return
    measured = {"side": trial.side, "change": list(trial.change), "seed": trial.seed}
    if trial.side == "server":
        measured |= _server(folder, trial)
    else:
        path = folder.out / "heads" / f"settings.{trial.name}.head"
        if not path.exists():
            export_head(trial.checkpoint(folder), path, ExportSettings(step_counts=(WAY.steps,), sampler=WAY.sampler))
        measured |= quality(folder, read_bundle(path), WAY, trial.seed, extractor)[0]
    trial.record(folder).write_text(json.dumps(measured, indent=2))
    print(trial.name, measured, flush=True)


def _server(folder: Folder, trial: Trial) -> dict[str, float]:
    plan = read_plan(folder.plan(CUT))
    held_out = np.concatenate([own_images(folder, k, "test") for k in range(len(CLIENTS))])
    x_n = make_handover(
        plan,
        trial.checkpoint(folder),
        HandoverSettings(count=COUNT, seed=trial.seed, steps=min(SERVER_STEPS, plan.t_c), sampler=TWO_M),
    ).x_tc
    return distances(handover_of(held_out, plan), x_n)
