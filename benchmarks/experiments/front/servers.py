"""The server's tensors by target and solver: how far x_n is from real images noised to the same level."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from measuring import own_images
from training import CLIENTS, SERVERS, Folder
from ways import DDIM, DDPM, TWO_M

from collafuse_edge.evaluation.pyramid import laplacian_pyramid, level_distances, sliced_wasserstein
from collafuse_edge.handoff.server_steps import HandoverSettings, make_handover
from collafuse_export.golden import handover_of
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.diffusion.samplers import Sampler
from collafuse_runtimes.files.plan_file import read_plan

COUNT = 200
KARRAS, LOG_SNR = TWO_M, Sampler("dpm++2m", levels="log-snr")
SERVER_WAYS = ((DDIM, 80), (DDPM, 80), (DDIM, 20), (DDPM, 20), (KARRAS, 20), (LOG_SNR, 20), (KARRAS, 10))


def measure_server(out: Path, name: str, seed: int) -> None:
    """Every way of one server; what was measured before is kept."""
    folder, file = Folder(out), out / f"server.{name}.{seed}.json"
    if file.exists():
        return
    prediction, cut_ratio = SERVERS[name]
    plan, rows = read_plan(folder.plan(cut_ratio, prediction)), list[dict[str, Any]]()
    held_out = np.concatenate([own_images(folder, k, "test") for k in range(len(CLIENTS))])
    real = handover_of(held_out, plan)
    for sampler, steps in SERVER_WAYS:
        if steps <= plan.t_c:
            x_n = make_handover(
                plan, folder.server(name, seed), HandoverSettings(count=COUNT, seed=seed, steps=steps, sampler=sampler)
            ).x_tc
            rows.append({"sampler": asdict(sampler), "way": f"{steps} {sampler.text}", **distances(real, x_n)})
            print(name, seed, rows[-1], flush=True)
    seen = np.concatenate([own_images(folder, k, "train")[:100] for k in range(len(CLIENTS))])
    floor = distances(real, handover_of(seen, plan))
    file.write_text(json.dumps({"server": name, "seed": seed, "rows": rows, "floor": floor}, indent=2))


def distances(real: Float32Array, x_n: Float32Array) -> dict[str, float]:
    """Sliced Wasserstein distance of whole tensors and of the levels of their pyramids, and the mean's difference."""
    a, b = (x.astype(np.float64) for x in (real, x_n))
    return {
        "pixels": sliced_wasserstein(a.reshape(len(a), -1), b.reshape(len(b), -1)),
        "pyramid": float(np.mean(level_distances(laplacian_pyramid(a), laplacian_pyramid(b)))),
        "brightness": float(b.mean() - a.mean()),
    }
