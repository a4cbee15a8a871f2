"""Three hospitals, real brain MRI, one server: the whole line by its commands, then KID against each client's images.

    python benchmarks/experiments/brain_mri.py work/brain_mri    # over an hour on two cores; continues where it stopped

Reads brain_mri_64.npz from COLLAFUSE_DATA. Every step is a `collafuse-edge` command whose output is kept in
OUT/log.txt. Collaboration (c = 0.2: server 80 steps, head 20) is compared with local-only training (c = 1) of the
same head with the same steps on the same images, and with the hand-over tensors themselves.
"""

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

from collafuse_benchmarks.commands import run
from collafuse_edge import load_images, read_handover
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.files.checkpoint import read_checkpoint
from collafuse_runtimes.files.images import write_contact_sheet

CLIENTS = ("glioma_tumor", "meningioma_tumor", "pituitary_tumor")
SERVER = ("--preset", "server-small", "--steps", "1500", "--batch-size", "32", "--warmup-steps", "100",
          "--learning-rate", "1e-3")  # fmt: skip
HEAD = ("--preset", "small", "--steps", "700", "--batch-size", "32", "--warmup-steps", "100")
TRAINING = ("--mixed-precision", "bf16", "--ema-decay", "0.995", "--resume", "--checkpoint-minutes", "2")
SIZE, TIMESTEPS, SAMPLER, IMAGES, COLUMNS = 32, 100, "ddpm", 200, 12
SHAPE = (1, SIZE, SIZE)
WAYS = {"plan": "collaboration", "local": "local-only"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="where the record goes")
    arguments = parser.parse_args()
    out, results = arguments.out, arguments.results
    out.mkdir(parents=True, exist_ok=True)
    shared = Path(os.environ.get("COLLAFUSE_DATA", "../shared/data"))
    data = shared / "brain_mri_64.npz"
    extractor = shared.parent / "weights" / "squeezenet1_0_features.onnx"
    seconds = train(out, data)
    generate(out)
    scores = evaluate(out, data, extractor)
    record = {
        "data": f"{data.name}, resized to {SIZE}x{SIZE}",
        "plan": {"T": TIMESTEPS, "c": 0.2, "schedule": "cosine"},
        "server": " ".join(SERVER),
        "head": " ".join(HEAD),
        "training": " ".join(TRAINING),
        "sampler": SAMPLER,
        "generated_per_client": IMAGES,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, CPU only",
        "training_seconds": {**seconds, "total": sum(seconds.values())},
        "kid": scores,
    }
    results.mkdir(parents=True, exist_ok=True)
    (results / "brain_mri.json").write_text(json.dumps(record, indent=2) + "\n")
    (results / "brain_mri.md").write_text(table(record))
    picture(out, data, results / "brain_mri.png")
    print(table(record))


def train(out: Path, data: Path) -> dict[str, float]:
    """Plans, shards, the server and six heads, each unless it is there; seconds of each training."""
    for name, c in (("plan", "0.2"), ("local", "1.0")):
        run(out, "init", "--size", SIZE, "--timesteps", TIMESTEPS, "--cut-ratio", c, "--out", out / f"{name}.json")
    shards = [out / f"{client}.shard.safetensors" for client in CLIENTS]
    for client, shard in zip(CLIENTS, shards, strict=True):
        if not shard.exists():
            run(out, "upload", *images_of(data, client), "--plan", out / "plan.json",
                "--key", out / f"{client}.key", "--out", shard)  # fmt: skip
    seconds = {"server": trained(out / "server", "train-server", *shards, *SERVER)}
    for client in CLIENTS:
        for name in ("plan", "local"):
            options = (*images_of(data, client), "--plan", out / f"{name}.json", *HEAD)
            seconds[f"{client} {WAYS[name]}"] = trained(out / f"{client}.{name}", "train-client", *options)
    return seconds


def trained(checkpoint: Path, *command: object) -> float:
    """Train unless it is done; seconds of training."""
    if not checkpoint.exists():
        run(checkpoint.parent, *command, "--out", checkpoint, *TRAINING)
    return float(read_checkpoint(checkpoint).training["seconds"])


