"""Real builds, no GPU: TensorRT-RTX serialises an engine of every kind of step graph the exporter makes."""

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cuda import Error, FakeCuda

from collafuse_edge.training.presets import build_network, network_config
from collafuse_export.calibration import Feeds
from collafuse_export.onnx_graph import to_onnx
from collafuse_export.quantize import Quantiser
from collafuse_export.step_graph import StepGraph, one_thread
from collafuse_runtimes.diffusion.noise import noise_batch
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.diffusion.samplers import Sampler
from collafuse_runtimes.engines import EngineOptions
from collafuse_runtimes.engines.trt.build import (
    BatchProfile,
    BuildProgress,
    BuiltEngine,
    Graph,
    Target,
    build_serialised,
)
from collafuse_runtimes.engines.trt.prepare import build_engine
from collafuse_runtimes.errors import ArtefactError, CheckFailed, EngineUnavailable
from collafuse_runtimes.files.bundle import HeadBundle, NetworkInfo, make_row_ranges

trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX's binding is not installed")
onnx = pytest.importorskip("onnx")

PLAN = SplitPlan((1, 32, 32), timesteps=20, cut_ratio=0.25)


@lru_cache
def graph(preset: str, conditional: bool, opset: int, precision: str) -> tuple[HeadBundle, bytes]:
    """A bundle that was never written, and its model."""
    config = network_config(preset, PLAN, num_classes=3 if conditional else None)
    bundle = HeadBundle(
        path=Path("nowhere.head"),
        plan=PLAN,
        sampler=Sampler("ddpm") if conditional else Sampler("dpm++2m"),
        row_ranges=make_row_ranges(PLAN, [5]),
        precision=precision,
        opset=opset,
        num_classes=config.num_classes,
        network=NetworkInfo(preset, 0, 0, "0" * 64),
        parity={},
        tools={},
    )
    with one_thread():
        network = build_network(config, seed=0)
        module = StepGraph(network, PLAN, bundle.transitions, bundle.table, precision)
        return bundle, to_onnx(module, bundle.inputs, bundle.outputs, opset, len(bundle.transitions))


def build(
    bundle: HeadBundle, model: bytes, where: str = "model.onnx", opt_batch: int = 8, **options: Any
) -> BuiltEngine:
    graph = Graph(model, where, bundle.inputs, bundle.outputs)
    return build_serialised(trt, graph, BatchProfile(opt_batch, 8), **options)


def weight_bytes(model: bytes) -> int:
    return sum(len(tensor.raw_data) for tensor in onnx.load_from_string(model).graph.initializer)


def feeds(bundle: HeadBundle) -> Iterator[Feeds]:
    """Noise at every row of the head: enough for ranges that a builder accepts."""
    for row in range(len(bundle.transitions)):
        found: Feeds = {"sample": noise_batch(1, [row], 0, PLAN.image_shape), "step": np.array([row], np.int32)}
        if bundle.sampler.is_stochastic:
            found["noise"] = noise_batch(2, [row], 0, PLAN.image_shape)
        if bundle.num_classes is not None:
            found["label"] = np.array([row % bundle.num_classes], np.int32)
        if bundle.sampler.has_history:
            found["x_0_old"] = 0.5 * noise_batch(3, [row], 0, PLAN.image_shape)
        yield found


def int8_graph(flavour: str, preset: str, conditional: bool, opset: int) -> tuple[HeadBundle, bytes]:
    """As ``export`` makes it: TensorRT's flavour on the fp16 graph where QDQ in fp16 exists."""
    base = "fp16" if flavour == "int8-trt" and opset >= 19 else "fp32"
    bundle, model = graph(preset, conditional, opset, base)
    quantiser = Quantiser(model, feeds(bundle), flavour)
    return replace(bundle, precision=flavour), quantiser.quantise(quantiser.layers[:1])


KINDS = list(product(["edge", "paper"], [False, True], [20, 17], ["fp32", "fp16", "int8-trt"]))
QUICK = [*(("edge", False, 20, precision) for precision in ("fp32", "fp16", "int8-trt")), ("paper", True, 17, "fp32")]
"""Every preset, opset and precision, with and without classes."""


@pytest.mark.parametrize(
    ("preset", "conditional", "opset", "precision"),
    [pytest.param(*kind, marks=() if kind in QUICK else pytest.mark.full) for kind in KINDS],
)
def test_builds_step_graphs_in_the_types_they_have(preset: str, conditional: bool, opset: int, precision: str) -> None:
    kind = (preset, conditional, opset)
    bundle, model = int8_graph(precision, *kind) if precision == "int8-trt" else graph(*kind, precision)
    seen: list[BuildProgress] = []
    built = build(bundle, model, on_progress=seen.append, heartbeat_s=0.1)
    assert built.precision == precision.removesuffix("-trt")
    assert len(built.data) > weight_bytes(model) > 100_000
    assert seen[0].seconds < 0.5
    assert len(seen) >= 2  # an edge network takes the builder a fraction of a second
    assert preset == "edge" or any(progress.total >= 1 for progress in seen)


