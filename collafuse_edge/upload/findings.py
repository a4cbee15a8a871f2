"""What an upload would tell beyond one look at each image, by what the ledger knows."""

import hashlib
from dataclasses import asdict, dataclass
from datetime import datetime, timezone

import numpy as np

from collafuse_edge.upload.brownian import grid_index, level_time
from collafuse_edge.upload.key import image_digest
from collafuse_edge.upload.ledger import Ledger, Release, image_id, new_nonce, opened_hashes, seal_hashes
from collafuse_edge.upload.similarity import Hashes, alike, perceptual_hashes
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.diffusion.plan import SplitPlan


@dataclass(frozen=True)
class Finding:
    """One line for people.

    Attributes:
        kind: "new-key", "old-key", "no-ledger", "near-released", "near-each-other", "cleaner-level" (warnings);
            "same-level", "noisier-level" (notes: nothing new is told).
        count: images it is about; 0 where it is about the key.
        text: what was found and what it means.
    """

    kind: str
    count: int
    text: str


@dataclass(frozen=True)
class Candidates:
    """The distinct images of a set, as the ledger knows images.

    Attributes:
        ids: image id to the set's first row with that image.
        hashes: (N, 32), one per id, in that order.
        size: (H, W).
    """

    ids: dict[str, int]
    hashes: Hashes
    size: tuple[int, int]


@dataclass(frozen=True)
class Disclosed:
    """What a release shows of its images.

    Attributes:
        protocol, fingerprint: of the upload, and of its plan.
        level: of the tensors; -1 where the image itself follows from them.
        alpha_bar: of that level; 1.0 of a clean image.
    """

    protocol: str
    fingerprint: str
    level: int
    alpha_bar: float


def candidates_from(images: Float32Array, key: bytes) -> Candidates:
    """Args: images (N, C, H, W) float32 in [-1, 1]."""
    ids: dict[str, int] = {}
    for row, x_0 in enumerate(images):
        ids.setdefault(image_id(key, image_digest(key, x_0)), row)
    rows = sorted(ids.values())
    return Candidates(ids, perceptual_hashes(images[rows]), (int(images.shape[2]), int(images.shape[3])))


def compare(
    candidates: Candidates, alpha_bar: float, ledger: Ledger, key: bytes
) -> tuple[list[Finding], list[Finding]]:
    """(warnings, notes) about releasing the candidates at ``alpha_bar`` (1.0: clean)."""
    cleanest = _cleanest(ledger)
    now = grid_index(level_time(alpha_bar))
    known = [(cleanest[name], name) for name in candidates.ids if name in cleanest]
    cleaner = sum(before > now for before, _ in known)
    same = sum(before == now for before, _ in known)
    noisier = len(known) - cleaner - same
    total = len(candidates.ids)
    warnings = _near(candidates, cleanest, ledger, key)
    notes = []
    if cleaner:
        warnings.append(
            Finding(
                "cleaner-level", cleaner, f"{cleaner} of {total} images were released at a noisier level before: "
                "from now on they are as open as at this cleaner one",
            )
        )  # fmt: skip
    if same:
        notes.append(
            Finding("same-level", same, f"{same} of {total} images were released at this level before: nothing new")
        )
    if noisier:
        text = (
            f"{noisier} of {total} images were released at a cleaner level before: this noisier one tells nothing new"
        )
        notes.append(Finding("noisier-level", noisier, text))
    return warnings, notes


def disclosed_by(protocol: str, plan: SplitPlan) -> Disclosed:
    """What an upload shows: the image itself by ``paper``, else the hand-over level of the plan."""
    level = -1 if protocol == "paper" else plan.handover_level
    alpha_bar = 1.0 if level < 0 else plan.alpha_bar_at(level)
    return Disclosed(protocol, plan.fingerprint, level, alpha_bar)


def release_of(candidates: Candidates, key: bytes, disclosed: Disclosed, shard: bytes) -> Release:
    """The ledger's entry for a shard of the candidates, made now; ``shard`` is its file."""
    order = sorted(range(len(candidates.ids)), key=list(candidates.ids).__getitem__)
    nonce = new_nonce()
    hashes = seal_hashes(key, nonce, candidates.hashes[order].tobytes())
    return Release(
        when=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **asdict(disclosed),
        size=candidates.size,
        shard_sha256=hashlib.sha256(shard).hexdigest(),
        images=tuple(sorted(candidates.ids)),
        nonce=nonce.hex(),
        hashes=hashes.hex(),
    )


def _cleanest(ledger: Ledger) -> dict[str, int]:
    """Image id to the grid index of the cleanest level it was released at."""
    cleanest: dict[str, int] = {}
    for release in ledger.releases:
        index = grid_index(level_time(release.alpha_bar))
        for name in release.images:
            cleanest[name] = min(index, cleanest.get(name, index))
    return cleanest


def _near(candidates: Candidates, cleanest: dict[str, int], ledger: Ledger, key: bytes) -> list[Finding]:
    """Copies among the images that are new: of released ones, and of each other."""
    new = [i for i, name in enumerate(candidates.ids) if name not in cleanest]
    rows, hashes, size = list(candidates.ids.values()), candidates.hashes[new], candidates.size
    like_released = np.zeros(len(new), bool)
    for release in ledger.releases:
        for start, block in alike(hashes, size, opened_hashes(key, release), release.size):
            like_released[start : start + len(block)] |= block.any(axis=1)
    like_other = np.full(len(new), -1)  # the first other one it looks like
    for start, block in alike(hashes, size, hashes, size):
        np.fill_diagonal(block[:, start:], False)
        like_other[start : start + len(block)] = np.where(block.any(axis=1), block.argmax(axis=1), -1)
    findings = []
    if count := int(like_released.sum()):
        first = rows[new[int(like_released.argmax())]]
        findings.append(
            Finding(
                "near-released", count, f"{count} of {len(rows)} images look like ones "
                f"released before (first: image {first} of the data): each copy is a second look at its image",
            )
        )  # fmt: skip
    if count := int((like_other >= 0).sum()):
        one = int((like_other >= 0).argmax())
        first, second = rows[new[one]], rows[new[int(like_other[one])]]
        findings.append(
            Finding(
                "near-each-other", count, f"{count} of {len(rows)} images look like "
                f"others of this set (first: images {first} and {second} of the data): each copy is a second look",
            )
        )  # fmt: skip
    return findings
