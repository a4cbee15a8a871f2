"""tensorrt without a GPU, in any release: each name used is checked against that release's (trt_binding_names.txt).

A "graph" is the bundle it was made for; running a step is what engine ``fake`` does, on the fake GPU's memory.
"""

import json
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from fake_cuda import FakeCuda

from collafuse_runtimes.bundle import HeadBundle
from collafuse_runtimes.engines import EngineOptions
from collafuse_runtimes.engines.fake_engine import FakeEngine
from collafuse_runtimes.engines.tensorrt_build import dynamic_shape

TABLE = Path(__file__).with_name("trt_binding_names.txt")


def binding_names() -> dict[str, set[str]]:
    """By release ("8.6", "rtx-1.7"): its binding's classes and their attributes."""
    first, *lines = TABLE.read_text().splitlines()
    names: dict[str, set[str]] = {release: set() for release in first.split()[1:]}
    for line in lines:
        name, *releases = line.split()
        for release in releases:
            names[release].add(name)
    return names


NAMES = binding_names()


class Enumeration:
    """An enumeration of one release: the names it has, numbered in some order; others are missing."""

    def __init__(self, release: str, name: str) -> None:
        members = sorted(n.split(".")[1] for n in NAMES[release] if n.startswith(f"{name}."))
        self.__dict__.update({member: number for number, member in enumerate(members)})


class Limited:
    """An object whose public attributes are those that the class of its name has in the release."""

    kind: ClassVar[str]

    def __init__(self, trt: "FakeTensorrt") -> None:
        self._trt = trt

    def _check(self, name: str) -> None:
        if not name.startswith("_") and name != "kind":
            assert f"{self.kind}.{name}" in NAMES[self._trt.release], f"{self._trt.release} has no {self.kind}.{name}"

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and name != "kind":
            self._check(name)
        return super().__getattribute__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            self._check(name)
        super().__setattr__(name, value)


class Layer(Limited):
    kind = "ILayer"

    def __init__(self, trt: "FakeTensorrt", kind: str, name: str, dtype: str, feeding: str | None = None) -> None:
        super().__init__(trt)
        self._output = SimpleNamespace(name=name, dtype=getattr(trt, dtype))
        self._feeding = None if feeding is None else SimpleNamespace(name=feeding)
        self.type = getattr(trt.LayerType, kind)
        self.num_inputs, self.num_outputs = 1, 1
        self._pinned: list[Any] = []

    def get_output(self, _: int) -> Any:
        return self._output

    def get_input(self, _: int) -> Any:
        return self._feeding

    def set_output_type(self, _: int, dtype: Any) -> None:
        self._pinned.append(dtype)


class Network(Limited):
    kind = "INetworkDefinition"

    def __init__(self, trt: "FakeTensorrt", flags: int) -> None:
        super().__init__(trt)
        self._flags = flags
        bundle, convolution = trt.bundle, "float16" if trt.bundle.precision == "fp16" else "float32"
        self._layers = [Layer(trt, "CONSTANT", "w", convolution), Layer(trt, "CONVOLUTION", "conv", convolution, "w")]
        if bundle.precision == "int8":
            self._layers += [Layer(trt, "QUANTIZE", "q", "int8"), Layer(trt, "DEQUANTIZE", "dq", "float16", "q")]
            self._layers += [Layer(trt, "CONVOLUTION", "qconv", "float32", "dq")]
        self._layers += [Layer(trt, "ELEMENTWISE", "update", "float32", "conv")]
        self.num_layers, self.num_inputs, self.num_outputs = len(self._layers), len(bundle.inputs), 1

    def _tensor(self, info: Any) -> Any:
        return SimpleNamespace(name=info.name, dtype=getattr(self._trt, info.dtype), shape=dynamic_shape(info))

    def get_layer(self, i: int) -> Layer:
        return self._layers[i]

    def get_input(self, i: int) -> Any:
        return self._tensor(self._trt.bundle.inputs[i])

    def get_output(self, i: int) -> Any:
        return self._tensor(self._trt.bundle.outputs[i])


class Profile(Limited):
    kind = "IOptimizationProfile"

    def __init__(self, trt: "FakeTensorrt") -> None:
        super().__init__(trt)
        self._shapes: dict[str, Any] = {}

    def set_shape(self, name: str, smallest: Any, best: Any, largest: Any) -> None:
        self._shapes[name] = (smallest, best, largest)


class TimingCache(Limited):
    kind = "ITimingCache"

    def __init__(self, trt: "FakeTensorrt", data: bytes) -> None:
        super().__init__(trt)
        self._data = data

    def serialize(self) -> bytes:
        return self._data + b"timed "