class Spy:
    """The builder's configuration, looked at when the build begins."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from collafuse_runtimes.engines.trt import build as tensorrt_build

        self.seen: list[Any] = []
        real = tensorrt_build._run_build

        def run_build(trt: Any, config: Any, *rest: Any) -> Any:
            self.seen.append(
                {
                    "user allocation": config.get_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION),
                    "tf32": config.get_flag(trt.BuilderFlag.TF32),
                    "capabilities": [
                        str(config.get_compute_capability(i)).split(".")[-1]
                        for i in range(config.num_compute_capabilities)
                    ],
                    "workspace": config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE),
                    "profiles": config.num_optimization_profiles,
                }
            )
            return real(trt, config, *rest)

        monkeypatch.setattr(tensorrt_build, "_run_build", run_build)


@pytest.mark.parametrize("capability", ["7.5", "12.0"])
def test_the_real_builder_takes_the_gpu_the_limits_and_both_profiles(
    capability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(monkeypatch)
    bundle, model = graph("small", False, 20, "fp32")
    built = build(bundle, model, opt_batch=1, target=Target(capability, 1 << 30))
    assert spy.seen == [
        {
            "user allocation": True,
            "tf32": False,
            "capabilities": [f"SM{capability.replace('.', '')}"],
            "workspace": 1 << 29,
            "profiles": 2,
        }
    ]
    assert len(built.data) > weight_bytes(model)


@pytest.mark.parametrize("capability", ["9.0", "10.0", "8.7", "7.2"])
def test_the_real_builder_is_not_asked_for_a_gpu_it_does_not_have(capability: str) -> None:
    bundle, model = graph("small", False, 20, "fp32")
    began = time.monotonic()
    with pytest.raises(EngineUnavailable, match=f"for no GPU of compute capability {capability}; valid: 7.5, 8.0"):
        build(bundle, model, target=Target(capability, 1 << 34))
    assert time.monotonic() - began < 0.5


def test_refuses_the_int8_made_for_cpus_with_node_and_reason() -> None:
    bundle, model = int8_graph("int8-cpu", "small", False, 20)
    with pytest.raises(ArtefactError) as error:
        build(bundle, model)
    assert "\n" not in str(error.value)
    assert "TensorRT-RTX" in str(error.value)
    assert "uantizeLinear" in str(error.value)


def test_refuses_a_broken_graph_with_node_and_reason() -> None:
    bundle, data = graph("small", False, 20, "fp32")
    model = onnx.load_from_string(data)
    node = next(n for n in model.graph.node if n.op_type == "Conv")
    node.op_type = "NoSuchOperator"
    with pytest.raises(ArtefactError) as error:
        build(bundle, model.SerializeToString(), "broken.onnx")
    message = str(error.value)
    assert "\n" not in message
    assert f"refuses broken.onnx: node '{node.name}', operator NoSuchOperator: " in message


def test_build_engine_without_a_gpu_says_it_inspected_nothing_and_hits_the_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    FakeCuda().install(monkeypatch).failing["cudaGetDeviceCount"] = Error.cudaErrorNoDevice
    bundle, model = graph("small", False, 20, "fp32")
    bundle = replace(bundle, path=tmp_path)
    bundle.model_path.write_bytes(model)
    options = EngineOptions(cache=tmp_path / "engines")
    first = build_engine(bundle, "tensorrt-rtx", options, max_batch=4)
    second = build_engine(bundle, "tensorrt-rtx", options, max_batch=4)
    assert (first.hit, second.hit) == (False, True)
    assert first.inspection == "not inspected: there is no GPU here to load the engine"
    assert (first.key["library"], first.key["gpu"]) == ("tensorrt-rtx", "none")
    assert first.key["library_version"] == trt.__version__
    assert first.path == second.path and first.path.stat().st_size > 100_000
    third = build_engine(bundle, "tensorrt-rtx", options, max_batch=2)
    assert third.reason.endswith("differs in profile batch 1 to 4, best at 1 and 4 -> batch 1 to 2, best at 1 and 2")
    with pytest.raises(CheckFailed, match="states fp16, its graph asks for fp32; export the head again"):
        build_engine(replace(bundle, precision="fp16"), "tensorrt-rtx", options, max_batch=3)
