"""The TensorRT engine on a fake GPU: the right numbers, one graph a trajectory, nothing left behind.

The fake TensorRT (fake_tensorrt.py) has no network: a step is what engine ``fake`` does, on the fake GPU's memory.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cuda import Error, FakeCuda
from fake_tensorrt import FakeTensorrt
from heads import conditional_head, default_head, handover, inputs, rgb_head, second_order_head

from collafuse_runtimes.engines import EngineOptions, available_engines, open_engine
from collafuse_runtimes.engines.trt.cache import default_cache_folder
from collafuse_runtimes.engines.trt.engine import MAX_LOOPS
from collafuse_runtimes.errors import ArtefactError, CheckFailed, EngineUnavailable, InputError
from collafuse_runtimes.files.bundle import HeadBundle, TensorInfo
from collafuse_runtimes.infer import InferSettings, run_inference
from collafuse_runtimes.verify import verify_engine

HEADS = [default_head, conditional_head, rgb_head, second_order_head]


@pytest.fixture(autouse=True)
def config_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """A GPU on which everything was released in the end, whatever happened."""
    device = FakeCuda().install(monkeypatch)
    yield device
    assert device.memory == {}
    assert device.handles == {}


def tensorrt_for(
    bundle: HeadBundle, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, version: str = "10.3.0", rtx: bool = False
) -> FakeTensorrt:
    if rtx:
        cuda.capability = (8, 9)  # RTX has no kernels for an Orin
    return FakeTensorrt(bundle, cuda, version, rtx).install(monkeypatch)


def reference(bundle: HeadBundle, x_tc: Any, steps: int | None, labels: Any) -> tuple[Any, list[Any]]:
    states: list[Any] = []
    with open_engine(bundle, "fake") as engine:
        result = engine.denoise(x_tc, steps, seed=3, labels=labels, on_step=lambda _, x: states.append(x.copy()))
    return result, states


@pytest.mark.parametrize(
    ("name", "version"),
    [("tensorrt", "10.3.0"), ("tensorrt", "10.13.3"), ("tensorrt", "10.16.1"),
     ("tensorrt", "11.4.0"), ("tensorrt-rtx", "1.7.1")],
)  # fmt: skip
@pytest.mark.parametrize("make_head", HEADS)
def test_computes_what_engine_fake_computes(
    make_head: Callable[[], HeadBundle], name: str, version: str, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_head()
    trt = tensorrt_for(bundle, cuda, monkeypatch, version, rtx=name == "tensorrt-rtx")
    with open_engine(bundle, name) as engine:
        for batch in (3, 1):
            x_tc, labels = inputs(bundle, batch)
            before = x_tc.copy()
            for rows in bundle.row_ranges:
                expected, states = reference(bundle, x_tc, rows.steps, labels)
                seen: list[Any] = []
                plain = engine.denoise(x_tc, rows.steps, seed=3, labels=labels)
                trt.rows.clear()
                watched = engine.denoise(
                    x_tc, rows.steps, seed=3, labels=labels, on_step=lambda _, x, s=seen: s.append(x)
                )
                assert trt.rows == list(range(rows.first_row, rows.first_row + rows.steps))
                np.testing.assert_allclose(plain, expected, atol=1e-6)
                np.testing.assert_array_equal(watched, plain)
                np.testing.assert_allclose(np.stack(seen), np.stack(states), atol=1e-6)
                assert trt.labels[-1] == (None if labels is None else labels.tolist())
            np.testing.assert_array_equal(x_tc, before)
            z = np.ones_like(x_tc) if bundle.sampler.is_stochastic else None
            with open_engine(bundle, "fake") as fake:
                np.testing.assert_array_equal(engine.step(x_tc, 2, z, labels), fake.step(x_tc, 2, z, labels))
    del engine
    assert trt.alive == []


def test_no_trajectory_sees_the_x_0_that_another_left(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first row's factor for it is zero, and zero times NaN is NaN."""
    bundle = second_order_head()
    tensorrt_for(bundle, cuda, monkeypatch)
    x_tc, labels = inputs(bundle, 2)
    with open_engine(bundle, "tensorrt") as engine:
        first = engine.denoise(x_tc, labels=labels)
        (loop,) = engine._loops.values()  # type: ignore[attr-defined]
        for address in loop.histories:
            cuda.view(address, x_tc.nbytes)[:] = 255  # NaN in float32
        np.testing.assert_array_equal(engine.denoise(x_tc, labels=labels), first)
    assert np.isfinite(first).all()


