"""ort-cuda and ort-tensorrt: their code on the CPU provider gives ort-cpu's numbers; what is not there is refused."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime
import pytest
from heads import conditional_head, default_head, head, inputs, rgb_head, second_order_head
from ort_on_cpu import HEADS, WAITS_NOT, engine_for

from collafuse_runtimes.device.machine import Machine
from collafuse_runtimes.engines import EngineOptions, available_engines, open_engine
from collafuse_runtimes.engines.ort import gpu as ort_gpu_engine
from collafuse_runtimes.engines.ort import session as ort_session
from collafuse_runtimes.engines.ort.gpu import OrtCudaEngine, OrtTensorrtEngine, engine_key
from collafuse_runtimes.engines.ort.session import new_session_options, open_session
from collafuse_runtimes.errors import ArtefactError, EngineUnavailable, InputError
from collafuse_runtimes.files.bundle import HeadBundle
from collafuse_runtimes.verify import verify_engine

GPU_ENGINES = ["ort-cuda", "ort-tensorrt"]
PROVIDERS = {engine.name: engine.provider for engine in (OrtCudaEngine, OrtTensorrtEngine)}
NO_GPU_BUILD = "CUDAExecutionProvider" not in onnxruntime.get_available_providers()
without_gpu_build = pytest.mark.skipif(not NO_GPU_BUILD, reason="this onnxruntime is built for a GPU")


@pytest.mark.parametrize("make_head", HEADS)
@pytest.mark.parametrize("batch", [1, 3])
def test_trajectories_equal_those_of_ort_cpu(make_head: Callable[[], HeadBundle], batch: int) -> None:
    bundle = make_head()
    x_tc, labels = inputs(bundle, batch)
    with open_engine(bundle) as reference, engine_for(bundle) as engine:
        for rows in bundle.row_ranges:
            seen: list[Any] = []
            wanted: list[Any] = []
            arguments = {"seed": 3, "labels": labels, "sample_indices": range(5, 5 + batch)}
            a = engine.denoise(x_tc, rows.steps, on_step=lambda _, x, s=seen: s.append(x.copy()), **arguments)
            b = reference.denoise(x_tc, rows.steps, on_step=lambda _, x, w=wanted: w.append(x.copy()), **arguments)
            np.testing.assert_allclose(a, b, atol=1e-5 if bundle.precision == "fp32" else 2e-3)
            np.testing.assert_array_equal(a, seen[-1])
            np.testing.assert_allclose(seen, wanted, atol=1e-5 if bundle.precision == "fp32" else 2e-3)


@pytest.mark.parametrize("make_head", HEADS)
def test_golden_trajectories_hold(make_head: Callable[[], HeadBundle]) -> None:
    with engine_for(make_head()) as engine:
        report = verify_engine(engine)
    assert report.passed, report


@pytest.mark.parametrize("name", GPU_ENGINES)
@pytest.mark.parametrize("make_head", HEADS)
def test_on_a_gpu_golden_trajectories_hold_and_inputs_are_not_mixed_up(
    make_head: Callable[[], HeadBundle], name: str, tmp_path: Path
) -> None:
    reason = available_engines()[name]
    if reason is not None:
        pytest.skip(reason)
    bundle = make_head()
    options = EngineOptions(cache=tmp_path) if name == "ort-tensorrt" else EngineOptions()
    x_tc, labels = inputs(bundle, 3)
    with open_engine(bundle, name, options) as engine, open_engine(bundle) as reference:
        verify_engine(engine).require_passed(name)
        for x, seed in ((x_tc, 1), (x_tc[::-1], 1), (x_tc, 2), (x_tc[:1], 1), (x_tc, 1)):
            arguments = {"seed": seed, "labels": None if labels is None else labels[: len(x)]}
            wanted = reference.denoise(x, **arguments)
            assert np.abs(engine.denoise(x, **arguments) - wanted).max() < (1e-3 if bundle.precision == "fp32" else 0.1)


@pytest.mark.parametrize("make_head", HEADS[:3])
def test_one_step_equals_that_of_ort_cpu_and_leaves_the_inputs_alone(make_head: Callable[[], HeadBundle]) -> None:
    bundle = make_head()
    x, labels = inputs(bundle, 2)
    z = np.flip(x, 0) if bundle.sampler.is_stochastic else None
    before = x.copy()
    with open_engine(bundle) as reference, engine_for(bundle) as engine:
        for row in (0, len(bundle.transitions) - 1, 0):
            np.testing.assert_allclose(engine.step(x, row, z, labels), reference.step(x, row, z, labels), atol=1e-5)
    np.testing.assert_array_equal(x, before)


def test_the_second_input_does_not_return_the_first_image() -> None:
    """What a captured graph does when inputs are bound anew instead of copied into the same buffers."""
    bundle = conditional_head()
    x_tc, labels = inputs(bundle, 2)
    with open_engine(bundle) as reference, engine_for(bundle) as engine:
        first = engine.denoise(x_tc, seed=1, labels=labels)
        kept = first.copy()
        for case in ((x_tc + 0.5, 1, labels), (x_tc, 2, labels), (x_tc, 1, labels[::-1])):
            image = engine.denoise(case[0], seed=case[1], labels=case[2])
            assert np.abs(image - first).max() > 1e-2
            np.testing.assert_allclose(image, reference.denoise(case[0], seed=case[1], labels=case[2]), atol=1e-5)
        np.testing.assert_array_equal(engine.denoise(x_tc, seed=1, labels=labels), first)
    np.testing.assert_array_equal(first, kept)  # a result is the caller's own


def test_no_trajectory_sees_the_x_0_that_another_left() -> None:
    """The first row's factor for it is zero, and zero times NaN is NaN."""
    bundle = second_order_head()
    x_tc, labels = inputs(bundle, 2)
    with engine_for(bundle) as engine:
        first = engine.denoise(x_tc, labels=labels)
        for buffer in engine._batch(2)._histories or ():
            buffer.update_inplace(np.full_like(x_tc, np.nan))
        np.testing.assert_array_equal(engine.denoise(x_tc, labels=labels), first)
    assert np.isfinite(first).all()


