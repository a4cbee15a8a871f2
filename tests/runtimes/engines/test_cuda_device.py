"""The CUDA layer: every answer is checked, the names are CUDA's own, and all that was taken is given back."""

import ast
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fake_cuda import MEMORY, Error, FakeCuda

from collafuse_runtimes.engines import cuda_device
from collafuse_runtimes.engines.cuda_device import (
    GpuInfo,
    checked,
    gpu_count,
    gpu_info,
    open_gpu,
    reason_unusable,
    select_gpu,
)
from collafuse_runtimes.errors import EngineUnavailable, NoGpu

SOURCE = Path(cuda_device.__file__)


def cuda_names() -> set[str]:
    """Every name of cuda.bindings.runtime in the source: attributes, and the names of calls."""
    nodes = list(ast.walk(ast.parse(SOURCE.read_text())))
    attributes = {n.attr for n in nodes if isinstance(n, ast.Attribute) and n.attr.startswith("cuda")}
    texts = {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    calls = {text for text in texts if text.startswith("cuda") and text.isidentifier()}
    return attributes | calls


def test_names_are_those_of_the_installed_cuda_bindings() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    inner = dict.fromkeys(("cudaSuccess", "cudaErrorNoDevice"), runtime.cudaError_t)
    inner |= {"cudaStreamCaptureModeThreadLocal": runtime.cudaStreamCaptureMode}
    copies = ("cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost", "cudaMemcpyDeviceToDevice")
    inner |= dict.fromkeys(copies, runtime.cudaMemcpyKind)
    names = cuda_names()
    assert len(names) >= 30
    properties = runtime.cudaDeviceProp()
    for name in ("name", "major", "minor", "totalGlobalMem", "integrated"):
        assert hasattr(properties, name)
    assert {name for name in names if not hasattr(inner.get(name, runtime), name)} == set()


def test_a_real_error_code_is_one_line_with_cudas_words() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    with pytest.raises(EngineUnavailable) as error:
        checked(runtime, "no usable GPU", (runtime.cudaError_t.cudaErrorInsufficientDriver, None))
    assert str(error.value) == (
        "CUDA: no usable GPU: CUDA driver version is insufficient for CUDA runtime version; "
        "check the NVIDIA driver with nvidia-smi, or use engine ort-cpu"
    )


def test_an_answer_is_its_value_or_nothing() -> None:
    fake = SimpleNamespace(cudaError_t=Error)
    assert checked(fake, "x", (Error.cudaSuccess, 7)) == 7
    assert checked(fake, "x", (Error.cudaSuccess,)) is None


def test_copies_there_and_back_wait_for_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda().install(monkeypatch)
    device = open_gpu(0)
    there, back = np.arange(6, dtype=np.float32), np.zeros(6, np.float32)
    address = device.malloc(there.nbytes)
    device.upload(address, there)
    device.download(back, address)
    assert not back.any()
    device.synchronise()
    np.testing.assert_array_equal(back, there)
    device.close()


def test_closing_releases_newest_first_and_goes_on_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda().install(monkeypatch)
    device = open_gpu(0)
    first, second = device.malloc(16), device.malloc(16)
    device.event()
    device.free(first)
    fake.calls.clear()
    fake.failing["cudaEventDestroy"] = Error.cudaErrorMemoryAllocation
    with pytest.raises(EngineUnavailable, match="CUDA: releasing GPU memory: cudaErrorMemoryAllocation"):
        device.close()
    released = [(name, arguments) for name, arguments in fake.calls if "Get" not in name]
    assert [name for name, _ in released] == ["cudaEventDestroy", "cudaFree", "cudaStreamDestroy"]
    assert released[1][1] == (second,)
    assert fake.memory == {}


def test_a_failed_capture_leaves_capture_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda().install(monkeypatch)
    device = open_gpu(0)
    with pytest.raises(ZeroDivisionError), device.capture():
        assert fake.recording == []
        raise ZeroDivisionError
    assert fake.recording is None
    device.close()
    assert fake.handles == {}


def test_a_function_that_raises_for_want_of_a_driver_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """As cuda-bindings 12.8 does where newer ones answer cudaErrorInsufficientDriver."""

    def raising(_: FakeCuda) -> int:
        raise RuntimeError("Failed to dlopen\n libcuda.so.1")

    FakeCuda().install(monkeypatch)
    monkeypatch.setattr(FakeCuda, "_cudaGetDeviceCount", raising)
    assert reason_unusable() == (
        "CUDA: no usable GPU: Failed to dlopen libcuda.so.1; "
        "check the NVIDIA driver with nvidia-smi, or use engine ort-cpu"
    )
    with pytest.raises(EngineUnavailable, match="Failed to dlopen"):
        open_gpu(0)


def test_without_cuda_bindings_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_device, "RUNTIME", "no_such_module.runtime")
    with pytest.raises(EngineUnavailable, match=r"cuda-bindings does not load .*; pip install 'collafuse-edge\[tensor"):
        open_gpu(0)