def test_the_second_trajectory_is_one_graph_launch_and_nothing_is_enqueued(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = conditional_head()
    trt = tensorrt_for(bundle, cuda, monkeypatch)
    x_tc, labels = inputs(bundle, 2)
    with open_engine(bundle, "tensorrt") as engine:
        first = engine.denoise(x_tc, seed=1, labels=labels)
        names = cuda.names()
        assert (names.count("cudaGraphInstantiate"), names.count("cudaGraphLaunch")) == (1, 1)
        assert cuda.kernels == 1 + 20  # one step before the capture, 20 within
        assert names.index("cudaMemcpyAsync") < names.index("cudaStreamBeginCapture") < names.index("cudaGraphLaunch")
        cuda.calls.clear()
        again = engine.denoise(x_tc, seed=1, labels=labels)
        names = cuda.names()
        assert names.count("cudaGraphLaunch") == 1
        assert cuda.kernels == 21
        assert names.count("cudaMemcpyAsync") == 4  # x, all noise, labels up; the image down
        assert not {"cudaMalloc", "cudaFree", "cudaStreamBeginCapture", "cudaGraphInstantiate"} & set(names)
        other = engine.denoise(x_tc + 0.5, seed=1, labels=labels)
        noisier = engine.denoise(x_tc, seed=2, labels=labels)
        relabelled = engine.denoise(x_tc, seed=1, labels=labels[::-1])
        assert trt.labels[-1] == labels[::-1].tolist()
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, relabelled)
    assert np.abs(first - other).max() > 1e-2
    assert np.abs(first - noisier).max() > 1e-2


