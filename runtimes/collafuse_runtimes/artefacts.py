"""What a device may hold, explained without torch: plan, hand-over, head bundle, images, engines, checkpoints."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from collafuse_runtimes.errors import ArtefactError
from collafuse_runtimes.inspection import (
    Describer,
    Facts,
    disclosure,
    file_facts,
    plan_facts,
)
from collafuse_runtimes.text import one_line

if TYPE_CHECKING:
    from collafuse_runtimes.diffusion.distilled import Distilled

_GENERATED = "generated tensors, no site's image"


def _plan(path: Path) -> Facts:
    from collafuse_runtimes.files.plan_file import read_plan

    return {**plan_facts(read_plan(path)), **file_facts(path)}


def _handover(path: Path) -> Facts:
    from collafuse_runtimes.files.handover import read_handover

    found = read_handover(path)
    steps, span = len(found.timesteps), found.plan.t_c
    server = found.server_sha256 or "none ran"
    return {
        **plan_facts(found.plan),
        "count": (len(found), f"{len(found)} tensors, sample indices from {found.first_index}, seed {found.seed}"),
        "seed": (found.seed, ""),
        "server_steps": (steps, f"{steps} of {span} by {found.sampler.get('name')}"),
        "server_sha256": (found.server_sha256, server),
        **disclosure(False, _GENERATED),
        **file_facts(path),
    }


def _head(path: Path) -> Facts:
    from collafuse_runtimes.files.bundle import MANIFEST, read_bundle
    from collafuse_runtimes.files.golden import read_golden
    from collafuse_runtimes.networks.classes import shown

    head = read_bundle(path)
    read_golden(head)
    counts = [r.steps for r in head.row_ranges]
    network, parity = head.network, head.parity
    fit = None if head.fitted is None else head.fitted.report
    names = "" if head.class_names is None else f": {shown(head.class_names)}"
    return {
        "role": ("client", "head"),
        **plan_facts(head.plan),
        "steps": (counts, f"{', '.join(map(str, counts))} by {head.sampler.text}"),
        "fit": (None, "")
        if fit is None
        else (asdict(fit), f"to {fit.teacher_steps} steps on {fit.tensors} tensors ({fit.source})"),
        **_distilled(head.distilled),
        "network": (network.preset, f"{network.preset}, {network.parameters:,} parameters"),
        "precision": (head.precision, f"{head.precision}, opset {head.opset}"),
        "classes": (head.num_classes, "none" if head.num_classes is None else f"{head.num_classes}{names}"),
        "class_names": (head.class_names, ""),
        "weights_sha256": (network.weights_sha256, network.weights_sha256),
        "parity": (bool(parity.get("passed")), f"{'passed' if parity.get('passed') else 'NOT PASSED'} at export"),
        "engines": ([e.name for e in head.engines], ", ".join(e.name for e in head.engines) or "none embedded"),
        **disclosure(False, "golden vectors are of synthetic images; weights were learned from the site's images"),
        "sha256": _sha256(path / MANIFEST),
    }


def _distilled(distilled: "Distilled | None") -> Facts:
    return {"distilled": (None, "") if distilled is None else (asdict(distilled), f"for {distilled.text}")}


def _checkpoint(path: Path) -> Facts:
    from collafuse_runtimes.files.checkpoint import load_weights, read_checkpoint
    from collafuse_runtimes.networks.classes import shown

    found = read_checkpoint(path)
    load_weights(found)
    classes, training = found.network.num_classes, found.training
    steps, images = training.get("steps"), training.get("images")
    names = "" if found.class_names is None else f": {shown(found.class_names)}"
    return {
        "role": (found.role, found.role),
        **plan_facts(found.plan),
        **_distilled(found.distilled),
        "network": (found.network.preset, found.network.preset),
        "steps": (steps, f"{steps} trained" + ("" if images is None else f", on {images} images")),
        "images": (images, ""),
        "classes": (classes, "none" if classes is None else f"{classes}{names}"),
        "class_names": (found.class_names, ""),
        "weights_sha256": (found.weights_sha256, found.weights_sha256),
        **disclosure(False, "weights alone; they were learned from images and may remember some"),
        "sha256": _sha256(path / "training.json"),
    }


def _golden(path: Path) -> Facts:
    from collafuse_runtimes.files.golden import FORMAT as GOLDEN_FORMAT

    return _tensors(path, GOLDEN_FORMAT, "golden vectors, of synthetic images; a part of a head bundle")


def _weights(path: Path) -> Facts:
    from collafuse_runtimes.files.checkpoint import WEIGHTS_FORMAT

    return _tensors(path, WEIGHTS_FORMAT, "weights, a part of a checkpoint: inspect its folder for the plan")


def _tensors(path: Path, format_name: str, text: str) -> Facts:
    from collafuse_runtimes.files.sealed import read_tensors

    tensors, _ = read_tensors(path, format_name)
    return {
        "count": (len(tensors), f"{len(tensors)} tensors"),
        **disclosure(False, text),
        **file_facts(path),
    }


def _part(path: Path) -> Facts:
    """A sealed JSON that belongs to a folder: the folder is explained."""
    from collafuse_runtimes.inspection import stated

    whole = stated(path.parent)
    if whole is None or whole.format not in DEVICE:
        raise ArtefactError(f"{path} is a part of a folder whose other files are missing; inspect the whole folder")
    text = f"{path.parent}, of which all is explained here"
    return {"part_of": (str(path.parent), text), **DEVICE[whole.format][1](path.parent)}


def _images(path: Path) -> Facts:
    from collafuse_runtimes.files.image_record import read_record
    from collafuse_runtimes.infer import ARRAY_FILE

    record = read_record(path / ARRAY_FILE)
    try:
        with np.load(path / ARRAY_FILE, allow_pickle=False) as arrays:
            shape = arrays["images"].shape
    except Exception as error:  # damaged archives raise a dozen kinds
        raise ArtefactError(f"{path / ARRAY_FILE} is damaged ({one_line(error, 80)}); run `infer` again") from None
    pictures = sum(1 for file in path.glob("[0-9]*.png"))
    if len(shape) != 4 or pictures != shape[0]:
        raise ArtefactError(f"{path} holds {pictures} pictures but images of shape {shape}; run `infer` again")
    made_by = {} if record is None else record.head or {}
    steps = f"{made_by.get('steps')} steps by {made_by.get('engine')}" if made_by else "not recorded"
    return {
        **({} if record is None else plan_facts(record.plan)),
        "count": (shape[0], f"{shape[0]} images of {'x'.join(map(str, shape[1:]))}"),
        "image_shape": (list(shape[1:]), ""),
        "head": (made_by.get("name"), f"{made_by['name']}, {steps}" if made_by else steps),
        "steps": (made_by.get("steps"), ""),
        **disclosure(False, "generated images, no site's; a head may remember images it was trained on"),
        "sha256": _sha256(path / ARRAY_FILE),
    }


def _engine(path: Path) -> Facts:
    from collafuse_runtimes.engines.trt.cache import FORMAT
    from collafuse_runtimes.files.sealed import read_json, sha256_file

    sidecar = path.with_suffix(".json")
    found = read_json(sidecar, FORMAT)
    data = next((p for p in (sidecar.with_suffix(s) for s in (".engine", ".timings")) if p.exists()), None)
    if data is None:
        raise ArtefactError(f"{sidecar} has no engine beside it; build it again")
    if sha256_file(data) != found.get("data_sha256"):
        raise ArtefactError(f"{data} is not the file {sidecar.name} names: damaged or mixed; build it again")
    key = found.get("key")
    key = key if isinstance(key, dict) else {}
    return {
        "key": (key, "; ".join(f"{name} {str(value)[:40]}" for name, value in key.items())),
        "seconds": (found.get("seconds"), f"{found.get('seconds')} to build"),
        "inspection": (found.get("inspection"), str(found.get("inspection"))),
        "signature": ("not checked", "only the machine that built it can check it, and does before use"),
        **disclosure(False, "a compiled network"),
        **file_facts(data),
    }


def _sha256(path: Path) -> tuple[Any, str]:
    from collafuse_runtimes.files.sealed import sha256_file

    digest = sha256_file(path)
    return digest, f"{digest} of {path.name}"


DEVICE: Mapping[str, tuple[str, Describer]] = {
    "collafuse-plan": ("plan file", _plan),
    "collafuse-handover": ("hand-over tensors", _handover),
    "collafuse-head": ("head bundle", lambda path: _head(path) if path.is_dir() else _part(path)),
    "collafuse-golden": ("golden vectors of a head bundle", _golden),
    "collafuse-checkpoint": ("checkpoint", lambda path: _checkpoint(path) if path.is_dir() else _part(path)),
    "collafuse-training": ("training record of a checkpoint", _part),
    "collafuse-weights": ("weights of a checkpoint", _weights),
    "collafuse-engine": ("TensorRT engine", _engine),
    "collafuse-images": ("generated images", lambda path: _images(path) if path.is_dir() else _part(path)),
}
"""Format name to what it is, and its describer."""