def generate(out: Path) -> None:
    """Hand-over, export, verify, infer for every client, with the server and without."""
    for seed, client in enumerate(CLIENTS):
        for name in ("plan", "local"):
            stem, server = out / f"{client}.{name}", ("--server", out / "server") if name == "plan" else ()
            ends = (".tc.safetensors", ".head", ".out")
            tensors, head, images = (out / f"{client}.{name}{end}" for end in ends)
            if images.exists():
                continue
            run(out, "handoff", "--plan", out / f"{name}.json", *server, "--count", IMAGES, "--seed", seed,
                "--sampler", SAMPLER, "--out", tensors)  # fmt: skip
            run(out, "export", stem, "--sampler", SAMPLER, "--out", head)
            run(out, "verify", head)
            run(out, "infer", head, tensors, "--batch-size", "50", "--out", images)


def evaluate(out: Path, data: Path, extractor: Path) -> dict[str, dict[str, Any]]:
    """KID against each client's training images."""
    scores: dict[str, dict[str, Any]] = {}
    for client in CLIENTS:
        held_out = out / f"{client}.test.npz"
        np.savez(held_out, images=load_images(data, SHAPE, split="test", classes=(client,)).images)
        candidates = {
            "collaboration": out / f"{client}.plan.out",
            "local-only": out / f"{client}.local.out",
            "hand-over tensors": out / f"{client}.plan.tc.safetensors",
            "real test split": held_out,
        }
        scores[client] = {
            what: {
                **run(out, "evaluate", path, *images_of(data, client), "--extractor", extractor),
                "generated": path.name,
            }
            for what, path in candidates.items()
        }
    return scores


def table(record: dict[str, Any]) -> str:
    first, seconds = record["kid"][CLIENTS[0]]["collaboration"], record["training_seconds"]
    rows = [
        "# Brain MRI, three clients, c = 0.2 against local-only training",
        "",
        "KID against each client's training images, lower is better, +- its standard error over the images of both",
        f"sides. Estimator: {first['estimator']}. Extractor {first['extractor']}: scores of other extractors are not",
        f"comparable. Data: {record['data']}. {record['generated_per_client']} generated",
        f"images a client, sampler {record['sampler']}. Training took {seconds['total'] / 60:.1f} minutes in all",
        f"({record['machine']}), the server {seconds['server'] / 60:.1f} of them. Heads of both columns have the",
        "same network, steps and images. The server is trained on all three clients' tensors without labels, so its",
        "hand-over tensors are a mixture of the three populations. The last column is the data set's own test split of",
        "the same class, which differs from the training split: a generator can come closer than it.",
        "",
        "| client | collaboration | local-only | hand-over tensors | the data set's own test split |",
        "|---|---|---|---|---|",
    ]
    for client, scores in record["kid"].items():
        cells = [with_error(score) for score in scores.values()]
        rows.append(f"| {client} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def with_error(score: dict[str, Any]) -> str:
    """KID and its standard error; too few images have none."""
    error = score["kid_error"]
    return f"{score['kid_mean']:.3f} " + ("(no error: too few images)" if error is None else f"+- {error:.3f}")


def picture(out: Path, data: Path, path: Path) -> None:
    """Per client four rows of twelve: real, x_tc, collaboration, local-only."""
    cells, captions = [], []
    for client in CLIENTS:
        rows = {
            "real": load_images(data, SHAPE, classes=(client,), limit=COLUMNS).images,
            "x_tc": read_handover(out / f"{client}.plan.tc.safetensors").x_tc[:COLUMNS],
            "collab": finished(out / f"{client}.plan.out")[:COLUMNS],
            "local": finished(out / f"{client}.local.out")[:COLUMNS],
        }
        cells += list(rows.values())
        captions += [name for name in rows for _ in range(COLUMNS)]
    write_contact_sheet(path, np.concatenate(cells).clip(-1, 1), columns=COLUMNS, captions=captions)


def finished(folder: Path) -> Float32Array:
    """The images that `infer` wrote, (N, C, H, W) in [-1, 1]."""
    images: Float32Array = np.load(folder / "images.npz", allow_pickle=False)["images"]
    return images


def images_of(data: Path, client: str) -> tuple[object, ...]:
    return ("--data", data, "--class", client)


if __name__ == "__main__":
    main()
