"""What the builder is told, release by release, on a fake TensorRT that has the names of that release alone."""

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_cuda import Error, FakeCuda
from fake_tensorrt import FakeTensorrt
from fake_trt_names import Enumeration
from heads import conditional_head, default_head
from hypothesis import given
from hypothesis import strategies as st

from collafuse_runtimes.engines import EngineOptions
from collafuse_runtimes.engines.trt.build import BatchProfile, BuildProgress, Graph, Target, build_serialised
from collafuse_runtimes.engines.trt.prepare import build_engine
from collafuse_runtimes.errors import ArtefactError, EngineUnavailable, NoGpu
from collafuse_runtimes.files.bundle import HeadBundle, TensorInfo

RELEASES = ["10.3.0", "10.13.3", "10.16.1", "11.4.0", "rtx-1.7.1"]
releases = pytest.mark.parametrize("release", RELEASES)


def fake(release: str, bundle: HeadBundle) -> FakeTensorrt:
    return FakeTensorrt(bundle, FakeCuda(), release.removeprefix("rtx-"), rtx=release.startswith("rtx"))


def build(trt: FakeTensorrt, **options: Any) -> Any:
    bundle = trt.bundle
    graph = Graph(bundle.model_path.read_bytes(), "m.onnx", bundle.inputs, bundle.outputs)
    return build_serialised(trt, graph, BatchProfile(2, 4), **options)


def flag(trt: FakeTensorrt, name: str) -> int:
    number: int = getattr(trt.BuilderFlag, name)
    return number


@pytest.mark.parametrize(
    ("release", "creation_flag"),
    [("10.3.0", "STRONGLY_TYPED"), ("10.13.3", "STRONGLY_TYPED"),
     ("10.16.1", "STRONGLY_TYPED"), ("11.4.0", None), ("rtx-1.7.1", None)],
)  # fmt: skip
def test_the_network_is_strongly_typed_wherever_that_exists(release: str, creation_flag: str | None) -> None:
    trt = fake(release, default_head())
    build(trt)
    flags = Enumeration(trt.release, "NetworkDefinitionCreationFlag")
    assert trt.network._flags == (0 if creation_flag is None else 1 << getattr(flags, creation_flag))


@releases
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_types_come_from_the_graph_and_tf32_is_off(release: str, precision: str) -> None:
    trt = fake(release, replace(default_head(), precision=precision))
    assert build(trt).precision == precision
    assert trt.config._cleared == [flag(trt, "TF32")]
    assert trt.config._set == ([flag(trt, "REQUIRE_USER_ALLOCATION")] if release.startswith("rtx") else [])


@releases
def test_every_batched_input_has_both_profiles(release: str) -> None:
    trt = fake(release, conditional_head())
    build(trt)
    found = []
    for batches in ((1, 2, 3), (4, 4, 4)):
        image, label = (tuple((n, *rest) for n in batches) for rest in ((1, 16, 16), ()))
        found.append({"sample": image, "noise": image, "label": label})
    assert [profile._shapes for profile in trt.config._profiles] == found
    assert trt.config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED


@pytest.mark.parametrize(
    ("opt", "most", "ranges"),
    [
        (1, 8, ((1, 1, 4), (5, 8, 8))),
        (1, 2, ((1, 1, 1), (2, 2, 2))),
        (4, 4, ((1, 4, 4),)),
        (7, 8, ((1, 7, 7), (8, 8, 8))),
    ],
)
def test_one_image_and_a_full_batch_both_have_kernels_of_their_own(opt: int, most: int, ranges: Any) -> None:
    assert BatchProfile(opt, most).ranges == ranges


@given(st.integers(1, 1024), st.integers(2, 1024))
def test_the_ranges_have_every_batch_once_and_their_best_within(a: int, b: int) -> None:
    profile = BatchProfile(min(a, b), max(a, b))
    assert [n for low, _, high in profile.ranges for n in range(low, high + 1)] == list(range(1, max(a, b) + 1))
    assert all(low <= best <= high for low, best, high in profile.ranges)
    assert {best for _, best, _ in profile.ranges} == {a, b}


@releases
@pytest.mark.parametrize(
    ("memory", "tactics", "workspace"),
    [(None, 4 << 30, 1 << 30), (80 << 30, 4 << 30, 1 << 30), (4 << 30, 2 << 30, 1 << 30), (1 << 30, 1 << 29, 1 << 29)],
)
def test_memory_is_limited_and_on_a_small_device_to_half(
    release: str, memory: int | None, tactics: int, workspace: int
) -> None:
    trt = fake(release, default_head())
    build(trt, target=None if memory is None else Target("8.9", memory))
    pools = trt.MemoryPoolType
    tried_out = {} if release.startswith("rtx") else {pools.TACTIC_DRAM: tactics}
    assert trt.config._pools == {**tried_out, pools.WORKSPACE: workspace}


@pytest.mark.parametrize(("capability", "name"), [("7.5", "SM75"), ("8.9", "SM89"), ("12.0", "SM120")])
def test_rtx_builds_for_the_gpu_that_is_here_and_without_one_for_all(capability: str, name: str) -> None:
    trt = fake("rtx-1.7.1", default_head())
    build(trt, target=Target(capability, 1 << 34))
    assert trt.config._capabilities == {0: getattr(trt.ComputeCapability, name)}
    assert trt.config.num_compute_capabilities == 1
    build(trt)
    assert trt.config._capabilities == {}


