"""Engines: one file each, one small protocol, no silent fallback. ``registry`` has the table of them."""

from collafuse_runtimes.engine_options import EngineOptions
from collafuse_runtimes.engines.base import Engine
from collafuse_runtimes.engines.registry import (
    DEFAULTS,
    ENGINES,
    available_engine,
    available_engines,
    check_precision,
    open_engine,
    reason_not_installed,
)

__all__ = [
    "DEFAULTS",
    "ENGINES",
    "Engine",
    "EngineOptions",
    "available_engine",
    "available_engines",
    "check_precision",
    "open_engine",
    "reason_not_installed",
]
