"""Commands that say what is told to whom: disclose before an upload, audit of a trained network."""

from pathlib import Path
from typing import Annotated

import typer

from collafuse_edge.cli.parts.config import keeps_options
from collafuse_edge.cli.parts.data_options import DataChoice, chooses_images
from collafuse_edge.cli.parts.fields import takes
from collafuse_edge.cli.parts.output import JsonOption, OutFolder, OverwriteOption, PlanOption, emit, progress
from collafuse_edge.cli.parts.training_options import Threads
from collafuse_edge.disclosure.settings import DisclosureSettings
from collafuse_runtimes.errors import InputError

Images = Annotated[DataChoice, typer.Argument(help="The site's images, of any kind (as --data elsewhere).")]


@keeps_options
@chooses_images
@takes("settings", DisclosureSettings)
def disclose(
    *,
    data: Images,
    plan: PlanOption,
    out: OutFolder,
    cut: Annotated[
        list[float] | None, typer.Option(help="Cut ratio to try, repeatable. Default: 0.2 0.4 0.6 0.8 and the plan's.")
    ] = None,
    attacker: Annotated[
        Path | None, typer.Option(help="Head that guesses: the site's own is the strongest. Default: one trained here.")
    ] = None,
    shard: Annotated[
        Path | None, typer.Option(help="Finished shard of these images to attack.", metavar="X.shard.safetensors")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="--shard only: its noise key; default as for upload.")] = None,
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
    from collafuse_edge.disclosure.run import CUTS, disclose
    from collafuse_edge.torch_threads import torch_threads
    from collafuse_runtimes.files.plan_file import read_plan

    require_place(out, overwrite=overwrite)
    split_plan = read_plan(plan)
    with torch_threads(threads), progress("attacker", settings.attacker_steps) as show:
        done = disclose(
            data.load, split_plan, CUTS if cut is None else cut, settings,
            attacker=attacker, shard=shard, key=key, on_step=lambda step, _: show(step, "steps"),
        )  # fmt: skip
    make_document = partial(disclosure_document, picture=done.picture)
    with ReportFolder(out, KIND, make_document, overwrite=overwrite) as folder:
        folder.save(done.report)
    assert folder.saved is not None
    wrote = [f"wrote     {out}", *([] if folder.note is None else [f"note      {folder.note}"]), f"warning   {PRIVATE}"]
    emit(folder.saved.payload, as_json, *describe_disclosure(done.report), *wrote)


@chooses_images
def audit(
    *,
    checkpoint: Annotated[Path, typer.Argument(help="Folder written by train-server or train-client.")],
    data: DataChoice,
    others: Annotated[
        str | None, typer.Option(help="Images of the same kind that it never saw. Default: --data's --other-split.")
    ] = None,
    other_split: Annotated[str | None, typer.Option(help="Split of --others.")] = None,
    generated: Annotated[
        Path | None, typer.Option(help="Images it made, to look for copies: folder of `infer`, or hand-over file.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the halves.")] = 0,
    threads: Threads = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a trained network which images it knows; --data: some it was trained on."""
    from collafuse_edge.disclosure.audit import audit, describe_audit
    from collafuse_edge.torch_threads import torch_threads
    from collafuse_runtimes.files.checkpoint import read_checkpoint

    if others is None and other_split is None:
        raise InputError("give images it never saw: --others, or --other-split of --data")
    shape = read_checkpoint(checkpoint).plan.image_shape
    members = data.load(shape)
    unseen = DataChoice(others or data.source, {**data.options, "split": other_split}).load(shape)
    with torch_threads(threads):
        report = audit(checkpoint, members, unseen, generated, seed)
    emit(report.to_dict(), as_json, *describe_audit(report))


COMMANDS = (disclose, audit)
"""Of this module."""
