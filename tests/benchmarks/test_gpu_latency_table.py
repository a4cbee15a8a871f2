"""benchmarks/peers/gpu_latency.py: what is timed on a GPU, in which order, and that no figure is made up.

The GPU is fake (fake_cuda.py, fake_tensorrt.py): each kernel takes a known time on its clock, a copy a thousand times
as long, and reading the clock before the stream has come to an end is an error, as it is on a real one.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from fake_cuda import Error, FakeCuda
from fake_tensorrt import FakeTensorrt
from heads import checkpoint_of, default_head, inputs
from places import ROOT

from collafuse_runtimes.engines import open_engine
from collafuse_runtimes.errors import CheckFailed, EngineUnavailable

PEERS = ROOT / "benchmarks" / "peers"
STEPS, ROUNDS, WARMUP = 20, 6, 2


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(PEERS)
    import gpu_latency

    return gpu_latency


def gpu_rows() -> ModuleType:
    return sys.modules["_gpu_rows"]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeCuda]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    device = FakeCuda().install(monkeypatch)
    yield device
    assert device.memory == {}
    assert device.handles == {}


@pytest.fixture
def trt(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> FakeTensorrt:
    return FakeTensorrt(default_head(), cuda).install(monkeypatch)


def tensors() -> Any:
    return inputs(default_head(), ROUNDS)[0]


def run(table: ModuleType, change: Callable[[Any], None] = lambda _: None) -> tuple[Any, Any, Any]:
    """(row, samples, failed) of ``measure`` with engine ``tensorrt``; the fake computes what ``fake`` computes."""
    row = table.Row("tensorrt", "fp32")
    with open_engine(default_head(), "tensorrt") as engine, open_engine(default_head(), "fake") as reference:
        change(engine)
        samples, failed = table.measure({row: gpu_rows().EngineRunner(engine)}, reference, tensors(), WARMUP)
    return row, samples, failed


def test_a_trajectory_is_upload_wait_event_graph_event_download_and_then_the_clock_is_read(
    table: ModuleType, cuda: FakeCuda, trt: FakeTensorrt
) -> None:
    run(table)
    last = len(cuda.names()) - 1 - cuda.names()[::-1].index("cudaGraphLaunch")
    calls = cuda.calls[last - 4 : last + 6]
    assert [name for name, _ in calls] == [
        "cudaSetDevice",
        "cudaMemcpyAsync",
        "cudaStreamSynchronize",
        "cudaEventRecord",
        "cudaGraphLaunch",
        "cudaEventRecord",
        "cudaMemcpyAsync",
        "cudaStreamSynchronize",
        "cudaStreamSynchronize",
        "cudaEventElapsedTime",
    ]
    (_, upload), (_, start), (_, end), (_, download) = (calls[i] for i in (1, 3, 5, 6))
    assert (upload[3], download[3]) == (1, 2)  # to the device, to the host
    assert calls[-1][1] == (start[0], end[0])
    assert all(arguments[-1] is upload[-1] for _, arguments in calls[1:-1]), "one stream"


def test_the_graph_is_captured_once_and_replayed_for_every_sample(
    table: ModuleType, cuda: FakeCuda, trt: FakeTensorrt
) -> None:
    run(table)
    names = cuda.names()
    captures = ("cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphLaunch")
    assert [names.count(name) for name in captures] == [1, 1, 1, ROUNDS]
    allocated = names[names.index("cudaGraphLaunch") :]
    assert "cudaMalloc" not in allocated, "memory was allocated between samples"
    assert names.count("cudaEventElapsedTime") == 2 * ROUNDS
    waits = [i for i, name in enumerate(names) if name == "cudaEventElapsedTime"]
    assert all(names[i - 1] == "cudaStreamSynchronize" for i in waits)


def test_every_step_has_the_address_of_its_row_and_tensors_that_never_move(
    table: ModuleType, cuda: FakeCuda, trt: FakeTensorrt
) -> None:
    run(table)
    first_round = 2 + STEPS  # a lone step, one before the capture, the captured ones
    captured, lone = trt.enqueued[2:first_round], [trt.enqueued[0], *trt.enqueued[first_round:]]
    assert len(captured) == STEPS and len(lone) == ROUNDS
    rows = captured[0]["step"]
    assert [a["step"] for a in captured] == [rows + 256 * k for k in range(STEPS)]
    for before, after in pairwise(captured):
        assert after["sample"] == before["next_sample"] != before["sample"]
    assert [a["step"] for a in lone] == [rows + 256 * k for k in range(ROUNDS)]  # each round another step
    assert len({(a["sample"], a["next_sample"]) for a in lone}) == 1
    trajectories = [trt.rows[i : i + STEPS] for i in range(2, len(trt.rows), STEPS + 1)]
    assert trajectories == [list(range(STEPS))] * ROUNDS


def test_the_figures_are_the_gpus_own_without_warm_up_and_copies(
    table: ModuleType, cuda: FakeCuda, trt: FakeTensorrt
) -> None:
    """Kernel n takes 1 + n/1024 ms: 1 lone step, 1 before the capture, 20 in the graph; then 21 in every round."""
    row, samples, failed = run(table)
    took = 1 + np.arange(22 + 21 * ROUNDS) / 1024
    starts = [22 + 21 * (k - 1) for k in range(WARMUP, ROUNDS)]
    assert failed == {}
    assert samples[row].step_ms == pytest.approx([took[n] for n in starts], abs=1e-9)
    assert samples[row].trajectory_ms == pytest.approx([took[n + 1 : n + 21].sum() for n in starts], abs=1e-9)
    assert samples[row].max_abs_difference < 1e-6


def test_a_row_that_computes_something_else_has_no_figure(table: ModuleType, cuda: FakeCuda, trt: FakeTensorrt) -> None:
    def break_it(engine: Any) -> None:
        real = engine.denoise
        engine.denoise = lambda x: real(x) + 0.02

    row, samples, failed = run(table, break_it)
    assert samples == {}
    assert isinstance(failed[row], CheckFailed)
    assert re.match(r"its image differs from float32: .*max_abs=0.02.*; asked for .*max_abs=0.0001", str(failed[row]))
    reasons = dict.fromkeys(table.ROWS, "not run") | {row: str(failed[row])}
    report = table.make_report(table.ROWS, samples, reasons, ROUNDS)
    (entry,) = (entry for entry in report["rows"] if (entry["by"], entry["precision"]) == ("tensorrt", "fp32"))
    assert entry["step_ms"] is entry["trajectory_ms"] is entry["max_abs_difference"] is None
    assert f"| tensorrt | fp32 | null | null | null | null | {failed[row]} |" in table.table(report)


def test_a_row_that_fails_on_the_way_has_no_figure_and_the_others_go_on(
    table: ModuleType, cuda: FakeCuda, trt: FakeTensorrt
) -> None:
    class Constant:
        """Right, and always as fast."""

        def __init__(self, fake: Any) -> None:
            self.fake = fake

        def step(self, x: Any, k: int) -> tuple[Any, float]:
            return self.fake.step(x, k), 0.25

        def trajectory(self, x_tc: Any) -> tuple[Any, float]:
            return self.fake.denoise(x_tc), 5.0

    class Dying(Constant):
        def trajectory(self, x_tc: Any) -> tuple[Any, float]:
            if len(cuda.calls) > 0 and (x_tc == tensors()[4:5]).all():
                cuda.failing["cudaGraphLaunch"] = Error.cudaErrorMemoryAllocation
            return self.fake.denoise(x_tc), self.fake.device_ms

    dying, alive = table.Row("tensorrt", "fp32"), table.Row("ort-cuda", "fp32")
    with open_engine(default_head(), "tensorrt") as engine, open_engine(default_head(), "fake") as fake:
        runners = {dying: Dying(engine), alive: Constant(fake)}
        samples, failed = table.measure(runners, fake, tensors(), WARMUP)
    assert list(failed) == [dying]
    assert isinstance(failed[dying], EngineUnavailable)
    assert samples.keys() == {alive}
    assert samples[alive].step_ms == [0.25] * (ROUNDS - WARMUP)


def test_percentiles_that_too_few_samples_cannot_give_are_not_given(table: ModuleType) -> None:
    steady, shaky = [2.0] * 64, [1.0, 3.0] * 32
    row = table.Row("tensorrt", "fp16")
    lines = []
    for step_ms in (steady, steady[:63], shaky):
        others = dict.fromkeys(set(table.ROWS) - {row}, "not run")
        report = table.make_report(table.ROWS, {row: table.Samples(step_ms, steady, 1e-3)}, others, 64)
        lines += [line for line in table.table(report).splitlines() if line.startswith("| tensorrt | fp16 |")]
    assert lines == [
        "| tensorrt | fp16 | 2.000 | 2.000 | 2.000 | 2.000 | differs from float32 by 1.0e-03 |",
        "| tensorrt | fp16 | 2.000 | insufficient | 2.000 | 2.000 | differs from float32 by 1.0e-03 |",
        "| tensorrt | fp16 | 2.000 | 3.000 | 2.000 | 2.000 | differs from float32 by 1.0e-03; step varies by 50.0 % |",
    ]


def test_torch_is_timed_by_its_own_events_around_what_diffusers_computes(
    table: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU, with events that take notes: the numbers are those of ``ort-cpu``."""
    import torch

    done: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            done.append("record")

        def elapsed_time(self, end: "Event") -> float:
            assert end is not self
            done.append("elapsed")
            return 7.5

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("synchronise"))
    bundle, row = default_head(), table.Row("torch eager", "fp32")
    with open_engine(bundle) as reference:
        runner = gpu_rows().TorchRunner(checkpoint_of(bundle), row, device="cpu")
        samples, failed = table.measure({row: runner}, reference, tensors()[:3], 1)
    assert failed == {}
    assert (samples[row].step_ms, samples[row].trajectory_ms) == ([7.5, 7.5], [7.5, 7.5])
    assert done == ["synchronise", "record", "record", "synchronise", "elapsed"] * 6


