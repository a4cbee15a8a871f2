"""A head's whole trajectory, side by side in one run: diffusers, bare ONNX Runtime, bare OpenVINO, and ours.

    python benchmarks/peers/trajectory.py [--work DIR] [--rounds 15] [--json FILE]

Trains a `small` head on drawn phantoms at 64x64 (seconds), exports it with 20 steps, and then runs them all in
shuffled order, round after round, on fresh hand-over tensors of one image:

* diffusers: UNet2DModel in eager mode and DDIMScheduler.step, as DDIMPipeline does it (no_grad, batch 1);
* diffusers compiled: the same with UNet2DModel under torch.compile, default mode; the first step, which compiles, is
  reported apart;
* bare ONNX Runtime: nothing but 20 InferenceSession.run calls of the same graph, summed;
* bare OpenVINO: the same graph compiled for this batch in float32, and 20 calls of its infer;
* ours: the denoise of the engines `ort-cpu` and `openvino`, from tensor to tensor.

All use the same number of threads. The results are compared before any figure is printed. Figures are medians
over rounds; ratios are medians of the ratios within a round.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _diffusers_loop import DiffusersLoop
from _head import PLAN, STEPS, handover_tensors, trained_head

from collafuse_benchmarks.measure.timing import median_ratio, time_rounds
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.engines import EngineOptions, open_engine
from collafuse_runtimes.files.bundle import HeadBundle

THREADS, WARMUP = 2, 3
TOLERANCE = 1e-3
SETTLE_S = 0.3
"""Pause before each trajectory: thread pools of the one before go on spinning for a while."""

Run = Callable[[Float32Array], Float32Array]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="keep head and bundle here; reused when present")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write every raw sample to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        head, bundle = trained_head(work)
        report = measure(head, bundle, arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    print(table(report))


def measure(head: Path, bundle: HeadBundle, rounds: int) -> dict[str, Any]:
    """Interleaved rounds; every result of a round is compared with the others'."""
    tensors = handover_tensors(rounds + WARMUP)
    compiled, compile_s = compiled_loop(head, tensors[:1])
    options = EngineOptions(threads=THREADS)
    with open_engine(bundle, "ort-cpu", options) as engine, open_engine(bundle, "openvino", options) as openvino_engine:
        runs: dict[str, Run] = {
            "diffusers eager loop": run_of(DiffusersLoop(head, STEPS)),
            "diffusers compiled loop": compiled,
            "bare InferenceSession.run": bare_runs(bundle),
            "bare OpenVINO": bare_openvino(bundle),
            "collafuse openvino": openvino_engine.denoise,
            "collafuse ort-cpu": engine.denoise,
        }
        images: dict[str, list[Float32Array]] = {name: [] for name in runs}
        samples = time_rounds(
            {name: partial(lambda run, k: run(tensors[k : k + 1]), run) for name, run in runs.items()},
            rounds,
            warmup=WARMUP,
            settle_s=SETTLE_S,
            on_result=lambda _, name, image: images[name].append(image),
        )
    expected = np.stack(images["diffusers eager loop"])
    worst = max(float(np.abs(np.stack(found) - expected).max()) for found in images.values())
    if not worst <= TOLERANCE:
        raise SystemExit(f"the trajectories differ by {worst:.2e}, more than {TOLERANCE}: no figures")
    return {
        "machine": f"{platform.machine()}, {THREADS} threads, CPU",
        "versions": {
            "onnxruntime": metadata.version("onnxruntime"),
            "torch": torch.__version__,
            "openvino": metadata.version("openvino"),
        },
        "head": {"preset": "small", "image_shape": PLAN.image_shape, "steps": STEPS},
        "max_abs_difference": worst,
        "compile_s": compile_s,
        "samples_ms": samples,
    }


def run_of(loop: DiffusersLoop) -> Run:
    return lambda x_tc: loop.denoise(torch.from_numpy(x_tc)).numpy()


def compiled_loop(head: Path, x_tc: Float32Array) -> tuple[Run, float]:
    """The loop, and the seconds of its first step, which compiles the network."""
    loop = DiffusersLoop(head, STEPS, compile_mode="default")
    begun = time.perf_counter()
    loop.step(torch.from_numpy(x_tc), 0)
    return run_of(loop), time.perf_counter() - begun


def bare_runs(bundle: HeadBundle) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(bundle.model_path, options, providers=["CPUExecutionProvider"])
    rows = [np.array([row], dtype=np.int32) for row in range(STEPS)]

    def run(x_tc: Float32Array) -> Float32Array:
        for row in rows:
            x_tc = session.run(None, {"sample": x_tc, "step": row})[0]
        return x_tc

    return run


def bare_openvino(bundle: HeadBundle) -> Run:
    import openvino

    core = openvino.Core()
    model = core.read_model(bundle.model_path)
    model.reshape({"sample": [1, *PLAN.image_shape], "step": [1]})
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": THREADS}
    request = core.compile_model(model, "CPU", hints).create_infer_request()
    rows = [np.array([row], dtype=np.int32) for row in range(STEPS)]

    def run(x_tc: Float32Array) -> Float32Array:
        for row in rows:
            x_tc = request.infer({"sample": x_tc, "step": row})[0]
        return x_tc.copy()

    return run


def table(report: dict[str, Any]) -> str:
    samples = report["samples_ms"]
    ours = samples["collafuse ort-cpu"]
    lines = [
        f"{STEPS} steps, one 64x64 image, `small` head; {report['machine']}; {len(ours)} rounds in turn",
        f"largest difference between the results: {report['max_abs_difference']:.1e}; "
        f"the first step of diffusers compiled, {report['compile_s']:.0f} s, is not in its figure",
        "",
        "| trajectory by | median ms | time relative to ours |",
        "|---|---|---|",
    ]
    for name, values in samples.items():
        lines.append(f"| {name} | {np.median(values):.1f} | {median_ratio(values, ours):.3f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
