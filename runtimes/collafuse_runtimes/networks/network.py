"""The network a checkpoint describes, held against its weights and its plan before any memory is taken for it."""

import warnings
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from collafuse_runtimes.errors import InputError
from collafuse_runtimes.extras import needs
from collafuse_runtimes.text import one_line

if TYPE_CHECKING:
    import torch

Shapes = Mapping[str, tuple[int, ...]]
LEAST_BOUND = 1 << 16
"""Numbers that are no size (timesteps, group counts) may be larger than a very small network has weights."""


NETWORKS = ("UNet2DModel", "EdgeUNet")
"""What a checkpoint's network can be: a class of diffusers, or one of ours."""


def network_class(kind: str) -> Any:
    """The class of one of ``NETWORKS``.

    Raises:
        EngineUnavailable: torch or diffusers is not installed.
    """
    with needs("train"):
        import_module("torch")
        from diffusers import UNet2DModel

        from collafuse_runtimes.networks.edge_network import EdgeUNet
    return {"UNet2DModel": UNet2DModel, "EdgeUNet": EdgeUNet}[kind]


def network_cost(network: "torch.nn.Module", image_shape: tuple[int, int, int]) -> tuple[int, int]:
    """(parameters, floating-point operations of one denoising step of one image, counted by torch)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    device = next(network.parameters()).device
    conditional = getattr(network, "class_embedding", None) is not None
    conditions = {"class_labels": torch.zeros(1, dtype=torch.int64, device=device)} if conditional else {}
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(torch.zeros((1, *image_shape), device=device), 0, **conditions)
    return sum(weight.numel() for weight in network.parameters()), counter.get_total_flops()


def build_unet(
    unet: dict[str, Any],
    shapes: Shapes,
    image_shape: tuple[int, int, int],
    num_classes: int | None,
    kind: str = "UNet2DModel",
) -> "torch.nn.Module":
    """A network that has exactly the weights of ``shapes`` and takes images of ``image_shape``.

    It is built twice: first on torch's ``meta`` device, where sizes are computed and nothing is stored.

    Args:
        unet: keyword arguments of the class, from a file.
        shapes: weight by name to its shape.
        image_shape: (C, H, W).
        num_classes: of a conditional network, None otherwise.
        kind: one of ``NETWORKS``.

    Raises:
        InputError: the arguments describe no network, or another one; says what differs.
        EngineUnavailable: torch or diffusers is not installed.
    """
    build = network_class(kind)
    import torch

    _require_moderate(unet, shapes)
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of zero-sized layers, which are refused below
            sketch = build(**unet)
    except Exception as error:  # whatever diffusers and torch think of such arguments
        raise InputError(f"diffusers cannot build the network: {_why(error)}") from None
    _require_shapes(shapes, {name: tuple(value.shape) for name, value in sketch.state_dict().items()})
    _require_classes(sketch, num_classes)
    _require_image(sketch, image_shape, num_classes)
    network: torch.nn.Module = build(**unet)
    return network


def _require_moderate(unet: dict[str, Any], shapes: Shapes) -> None:
    """No size of a network is larger than the number of its weights, nor are there more layers than weight tensors."""
    numbers = 0
    for shape in shapes.values():
        size = 1
        for side in shape:
            size *= side
        numbers += size
    bound = max(numbers, LEAST_BOUND)
    for field, value in unet.items():
        parts = value if isinstance(value, list | tuple) else [value]
        if len(parts) > len(shapes):
            raise InputError(f"network field {field} has {len(parts)} entries; there are {len(shapes)} weight tensors")
        for part in parts:
            if isinstance(part, int | float) and not abs(part) <= bound:
                raise InputError(f"network field {field} is {_shown(part)}; its file holds {numbers} weights")
    layers = unet.get("layers_per_block", 1)
    if isinstance(layers, int) and layers > len(shapes):
        raise InputError(f"network field layers_per_block is {layers}; there are {len(shapes)} weight tensors")


def _require_shapes(found: Shapes, wanted: Shapes) -> None:
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found:
            raise InputError(f"weight {name} is missing")
        if name not in wanted:
            raise InputError(f"weight {_shown(name)} is none of this network's")
        if found[name] != wanted[name]:
            raise InputError(f"weight {name} has shape {found[name]}, the network needs {wanted[name]}")


def _require_classes(sketch: Any, num_classes: int | None) -> None:
    table = getattr(sketch, "class_embedding", None)
    rows = getattr(table, "num_embeddings", num_classes)
    if (table is None) != (num_classes is None) or (table is not None and rows != num_classes):
        has = "no classes" if table is None else f"{rows} classes"
        raise InputError(f"the network has {has}, num_classes says {num_classes}")


def _require_image(sketch: "torch.nn.Module", image_shape: tuple[int, int, int], num_classes: int | None) -> None:
    import torch

    try:
        with torch.no_grad():
            sample = torch.zeros((1, *image_shape), device="meta")
            zero = torch.zeros(1, dtype=torch.long, device="meta")
            result = sketch(sample, zero, class_labels=None if num_classes is None else zero, return_dict=False)[0]
    except Exception as error:
        raise InputError(f"the network does not take images of {image_shape}: {_why(error)}") from None
    if result.shape != sample.shape:
        raise InputError(f"the network turns images of {image_shape} into {tuple(result.shape[1:])}")


def _shown(value: object) -> str:
    return one_line(repr(value), 60)


def _why(error: Exception) -> str:
    return one_line(str(error).strip().rpartition("\n")[2] or type(error).__name__, 200)
