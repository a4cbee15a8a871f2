"""ONNX -> serialised TensorRT engine: one path for TensorRT 8.6, 10.x, 11.x and TensorRT-RTX.

The numeric types come from the graph (float32, float16, or int8 between QuantizeLinear and DequantizeLinear).
TensorRT 11 and RTX always build that way, 10 does when asked, 8 must be told: flags for the types the graph uses, and a
pin on every layer that is to stay float32.
"""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from collafuse_runtimes.bundle import TensorInfo
from collafuse_runtimes.engines.tensorrt_binding import dtype_name, is_rtx, label, make_logger, release, require
from collafuse_runtimes.errors import ArtefactError, InputError

HEARTBEAT_S = 5.0
MIN_BATCH, MAX_BATCH = 2, 1024
"""An engine has to take the golden vectors, two images, or nothing could verify it."""


@dataclass(frozen=True)
class BatchProfile:
    """The batches an engine takes, 1 to ``max_batch``; its kernels are chosen for ``opt_batch``."""

    opt_batch: int
    max_batch: int

    def __post_init__(self) -> None:
        if not 1 <= self.opt_batch <= self.max_batch or not MIN_BATCH <= self.max_batch <= MAX_BATCH:
            raise InputError(
                f"opt_batch {self.opt_batch}, max_batch {self.max_batch}: valid are 1 <= opt <= max and "
                f"{MIN_BATCH} <= max <= {MAX_BATCH}"
            )


@dataclass(frozen=True)
class BuildProgress:
    """How far a build is.

    Attributes:
        seconds: since it began.
        phase: the library's name for what it does, or "building" where it does not say.
        done, total: steps of that phase; 0, 0 where it does not say.
    """

    seconds: float
    phase: str
    done: int
    total: int


OnProgress = Callable[[BuildProgress], None]


@dataclass(frozen=True)
class BuiltEngine:
    """A finished build.

    Attributes:
        data: the serialised engine.
        precision: "fp32", "fp16" or "int8": what the graph's convolutions ask for.
        timing: the timing cache for the next build; empty where the library keeps none.
        seconds: the build took.
    """

    data: bytes
    precision: str
    timing: bytes
    seconds: float


def typing_rule(trt: Any) -> str:
    """How this release is made to follow the graph's types; part of an engine's key."""
    if is_rtx(trt) or release(trt) >= 11:
        return "always strongly typed"
    return "strongly typed" if release(trt) == 10 else "flags and pinned layers"


def build_serialised(
    trt: Any,
    onnx: bytes,
    where: str,
    inputs: Sequence[TensorInfo],
    outputs: Sequence[TensorInfo],
    profile: BatchProfile,
    *,
    timing: bytes = b"",
    on_progress: OnProgress | None = None,
    heartbeat_s: float = HEARTBEAT_S,
    select_device: Callable[[], None] = lambda: None,
) -> BuiltEngine:
    """Build ``onnx``; minutes on a small device.

    Args:
        trt: the binding, ``tensorrt`` or ``tensorrt_rtx``.
        where: names the graph in errors.
        inputs, outputs: what the graph has to have; a shape that begins with "batch" gets the profile.
        timing: of an earlier build; one that does not fit is left aside.
        on_progress: called in this thread, at once and then every ``heartbeat_s`` seconds.
        select_device: makes the GPU current; called in every thread that builds.

    Raises:
        ArtefactError: the parser refuses the graph (node, operator and reason), or its tensors are not those stated.
        EngineUnavailable: the library cannot build; its own last words.
    """
    select_device()
    log = make_logger(trt)
    builder = require(trt, log, "make a builder", trt.Builder(log))
    network = require(trt, log, "make a network", builder.create_network(_network_flags(trt)))
    _parse(trt, log, network, onnx, where)
    _require_tensors(trt, network, where, inputs, outputs)
    precision = graph_precision(trt, network)
    config = require(trt, log, "make a configuration", builder.create_builder_config())
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)  # ten bits of mantissa are not the float32 that was asked for
    if release(trt) == 8 and not is_rtx(trt):
        _follow_types_on_8(trt, network, config)
    _add_profile(trt, log, builder, config, inputs, profile)
    cache = None if is_rtx(trt) else _attach_timing(trt, log, config, timing)
    started = time.monotonic()
    data = _run_build(trt, config, lambda: _build(select_device, builder, network, config), on_progress, heartbeat_s)
    seconds = time.monotonic() - started
    serialised = bytes(memoryview(require(trt, log, f"build {where}", data)))
    kept = b"" if cache is None else bytes(memoryview(require(trt, log, "keep its timings", cache.serialize())))
    return BuiltEngine(serialised, precision, kept, seconds)


