"""ONNX Runtime on an NVIDIA GPU: the tensor stays on the GPU, in two buffers that take turns as input and output.

Each batch size has a session of its own, with the batch fixed: a captured graph holds fixed shapes and addresses, and
no node is left that computes a shape, which ONNX Runtime would put on the CPU and these engines refuse.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from collafuse_runtimes.device.machine import read_machine
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.engine_options import EngineOptions
from collafuse_runtimes.engines.base import Engine, Labels, Trajectory
from collafuse_runtimes.engines.cuda_device import ALIGNMENT, CudaDevice, StreamTimer, open_gpu, upload_rows
from collafuse_runtimes.engines.ort.session import (
    TENSORRT,
    in_short,
    new_session_options,
    open_session,
    provider_library,
)
from collafuse_runtimes.engines.ort.tensorrt_library import TF32_OVERRIDE, keep_float32, tensorrt_version
from collafuse_runtimes.errors import ArtefactError, EngineUnavailable
from collafuse_runtimes.files.bundle import HISTORY_IN, HISTORY_OUT, HeadBundle
from collafuse_runtimes.files.secret_file import cache_folder

LOGGER = logging.getLogger(__name__)
NO_KERNEL = "no kernel image"
NO_KERNEL_REMEDY = (
    "this onnxruntime-gpu was built for other GPUs: install a wheel for this one's compute capability (Thor: "
    "11.0, docs/jetson.md)"
)


class OrtGpuEngine(Engine):
    """What both engines share. A batch size is loaded at its first use and kept until the engine closes.

    ``step`` and ``denoise`` raise EngineUnavailable where the provider cannot load, cannot run every node, or fails.
    """

    provider: ClassVar[str]
    device_type: ClassVar[str] = "cuda"
    watched_is_slower = True
    captures: ClassVar[bool]
    """Whether the two bindings of a batch size run as captured CUDA graphs."""
    config: ClassVar[Mapping[str, str]] = {"session.disable_cpu_ep_fallback": "1"}

    def __init__(self, bundle: HeadBundle, options: EngineOptions) -> None:
        super().__init__(bundle, options)
        self._batches: dict[int, _Batch] = {}
        self._device: CudaDevice | None = None
        self._timer: StreamTimer | None = None
        self._untimed = ""
        self._rows = 0
        self._stack = ExitStack()

    def _open(self) -> None:
        """cuda-bindings gives the stream and its clock; these engines run without it too, untimed."""
        try:
            with ExitStack() as stack:
                self._device = open_gpu(self.options.gpu or 0)
                stack.callback(self._device.close)
                self._timer = StreamTimer(self._device)
                self._rows = upload_rows(self._device, len(self.bundle.transitions))
                self._stack = stack.pop_all()
        except EngineUnavailable as error:
            self._device, self._untimed = None, str(error)

    def _close(self) -> None:
        self._batches.clear()  # their sessions use the stream
        self._device, self._timer = None, None
        self._stack.close()

    def _device_ms(self) -> float:
        if self._timer is None:
            raise EngineUnavailable(f"engine {self.name} runs, but its time on the GPU is unknown: {self._untimed}")
        return self._timer.elapsed_ms()

    def _timing(self) -> AbstractContextManager[None]:
        return nullcontext() if self._timer is None else self._timer.timing()

    def _step(
        self, x: Float32Array, row: int, z: Float32Array | None, labels: Labels | None, x_0_old: Float32Array | None
    ) -> tuple[Float32Array, Float32Array | None]:
        batch = self._batch(len(x))
        batch.load(x, labels, x_0_old)
        batch.load_noise([] if z is None else [z])
        batch.choose(row, 0)
        batch.settle()
        with self._timing():
            batch.run(0, row)
        return batch.read(1), None if x_0_old is None else batch.read_x_0()

    def _denoise(self, trajectory: Trajectory) -> Float32Array:
        batch, rows, noise = self._batch(len(trajectory.x_tc)), trajectory.rows, trajectory.noise
        batch.load(trajectory.x_tc, trajectory.labels, batch.zeros if trajectory.has_history else None)
        batch.load_noise([] if noise is None else [noise(t) for t, _ in rows.transitions])
        batch.settle()
        with self._timing() if trajectory.on_step is None else nullcontext():
            for k in range(rows.steps):
                row = rows.first_row + k
                batch.choose(row, k)
                batch.run(k % 2, row)
                if trajectory.on_step is not None:
                    trajectory.on_step(k, batch.read((k + 1) % 2))
        return batch.read(rows.steps % 2)

    def _batch(self, size: int) -> "_Batch":
        if size not in self._batches:
            options = new_session_options(self.config)
            options.add_free_dimension_override_by_name("batch", size)
            session = open_session(self.bundle, self.provider, options, self._provider_options(size))
            place = (self.device_type, self.options.gpu or 0)
            with _one_line(f"finding room for batches of {size}"):
                on_device = None if self._device is None else (self._device, self._rows)
                self._batches[size] = _Batch(session, self.bundle, size, place, self.captures, on_device)
        return self._batches[size]

    def _provider_options(self, batch_size: int) -> dict[str, str]:
        """What the provider is told for a session of this batch size; with a clock, to run in the stream it stamps."""
        stream = {} if self._device is None else {"user_compute_stream": str(int(self._device.stream))}
        return {"device_id": str(self.options.gpu or 0), **stream}


class OrtCudaEngine(OrtGpuEngine):
    """``ort-cuda``: ONNX Runtime's CUDA provider.

    The two bindings of a batch size are captured as CUDA graphs, one ``gpu_graph_id`` each: safe, because shapes and
    addresses are fixed, every node is on the GPU and all that changes is copied into the same buffers. TF32 is off, so
    that fp32 heads are fp32.
    """

    name = "ort-cuda"
    provider = "CUDAExecutionProvider"
    captures = True
    tf32 = "off (use_tf32=0)"

    def _provider_options(self, batch_size: int) -> dict[str, str]:
        options = super()._provider_options(batch_size)
        return {**options, "use_tf32": "0", "enable_cuda_graph": str(int(self.captures))}


class OrtTensorrtEngine(OrtGpuEngine):
    """``ort-tensorrt``: ONNX Runtime's TensorRT provider; its engines are built here and kept in the cache folder.

    TF32 is off: the provider has no option for it, so the whole process is told by NVIDIA_TF32_OVERRIDE=0.

    No CUDA graph: the provider captures at a run of its own choice, and a replay with the other binding's addresses
    would return the first image. The fp16 and int8 flags follow the graph's own types, no option lowers them.
    """

    name = "ort-tensorrt"
    provider = TENSORRT
    captures = False
    tf32 = f"off ({TF32_OVERRIDE}=0)"

    def _open(self) -> None:
        reason = keep_float32()
        if reason is not None and self.bundle.precision == "fp32":
            raise EngineUnavailable(f"engine {self.name} would compute this fp32 head in TF32: {reason}")
        super()._open()

    def _provider_options(self, batch_size: int) -> dict[str, str]:
        folder = self._cache_folder(batch_size)
        precision = self.bundle.precision
        return {  # switches are "True" and "False": ONNX Runtime refuses "1" here, though not in its CUDA provider
            **super()._provider_options(batch_size),
            "trt_fp16_enable": str(precision in ("fp16", "int8-trt")),
            "trt_int8_enable": str(precision == "int8-trt"),
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": str(folder),
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": str(folder),
        }

    def _cache_folder(self, batch_size: int) -> Path:
        folder = (self.options.cache or default_cache()) / engine_key(self.bundle, batch_size, self.options.gpu or 0)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArtefactError(
                f"cannot write the engine cache {folder}: {error.strerror}; name a writable folder with --cache"
            ) from None
        if not any(folder.glob("*.engine")):
            LOGGER.warning(
                "TensorRT builds an engine for batches of %d; this can take many minutes, once: it is kept in %s",
                batch_size,
                folder,
            )
        return folder


class _Batch:
    """Session, GPU buffers and bindings of one batch size. A buffer's address never changes.

    Buffers 0 and 1 hold samples; binding 0 runs a step from 0 to 1, binding 1 from 1 to 0, and so with the x_0 of
    samplers with history. With cuda-bindings nothing
    waits between two steps: row numbers and noise lie on the GPU before the first, and are copied there in the
    engine's stream, in which the session runs too. Without, ONNX Runtime copies them from the host and waits each time.
    """

    def __init__(
        self,
        session: Any,
        bundle: HeadBundle,
        size: int,
        place: tuple[str, int],
        captures: bool,
        on_device: tuple[CudaDevice, int] | None,
    ) -> None:
        import onnxruntime

        def buffer(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Any:
            return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.dtype(dtype).type, *place)

        image = (size, *bundle.plan.image_shape)
        self._session = session
        self._device: CudaDevice | None
        self._device, self._rows = on_device or (None, 0)
        self._samples = (buffer(image, np.float32), buffer(image, np.float32))
        self._inputs = {"step": buffer((1,), np.int32)}
        self._histories = (buffer(image, np.float32), buffer(image, np.float32)) if bundle.sampler.has_history else None
        self.zeros = np.zeros(image, np.float32)
        if bundle.sampler.is_stochastic:
            self._inputs["noise"] = buffer(image, np.float32)
        if bundle.num_classes is not None:
            self._inputs["label"] = buffer((size,), np.int32)
        self._noise: list[Float32Array] = []
        self._noise_block = (0, 0)
        self._bindings = tuple(self._bind(turn) for turn in (0, 1))
        graphs = (1, 2) if captures else (None, None)
        self._run_options = tuple(_run_options(graph, self._device is not None) for graph in graphs)

    def load(self, x: Float32Array, labels: Labels | None, x_0_old: Float32Array | None) -> None:
        """Copy what a trajectory begins with to the GPU."""
        self._put(self._samples[0], x)
        if self._histories is not None and x_0_old is not None:
            self._put(self._histories[0], x_0_old)
        if labels is not None:
            self._put(self._inputs["label"], labels)

    def load_noise(self, noise: list[Float32Array]) -> None:
        """Keep the noise of each step ready, on the GPU where that can be reached."""
        self._noise = [np.ascontiguousarray(z) for z in noise]
        if self._device is None or not noise:
            return
        count = sum(z.nbytes for z in self._noise)
        address, room = self._noise_block
        if room < count:
            if room:
                self._device.free(address)
            self._noise_block = (0, 0)
            self._noise_block = (self._device.malloc(count), count)
        for number, z in enumerate(self._noise):
            self._device.upload(self._noise_block[0] + number * z.nbytes, z)

    def choose(self, row: int, k: int) -> None:
        """Let the next run be of ``row``, with the noise that was loaded as number ``k``."""
        if self._device is None:
            self._put(self._inputs["step"], np.array([row], dtype=np.int32))
            if self._noise:
                self._put(self._inputs["noise"], self._noise[k])
            return
        self._device.copy(self._inputs["step"].data_ptr(), self._rows + row * ALIGNMENT, 4)
        if self._noise:
            count = self._noise[k].nbytes
            self._device.copy(self._inputs["noise"].data_ptr(), self._noise_block[0] + k * count, count)

    def settle(self) -> None:
        """Wait for what was copied: from here on the host's arrays may go, and a clock may start."""
        if self._device is not None:
            self._device.synchronise()

    def run(self, turn: int, row: int) -> None:
        """One step, from sample buffer ``turn`` to the other."""
        with _one_line(f"running row {row}"):
            self._session.run_with_iobinding(self._bindings[turn], self._run_options[turn])

    def read(self, buffer: int) -> Float32Array:
        """A copy of a sample buffer on the host."""
        return self._read(self._samples[buffer])

    def read_x_0(self) -> Float32Array:
        """What the first step gave for the next, on the host."""
        assert self._histories is not None
        return self._read(self._histories[1])

    def _read(self, value: Any) -> Float32Array:
        if self._device is None:
            return np.array(value.numpy())
        result = np.empty(value.shape(), np.float32)
        self._device.download(result, value.data_ptr())
        self._device.synchronise()
        return result

    def addresses(self) -> dict[str, int]:
        """Where each buffer lies."""
        histories = {f"x_0 {number}": value for number, value in enumerate(self._histories or ())}
        named = {"sample 0": self._samples[0], "sample 1": self._samples[1], **histories, **self._inputs}
        return {name: value.data_ptr() for name, value in named.items()}

    def _put(self, value: Any, array: npt.NDArray[Any]) -> None:
        if self._device is None:
            value.update_inplace(array)
        else:
            self._device.upload(value.data_ptr(), array)

    def _bind(self, turn: int) -> Any:
        """Inputs and outputs of the step from buffer ``turn`` to the other."""
        binding = self._session.io_binding()
        inputs, outputs = {"sample": self._samples[turn], **self._inputs}, {"next_sample": self._samples[1 - turn]}
        if self._histories is not None:
            inputs[HISTORY_IN], outputs[HISTORY_OUT] = self._histories[turn], self._histories[1 - turn]
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        return binding


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """What ONNX Runtime raises on a GPU (out of memory, a lost GPU), as this package's error."""
    try:
        yield
    except Exception as error:  # onnxruntime's own classes share no public base
        reason = in_short(error)
        remedy = NO_KERNEL_REMEDY if NO_KERNEL in reason else "use smaller batches or free its memory"
        raise EngineUnavailable(f"the GPU failed while {what}: {reason}; {remedy}") from None


def _run_options(graph_id: int | None, own_stream: bool) -> Any:
    """In a stream of our own a run is enqueued and not waited for: what follows it lies in the same stream."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    if own_stream:
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    if graph_id is not None:
        options.add_run_config_entry("gpu_graph_id", str(graph_id))
    return options


def default_cache() -> Path:
    """Where engines are kept unless a folder is named: ``$XDG_CACHE_HOME`` (~/.cache) / collafuse-edge/ort-tensorrt."""
    return cache_folder() / "ort-tensorrt"


def engine_key(bundle: HeadBundle, batch_size: int, gpu: int) -> str:
    """A folder name that changes with all that a built engine depends on: graph, batch, libraries, driver, GPU."""
    import onnxruntime

    machine = read_machine()
    depends_on = {
        "model": bundle.model_sha256,
        "batch": batch_size,
        "device": gpu,
        "onnxruntime": onnxruntime.__version__,
        "tensorrt": tensorrt_version(provider_library(TENSORRT)),
        "tf32": os.environ.get(TF32_OVERRIDE),
        "driver": machine.driver,
        "gpus": machine.gpus,
        "board": machine.board,
    }
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:16]
