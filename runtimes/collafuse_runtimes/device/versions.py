"""What produced an artefact or a figure: package versions and the git commit of a source checkout."""

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "collafuse-edge",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "safetensors",
    "pillow",
    "typer",
    "onnx",
    "torch",
    "diffusers",
    "openvino",
    "cuda-bindings",
    "tensorrt",
    "tensorrt-rtx",
    "tensorrt-rtx-bindings",
    "tensorrt-rtx-cu13-bindings",
)
"""What this package or an engine of it uses."""


def versions(*packages: str) -> dict[str, str | None]:
    """Installed version of each package, None where it is not installed."""
    return {name: _version(name) for name in packages}


def installed_packages() -> dict[str, str]:
    """Version of every package that this one or an engine of it uses, of those that are installed."""
    return {name: found for name, found in versions(*PACKAGES).items() if found is not None}


def git_commit() -> str | None:
    """Commit of the checkout this package runs from; None for an installed package or without git."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
