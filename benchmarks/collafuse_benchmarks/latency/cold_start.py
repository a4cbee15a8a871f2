"""From nothing to the first image: a process of its own, timed from outside and from within.

``python -m collafuse_benchmarks.latency.cold_start`` is the process; it reads its task from stdin and prints
one JSON line.
"""

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collafuse_runtimes.engines import EngineOptions


@dataclass(frozen=True)
class ColdStart:
    """One fresh process; files are as warm as the system's cache left them.

    Attributes:
        total_ms: from the call that starts the process until its end is known; the interpreter's start and end count.
        import_ms, read_ms, load_ms, first_call_ms: within it: this product's modules; bundle and hand-over file;
            entering the engine; the first ``denoise``.
    """

    total_ms: float
    import_ms: float
    read_ms: float
    load_ms: float
    first_call_ms: float


def cold_start(bundle: Path, handover: Path, engine: str, options: "EngineOptions", steps: int) -> ColdStart:
    """Start a process that finishes the first tensor of a hand-over file.

    Raises:
        CheckFailed: it failed; its last line is in the message.
    """
    from collafuse_runtimes.errors import CheckFailed

    stated = {name: str(v) if isinstance(v, Path) else v for name, v in asdict(options).items()}
    task = {
        "bundle": str(bundle.resolve()),
        "handover": str(handover.resolve()),
        "engine": engine,
        "options": stated,
        "steps": steps,
    }
    begun = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, "-m", __name__], input=json.dumps(task), capture_output=True, text=True, check=False
    )
    total_ms = (time.perf_counter() - begun) * 1e3
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        raise CheckFailed(f"a fresh process could not run {bundle} on {engine}: {last}")
    return ColdStart(total_ms=total_ms, **json.loads(ended.stdout.splitlines()[-1]))


def _run(task: dict[str, Any]) -> dict[str, float]:
    begun = time.perf_counter()
    import numpy as np

    from collafuse_runtimes.engines import EngineOptions, open_engine
    from collafuse_runtimes.files.bundle import read_bundle
    from collafuse_runtimes.files.handover import read_handover

    imported = time.perf_counter()
    bundle, handover = read_bundle(Path(task["bundle"])), read_handover(Path(task["handover"]))
    stated: dict[str, Any] = {
        name: Path(v) if name in ("checkpoint", "cache") and v else v for name, v in task["options"].items()
    }
    read = time.perf_counter()
    with open_engine(bundle, task["engine"], EngineOptions(**stated)) as engine:
        loaded = time.perf_counter()
        labels = None if bundle.num_classes is None else np.zeros(1, np.int32)
        engine.denoise(handover.x_tc[:1], task["steps"], seed=handover.seed, labels=labels)
        ended = time.perf_counter()
    stamps = (begun, imported, read, loaded, ended)
    names = ("import_ms", "read_ms", "load_ms", "first_call_ms")
    return {name: (b - a) * 1e3 for name, a, b in zip(names, stamps, stamps[1:], strict=False)}


if __name__ == "__main__":
    print(json.dumps(_run(json.load(sys.stdin))))
