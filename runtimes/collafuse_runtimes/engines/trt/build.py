"""ONNX -> serialised TensorRT engine: one path for TensorRT 10.x, 11.x and TensorRT-RTX.

The numeric types come from the graph (float32, float16, or int8 between QuantizeLinear and DequantizeLinear):
TensorRT 11 and RTX always build that way, 10 does when asked.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from collafuse_runtimes.engines.trt.binding import dtype_name, is_rtx, label, make_logger, release, require
from collafuse_runtimes.errors import ArtefactError, EngineUnavailable, InputError
from collafuse_runtimes.files.bundle import TensorInfo

HEARTBEAT_S = 5.0
MIN_BATCH, MAX_BATCH = 2, 1024
"""An engine has to take the golden vectors, two images, or nothing could verify it."""
WORKSPACE_BYTES = 1 << 30
"""Scratch memory of one layer; TensorRT's own limit is the whole GPU."""
TACTIC_BYTES = 4 << 30
"""What kernels may take while they are tried out; TensorRT 10.3 asked for 15 GB on a Jetson (NVIDIA/TensorRT 4258)."""


@dataclass(frozen=True)
class BatchProfile:
    """The batches an engine takes, 1 to ``max_batch``, in one or two ranges with kernels of their own.

    Those nearer to ``opt_batch`` run the kernels chosen for it, those nearer to ``max_batch`` the kernels chosen for
    ``max_batch``: one image and a full batch are both served at full speed.
    """

    opt_batch: int
    max_batch: int

    def __post_init__(self) -> None:
        if not 1 <= self.opt_batch <= self.max_batch or not MIN_BATCH <= self.max_batch <= MAX_BATCH:
            raise InputError(
                f"opt_batch {self.opt_batch}, max_batch {self.max_batch} out of range: max_batch must be {MIN_BATCH} "
                f"to {MAX_BATCH}, opt_batch 1 to max_batch"
            )

    @property
    def ranges(self) -> tuple[tuple[int, int, int], ...]:
        """(smallest, best, largest) batch of each optimisation profile, in order; together they have every batch."""
        if self.opt_batch == self.max_batch:
            return ((1, self.max_batch, self.max_batch),)
        middle = (self.opt_batch + self.max_batch) // 2
        return ((1, self.opt_batch, middle), (middle + 1, self.max_batch, self.max_batch))

    def __str__(self) -> str:
        best = " and ".join(str(best) for _, best, _ in self.ranges)
        return f"batch 1 to {self.max_batch}, best at {best}"


@dataclass(frozen=True)
class Target:
    """The GPU to build for.

    Attributes:
        compute_capability: "8.7".
        memory: bytes it has in all.
        select: makes it current in the thread that calls it; called in every thread that builds.
    """

    compute_capability: str
    memory: int
    select: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Graph:
    """What to build an engine from.

    Attributes:
        onnx: the file.
        where: names it in errors.
        inputs, outputs: what it has to have; a shape that begins with "batch" gets the profile.
    """

    onnx: bytes
    where: str
    inputs: Sequence[TensorInfo]
    outputs: Sequence[TensorInfo]


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
    return "always strongly typed" if _is_always_typed(trt) else "strongly typed"


def build_rule(trt: Any) -> str:
    """All that this builder asks of the library beside the profile; part of an engine's key."""
    own = "user allocation" if is_rtx(trt) else f"tactics {TACTIC_BYTES >> 20} MiB"
    return f"{typing_rule(trt)}, no TF32, detailed, workspace {WORKSPACE_BYTES >> 20} MiB, {own}"


def build_serialised(
    trt: Any,
    graph: Graph,
    profile: BatchProfile,
    target: Target | None = None,
    *,
    timing: bytes = b"",
    on_progress: OnProgress | None = None,
    heartbeat_s: float = HEARTBEAT_S,
) -> BuiltEngine:
    """Build an engine; minutes on a small device.

    Args:
        trt: the binding, ``tensorrt`` or ``tensorrt_rtx``.
        target: the GPU to build for; None where there is none, as TensorRT-RTX can.
        timing: of an earlier build; one that does not fit is left aside.
        on_progress: called in this thread, at once and then every ``heartbeat_s`` seconds.

    Raises:
        ArtefactError: the parser refuses the graph (node, operator and reason), or its tensors are not those stated.
        EngineUnavailable: the library cannot build, its own last words; or TensorRT-RTX has no kernels for this GPU.
    """
    if is_rtx(trt) and target is not None:
        require_rtx_capability(trt, target.compute_capability)
    select_gpu = target.select if target is not None else lambda: None
    select_gpu()
    log = make_logger(trt)
    builder = require(trt, log, "make a builder", trt.Builder(log))
    network = require(trt, log, "make a network", builder.create_network(_network_flags(trt)))
    _parse(trt, log, network, graph.onnx, graph.where)
    _require_tensors(trt, network, graph)
    precision = graph_precision(trt, network)
    config = _configure(trt, log, builder, target)
    _add_profiles(trt, log, builder, config, graph.inputs, profile)
    cache = None if is_rtx(trt) else _attach_timing(trt, log, config, timing)
    started = time.monotonic()
    data = _run_build(trt, config, lambda: _build(select_gpu, builder, network, config), on_progress, heartbeat_s)
    seconds = time.monotonic() - started
    serialised = bytes(memoryview(require(trt, log, f"build {graph.where}", data)))
    kept = b"" if cache is None else bytes(memoryview(require(trt, log, "keep its timings", cache.serialize())))
    return BuiltEngine(serialised, precision, kept, seconds)


