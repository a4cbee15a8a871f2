"""Peak memory of this process and what an engine takes of the GPU's."""

import re
from dataclasses import dataclass
from pathlib import Path

from collafuse_benchmarks.measure.record import Record
from collafuse_runtimes.engines.cuda_device import ask, cuda_runtime, gpu_info, select_gpu
from collafuse_runtimes.errors import EngineUnavailable, InputError

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"


@dataclass(frozen=True)
class Memory(Record):
    """Bytes, or why there is no figure.

    Attributes:
        batch: images at once.
        process_peak: largest resident size of the whole process (Python and libraries included) since the batch began,
            or, where the kernel does not let it be reset, since the process began.
        since: "batch" or "process".
        device: what the free memory of the GPU had shrunk by after the batch, since before the engine was opened; the
            CUDA context is not in it; other processes count. None for an integrated GPU, whose memory is the host's.
    """

    batch: int
    process_peak: int | None
    process_reason: str | None
    since: str
    device: int | None
    device_reason: str | None


def reset_peak() -> bool:
    """Forget this process's peak; whether the kernel allowed it."""
    try:
        CLEAR_REFS.write_text(RESET_PEAK)
    except OSError:
        return False
    return True


def peak_bytes() -> tuple[int | None, str | None]:
    """(peak resident size, None), or (None, why it is unknown)."""
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    except OSError as error:
        return None, f"cannot read {STATUS}: {error.strerror}"
    return (int(found[1]) * 1024, None) if found else (None, f"{STATUS} does not say VmHWM")


def free_gpu_bytes(gpu: int) -> tuple[int | None, str | None]:
    """(free memory of a GPU, None), or (None, why it is unknown).

    An integrated GPU has none of its own: what is free there is the host's, and this process is in it already.
    """
    try:
        if gpu_info(gpu).integrated:
            return None, "an integrated GPU uses the host's memory: it is part of the process's"
        select_gpu(gpu)
        return int(ask(cuda_runtime(), "no memory figure", "cudaMemGetInfo")), None
    except (EngineUnavailable, InputError) as error:
        return None, str(error)