class Config(Limited):
    kind = "IBuilderConfig"

    def __init__(self, trt: "FakeTensorrt") -> None:
        super().__init__(trt)
        self._set, self._cleared = list[int](), list[int]()
        self._profile: Any = None
        self._timing = b""

    def set_flag(self, flag: int) -> None:
        self._set.append(flag)

    def clear_flag(self, flag: int) -> None:
        self._cleared.append(flag)

    def add_optimization_profile(self, profile: Profile) -> int:
        self._profile = profile
        return 0

    def create_timing_cache(self, data: bytes) -> TimingCache:
        return TimingCache(self._trt, data)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        self._timing = cache._data
        return True


class Builder(Limited):
    kind = "Builder"

    def __init__(self, trt: "FakeTensorrt", _: Any) -> None:
        super().__init__(trt)

    def create_network(self, flags: int) -> Network:
        self._trt.network = Network(self._trt, flags)
        return self._trt.network

    def create_builder_config(self) -> Config:
        self._trt.config = Config(self._trt)
        return self._trt.config

    def create_optimization_profile(self) -> Profile:
        return Profile(self._trt)

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        self._trt.builds += 1
        if self._trt.failing == "build":
            self._trt.say("no kernel fits")
            return None
        shapes = {name: [list(shape) for shape in three] for name, three in config._profile._shapes.items()}
        return json.dumps({"release": self._trt.release, "gpu": self._trt.cuda.gpu, "shapes": shapes}).encode()


class Parser(Limited):
    kind = "OnnxParser"

    def __init__(self, trt: "FakeTensorrt", _: Network, __: Any) -> None:
        super().__init__(trt)
        self.num_errors = 1

    def parse(self, data: bytes) -> bool:
        return data == self._trt.bundle.model_path.read_bytes() and self._trt.failing != "parse"

    def get_error(self, _: int) -> "ParserError":
        return ParserError(self._trt)


class ParserError(Limited):
    kind = "ParserError"

    def desc(self) -> str:
        return "no such operator"

    def node(self) -> int:
        return 7

    def __getattribute__(self, name: str) -> Any:
        if name in ("node_name", "node_operator"):
            if f"ParserError.{name}" not in NAMES[self._trt.release]:
                raise AttributeError(name)
            return lambda: {"node_name": "conv_7", "node_operator": "Conv"}[name]
        return super().__getattribute__(name)


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
        return Engine(self._trt, stated["shapes"], self)


class Engine(Limited):
    kind = "ICudaEngine"

    def __init__(self, trt: "FakeTensorrt", shapes: Any, runtime: Runtime) -> None:
        super().__init__(trt)
        self._shapes, self._runtime = shapes, runtime  # which it keeps alive, as the real one does
        self._tensors = {t.name: t for t in (*trt.bundle.inputs, *trt.bundle.outputs)} | trt.renamed
        self.num_io_tensors = len(self._tensors)
        trt.alive.append("engine")

    def __del__(self) -> None:
        self._trt.alive.remove("engine")

    def get_tensor_name(self, i: int) -> str:
        return list(self._tensors)[i]

    def get_tensor_mode(self, name: str) -> Any:
        mode = self._trt.TensorIOMode
        return mode.OUTPUT if name == "next_sample" else mode.INPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return getattr(self._trt, self._tensors[name].dtype)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return dynamic_shape(self._tensors[name])

    def get_tensor_profile_shape(self, name: str, profile: int) -> Any:
        assert profile == 0
        return self._shapes[name]

    def create_runtime_config(self) -> "RuntimeConfig":
        return RuntimeConfig(self._trt)

    def create_execution_context(self, config: "RuntimeConfig | None" = None) -> "Context":
        return Context(self._trt, self, config)

    def create_engine_inspector(self) -> "Inspector":
        return Inspector(self._trt)


class RuntimeConfig(Limited):
    kind = "IRuntimeConfig"


class Inspector(Limited):
    kind = "EngineInspector"

    def get_engine_information(self, form: int) -> str:
        assert form == self._trt.LayerInformationFormat.JSON
        assert self.execution_context._shapes["sample"][0] >= 1, "no types are shown for a batch unknown"
        words = {"fp32": "Float", "fp16": "Half", "int8": "Int8"}[self._trt.computes]
        layer = {"Name": "c", "LayerType": "CaskConvolution", "Weights": {"Type": words}, "Inputs": []}
        return json.dumps({"Layers": [layer]})


class Context(Limited):
    kind = "IExecutionContext"

    def __init__(self, trt: "FakeTensorrt", engine: Engine, config: Any) -> None:
        super().__init__(trt)
        self._engine, self._config = engine, config
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        trt.contexts.append(self._shapes)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = tuple(shape)
        return True

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
        cuda.kernels += 1
        self._trt.enqueued.append(dict(self._addresses))
        cuda.enqueue(self._trt.step(dict(self._addresses), dict(self._shapes)))
        return True


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
            result = self._fake._step(x, row, z, labels)
            self.cuda.view(addresses["next_sample"], result.nbytes)[:] = result.view(np.uint8).ravel()

        return run
