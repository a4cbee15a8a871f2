"""What two rewrites of the step graph save: one ONNX Runtime thread, graphs with and without them side by side.

    python benchmarks/experiments/graph_rewrites.py    # a minute; writes benchmarks/results/graph_rewrites.{json,md}

Untrained networks of the presets: the weights change neither the nodes nor their time. Each round runs all graphs once
in shuffled order; the figure is the median of the ratios within a round. The rewrites change no value, which is checked
on the tensors that were timed.
"""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np

from collafuse_edge.training.presets import build_network, network_config
from collafuse_export import graph_passes
from collafuse_export.onnx_graph import to_onnx
from collafuse_export.step_graph import StepGraph, one_thread
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.diffusion.samplers import Sampler
from collafuse_runtimes.files.bundle import HeadBundle, NetworkInfo, make_row_ranges

CASES = (("tiny", 32), ("small", 32), ("tiny", 64), ("small", 64))
STEPS, ROUNDS, WARMUP = 5, 200, 10
SAMPLER = Sampler("dpm++2m", levels="karras")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="where the record goes")
    results = parser.parse_args().results
    import onnxruntime

    rows = [measured(preset, size) for preset, size in CASES]
    record = {"machine": f"{platform.machine()}, one thread", "onnxruntime": onnxruntime.__version__, "rounds": ROUNDS,
              "rows": rows}  # fmt: skip
    results.mkdir(parents=True, exist_ok=True)
    (results / "graph_rewrites.json").write_text(json.dumps(record, indent=2) + "\n")
    (results / "graph_rewrites.md").write_text(table(record))
    print(table(record))


def measured(preset: str, size: int) -> dict[str, Any]:
    """One preset at one size: medians, ratios to the graph without rewrites, largest difference of the outputs."""
    graphs = {"neither": graph(preset, size, affine=False, batch=-1), "batch 0": graph(preset, size, affine=False),
              "both": graph(preset, size)}  # fmt: skip
    sessions = [session(model) for model in graphs.values()]
    x = np.random.default_rng(0).standard_normal((1, 1, size, size)).astype(np.float32)
    feeds = {"sample": x, "step": np.array([1], np.int32), "x_0_old": np.zeros_like(x)}
    images = [run.run(None, feeds)[0] for run in sessions]
    rng, times = np.random.default_rng(1), np.zeros((WARMUP + ROUNDS, len(sessions)))
    for round_times in times:
        for k in rng.permutation(len(sessions)):
            start = time.perf_counter()
            sessions[k].run(None, feeds)
            round_times[k] = time.perf_counter() - start
    times = times[WARMUP:]
    return {
        "preset": preset,
        "size": size,
        "median_ms": dict(zip(graphs, (np.median(times, axis=0) * 1e3).round(3).tolist(), strict=True)),
        "ratio": dict(zip(graphs, np.median(times / times[:, :1], axis=0).round(3).tolist(), strict=True)),
        "largest_difference": max(float(np.abs(image - images[0]).max()) for image in images),
    }


def graph(preset: str, size: int, *, affine: bool = True, batch: int = 0) -> bytes:
    """The step graph of an untrained head, its normalisations with gains and shifts as after training."""
    import torch

    plan = SplitPlan((1, size, size))
    bundle = HeadBundle(Path(preset), plan, SAMPLER, make_row_ranges(plan, [STEPS], SAMPLER.levels), "fp32", 20, None,
                        NetworkInfo(preset, 0, 0, "0" * 64), {}, {})  # fmt: skip
    merge = graph_passes.merge_affine
    with one_thread():
        network = build_network(network_config(preset, plan), seed=0)
        with torch.no_grad():
            for name, weight in network.named_parameters():
                if "norm" in name:
                    weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
        try:
            if not affine:
                graph_passes.merge_affine = lambda _: None
            module = StepGraph(network, plan, bundle.transitions, bundle.table, "fp32")
            model = to_onnx(module, bundle.inputs, bundle.outputs, 20, STEPS)
        finally:
            graph_passes.merge_affine = merge
    return model if batch == 0 else with_open_batch(model)


def with_open_batch(model: bytes) -> bytes:
    """Reshape targets with -1 for the batch, where they may be open only once."""
    import onnx

    loaded = onnx.load_from_string(model)
    constants = {i.name: i for i in loaded.graph.initializer}
    for node in loaded.graph.node:
        if node.op_type == "Reshape":
            target = onnx.numpy_helper.to_array(constants[node.input[1]]).copy()
            if target[0] == 0 and -1 not in target:
                target[0] = -1
                constants[node.input[1]].CopyFrom(onnx.numpy_helper.from_array(target, node.input[1]))
    return bytes(loaded.SerializeToString())


def session(model: bytes) -> Any:
    """An ``onnxruntime.InferenceSession`` on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def table(record: dict[str, Any]) -> str:
    """The record for people."""
    lines = [
        f"# Rewrites of the step graph, {record['machine']}, ONNX Runtime {record['onnxruntime']}",
        "",
        f"Median over {record['rounds']} rounds, graphs in turns; ratios within a round. Absolute times are this "
        "machine's alone.",
        "",
        "| preset | size | neither, ms | batch 0: ratio | and gain and shift in one node: ratio | largest difference |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['preset']} | {r['size']} | {r['median_ms']['neither']:.2f} | {r['ratio']['batch 0']:.3f} | "
        f"{r['ratio']['both']:.3f} | {r['largest_difference']:.1e} |"
        for r in record["rows"]
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
