"""The TensorRT of ONNX Runtime's provider: found by its soname, loaded without TF32, asked for its version.

The libraries are real shared objects with one function, made here; whatever they change stays in processes of their
own.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from heads import default_head, head
from packaging.requirements import Requirement
from places import ROOT

from collafuse_runtimes.engines import EngineOptions
from collafuse_runtimes.engines.ort import gpu as ort_gpu_engine
from collafuse_runtimes.engines.ort.gpu import OrtTensorrtEngine
from collafuse_runtimes.engines.ort.tensorrt_library import (
    TF32_OVERRIDE,
    keep_float32,
    preload_tensorrt,
    tensorrt_remedy,
    wanted_tensorrt,
)
from collafuse_runtimes.errors import EngineUnavailable


def compiled(folder: Path, name: str, source: str, *options: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-x", "none", *options, "-o", path, f"-Wl,-soname,{name}"]
    subprocess.run(command, input=source, text=True, check=True)
    return path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder of modules: pip's TensorRT 10 and 11, and a provider that is linked with 10."""
    libraries = tmp_path / "tensorrt_libs"
    for major, version in ((11, 110400), (10, 101601)):
        nvinfer = compiled(
            libraries,
            f"libnvinfer.so.{major}",
            "#include <stdlib.h>\nstatic const char *seen;\n"
            "__attribute__((constructor)) static void begin(void) { seen = getenv(\"NVIDIA_TF32_OVERRIDE\"); }\n"
            f"int getInferLibVersion(void) {{ return {version}; }}\n"
            "int keepsFloat32(void) { return seen && seen[0] == '0'; }\n",
        )  # fmt: skip
        compiled(libraries, f"libnvonnxparser.so.{major}", "", "-Wl,--no-as-needed", str(nvinfer))
    (libraries / "__init__.py").touch()
    needed = [str(libraries / f"{stem}.so.10") for stem in ("libnvinfer", "libnvonnxparser")]
    compiled(tmp_path, "libonnxruntime_providers_tensorrt.so", "", "-Wl,--no-as-needed", *needed)
    return tmp_path


def run(place: Path, code: str, **environment: str) -> object:
    """What ``code`` prints, as JSON, in a process of its own with ``provider`` and those modules."""
    start = (
        f"import ctypes, json, os, sys\nfrom pathlib import Path\nsys.path.insert(0, {str(place)!r})\n"
        "from collafuse_runtimes.engines.ort import session as ort_session, tensorrt_library as ort_tensorrt\n"
        f"provider = Path({str(place / 'libonnxruntime_providers_tensorrt.so')!r})\n"
        "ort_session.provider_library = lambda _: provider\n"
    )
    clean = {name: value for name, value in os.environ.items() if name != TF32_OVERRIDE}
    done = subprocess.run(
        [sys.executable, "-c", start + code], capture_output=True, text=True, check=False, env={**clean, **environment}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_provider_says_which_tensorrt_it_wants(place: Path) -> None:
    assert wanted_tensorrt(place / "libonnxruntime_providers_tensorrt.so") == "libnvinfer.so.10"
    assert wanted_tensorrt(place / "none.so") is None
    preload_tensorrt(place / "none.so")


def test_pips_tensorrt_is_loaded_without_tf32_and_says_its_own_version(place: Path) -> None:
    code = """
missing = ort_session._missing_library("TensorrtExecutionProvider")
library = ctypes.CDLL("libnvinfer.so.10")  # by its name alone: it is in this process
print(json.dumps([missing, library.keepsFloat32(), ort_tensorrt.tensorrt_version(provider),
                  ort_tensorrt.is_loaded("libnvinfer"), os.environ["NVIDIA_TF32_OVERRIDE"]]))
"""
    assert run(place, code) == [None, 1, "101601", True, "0"]


def test_a_tensorrt_of_another_major_version_is_not_taken_for_the_right_one(place: Path) -> None:
    for name in ("libnvinfer.so.10", "libnvonnxparser.so.10"):
        (place / "tensorrt_libs" / name).unlink()
    code = """
missing = ort_session._missing_library("TensorrtExecutionProvider")
print(json.dumps([missing, ort_session._library_remedy(missing), ort_tensorrt.tensorrt_version(provider),
                  ort_tensorrt.is_loaded("libnvinfer")]))
"""
    missing, remedy, version, loaded = run(place, code)  # type: ignore[misc]
    assert missing.startswith("libnvinfer.so.10: cannot open shared object file")
    assert remedy.startswith("this onnxruntime was built for TensorRT 10")
    assert "`pip install 'tensorrt-cu13==10.*'`" in remedy
    assert (version, loaded) == (None, False)


def test_the_remedy_names_the_tensorrt_that_is_installed_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        assert name == "tensorrt"
        return "11.4.0.106"

    monkeypatch.setattr("importlib.metadata.version", version)
    assert tensorrt_remedy("libnvinfer.so.10: cannot open shared object file").startswith(
        "this onnxruntime was built for TensorRT 10, and tensorrt 11.4.0.106 is installed: `pip install "
    )


def test_a_tensorrt_that_was_loaded_before_is_too_late(place: Path) -> None:
    code = """
ctypes.CDLL(str(provider.parent / "tensorrt_libs/libnvinfer.so.11"))
print(json.dumps([ort_tensorrt.keep_float32(), os.environ.get("NVIDIA_TF32_OVERRIDE")]))
"""
    reason, stated = run(place, code)  # type: ignore[misc]
    assert reason == "TensorRT was loaded before; use a new process, or start this one with NVIDIA_TF32_OVERRIDE=0"
    assert stated is None
    assert run(place, code, NVIDIA_TF32_OVERRIDE="0") == [None, "0"]


def test_an_fp32_head_is_refused_where_tf32_cannot_be_kept_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(TF32_OVERRIDE, "1")
    assert keep_float32() == "NVIDIA_TF32_OVERRIDE is '1' here; set it to 0, or unset it"
    options = EngineOptions(cache=tmp_path)
    with pytest.raises(EngineUnavailable, match="ort-tensorrt would compute this fp32 head in TF32: NVIDIA"):
        OrtTensorrtEngine(default_head(), options).__enter__()
    with OrtTensorrtEngine(head(precision="fp16"), options):
        pass  # its convolutions are half in any case
    monkeypatch.delenv(TF32_OVERRIDE)
    with OrtTensorrtEngine(default_head(), options):
        assert os.environ[TF32_OVERRIDE] == "0"
    monkeypatch.setattr(ort_gpu_engine, "keep_float32", lambda: None)
    assert OrtTensorrtEngine.tf32 == "off (NVIDIA_TF32_OVERRIDE=0)"


def test_the_extras_pin_what_has_to_fit() -> None:
    """onnxruntime-gpu 1.31 is linked with TensorRT 10; cuda-bindings 12.9 asks CUDA's runtime for its version first."""
    text = (ROOT / "pyproject.toml").read_text()
    extras = dict(re.findall(r"^([\w-]+) = \[(.*)\]$", text, re.MULTILINE))
    (tensorrt,) = (Requirement(name) for name in re.findall(r'"([^"]+)"', extras["ort-tensorrt"]))
    assert tensorrt.name == "tensorrt-cu13"
    assert [v in tensorrt.specifier for v in ("10.13.3.9", "10.16.1.11", "11.0.0.114", "11.4.0.106")] == [
        True, True, False, False,
    ]  # fmt: skip
    (bindings,) = (Requirement(name) for name in re.findall(r'"([^"]+)"', extras["jetpack6"]))
    assert (bindings.name, str(bindings.specifier)) == ("cuda-bindings", "==12.8.0")