def graph_precision(trt: Any, network: Any) -> str:
    """ "int8" with any quantised tensor, "fp16" with any half convolution, else "fp32"."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    if any(layer.type == trt.LayerType.QUANTIZE for layer in layers):
        return "int8"
    convolutions = [layer for layer in layers if layer.type == trt.LayerType.CONVOLUTION]
    return "fp16" if any(layer.get_output(0).dtype == trt.float16 for layer in convolutions) else "fp32"


def _network_flags(trt: Any) -> int:
    flag = trt.NetworkDefinitionCreationFlag
    if is_rtx(trt) or release(trt) >= 11:
        return 0
    return 1 << int(flag.STRONGLY_TYPED) if release(trt) == 10 else 1 << int(flag.EXPLICIT_BATCH)


def _parse(trt: Any, log: Any, network: Any, onnx: bytes, where: str) -> None:
    parser = require(trt, log, "make a parser", trt.OnnxParser(network, log))
    if parser.parse(onnx):
        return
    reasons = [_parser_error(parser.get_error(i)) for i in range(parser.num_errors)]
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    said = reasons[0] if reasons else "it gave no reason"
    raise ArtefactError(f"{label(trt)} refuses {where}: {said}{more}; export again, with --opset 17 for TensorRT 8")


def _parser_error(error: Any) -> str:
    reason = " ".join(str(error.desc()).split())[:200]
    if not hasattr(error, "node_name"):  # TensorRT 8 knows the node's number alone
        return f"node number {error.node()}: {reason}"
    return f"node {error.node_name()!r}, operator {error.node_operator() or 'unknown'}: {reason}"


def _require_tensors(
    trt: Any, network: Any, where: str, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]
) -> None:
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    found = [(t.name, dtype_name(trt, t.dtype), tuple(t.shape)) for t in tensors]
    stated = [(t.name, t.dtype, dynamic_shape(t)) for t in (*inputs, *outputs)]
    if found != stated:
        raise ArtefactError(f"{where} takes and gives {found}, not {stated}; export again")


def dynamic_shape(tensor: TensorInfo) -> tuple[int, ...]:
    """TensorRT's shape: -1 for the batch."""
    return tuple(-1 if size == "batch" else int(size) for size in tensor.shape)


def _follow_types_on_8(trt: Any, network: Any, config: Any) -> None:
    """FP16 alone would let float32 layers run in half as well, so those are pinned.

    Layers that a DequantizeLinear feeds are not: a pin would keep them from becoming int8.
    """
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    made = {layer.get_output(j).name: layer for layer in layers for j in range(layer.num_outputs)}
    if any(layer.type == trt.LayerType.QUANTIZE for layer in layers):
        config.set_flag(trt.BuilderFlag.INT8)
    if not any(layer.get_output(j).dtype == trt.float16 for layer in layers for j in range(layer.num_outputs)):
        return
    config.set_flag(trt.BuilderFlag.FP16)
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    bookkeeping = (trt.LayerType.CONSTANT, trt.LayerType.SHAPE, trt.LayerType.QUANTIZE, trt.LayerType.DEQUANTIZE)
    for layer in layers:
        feeding = [made.get(tensor.name) for j in range(layer.num_inputs) if (tensor := layer.get_input(j))]
        quantised = any(source and source.type == trt.LayerType.DEQUANTIZE for source in feeding)
        if layer.type in bookkeeping or quantised or layer.get_output(0).dtype != trt.float32:
            continue
        layer.precision = trt.float32
        layer.set_output_type(0, trt.float32)


def _add_profile(
    trt: Any, log: Any, builder: Any, config: Any, inputs: Sequence[TensorInfo], profile: BatchProfile
) -> None:
    ranges = require(trt, log, "make a profile", builder.create_optimization_profile())
    for tensor in inputs:
        if tensor.shape[0] == "batch":
            rest = dynamic_shape(tensor)[1:]
            ranges.set_shape(tensor.name, (1, *rest), (profile.opt_batch, *rest), (profile.max_batch, *rest))
    require(trt, log, f"take the batches 1 to {profile.max_batch}", config.add_optimization_profile(ranges) >= 0)


def _attach_timing(trt: Any, log: Any, config: Any, timing: bytes) -> Any:
    """The timing cache the build reads and fills; a new one where the old one is of another device or release."""
    for data in (timing, b""):
        cache = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    return require(trt, log, "make a timing cache", None)


class _State:
    """What the builder's threads report and the waiting thread reads."""

    def __init__(self) -> None:
        self.stopped = False
        self.phases: list[tuple[str, int]] = []
        self.done = 0

    def progress(self, started: float) -> BuildProgress:
        phase, total = self.phases[-1] if self.phases else ("building", 0)
        return BuildProgress(time.monotonic() - started, phase, min(self.done, total), total)


def _make_monitor(trt: Any, state: _State) -> Any:
    """Called by the builder's threads: it only takes notes, and says no once the build is to stop."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            state.phases, state.done = [*state.phases, (phase_name, num_steps)], 0

        def step_complete(self, phase_name: str, step: int) -> bool:
            state.done = step + 1
            return not state.stopped

        def phase_finish(self, phase_name: str) -> None:
            state.phases = [phase for phase in state.phases if phase[0] != phase_name]

    return Monitor()


def _build(select_device: Callable[[], None], builder: Any, network: Any, config: Any) -> Any:
    select_device()
    return builder.build_serialized_network(network, config)


def _run_build(
    trt: Any, config: Any, build: Callable[[], Any], on_progress: OnProgress | None, heartbeat_s: float
) -> Any:
    """Build in a thread of its own, so that this one can tell the time and be interrupted."""
    state, answers, started = _State(), list[Any](), time.monotonic()
    if hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = _make_monitor(trt, state)

    def work() -> None:
        try:
            answers.append(build())
        except Exception as error:  # handed to the waiting thread
            answers.append(error)

    worker = threading.Thread(target=work, name="tensorrt-build", daemon=True)
    try:
        worker.start()
        working = True
        while working:
            if on_progress is not None:
                on_progress(state.progress(started))
            worker.join(heartbeat_s)
            working = worker.is_alive()
    except BaseException:
        state.stopped = True
        with suppress(KeyboardInterrupt):  # a second Ctrl-C does not wait for TensorRT 8, which cannot stop
            worker.join()
        raise
    if isinstance(answers[0], Exception):
        raise answers[0]
    return answers[0]
