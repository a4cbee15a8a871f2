"""The engine for a bundle on this machine: from the cache, from the bundle where that is trusted, or built now."""

import hashlib
import logging
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from collafuse_runtimes.disk.atomic import new_directory, write_bytes
from collafuse_runtimes.engine_options import EngineOptions
from collafuse_runtimes.engines.cuda_device import GpuInfo, gpu_info, select_gpu
from collafuse_runtimes.engines.trt.binding import MODULES, load_binding, make_logger, require
from collafuse_runtimes.engines.trt.build import (
    BatchProfile,
    BuildProgress,
    BuiltEngine,
    Graph,
    OnProgress,
    Target,
    build_serialised,
)
from collafuse_runtimes.engines.trt.cache import (
    CachedEngine,
    EngineCache,
    EngineKey,
    PushedOut,
    differences,
    engine_key,
    machine_key,
    read_cached_engine,
)
from collafuse_runtimes.engines.trt.inspection import Inspection, inspect_engine, require_precision
from collafuse_runtimes.errors import ArtefactError, CheckFailed, InputError, NoGpu
from collafuse_runtimes.files.bundle import (
    GOLDEN,
    MODEL,
    BundledEngine,
    HeadBundle,
    read_bundle,
    write_manifest,
)
from collafuse_runtimes.files.sealed import read_bytes

LOG = logging.getLogger("collafuse")

MAX_BATCH, OPT_BATCH = 8, 1
"""Of an engine nobody asked a batch of: the batch size of ``infer``, and one image at a time at full speed."""


@dataclass(frozen=True)
class EngineBuildReport:
    """What ``build_engine`` did.

    Attributes:
        path: of the engine file in the cache.
        key: what the engine depends on.
        hit: whether it was there already.
        reason: why it was a hit or a miss, in words.
        seconds: the build took, whenever it was.
        inspection: the types of its convolutions, in words, or "not inspected: ...".
    """

    path: Path
    key: EngineKey
    hit: bool
    reason: str
    seconds: float
    inspection: str


def build_engine(
    bundle: HeadBundle,
    name: str,
    options: EngineOptions,
    *,
    max_batch: int = MAX_BATCH,
    opt_batch: int = OPT_BATCH,
    on_progress: OnProgress | None = None,
) -> EngineBuildReport:
    """Find the engine of a bundle in the cache, or build it for this machine and put it there.

    Args:
        name: "tensorrt" or "tensorrt-rtx". The first needs a GPU; the second builds without one, and then for none.
        options: ``gpu`` and ``cache`` are read.
        max_batch, opt_batch: the engine takes 1 to ``max_batch`` images at once and is fastest at either number.
        on_progress: called in this thread every few seconds, with the time elapsed.

    Raises:
        InputError: an unknown name, or batches out of range.
        EngineUnavailable: a library or the GPU is missing, the driver fails, or the build failed.
        ArtefactError: the parser refuses the graph, the cache holds a foreign engine, or cannot be written.
        CheckFailed: the engine computes in other types than the bundle states.
    """
    if name not in MODULES:
        raise InputError(f"engine {name!r} is not built ahead; valid: {', '.join(MODULES)}")
    profile, trt = BatchProfile(opt_batch, max_batch), load_binding(name)
    gpu = _gpu(name, options)
    machine = machine_key(trt, gpu)
    key, cache = engine_key(bundle.model_sha256, profile, machine), EngineCache(options.cache)
    found = cache.lookup(key)
    LOG.info("engine cache: %s", found.reason)
    if found.entry is not None:
        return _report(found.entry, True, found.reason)
    graph = Graph(bundle.model, str(bundle.model_path), bundle.inputs, bundle.outputs)
    built = build_serialised(
        trt, graph, profile, _target(gpu, options), timing=cache.timings(machine), on_progress=on_progress
    )
    inspection = _inspect(trt, bundle, built, profile, machine)
    if built.timing:
        cache.store_timings(machine, built.timing)
    return _report(cache.store(key, built.data, built.seconds, str(inspection)), False, found.reason)


@dataclass(frozen=True)
class FoundEngine:
    """What to run.

    Attributes:
        key: what it depends on.
        data: the serialised engine.
    """

    key: EngineKey
    data: bytes


