"""Split diffusion between a server and an edge device: the names programs use, each loaded when it is asked for.

    from collafuse_edge import infer, read_bundle, read_handover

docs/api.md describes them; ``collafuse_edge.api`` defines them. The command line is ``collafuse_edge.cli``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collafuse_edge.api import (
        evaluate,
        export_head,
        image_features,
        infer,
        load_images,
        make_handover,
        open_engine,
        read_bundle,
        read_handover,
        read_plan,
        train_head,
        train_server,
        upload_images,
        verify,
        write_handover,
        write_plan,
    )
    from collafuse_edge.evaluation.kid import kid_on_reference_scale
    from collafuse_edge.evaluation.pyramid import pyramid_score
    from collafuse_edge.training.settings import TrainSettings
    from collafuse_runtimes.diffusion.plan import SplitPlan
    from collafuse_runtimes.diffusion.samplers import Sampler
    from collafuse_runtimes.engine_options import EngineOptions
    from collafuse_runtimes.files.checkpoint import NetworkConfig

__all__ = [
    "EngineOptions",
    "NetworkConfig",
    "Sampler",
    "SplitPlan",
    "TrainSettings",
    "evaluate",
    "export_head",
    "image_features",
    "infer",
    "kid_on_reference_scale",
    "load_images",
    "make_handover",
    "open_engine",
    "pyramid_score",
    "read_bundle",
    "read_handover",
    "read_plan",
    "train_head",
    "train_server",
    "upload_images",
    "verify",
    "write_handover",
    "write_plan",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name!r}; it has: {', '.join(__all__)}")
    return getattr(import_module("collafuse_edge.api"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
