"""Latency of a head on an NVIDIA GPU, side by side in one run: one step, and the whole trajectory, by CUDA events.

    python benchmarks/peers/gpu_latency.py [--work DIR] [--rounds 100] [--rows PATTERN] [--json FILE] [--markdown FILE]
    python benchmarks/peers/gpu_latency.py --work DIR --prepare

Rows: diffusers' loop in torch, eager and with its network compiled (mode max-autotune, with CUDA graphs), and every GPU
engine in every precision it runs. --rows 'tensorrt fp16' or '*fp16', given once or more, chooses among them:
max-autotune takes minutes. Each row has a process of its own: one that crashes, hangs or loses its GPU ends no other. A
row that cannot run here has no figures and says why. One image at a time.

Round after round, in shuffled order, each row runs one step (every step of the head in turn) and the trajectory, on a
hand-over tensor that is fresh in every round; the first rounds warm up. Every result is compared with float32 on the
CPU (`ort-cpu`), and a row that is further from it than its precision allows has no figures either. Exit code 1 where
that happens, or where no row can be measured.

A figure is the time on the GPU's clock from where the first step begins in its stream to where the last one ends;
copying the input there and the image back is outside, what the host does between two steps is inside. `tensorrt` and
`tensorrt-rtx` launch a lone step kernel by kernel and a trajectory as one CUDA graph, so one is no multiple of the
other; `ort-cuda` and torch.compile replay a graph for each step. TF32 is off for all.

--prepare only makes the heads in DIR, which needs torch and no GPU: for a device that has no torch.
"""

import argparse
import importlib
import json
import os
import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from _gpu_rows import ROWS, Row, Runner, open_row, reason_without
from _head import PLAN, PRESET, STEPS, handover_tensors, lowered_head, trained_head

from collafuse_runtimes.device.machine import read_machine
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.engines import Engine, open_engine
from collafuse_runtimes.engines.cuda_device import gpu_info
from collafuse_runtimes.engines.trt.binding import MODULES
from collafuse_runtimes.errors import CheckFailed, CollafuseError
from collafuse_runtimes.files.bundle import HeadBundle
from collafuse_runtimes.verify import TOLERANCES, compare

WARMUP, ROUNDS = 10, 100
P90_NEEDS = 64
MAX_SPREAD = 0.025
"""Standard deviation over mean above which a figure is marked."""
LIBRARIES = {
    "torch": ("torch",),
    "diffusers": ("diffusers",),
    "onnxruntime": ("onnxruntime",),
    **MODULES,
    "cuda-bindings": ("cuda.bindings",),
}


@dataclass
class Samples:
    step_ms: list[float] = field(default_factory=list)
    trajectory_ms: list[float] = field(default_factory=list)
    max_abs_difference: float = 0.0


def main() -> int:
    arguments = parse()
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"  # ONNX Runtime's TensorRT provider has no switch for it
    rows = arguments.chosen
    failed: dict[Row, str] = {row: reason for row in rows if (reason := reason_without(row.by)) is not None}
    samples: dict[Row, Samples] = {}
    wrong = False
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        if arguments.prepare:
            make_heads(work, rows)
            return 0
        if len(failed) < len(rows):
            samples, errors = run_rows([row for row in rows if row not in failed], work, arguments.rounds)
            failed |= {row: str(error) for row, error in errors.items()}
            wrong = any(isinstance(error, CheckFailed) for error in errors.values())
    report = make_report(rows, samples, failed, arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    if arguments.markdown:
        arguments.markdown.write_text(table(report))
    print(table(report))
    if not samples:
        print("no row could be measured here; the last column of the table says why", file=sys.stderr)
    return 1 if wrong or not samples else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="keep the heads here; reused when present")
    parser.add_argument("--prepare", action="store_true", help="make the heads in --work and stop")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"p90 needs {P90_NEEDS}")
    parser.add_argument("--rows", action="append", metavar="PATTERN", help="'BY PRECISION' with * and ?; default: all")
    parser.add_argument("--json", type=Path, help="write every raw sample to this file")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds {arguments.rounds} out of range: must be at least 1")
    if arguments.prepare and arguments.work is None:
        parser.error("--prepare needs --work: the folder that the heads go to")
    arguments.chosen = [row for row in ROWS if not arguments.rows or any(fnmatch(str(row), p) for p in arguments.rows)]
    for pattern in arguments.rows or ():
        if not any(fnmatch(str(row), pattern) for row in ROWS):
            parser.error(f"--rows {pattern!r} is no row; valid, with * and ?: {', '.join(map(str, ROWS))}")
    return arguments


def make_heads(work: Path, rows: Sequence[Row] = ROWS) -> tuple[Path, dict[str, HeadBundle]]:
    """The checkpoint, and a bundle in float32 and in each precision of the rows."""
    work.mkdir(parents=True, exist_ok=True)
    head, fp32 = trained_head(work)
    lower = {row.precision for row in rows} - {"fp32"}
    return head, {"fp32": fp32, **{precision: lowered_head(work, precision) for precision in sorted(lower)}}


def run_rows(wanted: Sequence[Row], work: Path, rounds: int) -> tuple[dict[Row, Samples], dict[Row, CollafuseError]]:
    """Open all of them, each in its process, then measure those that opened."""
    head, bundles = make_heads(work, wanted)
    runners: dict[Row, Runner] = {}
    failed: dict[Row, CollafuseError] = {}
    with ExitStack() as stack:
        reference = stack.enter_context(open_engine(bundles["fp32"], "ort-cpu"))
        for row in wanted:
            try:
                runners[row] = stack.enter_context(open_row(row, head, bundles[row.precision].path))
            except CollafuseError as error:
                failed[row] = error
        samples, more = measure(runners, reference, handover_tensors(WARMUP + rounds), WARMUP)
    return samples, failed | more