def _configure(trt: Any, log: Any, builder: Any, target: Target | None) -> Any:
    """What ``build_rule`` says."""
    config = require(trt, log, "make a configuration", builder.create_builder_config())
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)  # ten bits of mantissa are not the float32 that was asked for
    _limit_memory(trt, config, target)
    if is_rtx(trt):
        _prepare_rtx(trt, log, config, target)
    return config


def graph_precision(trt: Any, network: Any) -> str:
    """ "int8" with any quantised tensor, "fp16" with any half convolution, else "fp32"."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    if any(layer.type == trt.LayerType.QUANTIZE for layer in layers):
        return "int8"
    convolutions = [layer for layer in layers if layer.type == trt.LayerType.CONVOLUTION]
    return "fp16" if any(layer.get_output(0).dtype == trt.float16 for layer in convolutions) else "fp32"


def _is_always_typed(trt: Any) -> bool:
    return is_rtx(trt) or release(trt) >= 11


def _network_flags(trt: Any) -> int:
    return 0 if _is_always_typed(trt) else 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _limit_memory(trt: Any, config: Any, target: Target | None) -> None:
    """Of a small device no more than half while kernels are tried out: on a Jetson that memory is everybody's."""
    pools = trt.MemoryPoolType
    tactics = TACTIC_BYTES if target is None else min(TACTIC_BYTES, target.memory // 2)
    if not is_rtx(trt):  # which tries nothing out when it builds, and does not take this limit
        config.set_memory_pool_limit(pools.TACTIC_DRAM, tactics)
    config.set_memory_pool_limit(pools.WORKSPACE, min(WORKSPACE_BYTES, tactics))


def _prepare_rtx(trt: Any, log: Any, config: Any, target: Target | None) -> None:
    """An engine that may be captured, for this GPU alone; where there is none, for all that RTX builds for."""
    config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)  # else memory may be allocated within a capture
    if target is not None:
        wanted = require_rtx_capability(trt, target.compute_capability)
        config.num_compute_capabilities = 1
        require(trt, log, f"build for {wanted}", config.set_compute_capability(wanted, 0))


def require_rtx_capability(trt: Any, compute_capability: str) -> Any:
    """TensorRT-RTX's own name of a compute capability ("8.9" -> SM89).

    Raises:
        EngineUnavailable: it has no kernels for that GPU (data centre GPUs of 9.0 and Jetsons, for instance).
    """
    kinds = trt.ComputeCapability
    found = getattr(kinds, f"SM{compute_capability.replace('.', '')}", None)
    if found is None:
        valid = sorted((int(name[2:-1]), int(name[-1])) for name in dir(kinds) if name.startswith("SM"))
        raise EngineUnavailable(
            f"{label(trt)} builds for no GPU of compute capability {compute_capability}; valid: "
            f"{', '.join(f'{major}.{minor}' for major, minor in valid)}; use engine tensorrt or ort-cuda"
        )
    return found


def _parse(trt: Any, log: Any, network: Any, onnx: bytes, where: str) -> None:
    parser = require(trt, log, "make a parser", trt.OnnxParser(network, log))
    if parser.parse(onnx):
        return
    reasons = [_parser_error(parser.get_error(i)) for i in range(parser.num_errors)]
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    said = reasons[0] if reasons else "it gave no reason"
    raise ArtefactError(f"{label(trt)} refuses {where}: {said}{more}; export the head again")


def _parser_error(error: Any) -> str:
    reason = " ".join(str(error.desc()).split())[:200]
    return f"node {error.node_name()!r}, operator {error.node_operator() or 'unknown'}: {reason}"


def _require_tensors(trt: Any, network: Any, graph: Graph) -> None:
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    found = [(t.name, dtype_name(trt, t.dtype), tuple(t.shape)) for t in tensors]
    stated = [(t.name, t.dtype, dynamic_shape(t)) for t in (*graph.inputs, *graph.outputs)]
    if found != stated:
        raise ArtefactError(f"{graph.where} takes and gives {found}, not {stated}; export the head again")


def dynamic_shape(tensor: TensorInfo) -> tuple[int, ...]:
    """TensorRT's shape: -1 for the batch."""
    return tuple(-1 if size == "batch" else int(size) for size in tensor.shape)


def _add_profiles(
    trt: Any, log: Any, builder: Any, config: Any, inputs: Sequence[TensorInfo], profile: BatchProfile
) -> None:
    for number, batches in enumerate(profile.ranges):
        shapes = require(trt, log, "make a profile", builder.create_optimization_profile())
        for tensor in inputs:
            if tensor.shape[0] == "batch":
                rest = dynamic_shape(tensor)[1:]
                shapes.set_shape(tensor.name, *((batch, *rest) for batch in batches))
        taken = config.add_optimization_profile(shapes) == number
        require(trt, log, f"take the batches {batches[0]} to {batches[2]}", taken)


def _attach_timing(trt: Any, log: Any, config: Any, timing: bytes) -> Any:
    """The timing cache the build reads and fills; a new one where the old one is of another GPU or release."""
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


def _build(select_gpu: Callable[[], None], builder: Any, network: Any, config: Any) -> Any:
    select_gpu()
    return builder.build_serialized_network(network, config)


def _run_build(
    trt: Any, config: Any, build: Callable[[], Any], on_progress: OnProgress | None, heartbeat_s: float
) -> Any:
    """Build in a thread of its own, so that this one can tell the time and be interrupted."""
    state, answers, started = _State(), list[Any](), time.monotonic()
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
        worker.join()
        raise
    if isinstance(answers[0], Exception):
        raise answers[0]
    return answers[0]
