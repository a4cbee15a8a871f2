"""cuda.bindings.runtime without a GPU.

Memory is numpy's, a stream runs when it is waited for, a graph is what was recorded, a clock goes on by what runs.
The names are CUDA's.
"""
# ruff: noqa: N802, N815

import ctypes
import enum
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest


class Error(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorNotReady = 600
    cudaErrorSystemDriverMismatch = 803
    cudaErrorStreamCaptureUnsupported = 900


class Handle:
    """As cuda.bindings' handles: a number inside, equal only to itself."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, number: int) -> None:
        self.number = number

    def __int__(self) -> int:
        return self.number


class Stream(Handle):
    pass


class Graph(Handle):
    operations: list[Callable[[], None]]


class GraphExec(Graph):
    pass


class Event(Handle):
    stamp_ms: float | None = None
    """The GPU's clock when the stream came to where the event was recorded last."""


COPY_MS = 1000.0
"""More than any trajectory here, so that a copy within a timed stretch is seen."""


MEMORY = 8_000_000_000


class FakeCuda:
    """Put in the place of the module; every call is in ``calls`` as (name, arguments)."""

    cudaError_t = Error
    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3)
    integrated, capability = False, (8, 7)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    __spec__ = None

    def __init__(self, gpu: str = "Orin (fake)", devices: int = 1, driver: int = 13020, runtime: int = 13000) -> None:
        self.runtime = runtime
        self.gpu, self.devices, self.driver = gpu, devices, driver
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.failing: dict[str, Error] = {}
        self.memory: dict[int, npt.NDArray[np.uint8]] = {}
        self.adopted: dict[int, npt.NDArray[np.uint8]] = {}
        self.handles: dict[int, Handle] = {}
        self.queue: list[Callable[[], None]] = []
        self.recording: list[Callable[[], None]] | None = None
        self.kernels = 0
        """Steps that were enqueued or recorded one by one."""
        self.clock_ms, self.kernel_ms = 0.0, 1.0
        """Of the GPU, and how long the next kernel takes: each a little longer than the one before it."""

    def install(self, monkeypatch: pytest.MonkeyPatch) -> "FakeCuda":
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", self)  # type: ignore[arg-type]
        return self

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cuda"):
            raise AttributeError(name)
        work = getattr(type(self), f"_{name}", None)
        if work is None:
            raise AttributeError(name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, arguments))
            if name in self.failing:
                return (self.failing[name], *([None] if name.startswith(("cudaGet", "cudaMalloc")) else []))
            answer = work(self, *arguments)
            return answer if isinstance(answer, tuple) else (Error.cudaSuccess, answer)

        return call

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def enqueue(self, kernel: Callable[[], None]) -> None:
        def run() -> None:
            kernel()
            self.clock_ms += self.kernel_ms
            self.kernel_ms += 1 / 1024

        (self.queue if self.recording is None else self.recording).append(run)

    def adopt(self, address: int, count: int) -> None:
        """Take memory that another library allocated for this device's."""
        self.adopted[address] = np.frombuffer((ctypes.c_uint8 * count).from_address(address), np.uint8)

    def view(self, address: int, count: int) -> npt.NDArray[np.uint8]:
        for base, block in (*self.memory.items(), *self.adopted.items()):
            if base <= address and address + count <= base + len(block):
                return block[address - base : address - base + count]
        raise AssertionError(f"{count} bytes at {address} are not allocated")

    def _new(self, kind: type[Handle]) -> Any:
        number = 1000 + len(self.calls)
        self.handles[number] = kind(number)
        return self.handles[number]

    def _drop(self, handle: Handle) -> tuple[Error]:
        del self.handles[int(handle)]
        return (Error.cudaSuccess,)

    def _cudaGetErrorString(self, error: Error) -> bytes:
        return f"{error.name} (fake)".encode()

    def _cudaGetDeviceCount(self) -> int:
        return self.devices

    def _cudaMemGetInfo(self) -> tuple[Error, int, int]:
        return Error.cudaSuccess, MEMORY - sum(len(block) for block in self.memory.values()), MEMORY

    def _cudaRuntimeGetVersion(self) -> int:
        return self.runtime

    def _cudaDriverGetVersion(self) -> int:
        return self.driver

    def _cudaGetDeviceProperties(self, _: int) -> Any:
        return SimpleNamespace(
            name=self.gpu.encode(),
            major=self.capability[0],
            minor=self.capability[1],
            totalGlobalMem=MEMORY,
            integrated=int(self.integrated),
        )

    def _cudaSetDevice(self, _: int) -> tuple[Error]:
        return (Error.cudaSuccess,)

    def _cudaMalloc(self, count: int) -> int:
        address = 4096 * (1 + len(self.calls)) * 1024
        self.memory[address] = np.full(count, 0xFF, np.uint8)  # NaN, so that nothing counts on zeros
        return address

    def _cudaFree(self, address: int) -> tuple[Error]:
        del self.memory[address]
        return (Error.cudaSuccess,)

    def _cudaMemcpyAsync(self, target: int, source: int, count: int, kind: int, _: Stream) -> tuple[Error]:
        if self.recording is not None:
            return (Error.cudaErrorStreamCaptureUnsupported,)  # a host address has no place in a replayed graph

        def copy() -> None:
            if kind == 3:
                self.view(target, count)[:] = self.view(source, count)
                return  # within the device: no time on this clock
            if kind == 1:
                self.view(target, count)[:] = np.frombuffer(ctypes.string_at(source, count), np.uint8)
            else:
                ctypes.memmove(target, self.view(source, count).tobytes(), count)
            self.clock_ms += COPY_MS

        self.queue.append(copy)
        return (Error.cudaSuccess,)

    def _cudaStreamCreateWithFlags(self, _: int) -> Any:
        return self._new(Stream)

    def _cudaStreamDestroy(self, stream: Handle) -> tuple[Error]:
        return self._drop(stream)

    def _cudaStreamSynchronize(self, _: Stream) -> tuple[Error]:
        assert self.recording is None, "waiting ends a capture"
        for operation in self.queue:
            operation()
        self.queue.clear()
        return (Error.cudaSuccess,)

    def _cudaStreamBeginCapture(self, _: Stream, __: int) -> tuple[Error]:
        self.recording = []
        return (Error.cudaSuccess,)

    def _cudaStreamEndCapture(self, _: Stream) -> Any:
        graph = self._new(Graph)
        assert self.recording is not None
        graph.operations, self.recording = self.recording, None
        return graph

    def _cudaGraphInstantiate(self, graph: Graph, _: int) -> Any:
        executable = self._new(GraphExec)
        executable.operations = list(graph.operations)
        return executable

    def _cudaGraphDestroy(self, graph: Handle) -> tuple[Error]:
        return self._drop(graph)

    def _cudaGraphExecDestroy(self, graph: Handle) -> tuple[Error]:
        return self._drop(graph)

    def _cudaGraphLaunch(self, graph: GraphExec, _: Stream) -> tuple[Error]:
        self.queue += graph.operations
        return (Error.cudaSuccess,)

    def _cudaEventCreate(self) -> Any:
        return self._new(Event)

    def _cudaEventDestroy(self, event: Handle) -> tuple[Error]:
        return self._drop(event)

    def _cudaEventRecord(self, event: Event, _: Stream) -> tuple[Error]:
        def stamp() -> None:
            event.stamp_ms = self.clock_ms

        event.stamp_ms = None
        self.queue.append(stamp)
        return (Error.cudaSuccess,)

    def _cudaEventElapsedTime(self, start: Event, end: Event) -> Any:
        if start.stamp_ms is None or end.stamp_ms is None:
            return (Error.cudaErrorNotReady, None)
        return end.stamp_ms - start.stamp_ms
