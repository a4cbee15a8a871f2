"""ort-cuda and ort-tensorrt in a CUDA stream of their own: what is waited for, what is timed, what is released."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cuda import COPY_MS, Error, FakeCuda
from heads import conditional_head, default_head, inputs
from onnxruntime import OrtValue
from ort_on_cpu import HEADS, WAITS_NOT, engine_for

from collafuse_runtimes.engines import EngineOptions, open_engine
from collafuse_runtimes.engines.ort import gpu as ort_gpu_engine
from collafuse_runtimes.engines.ort.gpu import OrtCudaEngine, OrtTensorrtEngine
from collafuse_runtimes.errors import EngineUnavailable, InputError
from collafuse_runtimes.files.bundle import HeadBundle


@pytest.fixture(autouse=True)
def no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)


class InStream:
    """A session as its run option makes it on a GPU: a run is enqueued, and waited for unless it says not to."""

    def __init__(self, session: Any, cuda: FakeCuda) -> None:
        self.session, self.cuda = session, cuda
        self.io_binding = session.io_binding

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        self.cuda.enqueue(lambda: self.session.run_with_iobinding(binding))
        try:
            assert options.get_run_config_entry(WAITS_NOT) == "1"
        except RuntimeError:
            self.cuda.cudaStreamSynchronize(None)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """A fake GPU in whose stream sessions run; ONNX Runtime's own buffers are its memory, their copies block."""
    cuda = FakeCuda().install(monkeypatch)
    make, update, open_it = OrtValue.ortvalue_from_shape_and_type, OrtValue.update_inplace, ort_gpu_engine.open_session

    def made(*arguments: Any) -> Any:
        value = make(*arguments)
        cuda.adopt(value.data_ptr(), value.tensor_size_in_bytes())
        return value

    def updated(value: Any, array: Any) -> None:
        cuda.cudaStreamSynchronize(None)
        cuda.clock_ms += COPY_MS
        update(value, array)

    monkeypatch.setattr(OrtValue, "ortvalue_from_shape_and_type", made)
    monkeypatch.setattr(OrtValue, "update_inplace", updated)
    monkeypatch.setattr(ort_gpu_engine, "open_session", lambda *arguments: InStream(open_it(*arguments), cuda))
    return cuda


@pytest.mark.parametrize("make_head", HEADS)
def test_in_a_stream_of_its_own_the_engine_computes_the_same(
    make_head: Callable[[], HeadBundle], timed: FakeCuda
) -> None:
    bundle = make_head()
    with open_engine(bundle) as reference, engine_for(bundle) as engine:
        for batch in (2, 3, 2):
            x, labels = inputs(bundle, batch)
            for rows in bundle.row_ranges:
                seen: list[Any] = []
                arguments = {"seed": 3, "labels": labels}
                image = engine.denoise(x, rows.steps, on_step=lambda _, x, s=seen: s.append(x), **arguments)
                np.testing.assert_array_equal(engine.denoise(x, rows.steps, **arguments), image)
                atol = 1e-5 if bundle.precision == "fp32" else 2e-3
                np.testing.assert_allclose(image, reference.denoise(x, rows.steps, **arguments), atol=atol)
                assert len(seen) == rows.steps
            z = np.flip(x, 0) if bundle.sampler.is_stochastic else None
            np.testing.assert_allclose(engine.step(x, 2, z, labels), reference.step(x, 2, z, labels), atol=2e-3)
    assert timed.memory == {} and timed.handles == {}


@pytest.mark.parametrize("make_head", [default_head, conditional_head])
def test_the_gpus_time_is_that_of_the_last_step_or_trajectory_without_copies(
    make_head: Callable[[], HeadBundle], timed: FakeCuda
) -> None:
    bundle = make_head()
    x_tc, labels = inputs(bundle, 2)
    z = x_tc if bundle.sampler.is_stochastic else None
    with engine_for(bundle) as engine:
        with pytest.raises(InputError, match="nothing was timed yet; call step, or denoise without on_step, first"):
            _ = engine.device_ms
        engine.denoise(x_tc, seed=1, labels=labels)
        assert engine.device_ms == pytest.approx(20 + 20 * 19 / 2 / 1024, abs=1e-9)
        engine.step(x_tc, 3, z, labels)  # neither its row number nor its noise is copied within
        engine.denoise(x_tc, seed=1, labels=labels, on_step=lambda *_: None)
        assert engine.device_ms == pytest.approx(1 + 20 / 1024, abs=1e-9)
    assert timed.handles == {}


def test_between_two_steps_nothing_is_waited_for_and_nothing_comes_from_the_host(timed: FakeCuda) -> None:
    bundle = conditional_head()
    x_tc, labels = inputs(bundle, 2)
    with engine_for(bundle) as engine:
        engine.denoise(x_tc, seed=1, labels=labels)
        timed.calls.clear()
        engine.denoise(x_tc, seed=1, labels=labels)
    names = timed.names()
    started, ended = (n for n, name in enumerate(names) if name == "cudaEventRecord")
    copies = [arguments[3] for name, arguments in timed.calls[started:ended] if name == "cudaMemcpyAsync"]
    assert copies == [timed.cudaMemcpyKind.cudaMemcpyDeviceToDevice] * 2 * 20  # row number and noise of each step
    assert set(names[started:ended]) == {"cudaEventRecord", "cudaMemcpyAsync"}
    waits = [n for n, name in enumerate(names) if name == "cudaStreamSynchronize"]
    assert len(waits) == 2 and waits[0] < started and ended < waits[1]


def test_the_session_runs_in_the_stream_that_is_timed(timed: FakeCuda, tmp_path: Path) -> None:
    for engine_class in (OrtCudaEngine, OrtTensorrtEngine):
        options = EngineOptions(cache=tmp_path) if engine_class is OrtTensorrtEngine else EngineOptions()
        with engine_class(default_head(), options) as engine:
            (stream,) = (handle for handle in timed.handles.values() if type(handle).__name__ == "Stream")
            assert engine._provider_options(1)["user_compute_stream"] == str(int(stream))


def test_a_session_is_gone_before_the_stream_it_runs_in(timed: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[Any] = []
    destroy = FakeCuda._cudaStreamDestroy

    def destroy_stream(cuda: FakeCuda, stream: Any) -> Any:
        alive.append(session())
        return destroy(cuda, stream)

    monkeypatch.setattr(FakeCuda, "_cudaStreamDestroy", destroy_stream)
    with engine_for(default_head()) as engine:
        engine.denoise(inputs(default_head(), 1)[0])
        session = weakref.ref(engine._batch(1)._session)
        assert session() is not None
    assert alive == [None]


def test_without_cudas_events_the_engine_runs_and_its_time_is_unknown(timed: FakeCuda) -> None:
    timed.failing["cudaEventCreate"] = Error.cudaErrorInsufficientDriver
    bundle = default_head()
    x_tc, _ = inputs(bundle, 1)
    with engine_for(bundle) as engine, open_engine(bundle) as reference:
        np.testing.assert_allclose(engine.denoise(x_tc), reference.denoise(x_tc), atol=1e-5)
        with pytest.raises(EngineUnavailable, match=r"its time on the GPU is unknown: CUDA: cudaEventCreate: ") as e:
            _ = engine.device_ms
        assert "user_compute_stream" not in OrtCudaEngine._provider_options(engine, 1)
    assert "\n" not in str(e.value)
    assert timed.handles == {}
