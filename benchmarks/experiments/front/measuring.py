"""Quality of every way, on tensors of the real server and on the client's held-out images noised exactly."""

import json
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from training import CLIENTS, SERVERS, Folder
from ways import TWO_M, WAYS, Way, together

from collafuse_edge import image_features, kid_on_reference_scale, load_images, make_handover, pyramid_score
from collafuse_export import ExportSettings, Fit, export_with_report, handover_of
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.engines import EngineOptions, open_engine
from collafuse_runtimes.errors import CheckFailed
from collafuse_runtimes.files.bundle import HeadBundle, read_bundle
from collafuse_runtimes.files.handover import Handover, read_handover, write_handover
from collafuse_runtimes.files.plan_file import read_plan

COUNT, BATCH, SHOWN = 200, 50, 10
SERVER_SAMPLER, SERVER_STEPS = TWO_M, 20
NOT_TRAINED = "distill refused it, or it was not trained"
EXACT = 0.2
"""The cut at which exact tensors are finished too."""
CALIBRATION = 64
"""Tensors that int8 is fitted to, and that judge fitted steps; of other numbers than those that are finished."""


def measure_head(out: Path, extractor: Path, seed: int, network: str, cut_ratio: float) -> None:
    """Every way of one seed's heads of one network and cut; what was measured before is kept."""
    folder = Folder(out)
    for ways in together(tuple(w for w in WAYS if (w.network, w.cut_ratio) == (network, cut_ratio))).values():
        if all(point_file(folder, way, seed).exists() for way in ways):
            continue
        bundle, said = exported(folder, ways, seed)
        for way in ways:
            point = {"way": asdict(way), "name": way.name, "seed": seed, "client": CLIENTS[seed], "gate": said}
            if bundle is not None:
                point |= {"flops": bundle.network.flops_per_step * way.steps, "parameters": bundle.network.parameters}
                scores, made = quality(folder, bundle, way, seed, extractor)
                np.save(point_file(folder, way, seed).with_suffix(".npy"), made[:SHOWN])
                point |= scores
            point_file(folder, way, seed).write_text(json.dumps(point, indent=2))
            print(way.name, seed, point.get("server"), said or "", flush=True)


def point_file(folder: Folder, way: Way, seed: int) -> Path:
    """Where the figures of one way are kept."""
    (folder.out / "points").mkdir(exist_ok=True)
    return folder.out / "points" / f"{'.'.join(map(str, way.bundle))}.{way.steps}.{seed}.json"


def exported(folder: Folder, ways: tuple[Way, ...], seed: int) -> tuple[HeadBundle | None, str | None]:
    """The head bundle of some ways and what its gate said; None where a fit was refused."""
    way = ways[0]
    path = folder.out / "heads" / f"{'.'.join(map(str, way.bundle))}.{seed}.head"
    said = path.with_suffix(".said")
    if path.exists():
        return read_bundle(path), said.read_text() if said.exists() else None
    path.parent.mkdir(exist_ok=True)
    options: dict[str, Any] = {"precision": way.precision}
    fit = Fit()
    checkpoint = folder.head(way.network, way.cut_ratio, seed)
    if way.made == "distilled":
        checkpoint = folder.distilled(way.network, way.cut_ratio, seed, way.steps)
    else:
        options |= {"sampler": way.sampler, "step_counts": [w.steps for w in ways], "cut_ratio": way.cut_ratio}
    if not checkpoint.exists():
        return None, NOT_TRAINED
    if way.made == "fitted":
        judge_on = handed_over(folder, way.cut_ratio, seed, CALIBRATION, first=10_000)
        fit = Fit(own_images(folder, seed, "train"), judge_on=judge_on)
    if way.precision != "fp32":
        options["calibration"] = handed_over(folder, way.cut_ratio, seed, CALIBRATION, first=10_000)
    try:
        bundle, report = export_with_report(checkpoint, path, ExportSettings(**options), fit, force=True)
    except CheckFailed as error:
        return None, str(error)
    if report is not None:
        try:
            report.require_worth_it()
        except CheckFailed as error:
            said.write_text(str(error))
    return bundle, said.read_text() if said.exists() else None


def handed_over(folder: Folder, cut_ratio: float, seed: int, count: int, first: int = 0) -> Handover:
    """The real server's tensors for a cut."""
    path = folder.out / f"{cut_ratio:g}.{seed}.{count}.tc.safetensors"
    if not path.exists():
        plan = read_plan(folder.plan(cut_ratio))
        name = max((n for n, (kind, c) in SERVERS.items() if kind == "v" and c <= cut_ratio), key=lambda n: SERVERS[n])
        server = None if cut_ratio == 1.0 else folder.server(name, seed)
        steps = None if server is None else min(SERVER_STEPS, plan.t_c)
        write_handover(path, make_handover(plan, server, count=count, seed=100 + seed, first_index=first, steps=steps,
                                           sampler=SERVER_SAMPLER))  # fmt: skip
    return read_handover(path)


@cache
def own_images(folder: Folder, seed: int, split: str) -> Float32Array:
    """A client's images of one split, (N, C, H, W) in [-1, 1]."""
    plan = read_plan(folder.plan(0.2))
    return load_images(folder.data(CLIENTS[seed]), plan.image_shape, split=split).images


@cache
def real_features(folder: Folder, extractor: Path, seed: int) -> Any:
    """Features of a client's held-out images."""
    return image_features(own_images(folder, seed, "test"), extractor)


def quality(
    folder: Folder, bundle: HeadBundle, way: Way, seed: int, extractor: Path
) -> tuple[dict[str, Any], Float32Array]:
    """Figures on both kinds of tensors, and the images made from the server's."""
    with open_engine(bundle, "ort-cpu", EngineOptions(threads=1)) as engine:

        def finished(x_n: Float32Array) -> Float32Array:
            starts = range(0, len(x_n), BATCH)
            parts = [
                engine.denoise(
                    x_n[k : k + BATCH], way.steps, seed=seed, sample_indices=range(k, min(k + BATCH, len(x_n)))
                )
                for k in starts
            ]
            return np.concatenate(parts)

        made = finished(handed_over(folder, way.cut_ratio, seed, COUNT).x_tc)
        found = {"server": scored(folder, made, seed, extractor)}
        if way.cut_ratio == EXACT:
            exact = finished(handover_of(own_images(folder, seed, "test"), bundle.plan))
            found["exact"] = scored(folder, exact, seed, extractor)
    return found, made


def scored(folder: Folder, images: Float32Array, seed: int, extractor: Path) -> dict[str, float | None]:
    """KID and its standard error against the client's held-out images and all clients', pyramid distance, sharpness."""
    of_images, own = image_features(images, extractor), own_images(folder, seed, "test")
    kid = kid_on_reference_scale(real_features(folder, extractor, seed), of_images)
    everyone = np.concatenate([real_features(folder, extractor, k) for k in range(len(CLIENTS))])
    pooled = kid_on_reference_scale(everyone, of_images)
    pyramid = pyramid_score(own, images)
    return {
        "kid": kid.value, "kid_error": kid.error, "kid_pooled": pooled.value, "kid_pooled_error": pooled.error,
        "pyramid": pyramid.mean, "sharpness": pyramid.sharpness, "brightness": pyramid.brightness,
    }  # fmt: skip
