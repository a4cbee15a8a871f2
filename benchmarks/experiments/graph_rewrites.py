"""What two rewrites of the step graph save: one ONNX Runtime thread, graphs with and without them side by side.

    python benchmarks/experiments/graph_rewrites.py    # a minute; writes benchmarks/results/graph_rewrites.{json,md}

Heads of the presets after one training step: the weights change neither the nodes nor their time. Each round runs all
graphs once in shuffled order; the figure is the median of the ratios within a round. The rewrites change no value,
which is checked on the tensors that were timed.
"""

import argparse
import json
import platform
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np

from collafuse_benchmarks.measure.timing import median_ratio, time_rounds
from collafuse_edge import Sampler, SplitPlan, TrainSettings, export_head, load_images, train_head
from collafuse_export import graph_passes

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
    x = np.random.default_rng(0).standard_normal((1, 1, size, size)).astype(np.float32)
    feeds = {"sample": x, "step": np.array([1], np.int32), "x_0_old": np.zeros_like(x)}
    runs = {name: partial(run, session(model), feeds) for name, model in graphs(preset, size).items()}
    images = [once(0) for once in runs.values()]
    times = time_rounds(runs, ROUNDS, warmup=WARMUP)
    return {
        "preset": preset,
        "size": size,
        "median_ms": {name: round(float(np.median(ms)), 3) for name, ms in times.items()},
        "ratio": {name: round(median_ratio(ms, times["neither"]), 3) for name, ms in times.items()},
        "largest_difference": max(float(np.abs(image - images[0]).max()) for image in images),
    }


def graphs(preset: str, size: int) -> dict[str, bytes]:
    """The step graph of a head after one training step, which moves the gains and shifts of its normalisations."""
    plan = SplitPlan((1, size, size))
    settings = TrainSettings(steps=1, batch_size=2, lr_schedule="constant", warmup_steps=0, ema_decay=0.0)
    with TemporaryDirectory() as work:
        head = Path(work) / "head"
        train_head(
            load_images("phantom:0:2", plan.image_shape), plan, head, network=preset, settings=settings, cpu=True
        )
        both = step_graph(head, Path(work) / "both")
        with patch.object(graph_passes, "merge_affine", lambda _: None):
            batch_0 = step_graph(head, Path(work) / "batch_0")
    return {"neither": with_open_batch(batch_0), "batch 0": batch_0, "both": both}


def step_graph(head: Path, bundle: Path) -> bytes:
    """What `export` writes."""
    return export_head(head, bundle, steps=(STEPS,), sampler=SAMPLER).model_path.read_bytes()


def run(session: Any, feeds: dict[str, Any], _: int) -> Any:
    return session.run(None, feeds)[0]


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
