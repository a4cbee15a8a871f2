"""Releasing a shard: compare with the ledger, make, record, publish. The record stands before the shard does."""

import hashlib
import os
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from collafuse_edge.upload.findings import Finding, candidates_from, compare, release_of
from collafuse_edge.upload.key import default_key_path, load_or_create_upload_key
from collafuse_edge.upload.ledger import Ledger, ledger_path, locked, read_ledger, write_ledger
from collafuse_edge.upload.make import make_paper_shard, make_shard, require_noisy_level, require_server_part
from collafuse_edge.upload.shard import DTYPES, PROTOCOLS, Shard, write_shard
from collafuse_runtimes.checks import check_images
from collafuse_runtimes.diffusion.noise import Float32Array, check_seed
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.errors import CheckFailed, InputError
from collafuse_runtimes.files.secret_file import Secret


@dataclass(frozen=True)
class Uploaded:
    """What `upload` did.

    Attributes:
        shard: what was written.
        key_created: the key is new.
        ledger: its path.
        warnings: second looks that this upload gives or may give.
        notes: releases that tell nothing new.
    """

    shard: Shard
    key: Path
    key_created: bool
    ledger: Path
    warnings: tuple[Finding, ...]
    notes: tuple[Finding, ...]


def upload_images(
    out: Path,
    images: Float32Array,
    plan: SplitPlan,
    protocol: str,
    *,
    key: Path | None = None,
    draws: int = 8,
    seed: int = 0,
    dtype: str = "float16",
    strict: bool = False,
) -> Uploaded:
    """Make a shard, record it in the key's ledger and write it; see ``make_shard`` and ``make_paper_shard``.

    Args:
        images: x_0, (N, C, H, W) float32 in [-1, 1].
        key: file of the secret noise key, made if missing; default in the user's configuration folder.
        strict: refuse instead of warn, with nothing made.

    Raises:
        InputError: unknown protocol or dtype, the plan leaves nothing to upload, or ``out`` is the key or its ledger.
        ArtefactError: key, ledger or shard cannot be read or written, or the ledger is not this key's.
        CheckFailed: ``strict``, and there is something to warn of.
    """
    _check_request(images, plan, protocol, draws, seed, dtype)
    key = key or default_key_path()
    ledger_file = ledger_path(key)
    if os.path.realpath(out) in (os.path.realpath(key), str(ledger_file)):
        raise InputError(f"--out {out} is the key or its ledger; give the shard a name of its own")
    if strict and not key.exists():
        raise CheckFailed(
            f"refused by --strict: there is no key {key}; restore it, or make one by an upload without --strict"
        )
    secret = load_or_create_upload_key(key)
    with locked(key):
        ledger = _open_ledger(ledger_file, secret, key)
        candidates = candidates_from(images, secret.key)
        level = -1 if protocol == "paper" else plan.handover_level
        alpha_bar = 1.0 if level < 0 else plan.alpha_bar_at(level)
        found, notes = compare(candidates, alpha_bar, ledger or Ledger(), secret.key)
        warnings = (*_about_key(secret, key, ledger), *found)
        if strict and warnings:
            raise CheckFailed(f"refused by --strict: {'; '.join(w.text for w in warnings)}")
        shard = make_paper_shard(images, plan, draws, seed) if level < 0 else make_shard(images, plan, secret.key)

        def record(shard_bytes: bytes) -> None:
            release = release_of(
                candidates,
                secret.key,
                when=datetime.now(timezone.utc).isoformat(timespec="seconds"),
                protocol=protocol,
                fingerprint=plan.fingerprint,
                level=level,
                alpha_bar=alpha_bar,
                shard_sha256=hashlib.sha256(shard_bytes).hexdigest(),
            )
            write_ledger(ledger_file, secret.key, (ledger or Ledger()).with_release(release))

        write_shard(out, shard, dtype, before_rename=record)
    return Uploaded(shard, key, secret.created, ledger_file, warnings, tuple(notes))


def describe_upload(uploaded: Uploaded, path: Path) -> list[str]:
    """Lines for people: what was written and what it discloses."""
    shard = uploaded.shard
    lines = [f"wrote     {path}: {len(shard)} tensors, protocol {shard.protocol}, {path.stat().st_size} bytes"]
    if shard.protocol == "paper":
        lines.append("warning   this shard DISCLOSES every image: x_0 follows from (x_t, epsilon, t)")
    else:
        lines += [
            f"contains  each image once, with {shard.plan.noise_text}; no clean image, noise, label or file name",
            "note      noise hides detail, it is no proof of privacy: at small c a shard still resembles its images",
        ]
    return [
        *lines,
        *(f"warning   {finding.text}" for finding in uploaded.warnings),
        *(f"note      {finding.text}" for finding in uploaded.notes),
    ]


def _check_request(
    images: Float32Array, plan: SplitPlan, protocol: str, draws: int, seed: int, dtype: str
) -> None:  # before a key is made for nothing
    if protocol not in PROTOCOLS:
        raise InputError(f"unknown protocol {protocol!r}; valid: {', '.join(PROTOCOLS)}")
    if dtype not in DTYPES:
        raise InputError(f"unknown dtype {dtype!r}; valid: {', '.join(DTYPES)}")
    check_images("images", images, plan.image_shape)
    if protocol == "upload":
        require_noisy_level(plan)
        return
    require_server_part(plan)
    check_seed(seed)
    if draws < 1:
        raise InputError(f"draws {draws} out of range: must be at least 1")


def _open_ledger(path: Path, secret: Secret, key: Path) -> Ledger | None:
    """The ledger; a new key's is begun at once, so that a key without one is one that lost it."""
    ledger = read_ledger(path, secret.key, key)
    if ledger is None and secret.created:
        ledger = Ledger()
        write_ledger(path, secret.key, ledger)
    return ledger


def _about_key(secret: Secret, key: Path, ledger: Ledger | None) -> list[Finding]:
    findings = []
    if secret.created:
        text = f"new key {key}: an image uploaded before with another key gets a second look; keep it and its ledger"
        findings.append(Finding("new-key", 0, text))
    if not secret.has_checksum:
        text = (
            f"{key} is a key of an older release, whose noise was drawn otherwise: an image uploaded with that "
            "release gets a second look"
        )
        findings.append(Finding("old-key", 0, text))
    if ledger is None:
        findings.append(
            Finding(
                "no-ledger", 0, f"no ledger beside {key}: what was uploaded with it before is not known; one is begun"
            )
        )
    return findings
