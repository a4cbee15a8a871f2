"""One GPU: checked calls of cuda.bindings.runtime, and a list of what is still to be released."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from collafuse_runtimes.errors import EngineUnavailable, InputError, NoGpu
from collafuse_runtimes.text import one_line

RUNTIME = "cuda.bindings.runtime"
REMEDY = "check the NVIDIA driver with nvidia-smi, or use engine ort-cpu"


@dataclass(frozen=True)
class GpuInfo:
    """What an engine built on this GPU depends on.

    Attributes:
        name: of the GPU.
        compute_capability: "8.7".
        memory: bytes it has in all.
        integrated: whether that is the host's own memory, as on a Jetson.
        runtime, driver: CUDA versions, "13.0". The runtime is part of cuda-bindings; no engine depends on it.
    """

    name: str
    compute_capability: str
    memory: int
    integrated: bool
    runtime: str
    driver: str


class CudaDevice:
    """Calls on one GPU. Handles stay CUDA's own; ``close`` releases whatever is left, newest first.

    Every method raises EngineUnavailable where CUDA reports an error.
    """

    def __init__(self, index: int, cudart: Any) -> None:
        self.index = index
        self._rt = cudart
        self._open: dict[object, Callable[[], object]] = {}
        self.use()
        self.stream = self._own(
            self._call("cudaStreamCreateWithFlags", cudart.cudaStreamNonBlocking), cudart.cudaStreamDestroy
        )

    def use(self) -> None:
        """Make it the current GPU of the calling thread."""
        self._call("cudaSetDevice", self.index)

    def malloc(self, count: int) -> int:
        """Address of ``count`` new bytes, aligned to 256."""
        address: int = self._own(int(self._call("cudaMalloc", count)), self._rt.cudaFree)
        return address

    def upload(self, address: int, array: npt.NDArray[Any]) -> None:
        """Copy a contiguous array to the GPU, in stream order; keep it until ``synchronise``."""
        kind = self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self.stream)

    def download(self, array: npt.NDArray[Any], address: int) -> None:
        """Fill a contiguous array from the GPU, in stream order; it is there after ``synchronise``."""
        kind = self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self.stream)

    def copy(self, target: int, source: int, count: int) -> None:
        """Copy bytes from one place of the GPU to another, in stream order."""
        kind = self._rt.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpyAsync", target, source, count, kind, self.stream)

    def synchronise(self) -> None:
        """Wait for the stream."""
        self._call("cudaStreamSynchronize", self.stream)

    @contextmanager
    def capture(self) -> Iterator[list[Any]]:
        """Record what the block enqueues; the list yielded holds the executable graph afterwards."""
        rt, captured = self._rt, list[Any]()
        self._call("cudaStreamBeginCapture", self.stream, rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            yield captured
        except BaseException:
            error, graph = rt.cudaStreamEndCapture(self.stream)  # the stream must leave capture mode
            if error == rt.cudaError_t.cudaSuccess:
                rt.cudaGraphDestroy(graph)
            raise
        graph = self._call("cudaStreamEndCapture", self.stream)
        try:
            captured.append(self._own(self._call("cudaGraphInstantiate", graph, 0), rt.cudaGraphExecDestroy))
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any) -> None:
        """Enqueue a captured graph."""
        self._call("cudaGraphLaunch", graph, self.stream)

    def event(self) -> Any:
        """A new event."""
        return self._own(self._call("cudaEventCreate"), self._rt.cudaEventDestroy)

    def record(self, event: Any) -> None:
        """Let the event stamp this place in the stream."""
        self._call("cudaEventRecord", event, self.stream)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Milliseconds between two recorded events, after ``synchronise``."""
        return float(self._call("cudaEventElapsedTime", start, end))

    def free(self, handle: Any) -> None:
        """Release one address, graph or event."""
        self._release(self._open.pop(_key(handle)))

    def close(self) -> None:
        """Release all that is left, newest first, the stream last, even where one release fails."""
        failure: Exception | None = None
        while self._open:
            _, release = self._open.popitem()
            try:
                self._release(release)
            except EngineUnavailable as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _own(self, handle: Any, release: Callable[[Any], Any]) -> Any:
        self._open[_key(handle)] = lambda: release(handle)
        return handle

    def _release(self, release: Callable[[], Any]) -> None:
        checked(self._rt, "releasing GPU memory", release())

    def _call(self, name: str, *arguments: Any) -> Any:
        return ask(self._rt, name, name, *arguments)


ALIGNMENT = 256
"""Bytes; what TensorRT asks of an address."""


