"""Every artefact there is, explained: those of a device, and those of sites and servers."""

import re
import stat
from collections.abc import Mapping
from pathlib import Path

from collafuse_runtimes.artefacts import DEVICE
from collafuse_runtimes.errors import ArtefactError
from collafuse_runtimes.inspection import (
    Describer,
    Description,
    Facts,
    Stated,
    describe,
    disclosure,
    file_facts,
    plan_facts,
    stated,
)

_BARE_KEY = re.compile(rb"\s*[0-9a-fA-F]{64}\s*")
_KEY = re.compile(rb"collafuse-([a-z]+)-key ([0-9]+) ([0-9a-f]*)")
_MAX_KEY = 1024
_KEY_FORMAT = "secret key"


def describe_artefact(path: Path) -> Description | None:
    """What ``path`` is, by its content; None where it is no artefact.

    Raises:
        ArtefactError: it is one, and damaged, or of another version; or it is another tool's network.
    """
    from collafuse_runtimes.networks.foreign import class_name, refuse_foreign, require_no_pickle

    found = stated(path) or _other(path)
    if found is not None and found.format in ARTEFACTS:
        return describe(path, found, ARTEFACTS)
    if path.is_file():
        require_no_pickle(path)
    elif any(class_name(path, name) for name in ("model_index.json", "config.json")):
        refuse_foreign(path, None)
    return None


def kinds() -> list[str]:
    """All kinds in words."""
    return sorted({kind for kind, _ in ARTEFACTS.values()})


def _other(path: Path) -> Stated | None:
    """Of files that state no format name."""
    if path.is_dir():
        return None
    if path.suffix in (".engine", ".timings") and path.with_suffix(".json").exists():
        return Stated("collafuse-engine", None)
    if path.stat().st_size > _MAX_KEY:
        return None
    text = path.read_bytes()
    if _BARE_KEY.fullmatch(text):
        return Stated(_KEY_FORMAT, 1)
    named = _KEY.match(text)
    return Stated(_KEY_FORMAT, int(named[2][:9])) if named else None


def _shard(path: Path) -> Facts:
    from collafuse_edge.upload.shard import read_shard

    shard = read_shard(path)
    if shard.protocol == "paper":
        disclosed = disclosure(True, "every image follows from (x_t, epsilon, t)")
    else:
        disclosed = disclosure(False, "each image once, noised; noise hides detail and is no proof of privacy")
    return {
        "protocol": (shard.protocol, shard.protocol),
        **plan_facts(shard.plan),
        "count": (len(shard), f"{len(shard)} tensors"),
        **disclosed,
        **file_facts(path),
    }


def _resume(path: Path) -> Facts:
    from collafuse_edge.training.resume import FORMAT
    from collafuse_runtimes.diffusion.plan import SplitPlan
    from collafuse_runtimes.errors import CollafuseError
    from collafuse_runtimes.files.sealed import read_tensors

    tensors, payload = read_tensors(path, FORMAT)
    try:
        identity, progress = payload["identity"], payload["progress"]
        plan, step, planned = SplitPlan.from_dict(identity["plan"]), progress["step"], identity["settings"]["steps"]
    except (KeyError, TypeError, CollafuseError) as error:
        raise ArtefactError(f"{path} lacks or garbles {error}; delete it and train again") from None
    return {
        **plan_facts(plan),
        "steps": (step, f"{step} of {planned} trained; continue with --resume"),
        "count": (len(tensors), f"{len(tensors)} tensors"),
        **disclosure(False, "weights and the optimizer's state"),
        **file_facts(path),
    }


def _bench(path: Path) -> Facts:
    from collafuse_benchmarks.pages.folder import JSON, read_report

    report = read_report(path)
    complete = report.get("complete") is True
    return {
        "measured": (report.get("kind"), f"{report.get('kind')}, {report.get('created')}"),
        "release": (report.get("collafuse_edge"), str(report.get("collafuse_edge"))),
        "complete": (complete, "yes" if complete else "NO: the measurement was broken off"),
        **disclosure(False, "figures and what the machine is; no image, no tensor"),
        **file_facts(path / JSON if path.is_dir() else path),
    }


def _key(path: Path) -> Facts:
    text = path.read_bytes()
    named = _KEY.match(text)
    if named is None:
        of, form = "upload or engine", "64 hex digits, without a checksum: a changed digit would not be noticed"
    else:
        of, form = named[1].decode(), "with a checksum, which fits"
        _require_checksum(path, text, named[3], f"{of} key")
    mode = stat.S_IMODE(path.stat().st_mode)
    private = not mode & 0o077
    shown = "its owner's alone" if private else "OTHERS CAN USE IT: run chmod 600"
    return {
        "of": (of, f"{of} key"),
        "checksum": (named is not None, form),
        "mode": (f"{mode:04o}", f"{mode:04o}, {shown}"),
        "private": (private, ""),
        **disclosure(True, "who has an upload key can take the noise off every shard of it; digits are never shown"),
    }


def _require_checksum(path: Path, text: bytes, digits: bytes, kind: str) -> None:
    from collafuse_runtimes.files.secret_file import FORM_VERSION, KEY_BYTES, key_text

    if text.split(b" ")[1] != str(FORM_VERSION).encode():
        raise ArtefactError(f"{path} has another key version than {FORM_VERSION}, which this release reads")
    if len(digits) != 2 * KEY_BYTES or text != key_text(bytes.fromhex(digits.decode()), kind):
        raise ArtefactError(
            f"{path} does not match its own checksum: this {kind} was damaged or edited; restore it from a copy"
        )


def _ledger(path: Path) -> Facts:
    from collafuse_edge.upload.ledger import FORMAT
    from collafuse_runtimes.files.sealed import read_json

    payload = read_json(path, FORMAT)
    try:
        releases = payload["releases"]
        images = {image for release in releases for image in release["images"]}
        cleanest = max((release["alpha_bar"] for release in releases), default=None)
        last = max((str(release["when"]) for release in releases), default=None)
    except (KeyError, TypeError) as error:
        raise ArtefactError(f"{path} lacks or garbles {error}; restore it from a copy") from None
    return {
        "count": (len(releases), f"{len(releases)} releases of {len(images)} images, the last {last or 'never'}"),
        "images": (len(images), ""),
        "cleanest": (cleanest, "nothing" if cleanest is None else f"alpha_bar {cleanest:.6f}"),
        "signature": ("not checked", "`upload` checks it with the key"),
        **disclosure(False, "keyed digests and encrypted hashes, of use with the key alone"),
        **file_facts(path),
    }


ARTEFACTS: Mapping[str, tuple[str, Describer]] = {
    **DEVICE,
    "collafuse-shard": ("shard", _shard),
    "collafuse-resume": ("resume state of an unfinished training", _resume),
    "collafuse-bench": ("bench report", _bench),
    "collafuse-ledger": ("ledger of uploads", _ledger),
    _KEY_FORMAT: ("secret key", _key),
}
"""Format name to what it is, and its describer."""
