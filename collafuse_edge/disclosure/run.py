"""The whole of `disclose`: read, halve, find an attacker, attack every cut."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from collafuse_benchmarks.disclosure.attacks import fit_prior
from collafuse_benchmarks.disclosure.measure import Material, attack_cut, second_look_level
from collafuse_benchmarks.disclosure.report import DisclosureReport
from collafuse_edge.data import ImageSet
from collafuse_edge.disclosure.attacker import Attacker, OnStep, nobody, of_checkpoint, trained_here
from collafuse_edge.disclosure.halves import Halves, Shape, make_halves, own_shape
from collafuse_edge.disclosure.picture import rows_of
from collafuse_edge.disclosure.settings import DisclosureSettings
from collafuse_edge.disclosure.shards import released_rows
from collafuse_edge.upload.make import require_noisy_level
from collafuse_edge.upload.shard import read_shard
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.diffusion.plan import SplitPlan, require_same_plan
from collafuse_runtimes.files.images import encode_rows


@dataclass(frozen=True)
class Disclosed:
    """A report, and the picture that belongs to it and to nobody else."""

    report: DisclosureReport
    picture: bytes


def disclose(
    load: Callable[[Shape], ImageSet],
    plan: SplitPlan,
    settings: DisclosureSettings,
    on_step: OnStep = lambda done, total: None,
) -> Disclosed:
    """Attack what an upload would be, at the plan's cut and at others.

    Args:
        load: (C, H, W) -> the images at that size, the same ones in the same order.
        on_step: called with (steps done, steps in all) of the attacker's training.

    Raises:
        InputError: a cut leaves nothing to upload, or there are too few images.
        ArtefactError, PlanMismatch: of the attacker's checkpoint, the shard or the key.
        CheckFailed: the shard is of the paper's protocol, which discloses every image.
        EngineUnavailable: the [evidence] extra is not installed.
    """
    started, shard = time.monotonic(), settings.shard
    plans = [plan.with_cut_ratio(c) for c in sorted({*(() if shard else settings.cut_ratios), plan.cut_ratio})]
    for one in plans:
        require_noisy_level(one)
    images = load(plan.image_shape)
    halves = make_halves(images, settings.attacked, settings.seed)
    released = None if shard is None else _of_shard(shard, plan, images, settings.key)[halves.candidates]
    who = _attacker(images.images[halves.references], plans, settings, on_step)
    own, bounded = _own_size(load, images, halves)
    material = Material(
        attacked=images.images[halves.attacked],
        candidates=images.images[halves.candidates],
        own_size=own,
        prior=fit_prior(images.images[halves.references]),
        network=who.guess,
        network_level=who.level,
        no_network=who.why_none,
        released=released,
    )
    seed, delta, per_patient = settings.seed, settings.delta, settings.images_per_patient
    attacked = [attack_cut(material, one, seed=seed, delta=delta, images_per_patient=per_patient) for one in plans]
    report = DisclosureReport(
        data=images.source if images.source.startswith("phantom:") else Path(images.source).name,
        plan=plan,
        fingerprint=plan.fingerprint,
        images=len(images),
        groups=halves.groups,
        attacked=len(halves.attacked),
        references=len(halves.references),
        attacker=who.text,
        seed=seed,
        seconds=time.monotonic() - started,
        notes=() if bounded is None else (bounded,),
        cuts=tuple(one.cut for one in attacked),
    )
    return Disclosed(report, encode_rows(rows_of(material.attacked, attacked)))


def _attacker(
    references: Float32Array, plans: Sequence[SplitPlan], settings: DisclosureSettings,
    on_step: OnStep,
) -> Attacker:  # fmt: skip
    if settings.attacker is not None:
        return of_checkpoint(settings.attacker, plans[0])
    if settings.attacker_steps == 0:
        return nobody()
    levels = sorted({level for plan in plans for level in (plan.handover_level, second_look_level(plan))})
    return trained_here(plans[0], references, levels, settings.attacker_steps, settings.seed, on_step)


def _own_size(
    load: Callable[[Shape], ImageSet], images: ImageSet, halves: Halves
) -> tuple[Float32Array | None, str | None]:
    shape, note = own_shape(images, len(images))
    return (None if shape is None else load(shape).images[halves.candidates]), note


def _of_shard(path: Path, plan: SplitPlan, images: ImageSet, key: Path | None) -> Float32Array:
    shard = read_shard(path)
    require_same_plan(plan, "the plan", shard.plan, str(path))
    return released_rows(shard, str(path), images.images, key)
