"""Execution contexts on a fake GPU: one block of scratch memory, a profile by the batch, kernels kept by RTX."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeCuda
from fake_tensorrt import SCRATCH, FakeTensorrt
from heads import conditional_head, default_head, inputs

from collafuse_runtimes.engines import EngineOptions, open_engine
from collafuse_runtimes.engines.trt.cache import EngineCache
from collafuse_runtimes.engines.trt.prepare import build_engine
from collafuse_runtimes.errors import EngineUnavailable

ENGINES = [("tensorrt", "10.3.0"), ("tensorrt", "11.4.0"), ("tensorrt-rtx", "1.7.1")]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeCuda]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    device = FakeCuda().install(monkeypatch)
    device.capability = (8, 9)
    yield device
    assert device.memory == {}
    assert device.handles == {}


def tensorrt_for(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, name: str, version: str, bundle: Any) -> FakeTensorrt:
    return FakeTensorrt(bundle, cuda, version, rtx=name == "tensorrt-rtx").install(monkeypatch)


@pytest.mark.parametrize(("name", "version"), ENGINES)
def test_all_contexts_share_one_block_of_scratch_memory(
    name: str, version: str, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = conditional_head()
    trt = tensorrt_for(cuda, monkeypatch, name, version, bundle)
    with open_engine(bundle, name) as engine:
        blocks = [address for address, block in cuda.memory.items() if len(block) == SCRATCH]
        for batch in (1, 2, 8, 1):
            x_tc, labels = inputs(bundle, batch)
            engine.denoise(x_tc, seed=1, labels=labels)
        assert [address for address, block in cuda.memory.items() if len(block) == SCRATCH] == blocks
    assert len(trt.contexts) == 1 + 3 and len(blocks) == 1  # one of them the inspector looked at
    assert {memory for _, memory in trt.ran} == {(blocks[0], SCRATCH)}


@pytest.mark.parametrize(("name", "version"), ENGINES)
def test_a_batch_runs_the_kernels_chosen_nearest_to_it(
    name: str, version: str, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = default_head()
    trt = tensorrt_for(cuda, monkeypatch, name, version, bundle)
    with open_engine(bundle, name) as engine, open_engine(bundle, "fake") as fake:
        for batch, profile in ((1, 0), (2, 0), (4, 0), (5, 1), (8, 1)):
            trt.ran.clear()
            x_tc, _ = inputs(bundle, batch)
            np.testing.assert_allclose(engine.denoise(x_tc), fake.denoise(x_tc), atol=1e-6)
            assert {used for used, _ in trt.ran} == {profile}


def test_rtx_is_asked_whether_a_trajectory_can_be_captured(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = default_head()
    trt = tensorrt_for(cuda, monkeypatch, "tensorrt-rtx", "1.7.1", bundle)
    x_tc, _ = inputs(bundle, 1)
    with open_engine(bundle, "tensorrt-rtx") as engine:
        trt.failing = "capture"
        with pytest.raises(EngineUnavailable, match="could not record a trajectory of this engine as a CUDA graph"):
            engine.denoise(x_tc)
        assert "cudaStreamBeginCapture" not in cuda.names()
        trt.failing = ""
        engine.denoise(x_tc)
        assert cuda.names().count("cudaStreamBeginCapture") == 1


def test_what_rtx_compiled_is_kept_for_the_next_process(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = default_head()
    compiled = []
    for batches in ((1, 8), (1, 8), (1, 8, 2), (2,)):
        trt = tensorrt_for(cuda, monkeypatch, "tensorrt-rtx", "1.7.1", bundle)
        with open_engine(bundle, "tensorrt-rtx") as engine:
            for batch in batches:
                engine.denoise(inputs(bundle, batch)[0])
        compiled.append(trt.compilations)
    assert compiled == [2, 0, 1, 0]


def test_kernels_of_another_driver_are_compiled_anew(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same engine from a trusted bundle, say; the library itself refuses what does not fit."""
    bundle, x_tc = default_head(), inputs(default_head(), 1)[0]
    trt = tensorrt_for(cuda, monkeypatch, "tensorrt-rtx", "1.7.1", bundle)
    key = build_engine(bundle, "tensorrt-rtx", EngineOptions()).key
    EngineCache().store_kernels(key, b'["Orin (fake) 12060", ["0 {}"]]')
    with open_engine(bundle, "tensorrt-rtx") as engine:
        engine.denoise(x_tc)
    assert trt.compilations == 1
    assert EngineCache().kernels(key).startswith(b'["Orin (fake) 13020"')


def test_a_cache_that_cannot_be_written_costs_time_alone(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, x_tc = default_head(), inputs(default_head(), 1)[0]
    tensorrt_for(cuda, monkeypatch, "tensorrt-rtx", "1.7.1", bundle)
    with open_engine(bundle, "tensorrt-rtx") as engine, open_engine(bundle, "fake") as fake:
        np.testing.assert_allclose(engine.denoise(x_tc), fake.denoise(x_tc), atol=1e-6)
        folder = EngineCache().folder
        folder.rename(folder.with_name("away"))
        folder.write_text("not a folder")


def test_the_inspectors_errors_are_told(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = tensorrt_for(cuda, monkeypatch, "tensorrt", "10.3.0", default_head())
    trt.failing = "inspect"
    report = build_engine(default_head(), "tensorrt", EngineOptions())
    assert report.inspection == (
        "not inspected: the inspector gave no list of layers: the engine was built without its layers"
    )
