"""The product's functions for programs: paths as str or Path, heavy libraries loaded by the function that needs them.

``import collafuse_edge`` offers these names and loads none of them. On a device everything that reads, verifies and
infers works on the base install.
"""

from collafuse_edge.api.device import (
    infer,
    open_engine,
    read_bundle,
    read_handover,
    read_plan,
    verify,
    write_handover,
    write_plan,
)
from collafuse_edge.api.scores import evaluate, image_features, kid_on_reference_scale, pyramid_score
from collafuse_edge.api.training import export_head, load_images, make_handover, train_head, train_server, upload_images
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
