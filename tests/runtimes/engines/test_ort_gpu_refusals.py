"""An ONNX Runtime that cannot use the GPU is refused before anything runs, with the reason and the remedy."""

import re
import sys
from pathlib import Path

import onnxruntime
import pytest
from heads import default_head

from collafuse_runtimes.engines import available_engines, open_engine
from collafuse_runtimes.engines.ort import session as ort_session
from collafuse_runtimes.engines.ort.gpu import OrtCudaEngine, OrtTensorrtEngine
from collafuse_runtimes.errors import EngineUnavailable

GPU_ENGINES = ["ort-cuda", "ort-tensorrt"]
PROVIDERS = {engine.name: engine.provider for engine in (OrtCudaEngine, OrtTensorrtEngine)}
NO_GPU_BUILD = "CUDAExecutionProvider" not in onnxruntime.get_available_providers()
without_gpu_build = pytest.mark.skipif(not NO_GPU_BUILD, reason="this onnxruntime is built for a GPU")


@without_gpu_build
@pytest.mark.parametrize("name", GPU_ENGINES)
def test_an_onnxruntime_without_the_provider_is_refused_with_reason_and_remedy(name: str) -> None:
    provider = PROVIDERS[name]
    reason = available_engines()[name]
    assert reason is not None
    version = re.escape(onnxruntime.__version__)
    assert re.match(rf"onnxruntime {version} is installed without {provider} \(on x86 ", reason)
    assert "pip install onnxruntime-gpu" in reason and "Jetson AI Lab" in reason
    with pytest.raises(
        EngineUnavailable, match=rf"engine {name} cannot run here: .*engines that can: ort-cpu"
    ) as error:
        open_engine(default_head(), name)
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_an_onnxruntime_that_is_missing_or_broken_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert str(available_engines()["ort-cuda"]).startswith("onnxruntime is not installed (on x86 ")
    monkeypatch.delitem(sys.modules, "onnxruntime")
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libcudart.so.13 is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    reason = str(available_engines()["ort-cuda"])
    assert reason.startswith("onnxruntime is installed but cannot be imported: libcudart.so.13 is missing (on x86 ")
    monkeypatch.undo()
    assert available_engines()["ort-cpu"] is None


@pytest.mark.parametrize(
    ("missing", "remedy"),
    [
        (
            "libcublasLt.so.13",
            "`pip install 'onnxruntime-gpu[cuda,cudnn]'`; on a Jetson install JetPack's CUDA and cuDNN",
        ),
        ("libcuda.so.1", "install the NVIDIA driver, or give the container its GPU"),
        (
            "libnvinfer.so.10",
            "this onnxruntime was built for TensorRT 10: `pip install 'tensorrt-cu13==10.*'`; on a Jetson it comes "
            "with JetPack, and the wheel has to be one for TensorRT 10",
        ),
    ],
)
def test_a_provider_that_lacks_a_library_is_refused_with_its_name(
    missing: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime lists such a provider as available, and goes on with the CPU."""

    def load(path: str) -> None:
        assert Path(path).name in ("libonnxruntime_providers_cuda.so", "libonnxruntime_providers_tensorrt.so")
        raise OSError(f"{missing}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(PROVIDERS.values()))
    monkeypatch.setattr(ort_session.ctypes, "CDLL", load)
    for name in GPU_ENGINES:
        with pytest.raises(
            EngineUnavailable, match=rf"cannot load its \w+: {missing}: cannot open .*that can: ort-cpu"
        ) as e:
            open_engine(default_head(), name)
        assert f"({remedy});" in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(("there", "reason"), [("libcudnn.so.9", None), ("libcudnn.so.8", None), ("", "libcudnn.so.9")])
def test_cudnn_that_is_only_opened_at_the_first_convolution_is_missed_before(
    there: str, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(path: str) -> None:
        if Path(path).name == "libonnxruntime_providers_cuda.so":
            raise OSError(f"{path}: undefined symbol: Provider_GetHost")  # as it says when anyone else loads it
        if path != there:
            raise OSError(f"{path}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(ort_session.ctypes, "CDLL", load)
    found = available_engines()["ort-cuda"]
    if reason is None:
        assert found is None
    else:
        assert f"cannot load its CUDAExecutionProvider: {reason}: cannot open" in str(found)
        assert "pip install 'onnxruntime-gpu[cuda,cudnn]'" in str(found)


def test_a_long_complaint_keeps_its_end_where_the_cause_stands() -> None:
    said = RuntimeError(
        "[ONNXRuntimeError] : 1 : FAIL : running Conv.\n" + "/some/where.h " * 40 + "cuDNN is unavailable"
    )
    short = ort_session.in_short(said)
    assert short.startswith("running Conv. /some") and short.endswith("cuDNN is unavailable")
    assert len(short) == 300 and "\n" not in short
