"""tensorrt without a GPU, in any release: each name used is checked against that release's (trt_binding_names.txt).

A "graph" is the bundle it was made for; running a step is what engine ``fake`` does, on the fake GPU's memory.
"""

import json
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeCuda
from fake_trt_builder import Builder, Parser
from fake_trt_names import NAMES, Enumeration, Limited

from collafuse_runtimes.engines import EngineOptions
from collafuse_runtimes.engines.fake_engine import FakeEngine
from collafuse_runtimes.engines.trt.build import dynamic_shape
from collafuse_runtimes.files.bundle import HeadBundle


class Runtime(Limited):
    kind = "Runtime"

    def __init__(self, trt: "FakeTensorrt", _: Any) -> None:
        super().__init__(trt)
        self.engine_host_code_allowed = False
        trt.alive.append("runtime")

    def __del__(self) -> None:
        self._trt.alive.remove("runtime")

    def deserialize_cuda_engine(self, data: bytes) -> "Engine | None":
        assert self.engine_host_code_allowed is False
        stated = json.loads(data)
        if (stated["release"], stated["gpu"]) != (self._trt.release, self._trt.cuda.gpu):
            self._trt.say("made elsewhere")
            return None
        return Engine(self._trt, stated, self)


class Engine(Limited):
    kind = "ICudaEngine"

    def __init__(self, trt: "FakeTensorrt", stated: Any, runtime: Runtime) -> None:
        super().__init__(trt)
        self._stated, self._runtime = stated, runtime  # which it keeps alive, as the real one does
        self.num_optimization_profiles = len(stated["profiles"])
        self.device_memory_size_v2 = SCRATCH
        self._tensors = {t.name: t for t in (*trt.bundle.inputs, *trt.bundle.outputs)} | trt.renamed
        self.num_io_tensors = len(self._tensors)
        trt.alive.append("engine")

    def __del__(self) -> None:
        self._trt.alive.remove("engine")

    def get_tensor_name(self, i: int) -> str:
        return list(self._tensors)[i]

    def get_tensor_mode(self, name: str) -> Any:
        mode = self._trt.TensorIOMode
        return mode.OUTPUT if name in ("next_sample", "x_0") else mode.INPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return getattr(self._trt, self._tensors[name].dtype)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return dynamic_shape(self._tensors[name])

    def get_tensor_profile_shape(self, name: str, profile: int) -> Any:
        return self._stated["profiles"][profile][name]

    def create_runtime_config(self) -> "RuntimeConfig":
        return RuntimeConfig(self._trt)

    def create_execution_context(self, how: Any = None) -> "Context":
        """TensorRT takes an allocation strategy, RTX a configuration that has one."""
        strategies = self._trt.ExecutionContextAllocationStrategy
        strategy = how._strategy if isinstance(how, RuntimeConfig) else how
        return Context(self._trt, self, strategies.STATIC if strategy is None else strategy)

    def create_engine_inspector(self) -> "Inspector":
        return Inspector(self._trt)


class RuntimeConfig(Limited):
    kind = "IRuntimeConfig"
    _strategy: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._strategy = strategy

    def create_runtime_cache(self) -> "RuntimeCache":
        return RuntimeCache(self._trt)

    def set_runtime_cache(self, cache: "RuntimeCache") -> bool:
        self._trt.runtime_cache = cache
        return True


class RuntimeCache(Limited):
    """What was compiled: one line a shape. It takes only what the same driver and GPU made."""

    kind = "IRuntimeCache"

    def __init__(self, trt: "FakeTensorrt") -> None:
        super().__init__(trt)
        self._environment = f"{trt.cuda.gpu} {trt.cuda.driver}"
        self._compiled: list[str] = []

    def serialize(self) -> bytes:
        return json.dumps([self._environment, self._compiled]).encode()

    def deserialize(self, blob: bytes) -> bool:
        environment, compiled = json.loads(blob)
        if environment != self._environment:
            return False
        self._compiled = compiled
        return True


class Inspector(Limited):
    kind = "EngineInspector"

    def get_engine_information(self, form: int) -> str:
        assert form == self._trt.LayerInformationFormat.JSON
        if self._trt.failing == "inspect":
            self._trt.say("the engine was built without its layers")
            return ""
        assert self.execution_context._shapes["sample"][0] >= 1, "no types are shown for a batch unknown"
        words = {"fp32": "Float", "fp16": "Half", "int8": "Int8"}[self._trt.computes]
        layer = {"Name": "c", "LayerType": "CaskConvolution", "Weights": {"Type": words}, "Inputs": []}
        return json.dumps({"Layers": [layer]})


