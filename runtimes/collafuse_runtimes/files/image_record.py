"""``images.json`` beside the images of `infer`: what made them (docs/formats.md)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.diffusion.samplers import Sampler
from collafuse_runtimes.errors import ArtefactError, CollafuseError, InputError
from collafuse_runtimes.files.bundle import HeadBundle
from collafuse_runtimes.files.handover import Handover
from collafuse_runtimes.files.sealed import read_json, sha256_file, write_json

FORMAT = "collafuse-images"
RECORD_FILE = "images.json"


@dataclass(frozen=True)
class ImageRecord:
    """Where images, or hand-over tensors, come from.

    Attributes:
        plan: the split plan.
        count: images.
        seed, first_index: of the hand-over; row i has sample index first_index + i.
        server: ``sampler`` (name, eta), ``steps`` and ``weights_sha256`` (None where no server ran).
        head: ``name`` of the bundle, ``weights_sha256``, ``precision``, ``sampler``, ``steps`` and ``engine``; None for
            hand-over tensors, which no head has seen.
    """

    plan: SplitPlan
    count: int
    seed: int
    first_index: int
    server: dict[str, Any]
    head: dict[str, Any] | None


def record_of_handover(handover: Handover) -> ImageRecord:
    """What a hand-over file states about itself."""
    server = {
        "sampler": handover.sampler,
        "steps": len(handover.timesteps),
        "weights_sha256": handover.server_sha256,
    }
    return ImageRecord(handover.plan, len(handover), handover.seed, handover.first_index, server, None)


def write_record(folder: Path, bundle: HeadBundle, handover: Handover, steps: int, engine: str, array: Path) -> None:
    """Write ``images.json`` into a folder of images.

    Args:
        array: images.npz in it, whose sha256 ties the two together.

    Raises:
        ArtefactError: the file cannot be written.
    """
    record = record_of_handover(handover)
    payload = {
        "plan": record.plan.to_dict(),
        "fingerprint": record.plan.fingerprint,
        "count": record.count,
        "seed": record.seed,
        "first_index": record.first_index,
        "server": record.server,
        "head": {
            "name": bundle.path.name,
            "weights_sha256": bundle.network.weights_sha256,
            "precision": bundle.precision,
            "sampler": bundle.sampler.to_dict(),
            "steps": steps,
            "engine": engine,
        },
        "images_sha256": sha256_file(array),
    }
    write_json(folder / RECORD_FILE, FORMAT, payload)


def read_record(array: Path) -> ImageRecord | None:
    """The record beside an images.npz; None where there is none, as in folders of older releases.

    Raises:
        ArtefactError: it is damaged, lacks a field or is that of other images.
    """
    path = array.parent / RECORD_FILE
    if not path.exists():
        return None
    payload = read_json(path, FORMAT)
    if payload.get("images_sha256") != sha256_file(array):
        raise ArtefactError(f"{path} is the record of other images than {array.name}; run `infer` again")
    try:
        record = ImageRecord(
            SplitPlan.from_payload(payload),
            _integer(payload, "count"),
            _integer(payload, "seed"),
            _integer(payload, "first_index"),
            _fields(payload["server"], "sampler", "steps", "weights_sha256"),
            _fields(payload["head"], "name", "weights_sha256", "precision", "sampler", "steps", "engine"),
        )
    except (KeyError, TypeError) as error:
        raise ArtefactError(f"{path} lacks or garbles a field ({error}); run `infer` again") from None
    except CollafuseError as error:
        raise ArtefactError(f"{path}: {error}") from None
    return record


def _integer(payload: dict[str, Any], key: str) -> int:
    value = payload[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InputError(f"{key} is {value!r}; valid: integers of at least 0")
    return value


def _fields(value: dict[str, Any], *names: str) -> dict[str, Any]:
    found = {name: value[name] for name in names}
    _integer(found, "steps")
    Sampler(**found["sampler"])
    return found
