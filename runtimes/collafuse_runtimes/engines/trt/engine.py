"""TensorRT: the tensor stays on the GPU, and a whole trajectory is one CUDA graph.

Two tensors take turns as input and output. ``step`` is no copied number but an address: row k's number lies in a table
on the GPU. So a trajectory needs nothing from the host between its steps, and is captured once and replayed.
"""

from collections import OrderedDict
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.engine_options import EngineOptions
from collafuse_runtimes.engines.base import Engine, Labels, Trajectory
from collafuse_runtimes.engines.cuda_device import ALIGNMENT, StreamTimer, open_gpu, upload_rows
from collafuse_runtimes.engines.trt.binding import dtype_name, label, load_binding, make_logger, require
from collafuse_runtimes.engines.trt.build import dynamic_shape
from collafuse_runtimes.engines.trt.cache import EngineCache
from collafuse_runtimes.engines.trt.prepare import find_engine, print_progress
from collafuse_runtimes.errors import ArtefactError, InputError
from collafuse_runtimes.files.bundle import HISTORY_IN, HISTORY_OUT, HeadBundle, RowRange

MAX_LOOPS = 4
"""Shapes kept ready, each with its memory: a full batch and the rest, for two step counts."""


@dataclass
class _Loop:
    """One (steps, batch): an execution context, the tensors at fixed addresses, and the captured trajectory.

    A context of its own, because a captured graph holds on to its context. Scratch memory is one block for all: they
    run one after the other in one stream.
    """

    context: Any
    x: int
    y: int
    labels: int | None
    noise: int | None
    noise_stride: int
    histories: tuple[int, int] | None
    graph: Any = None