class Context(Limited):
    kind = "IExecutionContext"

    def __init__(self, trt: "FakeTensorrt", engine: Engine, strategy: Any) -> None:
        super().__init__(trt)
        self._engine = engine
        self._user_managed = strategy == trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._memory: tuple[int, int] | None = None
        self._profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        trt.contexts.append(self._shapes)

    def set_device_memory(self, memory: int, size: int) -> None:
        assert self._user_managed and memory % 256 == 0
        self._memory = (memory, size)

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert stream in self._trt.cuda.handles
        self._profile = profile
        self._shapes.clear()
        return 0 <= profile < len(self._engine._stated["profiles"])

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = tuple(shape)
        batches = self._engine._stated["profiles"][self._profile].get(name)
        if batches and not batches[0][0] <= shape[0] <= batches[2][0]:
            self._trt.say(f"{name} is out of profile {self._profile}")
            return False
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        """Only where the builder was told that memory is the user's, and the user gave it."""
        assert stream in self._trt.cuda.handles
        asked = self._trt.BuilderFlag.REQUIRE_USER_ALLOCATION in self._engine._stated["flags"]
        return asked and self._memory is not None and self._trt.failing != "capture"

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % 256 == 0
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        cuda = self._trt.cuda
        if self._trt.steps_left == 0:
            self._trt.say("launch failed")
            return False
        self._trt.steps_left -= 1
        assert stream in cuda.handles
        assert self._memory is not None, "no memory for intermediate results"
        assert self._memory[1] >= self._engine.device_memory_size_v2
        cuda.view(*self._memory)
        self._trt.ran.append((self._profile, self._memory))
        self._trt.compile(f"{self._profile} {self._shapes}")
        cuda.kernels += 1
        self._trt.enqueued.append(dict(self._addresses))
        cuda.enqueue(self._trt.step(dict(self._addresses), dict(self._shapes)))
        return True


SCRATCH = 1 << 16
"""Bytes that a context of the fake needs for intermediate results."""


class FakeTensorrt:
    """Put in the place of ``tensorrt`` or ``tensorrt_rtx``."""

    def __init__(self, bundle: HeadBundle, cuda: FakeCuda, version: str = "10.3.0", rtx: bool = False) -> None:
        self.release = ("rtx-" if rtx else "") + ".".join(version.split(".")[:2])
        self.__version__, self.__name__ = version, "tensorrt_rtx" if rtx else "tensorrt"
        self.__spec__ = ModuleSpec(self.__name__, None)
        self.bundle, self.cuda = bundle, cuda
        self.failing, self.computes = "", bundle.precision
        self.renamed: dict[str, Any] = {}
        self.steps_left = -1
        """How many more steps can be enqueued; any number where negative."""
        self.builds, self.alive = 0, list[str]()
        self.enqueued, self.contexts, self.labels = list[dict[str, int]](), list[Any](), list[Any]()
        self.rows: list[int] = []
        self.ran: list[tuple[int, tuple[int, int]]] = []
        """Profile and scratch memory of each step."""
        self.compilations = 0
        self.runtime_cache: Any = None
        self.network: Any = None
        self.config: Any = None
        self._loggers: list[Any] = []
        self._fake = FakeEngine(bundle, EngineOptions())
        self._fake.__enter__()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> "FakeTensorrt":
        monkeypatch.setitem(sys.modules, self.__name__, self)  # type: ignore[arg-type]
        return self

    def say(self, message: str) -> None:
        for logger in self._loggers[-1:]:
            logger.log(self.ILogger.ERROR, message)

    def compile(self, kernel: str) -> None:
        """RTX compiles what it has not yet compiled for a shape."""
        if self.runtime_cache is not None and kernel not in self.runtime_cache._compiled:
            self.compilations += 1
            self.runtime_cache._compiled.append(kernel)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in NAMES[self.release]:
            raise AttributeError(f"{self.release} has no {name}")
        if name in ("float16", "float32", "int32", "int8"):
            return f"DataType.{name}"
        if name == "ILogger":
            return self._logger_class()
        if name == "IProgressMonitor":
            return type("IProgressMonitor", (), {})
        made = {"Builder": Builder, "OnnxParser": Parser, "Runtime": Runtime}.get(name)
        if made is not None:
            return lambda *arguments: made(self, *arguments)
        return Enumeration(self.release, name)

    def _logger_class(self) -> type:
        loggers = self._loggers
        body = {"ERROR": 1, "INTERNAL_ERROR": 0, "__init__": loggers.append}
        return type("ILogger", (), body)

    def step(self, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> Callable[[], None]:
        """One denoising step on device memory, as it will be when it runs."""

        def read(name: str, dtype: type) -> Any:
            count = 4 * int(np.prod(shapes[name]))
            return self.cuda.view(addresses[name], count).view(dtype).reshape(shapes[name]).copy()

        def run() -> None:
            x, row = read("sample", np.float32), int(read("step", np.int32)[0])
            z = read("noise", np.float32) if self.bundle.sampler.is_stochastic else None
            labels = read("label", np.int32) if self.bundle.num_classes is not None else None
            self.rows.append(row)
            self.labels.append(None if labels is None else labels.tolist())
            old = read("x_0_old", np.float32) if self.bundle.sampler.has_history else None
            results = self._fake._step(x, row, z, labels, old)
            for tensor, result in zip(self.bundle.outputs, results, strict=False):
                self.cuda.view(addresses[tensor.name], result.nbytes)[:] = result.view(np.uint8).ravel()

        return run
