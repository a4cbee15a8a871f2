"""The builder of the fake TensorRT: networks, configurations, profiles, the parser."""

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from fake_trt_names import Limited

from collafuse_runtimes.engines.trt.build import dynamic_shape

if TYPE_CHECKING:
    from fake_tensorrt import FakeTensorrt


class Layer(Limited):
    kind = "ILayer"

    def __init__(self, trt: "FakeTensorrt", kind: str, name: str, dtype: str) -> None:
        super().__init__(trt)
        self._output = SimpleNamespace(name=name, dtype=getattr(trt, dtype))
        self.type = getattr(trt.LayerType, kind)

    def get_output(self, _: int) -> Any:
        return self._output


class Network(Limited):
    kind = "INetworkDefinition"

    def __init__(self, trt: "FakeTensorrt", flags: int) -> None:
        super().__init__(trt)
        self._flags = flags
        bundle, convolution = trt.bundle, "float16" if trt.bundle.precision == "fp16" else "float32"
        self._layers = [Layer(trt, "CONSTANT", "w", convolution), Layer(trt, "CONVOLUTION", "conv", convolution)]
        if bundle.precision == "int8":
            self._layers += [Layer(trt, "QUANTIZE", "q", "int8"), Layer(trt, "DEQUANTIZE", "dq", "float16")]
            self._layers += [Layer(trt, "CONVOLUTION", "qconv", "float32")]
        self._layers += [Layer(trt, "ELEMENTWISE", "update", "float32")]
        self.num_layers, self.num_inputs, self.num_outputs = len(self._layers), len(bundle.inputs), len(bundle.outputs)

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
        self._profiles: list[Profile] = []
        self._pools: dict[int, int] = {}
        self._capabilities: dict[int, int] = {}
        self._timing = b""

    def set_flag(self, flag: int) -> None:
        self._set.append(flag)

    def clear_flag(self, flag: int) -> None:
        self._cleared.append(flag)

    def add_optimization_profile(self, profile: Profile) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def set_memory_pool_limit(self, pool: int, size: int) -> None:
        self._pools[pool] = size

    def set_compute_capability(self, capability: int, index: int) -> bool:
        self._capabilities[index] = capability
        return index < self.num_compute_capabilities

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
        stated = {
            "release": self._trt.release,
            "gpu": self._trt.cuda.gpu,
            "profiles": [profile._shapes for profile in config._profiles],
            "flags": config._set,
        }
        return json.dumps(stated).encode()


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

    def node_name(self) -> str:
        return "conv_7"

    def node_operator(self) -> str:
        return "Conv"
