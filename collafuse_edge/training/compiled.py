"""Whether torch.compile can be used here, and whether what it made can be trusted."""

import os
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING

from collafuse_runtimes.errors import CheckFailed, InputError

if TYPE_CHECKING:
    import torch

MIN_MEAN_COSINE = 0.9
"""Between gradients, averaged over the weight tensors: rounding of bf16 stays above, a lost branch falls below."""


def require_compiler(device: str) -> None:
    """torch.compile writes C++ for a CPU and C for a GPU's launchers, and misses the compiler in the first step only.

    Raises:
        InputError: no compiler was found.
    """
    variable, names = ("CXX", ["g++"]) if device == "cpu" else ("CC", ["gcc", "clang", "cc"])
    wanted = [os.environ[variable]] if variable in os.environ else names
    if not any(shutil.which(name) for name in wanted):
        raise InputError(
            f"compile needs a compiler and {' or '.join(wanted)} is not here; install one, or train without --compile"
        )


def require_same_gradients(
    network: "torch.nn.Module", compiled: "torch.nn.Module", loss: "Callable[[torch.nn.Module], torch.Tensor]"
) -> None:
    """Compare one backward pass of both: compilers have dropped gradients without a word, and the loss still falls.

    Args:
        network: the module as written; its parameters are also ``compiled``'s.
        compiled: the same module, compiled.
        loss: from a module to the loss of one batch, the same batch each time.

    Raises:
        CheckFailed: the gradients differ by more than rounding.
    """
    import torch

    plain, made = (_gradients(network, loss(module)) for module in (network, compiled))
    cosines = [torch.nn.functional.cosine_similarity(a, b, dim=0) for a, b in zip(plain, made, strict=True)]
    mean = float(torch.stack(cosines).mean())
    if not mean >= MIN_MEAN_COSINE:
        raise CheckFailed(
            f"torch.compile of torch {torch.__version__} gives this network other gradients (mean cosine {mean:.3f}, "
            f"asked for {MIN_MEAN_COSINE}); train without --compile"
        )


def _gradients(network: "torch.nn.Module", loss: "torch.Tensor") -> "list[torch.Tensor]":
    import torch

    parameters = list(network.parameters())
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [
        (torch.zeros_like(p) if g is None else g).float().flatten() for p, g in zip(parameters, gradients, strict=True)
    ]
