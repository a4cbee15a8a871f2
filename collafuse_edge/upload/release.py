"""Releasing a shard: compare with the ledger, make, record, publish. The record stands before the shard does."""

import os
from dataclasses import dataclass
from pathlib import Path

from collafuse_edge.settings import PROTOCOLS, UploadSettings
from collafuse_edge.settings import SHARD_DTYPES as DTYPES
from collafuse_edge.upload.findings import Finding, candidates_from, compare, disclosed_by, release_of
from collafuse_edge.upload.key import default_key_path, load_or_create_upload_key
from collafuse_edge.upload.ledger import Ledger, ledger_path, locked, read_ledger, write_ledger
from collafuse_edge.upload.make import make_paper_shard, make_shard, require_noisy_level, require_server_part
from collafuse_edge.upload.shard import Shard, write_shard
from collafuse_runtimes.checks import check_images
from collafuse_runtimes.diffusion.noise import Float32Array, check_seed
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.errors import CheckFailed, InputError
from collafuse_runtimes.files.secret_file import Secret

DEFAULTS = UploadSettings()


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


def upload_images(out: Path, images: Float32Array, plan: SplitPlan, settings: UploadSettings = DEFAULTS) -> Uploaded:
    """Make a shard, record it in the key's ledger and write it; see ``make_shard`` and ``make_paper_shard``.

    Args:
        images: x_0, (N, C, H, W) float32 in [-1, 1].
        settings: a key that is missing is made; ``strict`` refuses instead of warning, with nothing made.

    Raises:
        InputError: unknown protocol or dtype, the plan leaves nothing to upload, or ``out`` is the key or its ledger.
        ArtefactError: key, ledger or shard cannot be read or written, or the ledger is not this key's.
        CheckFailed: ``strict``, and there is something to warn of.
    """
    _check_request(images, plan, settings)
    key = settings.key or default_key_path()
    ledger_file = ledger_path(key)
    _check_places(out, key, ledger_file, settings.strict)
    secret = load_or_create_upload_key(key)
    with locked(key):
        ledger = _open_ledger(ledger_file, secret, key)
        candidates, disclosed = candidates_from(images, secret.key), disclosed_by(settings.protocol, plan)
        found, notes = compare(candidates, disclosed.alpha_bar, ledger or Ledger(), secret.key)
        warnings = (*_about_key(secret, key, ledger), *found)
        if settings.strict and warnings:
            raise CheckFailed(f"refused by --strict: {'; '.join(w.text for w in warnings)}")
        shard = _make(images, plan, settings, secret)

        def record(shard_bytes: bytes) -> None:
            release = release_of(candidates, secret.key, disclosed, shard_bytes)
            write_ledger(ledger_file, secret.key, (ledger or Ledger()).with_release(release))

        write_shard(out, shard, settings.dtype, before_rename=record)
    return Uploaded(shard, key, secret.created, ledger_file, warnings, tuple(notes))


def _make(images: Float32Array, plan: SplitPlan, settings: UploadSettings, secret: Secret) -> Shard:
    if settings.protocol == "paper":
        return make_paper_shard(images, plan, settings.draws, settings.seed)
    return make_shard(images, plan, secret.key)


def _check_places(out: Path, key: Path, ledger: Path, strict: bool) -> None:
    if os.path.realpath(out) in (os.path.realpath(key), str(ledger)):
        raise InputError(f"--out {out} is the key or its ledger; give the shard a name of its own")
    if strict and not key.exists():
        raise CheckFailed(
            f"refused by --strict: there is no key {key}; restore it, or make one by an upload without --strict"
        )


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


def _check_request(images: Float32Array, plan: SplitPlan, settings: UploadSettings) -> None:
    """Before a key is made for nothing."""
    if settings.protocol not in PROTOCOLS:
        raise InputError(f"unknown protocol {settings.protocol!r}; valid: {', '.join(PROTOCOLS)}")
    if settings.dtype not in DTYPES:
        raise InputError(f"unknown dtype {settings.dtype!r}; valid: {', '.join(DTYPES)}")
    check_images("images", images, plan.image_shape)
    if settings.protocol == "upload":
        require_noisy_level(plan)
        return
    require_server_part(plan)
    check_seed(settings.seed)
    if settings.draws < 1:
        raise InputError(f"draws {settings.draws} out of range: must be at least 1")


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