def test_the_gpus_time_is_that_of_the_last_step_or_trajectory_without_copies(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = conditional_head()
    tensorrt_for(bundle, cuda, monkeypatch)
    x_tc, labels = inputs(bundle, 2)

    def took(kernels: int) -> float:
        """The fake's kernels: n of them from now on, each 1/1024 ms longer than the one before."""
        return kernels * cuda.kernel_ms + kernels * (kernels - 1) / 2 / 1024

    with open_engine(bundle, "tensorrt") as engine:
        with pytest.raises(InputError, match="nothing was timed yet; call step, or denoise without on_step, first"):
            _ = engine.device_ms
        engine.denoise(x_tc, seed=1, labels=labels)
        expected = took(20)
        engine.denoise(x_tc, seed=1, labels=labels)
        assert engine.device_ms == pytest.approx(expected, abs=1e-9)
        engine.denoise(x_tc, seed=1, labels=labels, on_step=lambda *_: None)
        assert engine.device_ms == pytest.approx(expected, abs=1e-9)
        expected = took(1)
        waits = cuda.names().count("cudaStreamSynchronize")
        engine.step(x_tc, 2, np.ones_like(x_tc), labels)
        assert cuda.names().count("cudaStreamSynchronize") == waits + 2  # for the input there, for the result back
        assert engine.device_ms == pytest.approx(expected, abs=1e-9)
        cuda.failing["cudaGraphLaunch"] = Error.cudaErrorMemoryAllocation
        with pytest.raises(EngineUnavailable):
            engine.denoise(x_tc, seed=1, labels=labels)
        with pytest.raises(InputError, match="nothing was timed yet"):  # not the figure of an earlier trajectory
            _ = engine.device_ms


def test_two_tensors_take_turns_and_every_step_has_its_row_and_noise(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = conditional_head()
    trt = tensorrt_for(bundle, cuda, monkeypatch)
    x_tc, labels = inputs(bundle, 2)
    with open_engine(bundle, "tensorrt") as engine:
        engine.denoise(x_tc, seed=1, labels=labels)
    captured = trt.enqueued[1:]
    assert len({a["sample"] for a in captured} | {a["next_sample"] for a in captured}) == 2
    for before, after in pairwise(captured):
        assert after["sample"] == before["next_sample"] != before["sample"]
        assert after["step"] - before["step"] == 256
        assert after["noise"] - before["noise"] == x_tc.nbytes  # 2048, a multiple of 256 already
    assert trt.contexts[1:] == [{"sample": (2, 1, 16, 16), "step": (1,), "noise": (2, 1, 16, 16), "label": (2,)}]


def test_graphs_are_kept_for_few_shapes_and_freed_for_the_next(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = default_head()
    tensorrt_for(bundle, cuda, monkeypatch)
    with open_engine(bundle, "tensorrt") as engine:
        for batch in range(1, MAX_LOOPS + 1):
            engine.denoise(inputs(bundle, batch)[0], 7)
        full = (len(cuda.memory), len(cuda.handles))
        for batch in range(MAX_LOOPS + 1, MAX_LOOPS + 4):
            engine.denoise(inputs(bundle, batch)[0], 7)
        assert (len(cuda.memory), len(cuda.handles)) == full
        cuda.calls.clear()
        engine.denoise(inputs(bundle, MAX_LOOPS + 3)[0], 7)
        assert "cudaGraphInstantiate" not in cuda.names()


def test_a_batch_beyond_the_profile_is_refused(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = default_head()
    tensorrt_for(bundle, cuda, monkeypatch)
    x_tc, _ = inputs(bundle, 9)
    with open_engine(bundle, "tensorrt") as engine:
        engine.denoise(x_tc[:8], 7)
        with pytest.raises(InputError, match="batch 9 is more than the engine takes: must be 1 to 8"):
            engine.denoise(x_tc, 7)


@pytest.mark.parametrize("call", ["cudaMalloc", "cudaGraphInstantiate", "cudaGraphLaunch", "cudaStreamBeginCapture"])
def test_a_failing_cuda_call_is_named_and_everything_is_freed(
    call: str, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = default_head()
    trt = tensorrt_for(bundle, cuda, monkeypatch)
    cuda.failing[call] = Error.cudaErrorMemoryAllocation
    said = rf"CUDA: {call}: cudaErrorMemoryAllocation \(fake\); check the NVIDIA"
    with pytest.raises(EngineUnavailable, match=said), open_engine(bundle, "tensorrt") as engine:
        engine.denoise(inputs(bundle, 1)[0])
    assert trt.builds == 1


def test_a_step_that_fails_within_the_capture_ends_it(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = default_head()
    trt = tensorrt_for(bundle, cuda, monkeypatch)
    x_tc, _ = inputs(bundle, 1)
    with open_engine(bundle, "tensorrt") as engine:
        engine.denoise(x_tc, 7)
        trt.steps_left = 1 + 5
        with pytest.raises(EngineUnavailable, match=r"TensorRT 10.3.0 could not run a step: launch failed; free GPU"):
            engine.denoise(x_tc, 20)
        assert cuda.names().count("cudaStreamEndCapture") == 2
        assert cuda.recording is None
        trt.steps_left = -1
        np.testing.assert_allclose(engine.denoise(x_tc, 20), reference(bundle, x_tc, 20, None)[0], atol=1e-6)


def test_an_engine_with_other_tensors_is_refused(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = default_head()
    trt = tensorrt_for(bundle, cuda, monkeypatch)
    trt.renamed = {"sample": TensorInfo("sample", "float16", ("batch", 1, 16, 16))}
    with pytest.raises(ArtefactError, match=r"'float16', \(-1, 1, 16, 16\)\).*not.*'float32'"):
        open_engine(bundle, "tensorrt").__enter__()


def test_an_engine_of_other_types_than_asked_for_is_not_run(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = replace(default_head(), precision="fp16")
    trt = tensorrt_for(bundle, cuda, monkeypatch)
    trt.computes = "fp32"
    with pytest.raises(CheckFailed, match=r"asked to compute in fp16 and has convolutions: 1 fp32"):
        open_engine(bundle, "tensorrt").__enter__()
    assert list(default_cache_folder().glob("*.engine")) == []


def test_without_a_gpu_the_reason_is_the_drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda().install(monkeypatch)
    tensorrt_for(default_head(), cuda, monkeypatch)
    assert available_engines()["tensorrt"] is None
    cuda.failing["cudaGetDeviceCount"] = Error.cudaErrorInsufficientDriver
    reason = available_engines()["tensorrt"]
    assert reason == (
        "CUDA: no usable GPU: cudaErrorInsufficientDriver (fake); "
        "check the NVIDIA driver with nvidia-smi, or use engine ort-cpu"
    )
    with pytest.raises(EngineUnavailable, match=r"engine tensorrt cannot run here: CUDA: no usable GPU: .* can: ort-"):
        open_engine(default_head(), "tensorrt")


def test_a_device_that_is_not_there(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    tensorrt_for(default_head(), cuda, monkeypatch)
    with pytest.raises(InputError, match="GPU 1 does not exist: must be 0 to 0"):
        open_engine(default_head(), "tensorrt", EngineOptions(gpu=1)).__enter__()


def test_an_unknown_release_is_refused(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("8.6.2", "12.0.1"):
        tensorrt_for(default_head(), cuda, monkeypatch, "10.3.0").__version__ = version
        with pytest.raises(
            EngineUnavailable, match=rf"TensorRT {version} is not known here; valid: 10.x, 11.x \(a Jet"
        ):
            open_engine(default_head(), "tensorrt").__enter__()


def test_opening_tells_the_time_on_stderr_while_it_builds(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tensorrt_for(default_head(), cuda, monkeypatch)
    with open_engine(default_head(), "tensorrt"):
        pass
    assert capsys.readouterr().err.startswith("building the TensorRT engine: 0 s")
    with open_engine(default_head(), "tensorrt"):  # from the cache
        pass
    assert capsys.readouterr().err == ""


def test_infer_runs_the_captured_trajectory_and_shows_its_progress_by_the_batch(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundle = conditional_head()
    tensorrt_for(bundle, cuda, monkeypatch)
    monkeypatch.setattr(
        "collafuse_runtimes.infer.require_golden_start", lambda *_: None
    )  # the stand-in runs no network
    shown: list[tuple[int, int]] = []
    tensors, labels = handover(bundle, 6), np.arange(6) % 3
    result = run_inference(
        bundle,
        tensors,
        tmp_path / "out",
        InferSettings(engine="tensorrt", batch_size=2),
        labels=labels,
        on_step=lambda *step: shown.append(step),
    )
    names = cuda.names()
    assert (names.count("cudaGraphInstantiate"), names.count("cudaGraphLaunch")) == (1, 3)
    assert shown == [(20, 60), (40, 60), (60, 60)]
    with open_engine(bundle, "fake") as fake:
        expected = fake.denoise(tensors.x_tc, seed=tensors.seed, sample_indices=range(100, 106), labels=labels)
    np.testing.assert_allclose(result.images, expected, atol=1e-6)


def test_verify_looks_at_the_end_of_the_captured_trajectory_too(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = default_head()
    tensorrt_for(bundle, cuda, monkeypatch)
    with open_engine(bundle, "tensorrt") as engine:
        report = verify_engine(engine)
        assert cuda.names().count("cudaGraphLaunch") == len(bundle.row_ranges)
        # the fake is another denoiser than the golden one: what matters is that a broken graph makes it worse
        real = engine.denoise
        monkeypatch.setattr(engine, "denoise", lambda *a, on_step=None, **k: real(*a, on_step=on_step, **k) + (
            0 if on_step else 9))  # fmt: skip
        broken = verify_engine(engine)
    for before, after in zip(report.ranges, broken.ranges, strict=True):
        assert (after.final.max_abs or 0) > 5 > (before.final.max_abs or 0)
        assert not after.passed
