"""Solvers and levels on trained heads: many even steps of DDIM against few of DPM-Solver++ 2M, no training between.

    python benchmarks/experiments/solvers.py work/solvers        # 40 minutes on one core; continues where it stopped

Reads brain_mri_64.npz and the feature extractor from COLLAFUSE_DATA. Three clients, each with a training seed of its
own; heads for c = 0.2 (`small`) and c = 0.6 (`tiny`). Every way starts from the same tensors: the client's held-out
images, noised exactly to the hand-over level, two draws of noise. Each draw is scored against those held-out images
(the data set's test split is another population than its training split, so images made from one are not compared with
the other), and the difference to the reference way is taken draw by draw. rmse is the distance to full-stride 2M.
"""

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
from brain_mri import CLIENTS, images_of

from collafuse_benchmarks.commands import run
from collafuse_edge import image_features, kid_on_reference_scale, load_images, pyramid_score
from collafuse_runtimes.diffusion.noise import Float32Array, noise_batch
from collafuse_runtimes.diffusion.samplers import Sampler, denoise
from collafuse_runtimes.diffusion.schedule import diffuse
from collafuse_runtimes.engines.torch_engine import predict_function
from collafuse_runtimes.files.checkpoint import Checkpoint, load_network, read_checkpoint
from collafuse_runtimes.files.images import write_contact_sheet

SIZE, TIMESTEPS, DRAWS, COLUMNS = 32, 100, 2, 12
HEADS = {0.2: ("small", 700), 0.6: ("tiny", 1300)}
TRAINING = ("--batch-size", 32, "--ema-decay", 0.995, "--threads", 1, "--resume")
DDIM, DDPM = Sampler(), Sampler("ddpm")
TWO_M = {levels: Sampler("dpm++2m", levels=levels) for levels in ("even", "log-snr", "karras")}
UNEVEN = (TWO_M["log-snr"], TWO_M["karras"])
WAYS = {
    0.2: [(DDIM, 20), (DDPM, 20), (DDIM, 5), (TWO_M["even"], 5), *((s, n) for n in (3, 4, 5, 8) for s in UNEVEN)],
    0.6: [(DDIM, 60), (DDIM, 20), (DDIM, 8), (TWO_M["even"], 8), *((s, n) for n in (5, 6, 8) for s in UNEVEN)],
}
FIGURES = ("kid", "pyramid", "sharpness", "rmse")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="where the record goes")
    arguments = parser.parse_args()
    out, results = arguments.out, arguments.results
    out.mkdir(parents=True, exist_ok=True)
    shared = Path(os.environ.get("COLLAFUSE_DATA", "../shared/data"))
    data, extractor = shared / "brain_mri_64.npz", shared.parent / "weights" / "squeezenet1_0_features.onnx"
    rows, strips = [], []
    for cut_ratio in HEADS:
        for seed, client in enumerate(CLIENTS):
            head = trained(out, data, client, cut_ratio, seed)
            found, pictures = scored(head, data, client, extractor, cut_ratio)
            rows += found
            strips += pictures
    record = {
        "data": f"{data.name}, resized to {SIZE}x{SIZE}",
        "extractor": extractor.name,
        "heads": {str(c): f"{preset}, {steps} steps" for c, (preset, steps) in HEADS.items()},
        "training": " ".join(map(str, TRAINING)),
        "draws": DRAWS,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, CPU only",
        "rows": rows,
    }
    results.mkdir(parents=True, exist_ok=True)
    (results / "solvers.json").write_text(json.dumps(record, indent=2) + "\n")
    (results / "solvers.md").write_text(table(record))
    captions = [name if column == 0 else "" for name, _ in strips for column in range(COLUMNS)]
    sheet = np.concatenate([images for _, images in strips]).clip(-1, 1)
    write_contact_sheet(results / "solvers.png", sheet, columns=COLUMNS, captions=captions)
    print(table(record))


def trained(out: Path, data: Path, client: str, cut_ratio: float, seed: int) -> Checkpoint:
    """The client's head for one cut, trained unless it is there."""
    plan, checkpoint = out / f"plan{cut_ratio}.json", out / f"{client}.{cut_ratio}"
    preset, steps = HEADS[cut_ratio]
    if not plan.exists():
        run(out, "init", "--size", SIZE, "--timesteps", TIMESTEPS, "--cut-ratio", cut_ratio, "--out", plan)
    if not checkpoint.exists():
        run(out, "train-client", *images_of(data, client), "--plan", plan, "--preset", preset, "--steps", steps,
            "--seed", seed, *TRAINING, "--out", checkpoint)  # fmt: skip
    return read_checkpoint(checkpoint, "client")