def upload_rows(device: CudaDevice, rows: int) -> int:
    """Address of a table whose entry k, ``ALIGNMENT`` bytes on, is the int32 k."""
    table = np.zeros((rows, ALIGNMENT // 4), np.int32)
    table[:, 0] = np.arange(rows)
    address = device.malloc(table.nbytes)
    device.upload(address, table)
    device.synchronise()
    return address


class StreamTimer:
    """How long a stretch of a GPU's stream took on the GPU's own clock; timing it waits for nothing."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._start, self._end = device.event(), device.event()
        self._timed = False

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Stamp the stream before and after what the block enqueues."""
        self._timed = False
        self._device.record(self._start)
        yield
        self._device.record(self._end)
        self._timed = True

    def elapsed_ms(self) -> float:
        """Milliseconds of the last stretch; waits for its end.

        Raises:
            InputError: there was none, or it failed.
            EngineUnavailable: CUDA reports an error.
        """
        if not self._timed:
            raise InputError("nothing was timed yet; call step, or denoise without on_step, first")
        self._device.synchronise()
        return self._device.elapsed_ms(self._start, self._end)


def ask(cudart: Any, what: str, name: str, *arguments: Any) -> Any:
    """The result of a CUDA function, called by its name.

    Raises:
        NoGpu: it cannot be called: up to cuda-bindings 12.8 the functions themselves look for the driver's library.
        EngineUnavailable: its error code is not cudaSuccess.
    """
    return checked(cudart, what, _called(cudart, what, name, *arguments))


_driverless: "WeakKeyDictionary[Any, str]" = WeakKeyDictionary()
"""By module, its words at the first call that found no driver: cuda-bindings 12.8 says 'Function "cuInit" not found' at
every later one.
"""


def _called(cudart: Any, what: str, name: str, *arguments: Any) -> tuple[Any, ...]:
    try:
        if cudart not in _driverless:
            answer: tuple[Any, ...] = getattr(cudart, name)(*arguments)
            return answer
    except RuntimeError as error:
        words = one_line(error, 120)
        if "dlopen" not in words:
            raise EngineUnavailable(f"CUDA: {what}: {words}; {REMEDY}") from None
        _driverless[cudart] = words
    raise NoGpu(f"CUDA: {what}: {_driverless[cudart]}; {REMEDY}")


def checked(cudart: Any, what: str, answer: tuple[Any, ...]) -> Any:
    """The result of a CUDA call: nothing, or the one value after the error code.

    Raises:
        EngineUnavailable: the error code is not cudaSuccess.
    """
    error, *results = answer
    if error != cudart.cudaError_t.cudaSuccess:
        raise EngineUnavailable(f"CUDA: {what}: {_words(cudart, error)}; {REMEDY}")
    return results[0] if results else None


def _words(cudart: Any, error: Any) -> str:
    reason = cudart.cudaGetErrorString(error)[1]
    return reason.decode() if isinstance(reason, bytes) else str(reason)


def cuda_runtime() -> Any:
    """The module cuda.bindings.runtime.

    Raises:
        NoGpu: it, or a library it needs, is not installed.
        EngineUnavailable: it does not load.
    """
    try:
        return importlib.import_module(RUNTIME)
    except (ImportError, OSError, RuntimeError) as error:
        reason = one_line(error, 120)
        kind = NoGpu if isinstance(error, ImportError) else EngineUnavailable
        raise kind(f"cuda-bindings does not load ({reason}); pip install 'collafuse-edge[tensorrt]'") from None


def gpu_count() -> int:
    """Number of GPUs, at least 1.

    Raises:
        NoGpu: no cuda-bindings, no driver, or no GPU.
        EngineUnavailable: there is a driver, and it fails.
    """
    cudart, what = cuda_runtime(), "no usable GPU"
    answer, driver = (_called(cudart, what, name) for name in ("cudaGetDeviceCount", "cudaDriverGetVersion"))
    codes = cudart.cudaError_t
    if answer[0] == codes.cudaErrorNoDevice or driver == (codes.cudaSuccess, 0):  # version 0: there is no driver
        raise NoGpu(f"CUDA: {what}: {_words(cudart, answer[0])}; {REMEDY}")
    count = int(checked(cudart, what, answer))
    if count < 1:
        raise NoGpu(f"no usable GPU: CUDA counts 0 GPUs; {REMEDY}")
    return count


def reason_unusable() -> str | None:
    """Why no GPU can be used here, None where one can."""
    try:
        gpu_count()
    except EngineUnavailable as error:
        return str(error)
    return None


def require_gpu(index: int) -> int:
    """``index`` itself, where that GPU exists.

    Raises:
        NoGpu: there is no GPU at all.
        EngineUnavailable: the driver fails.
        InputError: there are fewer; the message says how many.
    """
    count = gpu_count()
    if not 0 <= index < count:
        raise InputError(f"GPU {index} does not exist: must be 0 to {count - 1}")
    return index


def gpu_info(index: int) -> GpuInfo:
    """Name and versions of an existing GPU.

    Raises:
        NoGpu, EngineUnavailable, InputError: as ``require_gpu``.
    """
    require_gpu(index)
    cudart = cuda_runtime()
    properties = ask(cudart, "reading the GPU's properties", "cudaGetDeviceProperties", index)
    return GpuInfo(
        name=properties.name.decode(),
        compute_capability=f"{properties.major}.{properties.minor}",
        memory=int(properties.totalGlobalMem),
        integrated=bool(properties.integrated),
        runtime=_version(ask(cudart, "reading the CUDA version", "cudaRuntimeGetVersion")),
        driver=_version(ask(cudart, "reading the driver version", "cudaDriverGetVersion")),
    )


def select_gpu(index: int) -> None:
    """Make a GPU the current one of the calling thread.

    Raises:
        EngineUnavailable: CUDA refuses.
    """
    ask(cuda_runtime(), f"selecting GPU {index}", "cudaSetDevice", index)


def open_gpu(index: int) -> CudaDevice:
    """The GPU of that index, with a stream of its own.

    Raises:
        NoGpu, EngineUnavailable, InputError: as ``require_gpu``.
    """
    return CudaDevice(require_gpu(index), cuda_runtime())


def _version(number: int) -> str:
    """13020 -> "13.2"."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _key(handle: Any) -> object:
    """Handles of cuda.bindings do not promise a hash; their type and number do."""
    return type(handle).__name__, int(handle)
