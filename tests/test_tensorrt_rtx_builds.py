"""Real builds, no GPU: TensorRT-RTX serialises an engine of every kind of step graph the exporter makes."""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cuda import Error, FakeCuda

from collafuse_edge.training.presets import build_network, network_config
from collafuse_export.onnx_graph import to_onnx
from collafuse_export.step_graph import StepGraph, one_thread
from collafuse_runtimes.bundle import HeadBundle, NetworkInfo, make_row_ranges
from collafuse_runtimes.engines import EngineOptions
from collafuse_runtimes.engines.tensorrt_build import BatchProfile, BuildProgress, BuiltEngine, build_serialised
from collafuse_runtimes.engines.tensorrt_prepare import build_engine
from collafuse_runtimes.errors import ArtefactError, CheckFailed
from collafuse_runtimes.noise import noise_batch
from collafuse_runtimes.plan import SplitPlan
from collafuse_runtimes.samplers import Sampler

trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX's binding is not installed")
onnx = pytest.importorskip("onnx")

PLAN = SplitPlan((1, 32, 32), timesteps=20, cut_ratio=0.25)
KINDS = [
    ("small", False, 20, "fp32"),
    ("small", True, 17, "fp16"),
    ("paper", False, 17, "fp32"),
    ("paper", True, 20, "fp16"),
]
"""Preset, conditional, opset, precision: in four builds every preset meets every other choice."""


@lru_cache
def graph(preset: str, conditional: bool, opset: int, precision: str) -> tuple[HeadBundle, bytes]:
    """A bundle that was never written, and its model."""
    config = network_config(preset, PLAN, num_classes=3 if conditional else None)
    bundle = HeadBundle(
        path=Path("nowhere.head"),
        plan=PLAN,
        sampler=Sampler("ddpm") if conditional else Sampler(),
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
        module = StepGraph(network, PLAN, bundle.transitions, bundle.sampler, precision)
        return bundle, to_onnx(module, bundle.inputs, bundle.outputs, opset)


def build(bundle: HeadBundle, model: bytes, where: str = "model.onnx", **options: Any) -> BuiltEngine:
    return build_serialised(trt, model, where, bundle.inputs, bundle.outputs, BatchProfile(1, 8), **options)


def weight_bytes(model: bytes) -> int:
    return sum(len(tensor.raw_data) for tensor in onnx.load_from_string(model).graph.initializer)


@pytest.mark.parametrize(("preset", "conditional", "opset", "precision"), KINDS)
def test_builds_step_graphs_in_the_types_they_have(preset: str, conditional: bool, opset: int, precision: str) -> None:
    bundle, model = graph(preset, conditional, opset, precision)
    seen: list[BuildProgress] = []
    built = build(bundle, model, on_progress=seen.append, heartbeat_s=0.1)
    assert built.precision == precision
    assert len(built.data) > weight_bytes(model) > 100_000
    assert seen[0].seconds < 0.5
    assert len(seen) >= 3
    assert any(progress.total >= 1 for progress in seen)


class Calibration:
    """x at every row of the head, as onnxruntime asks for it."""

    def __init__(self, bundle: HeadBundle) -> None:
        self.feeds: Iterator[dict[str, Any]] = iter(
            [
                {"sample": noise_batch(1, [row], 0, PLAN.image_shape), "step": np.array([row], np.int32)}
                for row in range(len(bundle.transitions))
            ]
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)


def quantised(folder: Path, symmetric: bool) -> tuple[HeadBundle, bytes]:
    """The small head in int8, as TensorRT wants it, or with onnxruntime's defaults."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    bundle, model = graph("small", False, 20, "fp32")
    (folder / "fp32.onnx").write_bytes(model)
    options = {
        "activation_type": quantization.QuantType.QInt8,
        "weight_type": quantization.QuantType.QInt8,
        "per_channel": True,
        "extra_options": {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
    }
    quantization.quantize_static(
        folder / "fp32.onnx",
        folder / "int8.onnx",
        Calibration(bundle),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        **(options if symmetric else {}),
    )
    return bundle, (folder / "int8.onnx").read_bytes()


def test_builds_symmetric_int8(tmp_path: Path) -> None:
    bundle, model = quantised(tmp_path, symmetric=True)
    built = build(bundle, model)
    assert built.precision == "int8"
    assert len(built.data) > 100_000


def test_refuses_asymmetric_int8_with_node_and_reason(tmp_path: Path) -> None:
    bundle, model = quantised(tmp_path, symmetric=False)
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
    assert third.reason.endswith("differs in profile batch 1 to 4, best at 1 -> batch 1 to 2, best at 1")
    with pytest.raises(CheckFailed, match="states fp16, its graph asks for fp32; export again"):
        build_engine(replace(bundle, precision="fp16"), "tensorrt-rtx", options, max_batch=3)