def scored(
    head: Checkpoint, data: Path, client: str, extractor: Path, cut_ratio: float
) -> tuple[list[dict[str, Any]], list[tuple[str, Float32Array]]]:
    """A row per way, and a strip of pictures per way for the first client."""
    plan = head.plan
    held_out = load_images(data, plan.image_shape, split="test", classes=(client,)).images
    of_real, predict = image_features(held_out, extractor), predict_function(load_network(head))
    references: list[Float32Array] = []
    draws = [noise_batch(draw, range(len(held_out)), plan.timesteps, plan.image_shape) for draw in range(DRAWS)]
    rows, strips = [], [("real", held_out[:COLUMNS])] if client == CLIENTS[0] else []
    for sampler, steps in WAYS[cut_ratio]:
        found: list[dict[str, float]] = []
        for draw, noise in enumerate(draws):
            images = finished(head, predict, held_out, noise, sampler, steps, draw)
            if (sampler, steps) == WAYS[cut_ratio][0]:
                finest = TWO_M["even"], plan.cut
                references.append(finished(head, predict, held_out, noise, *finest, draw))
            score = pyramid_score(held_out, images)
            kid = kid_on_reference_scale(of_real, image_features(images, extractor)).value
            rmse = float(np.sqrt(np.mean((images - references[draw]) ** 2)))
            found.append({"kid": kid, "pyramid": score.mean, "sharpness": score.sharpness, "rmse": rmse})
        rows.append({"cut_ratio": cut_ratio, "client": client, "sampler": sampler.text, "steps": steps, "draws": found})
        print(cut_ratio, client, sampler.text, steps, found[0], flush=True)
        if client == CLIENTS[0]:
            strips.append((f"{steps} {sampler.levels[:4]} {sampler.name[-4:]}", images[:COLUMNS]))
    return rows, strips


def finished(
    head: Checkpoint, predict: Any, x_0: Float32Array, noise: Float32Array, sampler: Sampler, steps: int, draw: int
) -> Float32Array:
    """The head's images from ``x_0`` noised to the hand-over level with ``noise``."""
    plan = head.plan
    return denoise(
        diffuse(x_0, noise, np.float32(plan.alpha_bar_at(plan.handover_level))),
        plan,
        plan.client_transitions(steps, sampler.levels),
        sampler,
        predict,
        noise=lambda t: noise_batch(draw, range(len(x_0)), t, plan.image_shape),
    )


def table(record: dict[str, Any]) -> str:
    """Per cut and way: the mean over clients and draws, and the difference to the first way, draw by draw."""
    lines = [
        "# Solvers and levels on trained heads, brain MRI",
        "",
        f"{record['data']}; heads {record['heads']}, three clients with a training seed each, {record['draws']} draws.",
        "From held-out images noised exactly to the hand-over level; scored against those images.",
        f"KID on centred, scaled features of {record['extractor']}; pyramid: sliced Wasserstein distance, mean of the",
        "levels; sharpness: 1 as sharp as real; rmse: to the images of full-stride 2M from the same tensors. +- is the",
        "95 % interval of the mean difference over the three clients (each the mean of its draws, Student's t with two",
        "degrees of freedom).",
        "",
    ]
    for cut_ratio in HEADS:
        ways = [row for row in record["rows"] if row["cut_ratio"] == cut_ratio]
        first = (ways[0]["sampler"], ways[0]["steps"])
        base = values_of(ways, *first)
        difference = f"KID less {first[1]} {first[0]}"
        head = f"| way | steps | {' | '.join(FIGURES)} | {difference} | per client |"
        lines += [f"## c = {cut_ratio}", "", head, "|---|---|---|---|---|---|---|---|"]
        for sampler, steps in dict.fromkeys((row["sampler"], row["steps"]) for row in ways):
            found = values_of(ways, sampler, steps)
            means = " | ".join(f"{found[name].mean():.3f}" for name in FIGURES)
            per_client = (found["kid"] - base["kid"]).mean(axis=1)
            interval = 4.303 * per_client.std(ddof=1) / len(per_client) ** 0.5
            shown = ", ".join(f"{value:+.3f}" for value in per_client)
            lines.append(f"| {sampler} | {steps} | {means} | {per_client.mean():+.3f} +- {interval:.3f} | {shown} |")
        lines.append("")
    return "\n".join(lines)


def values_of(rows: list[dict[str, Any]], sampler: str, steps: int) -> dict[str, Any]:
    """(clients, draws) of each figure."""
    chosen = [row["draws"] for row in rows if (row["sampler"], row["steps"]) == (sampler, steps)]
    return {name: np.array([[draw[name] for draw in draws] for draws in chosen]) for name in FIGURES}


if __name__ == "__main__":
    main()
