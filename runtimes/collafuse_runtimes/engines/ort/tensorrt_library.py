"""The TensorRT that ONNX Runtime's provider was built for: found, loaded without TF32, asked for its version."""

import ctypes
import importlib.metadata
import importlib.util
import os
import re
from pathlib import Path

TF32_OVERRIDE = "NVIDIA_TF32_OVERRIDE"
"""Read by NVIDIA's libraries when they are loaded: 0 keeps them from TF32, other values are reserved. ONNX Runtime's
TensorRT provider has no option for it (microsoft/onnxruntime 26029).
"""
LIBRARY = "libnvinfer"
MAPS = Path("/proc/self/maps")
PACKAGE = "tensorrt_libs"
"""Module of TensorRT's libraries as pip installs them; the system's loader does not look there."""


def keep_float32() -> str | None:
    """Tell NVIDIA's libraries in this process, and in those it starts, not to compute in TF32.

    Returns:
        Why that is not certain, in words; None where it is.
    """
    stated = os.environ.get(TF32_OVERRIDE)
    if stated == "0":
        return None
    if stated is not None:
        return f"{TF32_OVERRIDE} is {stated!r} here; set it to 0, or unset it"
    if is_loaded(LIBRARY):
        return f"TensorRT was loaded before; use a new process, or start this one with {TF32_OVERRIDE}=0"
    os.environ[TF32_OVERRIDE] = "0"
    return None


def is_loaded(library: str) -> bool:
    """Whether a shared library whose name begins so is in this process."""
    try:
        return f"/{library}.so" in MAPS.read_text()
    except OSError:
        return False


def wanted_tensorrt(provider: Path) -> str | None:
    """The TensorRT library that ONNX Runtime's provider is linked with, "libnvinfer.so.10"; None where unknown."""
    try:
        found = re.search(rb"libnvinfer\.so\.\d+", provider.read_bytes())
    except OSError:
        return None
    return found[0].decode() if found else None


def preload_tensorrt(provider: Path) -> None:
    """Load pip's TensorRT, where it is of the major version that the provider wants."""
    wanted, spec = wanted_tensorrt(provider), importlib.util.find_spec(PACKAGE)
    if wanted is None or spec is None:
        return
    suffix = wanted.removeprefix(LIBRARY)
    for folder in spec.submodule_search_locations or ():
        for stem in (LIBRARY, f"{LIBRARY}_plugin", "libnvonnxparser"):  # the others need the first
            path = Path(folder) / f"{stem}{suffix}"
            if path.exists():
                try:
                    ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
                except OSError:
                    return  # what it lacks is found out and named when the provider is loaded


def tensorrt_version(provider: Path) -> str | None:
    """Of the TensorRT that the provider uses, as the library itself says it; None where there is none to ask."""
    wanted = wanted_tensorrt(provider)
    preload_tensorrt(provider)
    try:
        return str(int(ctypes.CDLL(wanted).getInferLibVersion())) if wanted else None
    except (OSError, AttributeError):
        return None


def tensorrt_remedy(missing: str) -> str:
    """What to do about "libnvinfer.so.10: cannot open ...": which TensorRT this is, and which is here instead."""
    found = re.search(r"\.so\.(\d+)", missing)
    if found is None:
        return "install TensorRT; on a Jetson it comes with JetPack"
    major = int(found[1])
    pip = f"`pip install 'tensorrt-cu13=={major}.*'`"
    jetson = f"on a Jetson it comes with JetPack, and the wheel has to be one for TensorRT {major}"
    return f"this onnxruntime was built for TensorRT {major}{_installed()}: {pip}; {jetson}"


def _installed() -> str:
    names = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
    for name in names:
        try:
            return f", and {name} {importlib.metadata.version(name)} is installed"
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""
