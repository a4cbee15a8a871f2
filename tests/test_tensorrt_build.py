"""What the builder is told, release by release, on a fake TensorRT that has the names of that release alone."""

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_cuda import Error, FakeCuda
from fake_tensorrt import NAMES, Enumeration, FakeTensorrt
from heads import conditional_head, default_head

from collafuse_runtimes.bundle import HeadBundle, TensorInfo
from collafuse_runtimes.engines import EngineOptions
from collafuse_runtimes.engines.tensorrt_build import BatchProfile, BuildProgress, build_serialised
from collafuse_runtimes.engines.tensorrt_prepare import build_engine
from collafuse_runtimes.errors import ArtefactError, EngineUnavailable, NoGpu

RELEASES = ["8.6.1", "10.3.0", "10.13.3", "10.16.1", "11.4.0", "rtx-1.7.1"]
releases = pytest.mark.parametrize("release", RELEASES)


def fake(release: str, bundle: HeadBundle) -> FakeTensorrt:
    return FakeTensorrt(bundle, FakeCuda(), release.removeprefix("rtx-"), rtx=release.startswith("rtx"))


def build(trt: FakeTensorrt, **options: Any) -> Any:
    bundle = trt.bundle
    data = bundle.model_path.read_bytes()
    return build_serialised(trt, data, "m.onnx", bundle.inputs, bundle.outputs, BatchProfile(2, 4), **options)


def flag(trt: FakeTensorrt, name: str) -> int:
    number: int = getattr(trt.BuilderFlag, name)
    return number


@pytest.mark.parametrize(
    ("release", "creation_flag"),
    [("8.6.1", "EXPLICIT_BATCH"), ("10.3.0", "STRONGLY_TYPED"), ("10.13.3", "STRONGLY_TYPED"),
     ("10.16.1", "STRONGLY_TYPED"), ("11.4.0", None), ("rtx-1.7.1", None)],
)  # fmt: skip
def test_the_network_is_strongly_typed_wherever_that_exists(release: str, creation_flag: str | None) -> None:
    trt = fake(release, default_head())
    build(trt)
    flags = Enumeration(trt.release, "NetworkDefinitionCreationFlag")
    assert trt.network._flags == (0 if creation_flag is None else 1 << getattr(flags, creation_flag))


@releases
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_only_tensorrt_8_is_given_type_flags(release: str, precision: str) -> None:
    trt = fake(release, replace(default_head(), precision=precision))
    assert build(trt).precision == precision
    assert trt.config._cleared == [flag(trt, "TF32")]
    expected = {"fp32": [], "fp16": ["FP16", "OBEY_PRECISION_CONSTRAINTS"], "int8": ["INT8", "FP16"]}[precision]
    if precision == "int8":
        expected = [*expected, "OBEY_PRECISION_CONSTRAINTS"]
    assert trt.config._set == ([flag(trt, name) for name in expected] if release == "8.6.1" else [])
    pinned = [layer._output.name for layer in trt.network._layers if layer._pinned]
    wanted = {"fp32": [], "fp16": ["update"], "int8": ["conv", "update"]}[precision]
    assert pinned == (wanted if release == "8.6.1" else [])  # not "qconv": a pin would keep it from becoming int8


@releases
def test_every_batched_input_has_the_profile(release: str) -> None:
    trt = fake(release, conditional_head())
    build(trt)
    image = [(n, 1, 16, 16) for n in (1, 2, 4)]
    assert trt.config._profile._shapes == {"sample": tuple(image), "noise": tuple(image), "label": ((1,), (2,), (4,))}
    assert trt.config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED


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
    node = "node number 7" if release == "8.6.1" else "node 'conv_7', operator Conv"
    assert f"refuses m.onnx: {node}: no such operator; export again" in str(error.value)


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
    with pytest.raises(ArtefactError, match=r"m.onnx takes and gives .*'float32'.*, not .*'float16'.*; export again"):
        build_serialised(trt, data, "m.onnx", inputs, trt.bundle.outputs, BatchProfile(1, 2))
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
    built = build(trt, on_progress=on_progress, heartbeat_s=0.05, select_device=slow.select)
    assert built.data == b"engine"
    assert len(seen) >= 4
    assert [p.seconds for p in seen] == sorted(p.seconds for p in seen)
    assert 0.1 <= seen[3].seconds <= built.seconds + 1
    says_phases = "IProgressMonitor" in NAMES[trt.release]
    assert (seen[3].phase, seen[3].done, seen[3].total) == (("tactics", 7, 10) if says_phases else ("building", 0, 0))
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
    with pytest.raises(NoGpu, match="CUDA counts 0 devices"):
        build_engine(default_head(), "tensorrt", options)
