"""Everything the front needs trained: per seed one client's heads, distilled heads, and servers of all three clients.

Every step is a `collafuse-edge` command; what is there already is not made again, and a training that was cut off goes
on where its state was saved.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from collafuse_benchmarks.commands import run

CLIENTS = ("glioma_tumor", "meningioma_tumor", "pituitary_tumor")
SEEDS = (0, 1, 2)
SIZE, TIMESTEPS, HELD_OUT = 32, 100, 200
TRAINING = ("--batch-size", 32, "--ema-decay", 0.995, "--warmup-steps", 100, "--threads", 1,
            "--checkpoint-minutes", 1, "--resume")  # fmt: skip
HEADS = {"small": (600, 1e-3), "tiny": (900, 1e-3), "edge": (2400, 3e-3)}
"""Steps and learning rate: about five minutes of one core each."""
SERVER = ("--preset", "small", "--steps", 600, "--learning-rate", 1e-3)
SERVERS = {"v0.2": ("v", 0.2), "epsilon0.2": ("epsilon", 0.2), "v0.6": ("v", 0.6)}
DISTILL = ("--threads", 1, "--checkpoint-minutes", 1, "--resume")
STUDENTS = {"small": (300, 3e-4), "tiny": (500, 3e-4), "edge": (1000, 1e-3)}
"""Steps and learning rate of a distilled head: two to three minutes."""
STAGES: tuple[tuple[tuple[str, object, tuple[int, ...]], ...], ...] = (
    (("small", 0.2, (2, 1)), ("server", "v0.2", ()), ("server", "epsilon0.2", ())),
    (("edge", 0.2, (2,)), ("tiny", 0.2, (2,))),
    (("server", "v0.6", ()), ("small", 0.8, ()), ("small", 1.0, ())),
)
"""(network, cut, step counts to distil it for), or ("server", name, ()): the stages in turn, each for every seed."""


@dataclass(frozen=True)
class Folder:
    """Where everything of one run lies."""

    out: Path

    def data(self, client: str) -> Path:
        """A client's images: split train, and test for those held out of all training."""
        return self.out / f"{client}.npz"

    def plan(self, cut_ratio: float, server_prediction: str = "v") -> Path:
        return self.out / f"plan.{server_prediction}.{cut_ratio}.json"

    def shard(self, client: str, plan: Path) -> Path:
        return self.out / f"{client}.{plan.stem}.shard.safetensors"

    def server(self, name: str, seed: int) -> Path:
        return self.out / f"server.{name}.{seed}"

    def head(self, network: str, cut_ratio: float, seed: int) -> Path:
        """The head that serves a cut; that of c = 0.8 serves 0.4 and 0.6 too."""
        cut_ratio = 0.8 if cut_ratio in (0.4, 0.6) else cut_ratio
        return self.out / f"{network}.{cut_ratio}.{seed}"

    def distilled(self, network: str, cut_ratio: float, seed: int, steps: int) -> Path:
        return self.out / f"{network}.{cut_ratio}.{seed}.k{steps}"


def train_all(out: Path, source: Path, workers: int) -> None:
    """Images, plans, shards, then every training, ``workers`` at a time."""
    folder = Folder(out)
    split_images(folder, source)
    prepare(folder)
    with ThreadPoolExecutor(workers) as pool:
        for future in list(_submitted(folder, pool)):
            future.result()


def split_images(folder: Folder, source: Path) -> None:
    """Per client, ``HELD_OUT`` images of the data set's training split that have no near-copy in it, and the others.

    The data set's own test split is another population than its training split, so it judges nothing here.
    """
    found = np.load(source, allow_pickle=False)
    for client in CLIENTS:
        if folder.data(client).exists():
            continue
        label = list(found["label_names"]).index(client)
        mine = np.flatnonzero((found["labels"] == label) & (found["split"] == "train"))
        alone = np.random.default_rng(0).permutation(mine[found["near_dup_group"][mine] == -1])
        is_held_out = np.isin(mine, alone[:HELD_OUT])
        np.savez(
            folder.data(client),
            images=found["images"][mine],
            split=np.where(is_held_out, "test", "train"),
        )


def prepare(folder: Folder) -> None:
    """Plans and the three clients' uploads of every server."""
    for cut_ratio, prediction in ((0.2, "epsilon"), *((c, "v") for c in (0.2, 0.4, 0.6, 0.8, 1.0))):
        heads = "v" if cut_ratio == 1.0 else "epsilon"  # who starts from noise alone predicts v
        options = ("--cut-ratio", cut_ratio, "--prediction", heads, "--server-prediction", prediction)
        out = folder.plan(cut_ratio, prediction)
        run(folder.out, "init", "--size", SIZE, "--timesteps", TIMESTEPS, *options, "--out", out)
    for prediction, cut_ratio in SERVERS.values():
        plan = folder.plan(cut_ratio, prediction)
        for client in CLIENTS:
            shard = folder.shard(client, plan)
            if not shard.exists():
                run(folder.out, "upload", "--data", folder.data(client), "--plan", plan,
                    "--key", folder.out / f"{client}.{prediction}.key", "--out", shard)  # fmt: skip


def _submitted(folder: Folder, pool: ThreadPoolExecutor) -> Iterator["Future[None]"]:
    for stage in STAGES:
        for seed in SEEDS:
            for kind, what, counts in stage:
                if kind == "server":
                    yield pool.submit(_train_server, folder, str(what), seed)
                else:
                    yield pool.submit(_train_head, folder, kind, float(str(what)), seed, counts)


def _train_server(folder: Folder, name: str, seed: int) -> None:
    prediction, cut_ratio = SERVERS[name]
    shards = [folder.shard(client, folder.plan(cut_ratio, prediction)) for client in CLIENTS]
    if not folder.server(name, seed).exists():
        options = (*SERVER, "--seed", seed, *TRAINING)
        run(folder.out, "train-server", *shards, *options, "--out", folder.server(name, seed))


def _train_head(folder: Folder, network: str, cut_ratio: float, seed: int, counts: tuple[int, ...]) -> None:
    client, head = CLIENTS[seed], folder.head(network, cut_ratio, seed)
    images = ("--data", folder.data(client))
    steps, rate = HEADS[network]
    if not head.exists():
        run(folder.out, "train-client", *images, "--plan", folder.plan(cut_ratio), "--preset", network,
            "--steps", steps, "--learning-rate", rate, "--seed", seed, *TRAINING, "--out", head)  # fmt: skip
    for count in counts:
        student = folder.distilled(network, cut_ratio, seed, count)
        if not student.exists():
            steps, rate = STUDENTS[network]
            options = ("--train-steps", steps, "--learning-rate", rate, "--seed", seed, *DISTILL)
            with suppress(SystemExit):  # the gate may refuse it, which the record then says
                run(folder.out, "distill", head, *images, "--steps", count, *options, "--out", student)
