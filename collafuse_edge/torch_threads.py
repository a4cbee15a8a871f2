"""How many CPU threads torch takes for training and hand-over."""

from collections.abc import Iterator
from contextlib import contextmanager

from collafuse_runtimes.device.cpus import threads_by_quota
from collafuse_runtimes.engines.registry import MAX_THREADS
from collafuse_runtimes.errors import InputError
from collafuse_runtimes.extras import needs


def check_threads(threads: int | None) -> None:
    """Do nothing, or refuse what is neither None nor 1 to MAX_THREADS.

    Raises:
        InputError: it is out of range.
    """
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise InputError(f"threads {threads} out of range: must be 1 to {MAX_THREADS}")


@contextmanager
def torch_threads(threads: int | None) -> Iterator[int]:
    """Run the block with this many threads of torch; the number comes as the block's value.

    Args:
        threads: None takes torch's default, or fewer where the control group's CPU quota is smaller.

    Raises:
        InputError: as ``check_threads``.
        EngineUnavailable: torch is not installed.
    """
    check_threads(threads)
    with needs("train"):
        import torch
    before = torch.get_num_threads()
    count = threads or min(before, threads_by_quota() or before)
    torch.set_num_threads(count)
    try:
        yield count
    finally:
        torch.set_num_threads(before)