def test_buffers_keep_their_addresses_and_batch_sizes_their_sessions() -> None:
    bundle = conditional_head()
    with engine_for(bundle) as engine:
        images = {}
        for batch in (2, 3):
            x_tc, labels = inputs(bundle, batch)
            images[batch] = engine.denoise(x_tc, seed=1, labels=labels)
        addresses = {size: engine._batch(size).addresses() for size in (2, 3)}
        sessions = {size: engine._batch(size)._session for size in (2, 3)}
        for batch in (3, 2, 2):
            x_tc, labels = inputs(bundle, batch)
            np.testing.assert_array_equal(engine.denoise(x_tc, seed=1, labels=labels), images[batch])
        assert engine._batches.keys() == {2, 3}
        for size in (2, 3):
            assert engine._batch(size).addresses() == addresses[size]
            assert engine._batch(size)._session is sessions[size]
    assert addresses[2].keys() == {"sample 0", "sample 1", "step", "noise", "label"}
    everything = [*addresses[2].values(), *addresses[3].values()]
    assert len(set(everything)) == len(everything) == 10


def test_a_gpu_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        words = "CUDA failure 2:\n out of memory"

        def run_with_iobinding(self, *_: object) -> None:
            raise RuntimeError(self.words)

    x_tc, _ = inputs(default_head(), 1)
    with engine_for(default_head()) as engine:
        engine._batch(1)._session = Full()
        with pytest.raises(EngineUnavailable, match=r"while running row 0: CUDA failure 2: out of memory; use smaller"):
            engine.denoise(x_tc)

        words = "CUDA error cudaErrorNoKernelImageForDevice: no kernel image is available for execution on the device"
        with monkeypatch.context() as patch:
            patch.setattr(Full, "words", words)
            with pytest.raises(EngineUnavailable, match=r"was built for other GPUs: install a wheel .* \(Thor: 11.0"):
                engine.denoise(x_tc)

        def stop(k: int, _: Any) -> None:
            raise KeyError(k)

        with pytest.raises(KeyError):  # the caller's own errors pass
            engine.denoise(np.concatenate([x_tc, x_tc]), on_step=stop)
    full = "finding room for batches of 1: CUDA failure 2: out of memory"
    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_shape_and_type", lambda *_: Full().run_with_iobinding())
    with engine_for(default_head()) as engine, pytest.raises(EngineUnavailable, match=full):
        engine.denoise(x_tc)


