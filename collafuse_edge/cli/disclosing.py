"""Commands that say what is told to whom: disclose before an upload, audit of a trained network."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from collafuse_edge.cli.parts.config import keeps_options
from collafuse_edge.cli.parts.data_options import DataChoice, chooses_images
from collafuse_edge.cli.parts.fields import takes
from collafuse_edge.cli.parts.output import (
    JsonOption,
    OutFolder,
    OverwriteOption,
    PlanOption,
    emit,
    progress,
    refuse_options,
)
from collafuse_edge.cli.parts.training_options import Threads
from collafuse_edge.disclosure.settings import DisclosureSettings
from collafuse_runtimes.errors import InputError

Images = Annotated[DataChoice, typer.Argument(help="The site's images, of any kind (as --data elsewhere).")]


@keeps_options
@chooses_images
@takes("settings", DisclosureSettings)
def disclose(
    *,
    context: typer.Context,
    data: Images,
    plan: PlanOption,
    out: OutFolder,
    settings: DisclosureSettings,
    threads: Threads = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Attack your own upload before it leaves: what could be guessed, who could be named, what is guaranteed."""
    from functools import partial

    from collafuse_benchmarks.disclosure.page import PRIVATE, describe_disclosure, disclosure_document
    from collafuse_benchmarks.disclosure.report import KIND
    from collafuse_benchmarks.pages.folder import ReportFolder, require_place
    from collafuse_edge.disclosure.run import disclose
    from collafuse_edge.torch_threads import torch_threads
    from collafuse_runtimes.files.plan_file import read_plan

    if settings.shard is None:
        refuse_options(context, ("key",), "without --shard no tensor is anybody's")
    else:
        refuse_options(context, ("cuts",), "a shard has its own cut")
    if settings.attacker is not None:
        refuse_options(context, ("attacker_steps",), "--attacker is trained already")
    require_place(out, overwrite=overwrite)
    split_plan = read_plan(plan)
    with torch_threads(threads), progress("attacker", settings.attacker_steps) as show:
        done = disclose(data.load, split_plan, settings, lambda step, _: show(step, "steps"))
    make_document = partial(disclosure_document, picture=done.picture)
    with ReportFolder(out, KIND, make_document, overwrite=overwrite) as folder:
        folder.save(done.report)
    assert folder.saved is not None
    wrote = [f"wrote     {out}", *([] if folder.note is None else [f"note      {folder.note}"]), f"warning   {PRIVATE}"]
    emit(folder.saved.payload, as_json, *describe_disclosure(done.report), *wrote)


@dataclass(frozen=True)
class Asked:
    """What a network is compared with."""

    others: Annotated[
        str | None, typer.Option(help="Images of the same kind that it never saw. Default: --data's --other-split.")
    ] = None
    other_split: Annotated[str | None, typer.Option(help="Split of --others.")] = None
    generated: Annotated[
        Path | None, typer.Option(help="Images it made, to look for copies: folder of `infer`, or hand-over file.")
    ] = None
    seed: Annotated[int, typer.Option(help="Seed of the halves.")] = 0


@keeps_options
@chooses_images
@takes("asked", Asked)
def audit(
    *,
    checkpoint: Annotated[Path, typer.Argument(help="Folder written by train-server or train-client.")],
    data: DataChoice,
    asked: Asked,
    threads: Threads = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a trained network which images it knows; --data: some it was trained on."""
    from collafuse_edge.disclosure.audit import audit, describe_audit
    from collafuse_edge.torch_threads import torch_threads
    from collafuse_runtimes.files.checkpoint import read_checkpoint

    if asked.others is None and asked.other_split is None:
        raise InputError("give images it never saw: --others, or --other-split of --data")
    shape = read_checkpoint(checkpoint).plan.image_shape
    members = data.load(shape)
    unseen = DataChoice(asked.others or data.source, {**data.options, "split": asked.other_split}).load(shape)
    with torch_threads(threads):
        report = audit(checkpoint, members, unseen, asked.generated, asked.seed)
    emit(report.to_dict(), as_json, *describe_audit(report))


COMMANDS = (disclose, audit)
"""Of this module."""