@pytest.mark.parametrize(
    ("cuda", "code", "words"),
    [
        (FakeCuda(), Error.cudaErrorNoDevice, "CUDA: no usable GPU: cudaErrorNoDevice (fake); check the NVIDIA driver"),
        (FakeCuda(driver=0), Error.cudaErrorInsufficientDriver, "CUDA: no usable GPU: cudaErrorInsufficientDriver"),
        (FakeCuda(devices=0), None, "no usable GPU: CUDA counts 0 GPUs"),
    ],
)
def test_no_driver_and_no_device_are_no_gpu(
    cuda: FakeCuda, code: Error | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda.install(monkeypatch)
    cuda.failing |= {} if code is None else {"cudaGetDeviceCount": code}
    with pytest.raises(NoGpu) as error:
        gpu_count()
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_driver_that_fails_is_not_taken_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(driver=11040).install(monkeypatch)
    for code in (Error.cudaErrorInsufficientDriver, Error.cudaErrorSystemDriverMismatch):
        cuda.failing["cudaGetDeviceCount"] = code
        with pytest.raises(EngineUnavailable, match=f"no usable GPU: {code.name}") as error:
            gpu_count()
        assert not isinstance(error.value, NoGpu)


class Raising(FakeCuda):
    """cuda-bindings 12, which finds the driver at its first call or raises."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self.words = words

    def _cudaGetDeviceCount(self) -> int:  # noqa: N802
        raise RuntimeError(self.words)


@pytest.mark.parametrize(
    ("words", "kind"),
    [("Failed to dlopen libcuda.so.1", NoGpu), ('Function "cuDeviceGetCount" not found', EngineUnavailable)],
)
def test_what_cuda_bindings_raises_is_one_line(
    words: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    Raising(words).install(monkeypatch)
    with pytest.raises(EngineUnavailable) as error:
        gpu_count()
    assert type(error.value) is kind
    assert str(error.value).startswith(f"CUDA: no usable GPU: {words}; check the NVIDIA driver with nvidia-smi")


def test_missing_cuda_bindings_are_no_gpu_broken_ones_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> None:
        raise OSError("libcudart.so: invalid ELF header")

    monkeypatch.setattr(cuda_device, "RUNTIME", "no_such_module.runtime")
    with pytest.raises(NoGpu, match="cuda-bindings does not load"):
        gpu_count()
    monkeypatch.setattr(cuda_device.importlib, "import_module", broken)
    with pytest.raises(EngineUnavailable, match="invalid ELF header") as error:
        gpu_count()
    assert not isinstance(error.value, NoGpu)


def test_without_a_driver_every_answer_is_the_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuda-bindings 12.8.0 looks for the driver once, and at every later call misses a function of it."""

    class Forgetful(FakeCuda):
        asked = 0

        def _cudaGetDeviceCount(self) -> int:  # noqa: N802
            self.asked += 1
            words = "Failed to dlopen libcuda.so.1" if self.asked == 1 else 'Function "cuInit" not found'
            raise RuntimeError(words)

    fake = Forgetful()
    fake.install(monkeypatch)
    said = []
    for _ in range(3):
        with pytest.raises(NoGpu) as error:
            gpu_count()
        said.append(str(error.value))
    assert len(set(said)) == 1 and "Failed to dlopen libcuda.so.1; check the NVIDIA driver" in said[0]
    assert fake.asked == 1
    with pytest.raises(NoGpu, match="Failed to dlopen"):
        select_gpu(0)
    FakeCuda().install(monkeypatch)  # another binding is asked anew
    assert gpu_count() == 1


def test_what_a_gpu_says_about_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda(runtime=12080, driver=12060).install(monkeypatch)
    assert gpu_info(0) == GpuInfo("Orin (fake)", "8.7", MEMORY, False, "12.8", "12.6")
    fake.integrated = True
    assert gpu_info(0).integrated