class TensorrtEngine(Engine):
    """``tensorrt``. A build on entering shows its time on stderr; call ``build_engine`` before to show it elsewhere."""

    name = "tensorrt"
    watched_is_slower = True
    tf32 = "off (builder flag)"

    def __init__(self, bundle: HeadBundle, options: EngineOptions) -> None:
        super().__init__(bundle, options)
        self._stack = ExitStack()

    def _open(self) -> None:
        with ExitStack() as stack:
            self._device = open_gpu(self.options.gpu or 0)
            stack.callback(self._device.close)
            stack.callback(self._drop_tensorrt)
            self._load()
            self._rows = upload_rows(self._device, len(self.bundle.transitions))
            self._timer = StreamTimer(self._device)
            self._stack = stack.pop_all()

    def _close(self) -> None:
        self._stack.close()

    def _device_ms(self) -> float:
        return self._timer.elapsed_ms()

    def _load(self) -> None:
        trt = self._trt = load_binding(self.name)
        self._found = find_engine(self.bundle, self.name, self.options, trt, print_progress)
        self._device.use()
        self._log = make_logger(trt)
        self._runtime = self._require("make a runtime", trt.Runtime(self._log))
        # Runtime.engine_host_code_allowed stays False: an engine may hold GPU code, never code for this processor.
        self._engine = self._require("load the engine", self._runtime.deserialize_cuda_engine(self._found.data))
        self._loops: OrderedDict[tuple[int, int], _Loop] = OrderedDict()
        _require_tensors(trt, self._engine, self.bundle)
        shapes = [
            self._engine.get_tensor_profile_shape("sample", number)
            for number in range(self._engine.num_optimization_profiles)
        ]
        self._ranges = [(int(smallest[0]), int(largest[0])) for smallest, _, largest in shapes]
        self._scratch_bytes = max(int(self._engine.device_memory_size_v2), ALIGNMENT)
        self._scratch = self._device.malloc(self._scratch_bytes)
        self._prepare()

    def _prepare(self) -> None:
        """What contexts need beside the engine."""

    def _drop_tensorrt(self) -> None:
        """Contexts before the engine, the engine before the runtime: each uses the next."""
        for attribute in ("_loops", "_kernels", "_config", "_engine", "_runtime", "_log"):
            if hasattr(self, attribute):
                delattr(self, attribute)

    def _step(
        self, x: Float32Array, row: int, z: Float32Array | None, labels: Labels | None, x_0_old: Float32Array | None
    ) -> tuple[Float32Array, Float32Array | None]:
        self._device.use()
        loop = self._loop(1, len(x))
        self._upload(loop, x, z, labels, x_0_old)
        with self._timer.timing():
            self._enqueue(loop, 0, row)
        return self._result(loop.y, x), None if loop.histories is None else self._result(loop.histories[1], x)

    def _denoise(self, trajectory: Trajectory) -> Float32Array:
        self._device.use()
        rows, x = trajectory.rows, trajectory.x_tc
        loop = self._loop(rows.steps, len(x))
        history = np.zeros_like(x) if trajectory.has_history else None
        self._upload(loop, x, self._all_noise(loop, trajectory), trajectory.labels, history)
        if trajectory.on_step is not None:
            return self._denoise_watched(loop, trajectory)
        if loop.graph is None:
            self._capture(loop, rows)
        with self._timer.timing():
            self._device.launch(loop.graph)
        return self._result(loop.x if rows.steps % 2 == 0 else loop.y, x)

    def _denoise_watched(self, loop: _Loop, trajectory: Trajectory) -> Float32Array:
        assert trajectory.on_step is not None
        result = trajectory.x_tc
        for k in range(trajectory.rows.steps):
            self._enqueue(loop, k, trajectory.rows.first_row + k)
            result = self._result(loop.y if k % 2 == 0 else loop.x, result)
            trajectory.on_step(k, result)
        return result

    def _capture(self, loop: _Loop, rows: RowRange) -> None:
        """One step outside the capture first: TensorRT sets up on a context's first run what a graph cannot hold.

        That step reads ``loop.x`` and writes ``loop.y`` (and so with histories), so the uploaded input is still there
        for the launch.
        """
        self._enqueue(loop, 0, rows.first_row)
        self._device.synchronise()
        self._require_capturable(loop)
        with self._device.capture() as captured:
            for k in range(rows.steps):
                self._enqueue(loop, k, rows.first_row + k)
        loop.graph = captured[0]

    def _require_capturable(self, loop: _Loop) -> None:
        """TensorRT has no such question; RTX has."""

    def _enqueue(self, loop: _Loop, k: int, row: int) -> None:
        """Step k of a loop, at ``row`` of the tables."""
        source, target = (loop.x, loop.y) if k % 2 == 0 else (loop.y, loop.x)
        addresses = {"sample": source, "step": self._rows + row * ALIGNMENT, "next_sample": target}
        if loop.histories is not None:
            addresses[HISTORY_IN], addresses[HISTORY_OUT] = loop.histories[k % 2], loop.histories[1 - k % 2]
        if loop.noise is not None:
            addresses["noise"] = loop.noise + k * loop.noise_stride
        if loop.labels is not None:
            addresses["label"] = loop.labels
        for name, address in addresses.items():
            self._require(f"bind {name}", loop.context.set_tensor_address(name, address))
        self._require("run a step", loop.context.execute_async_v3(int(self._device.stream)))

    def _loop(self, steps: int, batch: int) -> _Loop:
        """The loop of that shape; the one used longest ago makes room."""
        key = (steps, batch)
        if key not in self._loops:
            if batch > self._ranges[-1][1]:
                raise InputError(
                    f"batch {batch} is more than the engine takes: must be 1 to {self._ranges[-1][1]}; "
                    "use a smaller --batch-size, or build with `collafuse-edge export --engine ... --max-batch`"
                )
            if len(self._loops) == MAX_LOOPS:
                self._free(self._loops.popitem(last=False)[1])
            self._loops[key] = self._make_loop(steps, batch)
        self._loops.move_to_end(key)
        return self._loops[key]

    def _make_loop(self, steps: int, batch: int) -> _Loop:
        bundle, device = self.bundle, self._device
        context = self._require("make a context", self._make_context())
        context.set_device_memory(self._scratch, self._scratch_bytes)
        profile = next(number for number, (low, high) in enumerate(self._ranges) if low <= batch <= high)
        chosen = context.set_optimization_profile_async(profile, int(device.stream))
        self._require(f"choose profile {profile}", chosen)
        for tensor in bundle.inputs:
            shape = tuple(batch if size == "batch" else int(size) for size in tensor.shape)
            self._require(f"set {tensor.name} to {shape}", context.set_input_shape(tensor.name, shape))
        size = 4 * batch * int(np.prod(bundle.plan.image_shape))
        stride = -(-size // ALIGNMENT) * ALIGNMENT
        x, y = device.malloc(size), device.malloc(size)
        labels = device.malloc(4 * batch) if bundle.num_classes is not None else None
        noise = device.malloc(steps * stride) if bundle.sampler.is_stochastic else None
        histories = (device.malloc(size), device.malloc(size)) if bundle.sampler.has_history else None
        return _Loop(context, x, y, labels, noise, stride, histories)

    def _make_context(self) -> Any:
        return self._engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)

    def _free(self, loop: _Loop) -> None:
        for handle in (loop.graph, loop.x, loop.y, loop.labels, loop.noise, *(loop.histories or ())):
            if handle is not None:
                self._device.free(handle)

    def _all_noise(self, loop: _Loop, trajectory: Trajectory) -> Float32Array | None:
        """(steps, stride / 4) float32: every step's noise at its place, one copy for all."""
        if trajectory.noise is None:
            return None
        size = trajectory.x_tc.size
        noise = np.zeros((trajectory.rows.steps, loop.noise_stride // 4), np.float32)
        for row, (t, _) in zip(noise, trajectory.rows.transitions, strict=True):
            row[:size] = trajectory.noise(t).ravel()
        return noise

    def _upload(
        self,
        loop: _Loop,
        x: Float32Array,
        noise: Float32Array | None,
        labels: Labels | None,
        x_0_old: Float32Array | None,
    ) -> None:
        self._device.upload(loop.x, x)
        if x_0_old is not None and loop.histories is not None:
            self._device.upload(loop.histories[0], x_0_old)
        if noise is not None and loop.noise is not None:
            self._device.upload(loop.noise, noise)
        if labels is not None and loop.labels is not None:
            self._device.upload(loop.labels, labels)
        self._device.synchronise()  # the host arrays may go now

    def _result(self, address: int, like: Float32Array) -> Float32Array:
        result = np.empty_like(like)
        self._device.download(result, address)
        self._device.synchronise()
        return result

    def _require(self, what: str, answer: Any) -> Any:
        return require(self._trt, self._log, what, answer)


class TensorrtRtxEngine(TensorrtEngine):
    """``tensorrt-rtx``: kernels are compiled for this GPU when they first run, and kept in the engine cache."""

    name = "tensorrt-rtx"

    def _close(self) -> None:
        try:
            self._keep_kernels()
        finally:
            super()._close()

    def _prepare(self) -> None:
        trt, cache = self._trt, EngineCache(self.options.cache)
        config = self._config = self._require("make a runtime configuration", self._engine.create_runtime_config())
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        # else kernels are swapped in the background, where a captured graph never sees the better ones
        eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        config.dynamic_shapes_kernel_specialization_strategy = eager
        self._kernels = self._require("make a cache of kernels", config.create_runtime_cache())
        self._kept = cache.kernels(self._found.key)
        if self._kept and not self._kernels.deserialize(self._kept):
            self._kept = b""  # of another driver, for instance: they are compiled anew
        self._require("use the cache of kernels", config.set_runtime_cache(self._kernels))

    def _make_context(self) -> Any:
        return self._engine.create_execution_context(self._config)

    def _require_capturable(self, loop: _Loop) -> None:
        capturable = loop.context.is_stream_capturable(int(self._device.stream))
        self._require("record a trajectory of this engine as a CUDA graph", capturable)

    def _keep_kernels(self) -> None:
        compiled = self._kernels.serialize()
        data = b"" if compiled is None else bytes(memoryview(compiled))
        if data and data != self._kept:
            with suppress(ArtefactError):  # a folder that cannot be written costs time at the next start, no more
                EngineCache(self.options.cache).store_kernels(self._found.key, data)


def _require_tensors(trt: Any, engine: Any, bundle: HeadBundle) -> None:
    """Names, types and shapes are the bundle's.

    Raises:
        ArtefactError: lists both.
    """
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    found = {
        name: (
            engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
            dtype_name(trt, engine.get_tensor_dtype(name)),
            tuple(engine.get_tensor_shape(name)),
        )
        for name in names
    }
    stated = {t.name: (t in bundle.inputs, t.dtype, dynamic_shape(t)) for t in (*bundle.inputs, *bundle.outputs)}
    if found != stated:
        raise ArtefactError(
            f"the {label(trt)} engine of {bundle.path} takes and gives {found}, not {stated}; delete it from the cache"
        )