def test_each_binding_has_a_graph_of_its_own_where_graphs_are_captured() -> None:
    with engine_for(default_head()) as engine:
        captured = [o.get_run_config_entry("gpu_graph_id") for o in engine._batch(1)._run_options]
    assert captured == ["1", "2"]
    assert not OrtTensorrtEngine.captures
    for entry in ("gpu_graph_id", WAITS_NOT):
        with pytest.raises(RuntimeError, match=f"does not have configuration with key: {entry}"):
            ort_gpu_engine._run_options(None, own_stream=False).get_run_config_entry(entry)
    assert ort_gpu_engine._run_options(None, own_stream=True).get_run_config_entry(WAITS_NOT) == "1"


@pytest.mark.parametrize("make_head", HEADS)
def test_with_the_batch_fixed_no_node_computes_a_shape(make_head: Callable[[], HeadBundle], tmp_path: Path) -> None:
    """ONNX Runtime puts such nodes on the CPU, and a session that refuses the CPU would not open."""
    bundle, written = make_head(), tmp_path / "optimised.onnx"
    counts = []
    for fixed in (False, True):
        options = new_session_options({})
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(written)
        if fixed:
            options.add_free_dimension_override_by_name("batch", 2)
        open_session(bundle, "CPUExecutionProvider", options)
        counts.append(Counter(node.op_type for node in onnx.load(written).graph.node))
    for count in counts:
        assert count["Conv"] + count["FusedConv"] + count["Reshape"] > 0
        assert not count.keys() & {"Shape", "Expand", "Range", "ConstantOfShape", "Size", "If", "Loop", "Scan"}


@without_gpu_build
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_nodes_on_the_cpu_are_refused_when_the_session_is_made() -> None:
    """As when the GPU's libraries are missing: ONNX Runtime would go on with its CPU provider."""
    with (
        OrtCudaEngine(default_head(), EngineOptions()) as engine,
        pytest.raises(EngineUnavailable, match=r"cannot run all of .* with CUDAExecutionProvider: .*CPU EP") as error,
    ):
        engine.denoise(inputs(default_head(), 1)[0])
    assert "export with --opset 17" in str(error.value) and "\n" not in str(error.value)


@without_gpu_build
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_session_that_comes_back_with_other_providers_is_refused() -> None:
    class WithoutTheEntry(OrtCudaEngine):
        config: ClassVar[dict[str, str]] = {}

    with (
        WithoutTheEntry(default_head(), EngineOptions()) as engine,
        pytest.raises(
            EngineUnavailable, match="CUDAExecutionProvider: the session came back with CPUExecutionProvider"
        ),
    ):
        engine.step(inputs(default_head(), 1)[0], 0)