def test_what_torch_cannot_do_is_one_line(table: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def refuse(**_: Any) -> None:
        raise RuntimeError("CUDA error:\n  out of memory")

    monkeypatch.setattr(torch.cuda, "Event", refuse)
    with pytest.raises(EngineUnavailable, match=r"^torch eager failed: RuntimeError: CUDA error: out of memory$"):
        gpu_rows().TorchRunner(checkpoint_of(default_head()), table.Row("torch eager", "fp32"), device="cpu")


def test_every_peer_has_a_row_in_every_precision_it_runs(table: ModuleType) -> None:
    rows = {(row.by, row.precision) for row in table.ROWS}
    assert len(rows) == len(table.ROWS)
    assert {("torch eager", "fp32"), ("torch.compile max-autotune", "fp32"), ("ort-cuda", "fp32")} <= rows
    assert {("tensorrt", precision) for precision in ("fp32", "fp16", "int8-trt")} <= rows
    assert {by for by, _ in rows} >= {"ort-tensorrt", "tensorrt-rtx"}


def test_where_no_gpu_is_the_command_prints_nulls_with_reasons_and_exits_1(table: ModuleType, tmp_path: Path) -> None:
    if any(table.reason_without(row.by) is None for row in table.ROWS):
        pytest.skip("a row can run on this machine")
    command = [
        sys.executable,
        PEERS / "gpu_latency.py",
        "--json",
        tmp_path / "gpu.json",
        "--markdown",
        tmp_path / "gpu.md",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1, done.stderr
    assert done.stderr == "no row could be measured here; the last column of the table says why\n"
    assert done.stdout == (tmp_path / "gpu.md").read_text() + "\n"
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert [(row["by"], row["precision"]) for row in report["rows"]] == [(r.by, r.precision) for r in table.ROWS]
    for row in report["rows"]:
        assert row["step_ms"] is row["trajectory_ms"] is None
        assert len(row["reason"]) > 20 and "\n" not in row["reason"]
        line = f"| {row['by']} | {row['precision']} | null | null | null | null | {row['reason']} |"
        assert line in done.stdout.splitlines()
    assert report["gpu"] is None and report["gpu_reason"].startswith("CUDA: no usable GPU")
    assert "0.000" not in done.stdout


def test_a_device_without_torch_needs_the_heads_alone(tmp_path: Path) -> None:
    """The command loads, torch's rows say what is missing, and heads that are missing are asked for in one line."""
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(PEERS)!r})
sys.modules.update(dict.fromkeys(["torch", "diffusers", "accelerate", "onnx", "onnxscript", "collafuse_export"]))
import gpu_latency, _gpu_rows as gpu_rows
print({{gpu_latency.reason_without(by) for by in gpu_rows.COMPILE_MODES}})
gpu_latency.make_heads(Path({str(tmp_path)!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "{\"torch is not installed (pip install 'collafuse-edge[train]')\"}\n"
    assert done.returncode == 1
    assert re.fullmatch(r".* lacks a head and there is no torch here to train it: make the folder .*\n", done.stderr)