@pytest.mark.parametrize("capability", ["9.0", "10.0", "8.7", "11.0"])
def test_rtx_refuses_a_gpu_it_has_no_kernels_for_before_building(
    capability: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cuda = FakeCuda("H100 (fake)").install(monkeypatch)
    cuda.capability = tuple(map(int, capability.split(".")))
    trt = FakeTensorrt(default_head(), cuda, "1.7.1", rtx=True).install(monkeypatch)
    with pytest.raises(EngineUnavailable) as error:
        build_engine(default_head(), "tensorrt-rtx", EngineOptions(cache=tmp_path / "engines"))
    assert str(error.value) == (
        f"TensorRT-RTX 1.7.1 builds for no GPU of compute capability {capability}; valid: "
        "7.5, 8.0, 8.6, 8.9, 12.0, 12.1; use engine tensorrt or ort-cuda"
    )
    assert trt.builds == 0 and trt.network is None


@releases
def test_timings_are_used_and_given_back_except_by_rtx(release: str) -> None:
    built = build(fake(release, default_head()), timing=b"earlier ")
    assert built.timing == (b"" if release.startswith("rtx") else b"earlier timed ")


@releases
def test_parser_errors_are_one_line_with_node_and_reason(release: str) -> None:
    trt = fake(release, default_head())
    trt.failing = "parse"
    with pytest.raises(ArtefactError) as error:
        build(trt)
    assert "refuses m.onnx: node 'conv_7', operator Conv: no such operator; export the head again" in str(error.value)


@releases
def test_a_build_that_gives_none_says_the_librarys_last_words(release: str) -> None:
    trt = fake(release, default_head())
    trt.failing = "build"
    with pytest.raises(EngineUnavailable, match=r"could not build m.onnx: no kernel fits; free GPU memory"):
        build(trt)


def test_a_graph_with_other_tensors_than_stated_is_refused() -> None:
    trt = fake("10.3.0", default_head())
    inputs = (TensorInfo("sample", "float16", ("batch", 1, 16, 16)), TensorInfo("step", "int32", (1,)))
    data = trt.bundle.model_path.read_bytes()
    with pytest.raises(
        ArtefactError, match=r"m.onnx takes and gives .*'float32'.*, not .*'float16'.*; export the head"
    ):
        build_serialised(trt, Graph(data, "m.onnx", inputs, trt.bundle.outputs), BatchProfile(1, 2))
    assert trt.builds == 0


class SlowBuilder:
    """A build that reports phases where the release can, and ends when told."""

    def __init__(self, trt: FakeTensorrt, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go_on, self.stopped = threading.Event(), False
        self.threads: list[int] = []
        self.selected: list[int] = []
        monkeypatch.setattr("fake_tensorrt.Builder.build_serialized_network", self.build)
        self.trt = trt

    def build(self, *arguments: Any) -> bytes:
        config = arguments[-1]
        self.threads.append(threading.get_ident())
        monitor = vars(config).get("progress_monitor")
        if monitor is not None:
            monitor.phase_start("outer", None, 3)
            monitor.phase_start("tactics", "outer", 10)
            monitor.step_complete("tactics", 6)
        while not self.go_on.wait(0.01):
            if monitor is not None and not monitor.step_complete("tactics", 6):
                self.stopped = True
                break
        if monitor is not None:
            monitor.phase_finish("tactics")
        return b"engine"

    def select(self) -> None:
        self.selected.append(threading.get_ident())


@releases
def test_a_silent_build_still_shows_its_time_in_the_callers_thread(
    release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = fake(release, default_head())
    slow, seen = SlowBuilder(trt, monkeypatch), list[BuildProgress]()

    def on_progress(progress: BuildProgress) -> None:
        assert threading.get_ident() == here
        seen.append(progress)
        if len(seen) == 4:
            slow.go_on.set()

    here = threading.get_ident()
    built = build(trt, on_progress=on_progress, heartbeat_s=0.05, target=Target("8.9", 1 << 34, slow.select))
    assert built.data == b"engine"
    assert len(seen) >= 4
    assert [p.seconds for p in seen] == sorted(p.seconds for p in seen)
    assert 0.1 <= seen[3].seconds <= built.seconds + 1
    assert (seen[3].phase, seen[3].done, seen[3].total) == ("tactics", 7, 10)
    assert slow.selected == [here, *slow.threads]  # CUDA's current device is a thread's own
    assert slow.threads != [here]


def test_an_interrupted_build_stops_the_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    trt = fake("10.3.0", default_head())
    slow, began = SlowBuilder(trt, monkeypatch), time.monotonic()

    def on_progress(progress: BuildProgress) -> None:
        if progress.phase == "tactics":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(trt, on_progress=on_progress, heartbeat_s=0.02)
    assert slow.stopped
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("failing", ["cudaGetDeviceCount", "cudaGetDeviceProperties", "cudaDriverGetVersion"])
def test_a_driver_that_fails_is_not_built_around(failing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cuda = FakeCuda().install(monkeypatch)
    trt = FakeTensorrt(default_head(), cuda, "1.7.1", rtx=True).install(monkeypatch)
    cuda.failing[failing] = Error.cudaErrorSystemDriverMismatch
    with pytest.raises(EngineUnavailable, match="cudaErrorSystemDriverMismatch"):
        build_engine(default_head(), "tensorrt-rtx", EngineOptions(cache=tmp_path / "engines"))
    assert trt.builds == 0 and not (tmp_path / "engines").exists()


def test_only_rtx_builds_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    cuda, options = FakeCuda(devices=0).install(monkeypatch), EngineOptions(cache=tmp_path / "engines")
    FakeTensorrt(default_head(), cuda, "1.7.1", rtx=True).install(monkeypatch)
    assert build_engine(default_head(), "tensorrt-rtx", options).key["gpu"] == "none"
    FakeTensorrt(default_head(), cuda).install(monkeypatch)
    with pytest.raises(NoGpu, match="CUDA counts 0 GPUs"):
        build_engine(default_head(), "tensorrt", options)