def test_a_damaged_graph_is_the_files_fault(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(ArtefactError, match=r"ONNX Runtime refuses .*export the head again"):
        open_session(replace(default_head(), path=tmp_path), "AzureExecutionProvider", new_session_options({}))


def test_both_engines_refuse_the_cpu_and_lower_nothing_by_themselves(tmp_path: Path) -> None:
    half = head(precision="fp16")
    for engine_class in (OrtCudaEngine, OrtTensorrtEngine):
        assert engine_class.config == {"session.disable_cpu_ep_fallback": "1"}
    cuda = OrtCudaEngine(default_head(), EngineOptions(gpu=1))._provider_options(4)
    assert cuda == {"device_id": "1", "use_tf32": "0", "enable_cuda_graph": "1"}
    flags = {
        (bundle.precision, name): OrtTensorrtEngine(bundle, EngineOptions(cache=tmp_path))._provider_options(1)[name]
        for bundle in (default_head(), half, replace(half, precision="int8-trt"))
        for name in ("trt_fp16_enable", "trt_int8_enable")
    }
    assert list(flags.values()) == ["False", "False", "True", "False", "True", "True"]


def test_switches_of_the_tensorrt_provider_are_spelled_as_it_reads_them(tmp_path: Path) -> None:
    """onnxruntime 1.18 to 1.31: "The value for the key ... should be 'True' or 'False'", and there is no session."""
    options = OrtTensorrtEngine(default_head(), EngineOptions(cache=tmp_path))._provider_options(1)
    switches = {name: value for name, value in options.items() if name.endswith("_enable")}
    assert len(switches) == 4
    assert set(switches.values()) <= {"True", "False"}


def test_engine_cache_key_follows_everything_an_engine_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = default_head()
    keys = [engine_key(bundle, 1, 0), engine_key(bundle, 2, 0), engine_key(bundle, 1, 1), engine_key(rgb_head(), 1, 0)]
    for target, name, value in (
        (onnxruntime, "__version__", "1.99.0"),
        (ort_gpu_engine, "tensorrt_version", lambda _: "101303"),
        (ort_gpu_engine, "read_machine", lambda: Machine("", "", "", None, None, "580.1", ("NVIDIA L4",))),
        (ort_gpu_engine, "os", SimpleNamespace(environ={"NVIDIA_TF32_OVERRIDE": "other"})),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, value)
            keys.append(engine_key(bundle, 1, 0))
    assert len(set(keys)) == len(keys) == 8
    assert engine_key(bundle, 1, 0) == keys[0]


def test_engine_cache_is_where_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = default_head()
    key = engine_key(bundle, 4, 0)
    options = OrtTensorrtEngine(bundle, EngineOptions(cache=tmp_path / "cache"))._provider_options(4)
    assert options["trt_engine_cache_path"] == options["trt_timing_cache_path"] == str(tmp_path / "cache" / key)
    assert (tmp_path / "cache" / key).is_dir()
    assert "builds an engine for batches of 4; this can take many minutes" in caplog.text
    caplog.clear()
    (tmp_path / "cache" / key / "kernel.engine").touch()
    OrtTensorrtEngine(bundle, EngineOptions(cache=tmp_path / "cache"))._provider_options(4)
    assert caplog.text == ""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    found = OrtTensorrtEngine(bundle, EngineOptions())._provider_options(4)["trt_engine_cache_path"]
    assert found == str(tmp_path / "xdg" / "collafuse-edge" / "ort-tensorrt" / key)
    (tmp_path / "file").touch()
    with pytest.raises(ArtefactError, match=r"cannot write the engine cache .*; name a writable folder with --cache"):
        OrtTensorrtEngine(bundle, EngineOptions(cache=tmp_path / "file"))._provider_options(4)


@pytest.mark.parametrize(
    ("name", "options", "valid"),
    [("ort-cuda", {"cache": Path("x")}, "gpu"), ("ort-tensorrt", {"threads": 1}, "gpu, cache")],
)
def test_options_of_other_engines_are_refused(
    name: str, options: dict[str, Any], valid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [PROVIDERS[name]])
    monkeypatch.setattr(ort_session, "_missing_library", lambda _: None)
    with pytest.raises(InputError, match=rf"engine {name} takes no option \w+; leave it out \(valid: {valid}\)"):
        open_engine(default_head(), name, EngineOptions(**options))
    assert type(open_engine(default_head(), name)).name == name