def measure(
    runners: Mapping[Row, Runner], reference: Engine, tensors: Float32Array, warmup: int
) -> tuple[dict[Row, Samples], dict[Row, CollafuseError]]:
    """Interleaved rounds, one tensor each, the first ``warmup`` untimed.

    Returns:
        samples of the rows that ran and agreed with ``reference`` in every round, and why the others did not.
    """
    samples = {row: Samples() for row in runners}
    failed: dict[Row, CollafuseError] = {}
    for number, x_tc in enumerate(tensors[:, None]):
        states = [x_tc]
        reference.denoise(x_tc, on_step=lambda _, x, s=states: s.append(x.copy()))
        k = number % (len(states) - 1)
        running = [row for row in runners if row not in failed]
        for row in random.Random(number).sample(running, len(running)):
            found = samples[row]
            try:
                after, step_ms = runners[row].step(states[k], k)
                image, trajectory_ms = runners[row].trajectory(x_tc)
                distances = (agree(row, f"step {k}", after, states[k + 1]), agree(row, "image", image, states[-1]))
            except CollafuseError as error:
                failed[row] = error
                continue
            found.max_abs_difference = max(found.max_abs_difference, *distances)
            if number >= warmup:
                found.step_ms.append(step_ms)
                found.trajectory_ms.append(trajectory_ms)
    return {row: found for row, found in samples.items() if row not in failed}, failed


def agree(row: Row, what: str, actual: Float32Array, expected: Float32Array) -> float:
    """The largest absolute difference, where it is within the row's tolerance.

    Raises:
        CheckFailed: it is not.
    """
    agreement, wanted = compare(actual, expected), TOLERANCES[row.precision]
    if not agreement.meets(wanted) or agreement.max_abs is None:
        raise CheckFailed(f"its {what} differs from float32: {agreement}; asked for {wanted}")
    return agreement.max_abs


def make_report(
    rows: Sequence[Row], samples: Mapping[Row, Samples], failed: Mapping[Row, str], rounds: int
) -> dict[str, Any]:
    try:
        gpu, gpu_reason = asdict(gpu_info(0)), None
    except CollafuseError as error:
        gpu, gpu_reason = None, str(error)
    return {
        "machine": asdict(read_machine()),
        "gpu": gpu,
        "gpu_reason": gpu_reason,
        "libraries": {name: version(modules) for name, modules in LIBRARIES.items()},
        "head": {"preset": PRESET, "image_shape": PLAN.image_shape, "steps": STEPS, "batch": 1},
        "rounds": rounds,
        "warmup": WARMUP,
        "rows": [
            {
                **asdict(row),
                **(asdict(samples[row]) if row in samples else dict.fromkeys(asdict(Samples()))),
                "reason": failed.get(row),
            }
            for row in rows
        ],
    }


def version(modules: Sequence[str]) -> str | None:
    """Of the first of these modules that can be imported; None where none can."""
    for module in modules:
        try:
            return str(importlib.import_module(module).__version__)
        except Exception:  # a library that is broken raises what it likes
            continue
    return None


def table(report: dict[str, Any]) -> str:
    machine, gpu, size = report["machine"], report["gpu"], "x".join(map(str, PLAN.image_shape))
    where = ", ".join(machine["gpus"] or ["no usable GPU"])
    if gpu is not None:
        where = f"{gpu['name']} (CUDA {gpu['runtime']}, driver for CUDA {gpu['driver']})"
    libraries = ", ".join(f"{name} {found}" for name, found in report["libraries"].items() if found)
    lines = [
        f"# Latency of a `{PRESET}` head on {where}",
        "",
        f"One {size} image, {STEPS} steps, {report['rounds']} rounds after {report['warmup']} to warm up. Milliseconds",
        "on the GPU's clock by CUDA events, copies of the input and of the image not counted; no TF32. `tensorrt` and",
        "`tensorrt-rtx` launch a lone step kernel by kernel and a trajectory as one CUDA graph, so one is no multiple",
        "of the other.",
        "",
        f"{machine['board'] or machine['system']}, {machine['architecture']}; NVIDIA driver "
        f"{machine['driver'] or 'unknown'}; {libraries}.",
        "",
        "| by | precision | step, median | step, p90 | trajectory, median | trajectory, p90 | remarks |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(line(row) for row in report["rows"])]) + "\n"


def line(row: dict[str, Any]) -> str:
    figures = [figure for name in ("step_ms", "trajectory_ms") for figure in (median(row[name]), p90(row[name]))]
    remarks = row["reason"] or f"differs from float32 by {row['max_abs_difference']:.1e}{spread(row)}"
    return f"| {row['by']} | {row['precision']} | {' | '.join(figures)} | {remarks} |"


def median(values: list[float] | None) -> str:
    return "null" if values is None else f"{np.median(values):.3f}"


def p90(values: list[float] | None) -> str:
    if values is None:
        return "null"
    return f"{np.percentile(values, 90):.3f}" if len(values) >= P90_NEEDS else "insufficient"


def spread(row: dict[str, Any]) -> str:
    """A mark for figures that vary more than they should."""
    found = {name: np.std(row[f"{name}_ms"]) / np.mean(row[f"{name}_ms"]) for name in ("step", "trajectory")}
    return "".join(f"; {name} varies by {100 * cv:.1f} %" for name, cv in found.items() if cv > MAX_SPREAD)


if __name__ == "__main__":
    raise SystemExit(main())