def find_engine(
    bundle: HeadBundle, name: str, options: EngineOptions, trt: Any, on_progress: OnProgress
) -> FoundEngine:
    """What to run: the bundle's own engine where ``options.trust_bundle`` says so, else the cache's, else a new one.

    Raises:
        ArtefactError: the bundle's engines are to be trusted, but none was built for this machine.
        InputError, EngineUnavailable, CheckFailed: as ``build_engine``.
    """
    machine = machine_key(trt, _gpu(name, options))
    model_sha256 = bundle.model_sha256
    if options.trust_bundle:
        return _trusted_engine(bundle, {"model_sha256": model_sha256, **machine})
    cache = EngineCache(options.cache)
    found = cache.lookup_any_profile(engine_key(model_sha256, BatchProfile(OPT_BATCH, MAX_BATCH), machine))
    LOG.info("engine cache: %s", found.reason)
    if found.entry is not None:
        with suppress(PushedOut):
            return FoundEngine(found.entry.key, cache.read(found.entry))
    report = build_engine(bundle, name, options, on_progress=on_progress)
    return FoundEngine(report.key, read_cached_engine(report.path)[1])


def embed_engine(bundle: HeadBundle, engine: Path) -> HeadBundle:
    """Put an engine of this machine's cache into the bundle, for devices of the same kind that trust the bundle.

    Args:
        engine: ``EngineBuildReport.path``.

    Returns:
        The bundle, read back; its folder was replaced in one step.

    Raises:
        ArtefactError: this machine did not build the engine, it belongs to another model, or the folder cannot be
            written.
    """
    entry, data = read_cached_engine(engine)
    if entry.key["gpu"] == "none":
        raise InputError(f"{engine} was built where there is no GPU; build and embed it on a machine that has the GPU")
    if entry.key["model_sha256"] != bundle.model_sha256:
        raise ArtefactError(
            f"{engine} was built from another model than {bundle.model_path}; build it from this bundle"
        )
    kept = [other for other in bundle.engines if other.name != engine.name]
    with new_directory(bundle.path) as aside:
        for name in (MODEL, GOLDEN, *(other.name for other in kept)):
            shutil.copyfile(bundle.path / name, aside / name)
        write_bytes(aside / engine.name, data)
        write_manifest(
            replace(bundle, path=aside, engines=(*kept, BundledEngine(engine.name, entry.key, entry.data_sha256)))
        )
    return read_bundle(bundle.path)


def print_progress(progress: BuildProgress) -> None:
    """One line on stderr."""
    of = f", {progress.phase} {progress.done}/{progress.total}" if progress.total else ""
    print(f"building the TensorRT engine: {progress.seconds:.0f} s{of}", file=sys.stderr, flush=True)


def _gpu(name: str, options: EngineOptions) -> GpuInfo | None:
    """RTX builds without a GPU where there is none; a driver that fails is an error on both."""
    try:
        return gpu_info(options.gpu or 0)
    except NoGpu:
        if name == "tensorrt-rtx":
            return None
        raise


def _inspect(trt: Any, bundle: HeadBundle, built: BuiltEngine, profile: BatchProfile, machine: EngineKey) -> Inspection:
    """Are the types those the bundle states? In the graph always, in the engine where there is a GPU to load it."""
    if not bundle.precision.startswith(built.precision):
        raise CheckFailed(
            f"{bundle.path} states {bundle.precision}, its graph asks for {built.precision}; export the head again"
        )
    if machine["gpu"] == "none":
        return Inspection(reason="there is no GPU here to load the engine")
    log = make_logger(trt)
    runtime = require(trt, log, "make a runtime", trt.Runtime(log))
    engine = require(trt, log, "load the engine it built", runtime.deserialize_cuda_engine(built.data))
    inspection = inspect_engine(trt, log, engine, bundle.inputs, profile.opt_batch)
    require_precision(inspection, built.precision, str(bundle.path))
    return inspection


def _target(gpu: GpuInfo | None, options: EngineOptions) -> Target | None:
    if gpu is None:
        return None
    return Target(gpu.compute_capability, gpu.memory, partial(select_gpu, options.gpu or 0))


def _trusted_engine(bundle: HeadBundle, wanted: EngineKey) -> FoundEngine:
    reasons = []
    for engine in bundle.engines:
        stated = {name: engine.key.get(name, "not stated") for name in wanted}
        if stated == wanted:
            data = read_bytes(bundle.path / engine.name)
            if hashlib.sha256(data).hexdigest() == engine.sha256:
                return FoundEngine(engine.key, data)
            reasons.append(f"{engine.name} is not the file the manifest names")
        else:
            reasons.append(f"{engine.name} differs in {'; '.join(differences(wanted, stated))}")
    why = " and ".join(reasons) or "it holds none"
    raise ArtefactError(
        f"no engine of {bundle.path} is for this machine: {why}; leave out --trust-bundle to build one here"
    )


def _report(entry: CachedEngine, hit: bool, reason: str) -> EngineBuildReport:
    return EngineBuildReport(entry.path, entry.key, hit, reason, entry.seconds, entry.inspection)
