"""Client head checkpoint -> head bundle, published only when its graph computes what the torch network computes."""

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from collafuse_runtimes import __version__
from collafuse_runtimes.atomic import new_directory, write_bytes
from collafuse_runtimes.bundle import (
    MANIFEST,
    MODEL,
    OPSETS,
    PRECISIONS,
    HeadBundle,
    NetworkInfo,
    make_row_ranges,
    read_bundle,
    write_golden,
    write_manifest,
)
from collafuse_runtimes.checkpoint import load_network, read_checkpoint
from collafuse_runtimes.engines import open_engine
from collafuse_runtimes.errors import EngineUnavailable, InputError
from collafuse_runtimes.samplers import Sampler
from collafuse_runtimes.verify import verify_engine

if TYPE_CHECKING:
    import torch

TOOLS = ("torch", "diffusers", "onnx", "onnxscript", "onnxruntime", "numpy")


def export_head(
    checkpoint_dir: Path,
    out: Path,
    *,
    step_counts: Sequence[int] | None = None,
    sampler: Sampler | None = None,
    precision: str = "fp32",
    opset: int = 20,
) -> HeadBundle:
    """Export a client checkpoint and check the result on the CPU, step by step, against the torch network.

    Args:
        checkpoint_dir: written by ``train-client``; its moving-average weights are exported.
        out: the bundle folder; an older head bundle there is replaced in one step.
        step_counts: denoising steps to bake in, the first is the default; None is full stride.
        sampler: baked in; default DDIM, eta 0.
        precision: of the network, "fp32" or "fp16".
        opset: 20, or 17 for TensorRT 8 (JetPack 5).

    Returns:
        The bundle, read back from ``out``.

    Raises:
        InputError: an option is unusable, the plan leaves the client no step, or ``out`` holds something else.
        EngineUnavailable: a library of the [export] extra is not installed.
        ArtefactError: the checkpoint is damaged, or ``out`` cannot be written.
        ExportFailed: torch cannot turn this network into a graph.
        CheckFailed: the graph differs from the network by more than its precision allows; nothing is written.
    """
    _check_options(out, precision, opset)
    from collafuse_export.golden import make_golden
    from collafuse_export.onnx_graph import to_onnx
    from collafuse_export.step_graph import StepGraph, one_thread

    sampler = sampler or Sampler()
    checkpoint = read_checkpoint(checkpoint_dir, role="client")
    plan, num_classes = checkpoint.plan, checkpoint.network.num_classes
    row_ranges = make_row_ranges(plan, [plan.cut] if step_counts is None else step_counts)
    with new_directory(out) as aside, one_thread():
        network = load_network(checkpoint)
        bundle = HeadBundle(
            path=aside,
            plan=plan,
            sampler=sampler,
            row_ranges=row_ranges,
            precision=precision,
            opset=opset,
            num_classes=num_classes,
            network=_describe(network, checkpoint.network.preset, checkpoint.weights_sha256, plan.image_shape),
            parity={},
            tools={"collafuse-edge": __version__, **{name: importlib.metadata.version(name) for name in TOOLS}},
        )
        write_golden(aside, make_golden(network, plan, sampler, row_ranges, num_classes))
        graph = StepGraph(network, plan, bundle.transitions, sampler, precision)  # alters the network
        write_bytes(aside / MODEL, to_onnx(graph, bundle.inputs, bundle.outputs, opset, len(bundle.transitions)))
        with open_engine(bundle, "ort-cpu") as engine:
            report = verify_engine(engine)
        report.require_passed(f"the {precision} graph of {checkpoint_dir}")
        write_manifest(replace(bundle, parity=report.to_dict()))
    return read_bundle(out)


def _check_options(out: Path, precision: str, opset: int) -> None:
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}; valid: {', '.join(PRECISIONS)}")
    if opset not in OPSETS:
        raise InputError(f"unknown opset {opset}; valid: {', '.join(map(str, OPSETS))}")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise InputError(f"{out} is a folder that holds no head bundle; choose a new name, such as head-1.head")
    for name in TOOLS:
        if importlib.util.find_spec(name) is None:
            raise EngineUnavailable(f"{name} is not installed; pip install 'collafuse-edge[export]'")


def _describe(
    network: "torch.nn.Module", preset: str, weights_sha256: str, image_shape: tuple[int, int, int]
) -> NetworkInfo:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    conditional = getattr(network, "class_embedding", None) is not None
    conditions = {"class_labels": torch.zeros(1, dtype=torch.int64)} if conditional else {}
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *image_shape), 0, **conditions)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return NetworkInfo(preset, parameters, counter.get_total_flops(), weights_sha256)
