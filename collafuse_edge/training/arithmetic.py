"""What the device of a run does to float32, and whether the run can be repeated bit for bit; for training.json."""

from typing import Any


def describe_arithmetic(device: str) -> dict[str, Any]:
    """How torch computed on a device of this type in this process.

    On a GPU cuDNN chooses kernels by shape and free memory, and some add in any order, so two runs of the same
    settings end with slightly different weights; torch also convolves in TF32 (ten bits of mantissa) by default.

    Args:
        device: "cpu" or "cuda".

    Returns:
        ``bitwise``: whether a resumed run ends with the very weights of an unbroken one, on the same machine, number of
        threads and torch; ``tf32_convolution``, ``tf32_matmul``: whether float32 may be computed as TF32.
    """
    import torch

    on_gpu = device != "cpu"
    repeats = torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    return {
        "bitwise": not on_gpu or repeats,
        "tf32_convolution": on_gpu and bool(torch.backends.cudnn.allow_tf32),
        "tf32_matmul": on_gpu and bool(torch.backends.cuda.matmul.allow_tf32),
    }
