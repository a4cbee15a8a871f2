"""The rows of gpu_latency.py: what each of them runs, and a process for each, so that none can spoil another."""

import importlib.util
import multiprocessing
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from _head import STEPS

from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.doctor import look_apart
from collafuse_runtimes.engines import ENGINES, Engine, open_engine
from collafuse_runtimes.errors import CollafuseError, EngineUnavailable
from collafuse_runtimes.files.bundle import read_bundle

COMPILE_MODES = {"torch eager": None, "torch.compile max-autotune": "max-autotune"}
GPU_ENGINES = ("ort-cuda", "ort-tensorrt", "tensorrt", "tensorrt-rtx")
PROBE_S, OPEN_S, CALL_S = 120.0, 3600.0, 1800.0
"""Longest wait for a library, for an engine that is built, and for a call: torch.compile works in the first ones."""


@dataclass(frozen=True)
class Row:
    """Who computes, and in which precision."""

    by: str
    precision: str

    def __str__(self) -> str:
        return f"{self.by} {self.precision}"


ROWS = (
    *(Row(by, precision) for by in COMPILE_MODES for precision in ("fp32", "fp16")),
    *(Row(engine, precision) for engine in GPU_ENGINES for precision in ENGINES[engine].precisions),
)


class Runner(Protocol):
    """What is timed: each call gives its result, (1, C, H, W) float32, and the milliseconds it took on the GPU."""

    def step(self, x: Float32Array, k: int) -> tuple[Float32Array, float]: ...

    def trajectory(self, x_tc: Float32Array) -> tuple[Float32Array, float]: ...


def open_row(row: Row, head: Path, bundle: Path) -> "RowProcess":
    """A row, opened in a process of its own.

    Raises:
        CollafuseError: it cannot run; what its process said, or how it ended.
    """
    return RowProcess(row, serve_row, (row, head, bundle))


@contextmanager
def runner_of(row: Row, head: Path, bundle: Path) -> Iterator[Runner]:
    """What a row's own process does."""
    if row.by in COMPILE_MODES:
        yield TorchRunner(head, row)
    else:
        with open_engine(read_bundle(bundle), row.by) as engine:
            yield EngineRunner(engine)


def serve_row(connection: Connection, row: Row, head: Path, bundle: Path) -> None:
    """In the row's process: open it, then answer until there is nothing more to do."""
    serve(connection, runner_of(row, head, bundle))


def serve(connection: Connection, opened: Any) -> None:
    """Send "open", then the results of the calls that come in; errors as (kind, text)."""
    try:
        with opened as runner:
            connection.send("open")
            while (call := connection.recv()) is not None:
                name, *arguments = call
                connection.send(_result(getattr(runner, name), arguments))
    except Exception as error:  # whatever a library raises when it is opened
        connection.send(_as_error(error))


def _result(method: Callable[..., Any], arguments: list[Any]) -> Any:
    try:
        return method(*arguments)
    except Exception as error:  # the row's, and told to whoever asked
        return _as_error(error)


def _as_error(error: Exception) -> CollafuseError:
    if isinstance(error, CollafuseError):
        return error
    return EngineUnavailable(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


class RowProcess:
    """A ``Runner`` in another process. A crash, and an answer that does not come, are errors like others."""

    def __init__(self, row: Row, target: Callable[..., None], arguments: tuple[Any, ...], open_s: float = OPEN_S):
        context = multiprocessing.get_context("spawn")  # a fork would share the parent's CUDA
        self._row = row
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self._receive(open_s)
        except BaseException:
            self.close()
            raise

    def step(self, x: Float32Array, k: int) -> tuple[Float32Array, float]:
        return self._call("step", x, k)

    def trajectory(self, x_tc: Float32Array) -> tuple[Float32Array, float]:
        return self._call("trajectory", x_tc)

    def close(self) -> None:
        """End the process, which may hang."""
        self._connection.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> "RowProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, *call: Any) -> Any:
        try:
            self._connection.send(call)
        except OSError:
            raise self._ended() from None
        return self._receive(CALL_S)

    def _receive(self, limit_s: float) -> Any:
        try:
            if not self._connection.poll(limit_s):
                self._process.kill()
                raise EngineUnavailable(f"{self._row.by}: no answer within {limit_s:g} s; its process was stopped")
            answer = self._connection.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        if isinstance(answer, CollafuseError):
            raise answer
        return answer

    def _ended(self) -> EngineUnavailable:
        self._process.join(5)
        code = self._process.exitcode
        how = f"was ended by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended, code {code}"
        return EngineUnavailable(f"{self._row.by}: its process {how}")


@lru_cache
def reason_without(by: str) -> str | None:
    """Why nothing can run this row on this machine; None where nothing is known against it."""
    if by not in COMPILE_MODES:
        return look_apart(by).reason
    for module in ("torch", "diffusers"):
        if sys.modules.get(module, module) is None or importlib.util.find_spec(module) is None:
            return f"{module} is not installed (pip install 'collafuse-edge[train]')"
    code = "import torch; print(torch.__version__, torch.cuda.is_available())"
    try:
        asked = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=PROBE_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"torch does not say within {PROBE_S:g} s whether there is a GPU"
    found = asked.stdout.split()
    if asked.returncode or len(found) != 2:
        return f"torch does not load: {' '.join(asked.stderr.split())[-200:]}"
    return None if found[1] == "True" else f"torch {found[0]}: torch.cuda.is_available() is False"


class EngineRunner:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._first_row = engine.bundle.row_range().first_row

    def step(self, x: Float32Array, k: int) -> tuple[Float32Array, float]:
        result = self._engine.step(x, self._first_row + k)
        return result, self._engine.device_ms

    def trajectory(self, x_tc: Float32Array) -> tuple[Float32Array, float]:
        result = self._engine.denoise(x_tc)
        return result, self._engine.device_ms


class TorchRunner:
    """cuDNN may choose its kernels by timing them."""

    def __init__(self, head: Path, row: Row, device: str = "cuda") -> None:
        import torch
        from _diffusers_loop import DiffusersLoop

        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False  # the engines have it off too
        torch.backends.cudnn.benchmark = True
        dtype, mode = {"fp32": torch.float32, "fp16": torch.float16}[row.precision], COMPILE_MODES[row.by]
        self._torch, self._row, self._device = torch, row, device
        with one_line(row):
            self._loop = DiffusersLoop(head, STEPS, device=device, dtype=dtype, compile_mode=mode)
            self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def step(self, x: Float32Array, k: int) -> tuple[Float32Array, float]:
        return self._timed(lambda sample: self._loop.step(sample, k), x)

    def trajectory(self, x_tc: Float32Array) -> tuple[Float32Array, float]:
        return self._timed(self._loop.denoise, x_tc)

    def _timed(self, run: Callable[[Any], Any], x: Float32Array) -> tuple[Float32Array, float]:
        torch = self._torch
        with one_line(self._row):
            sample = torch.from_numpy(x).to(self._device)
            torch.cuda.synchronize()
            self._start.record()
            result = run(sample)
            self._end.record()
            torch.cuda.synchronize()
            return result.cpu().numpy(), self._start.elapsed_time(self._end)


@contextmanager
def one_line(row: Row) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # torch's compiler has classes of its own for what it cannot do
        reason = " ".join(str(error).split())[:300]
        raise EngineUnavailable(f"{row.by} failed: {type(error).__name__}: {reason}") from None
