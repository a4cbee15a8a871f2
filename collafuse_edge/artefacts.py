"""Every artefact there is, explained: those of a device, and those of sites and servers."""

import re
import stat
from collections.abc import Mapping
from pathlib import Path

from collafuse_runtimes.device_artefacts import DEVICE
from collafuse_runtimes.errors import ArtefactError
from collafuse_runtimes.inspection import (
    Describer,
    Description,
    Facts,
    describe,
    disclosure,
    file_facts,
    format_of,
    plan_facts,
    version_fact,
)

_BARE_KEY = re.compile(rb"[0-9a-fA-F]{64}\s*")
_MAX_KEY = 1024


def describe_artefact(path: Path) -> Description | None:
    """What ``path`` is, by its content; None where it is no artefact.

    Raises:
        ArtefactError: it is one, and damaged, or of another version.
    """
    name = format_of(path) or _other_format(path)
    return None if name is None or name not in ARTEFACTS else describe(path, name, ARTEFACTS)


def kinds() -> list[str]:
    """All kinds in words."""
    return sorted({kind for kind, _ in ARTEFACTS.values()})


def _other_format(path: Path) -> str | None:
    """Of files that state no format name."""
    if path.is_dir():
        return None
    if path.suffix in (".engine", ".timings") and path.with_suffix(".json").exists():
        return "collafuse-engine"
    if path.stat().st_size <= _MAX_KEY and _BARE_KEY.fullmatch(path.read_bytes()):
        return "secret key"
    return None


def _shard(path: Path) -> Facts:
    from collafuse_edge.shard import read_shard

    shard = read_shard(path)
    if shard.protocol == "paper":
        disclosed = disclosure(True, "every image follows from (x_t, epsilon, t)")
    else:
        disclosed = disclosure(False, "each image once, noised; noise hides detail and is no proof of privacy")
    return {
        **version_fact(),
        "protocol": (shard.protocol, shard.protocol),
        **plan_facts(shard.plan),
        "count": (len(shard), f"{len(shard)} tensors"),
        **disclosed,
        **file_facts(path),
    }


def _resume(path: Path) -> Facts:
    from collafuse_edge.training.resume import FORMAT
    from collafuse_runtimes.errors import CollafuseError
    from collafuse_runtimes.plan import SplitPlan
    from collafuse_runtimes.sealed import read_tensors

    tensors, payload = read_tensors(path, FORMAT)
    try:
        identity, progress = payload["identity"], payload["progress"]
        plan, step, planned = SplitPlan.from_dict(identity["plan"]), progress["step"], identity["settings"]["steps"]
    except (KeyError, TypeError, CollafuseError) as error:
        raise ArtefactError(f"{path} lacks or garbles {error}; delete it and train again") from None
    return {
        **version_fact(),
        **plan_facts(plan),
        "steps": (step, f"{step} of {planned} trained; continue with --resume"),
        "count": (len(tensors), f"{len(tensors)} tensors"),
        **disclosure(False, "weights and the optimizer's state"),
        **file_facts(path),
    }


def _bench(path: Path) -> Facts:
    from collafuse_benchmarks.report_folder import JSON, read_report

    report = read_report(path)
    complete = report.get("complete") is True
    return {
        **version_fact(),
        "measured": (report.get("kind"), f"{report.get('kind')}, {report.get('created')}"),
        "release": (report.get("collafuse_edge"), str(report.get("collafuse_edge"))),
        "complete": (complete, "yes" if complete else "NO: the measurement was broken off"),
        **disclosure(False, "figures and what the machine is; no image, no tensor"),
        **file_facts(path / JSON if path.is_dir() else path),
    }


def _key(path: Path) -> Facts:
    mode = stat.S_IMODE(path.stat().st_mode)
    private = not mode & 0o077
    shown = "its owner's alone" if private else "OTHERS CAN READ IT: run chmod 600"
    return {
        "form": ("bare", "64 hex digits, without a checksum: a changed digit would not be noticed"),
        "mode": (f"{mode:04o}", f"{mode:04o}, {shown}"),
        "private": (private, "yes" if private else "NO"),
        **disclosure(True, "who has it can take the noise off every shard made with it; its digits are never shown"),
    }


ARTEFACTS: Mapping[str, tuple[str, Describer]] = {
    **DEVICE,
    "collafuse-shard": ("shard", _shard),
    "collafuse-resume": ("resume state of an unfinished training", _resume),
    "collafuse-bench": ("bench report", _bench),
    "secret key": ("secret key", _key),
}
"""Format name to what it is, and its describer."""
