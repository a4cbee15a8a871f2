"""What this machine is, read from the files its kernel and its vendor put there. What is missing is unknown."""

import platform
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """One machine; None where it does not say (containers hide some of it).

    Attributes:
        system: operating system and kernel release.
        architecture: of the processor, e.g. "aarch64".
        python: version.
        board: the device tree's model, e.g. of a Jetson.
        l4t: Jetson Linux release, e.g. "R36.4.3".
        driver: version of the loaded NVIDIA kernel module.
        gpus: names of the NVIDIA GPUs.
    """

    system: str
    architecture: str
    python: str
    board: str | None
    l4t: str | None
    driver: str | None
    gpus: tuple[str, ...] | None


def read_machine(root: Path = Path("/")) -> Machine:
    """Read this machine; ``root`` is where its /proc, /etc and /dev are."""
    board = text_of(root / "proc/device-tree/model")
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        architecture=platform.machine(),
        python=platform.python_version(),
        board=board,
        l4t=_l4t(text_of(root / "etc/nv_tegra_release")),
        driver=_driver(text_of(root / "proc/driver/nvidia/version")),
        gpus=_discrete_gpus(root) or _integrated_gpu(root, board),
    )


def text_of(path: Path) -> str | None:
    """A file's text, without the NUL that device trees end in; None for what cannot be read or is empty."""
    try:
        return path.read_text(errors="replace").replace("\0", "").strip() or None
    except OSError:
        return None


def _l4t(release: str | None) -> str | None:
    """ "# R36 (release), REVISION: 4.3, ..." -> "R36.4.3"."""
    found = re.search(r"(R\d+) \(release\), REVISION: ([\d.]+)", release or "")
    return f"{found[1]}.{found[2]}" if found else None


def _driver(version: str | None) -> str | None:
    found = re.search(r"Kernel Module.*?\s(\d+\.\d[\d.]*)", version or "")
    return found[1] if found else None


def _discrete_gpus(root: Path) -> tuple[str, ...] | None:
    texts = [text_of(path) or "" for path in sorted(root.glob("proc/driver/nvidia/gpus/*/information"))]
    names = [re.search(r"^Model:\s*(.+)$", text, re.MULTILINE) for text in texts]
    return tuple(name[1].strip() for name in names if name) or None


def _integrated_gpu(root: Path, board: str | None) -> tuple[str, ...] | None:
    """A Jetson's own GPU is on no bus; its driver's device files tell."""
    if board is None or not any((root / "dev" / name).exists() for name in ("nvgpu", "nvhost-gpu", "nvidia0")):
        return None
    return (f"integrated GPU of {board}",)
