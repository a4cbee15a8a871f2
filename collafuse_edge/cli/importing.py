"""The command `import`."""

from pathlib import Path
from typing import Annotated

import typer

from collafuse_edge.cli.parts.choices import Role
from collafuse_edge.cli.parts.output import JsonOption, OutFolder, PlanOption, emit


def import_network(
    source: Annotated[Path, typer.Argument(help="Folder of diffusers: a UNet2DModel, or a DDPM or DDIM pipeline.")],
    role: Annotated[Role, typer.Option(help="Whose network it becomes: a server's, or a client's head.")],
    plan: PlanOption,
    out: OutFolder,
    scheduler: Annotated[
        Path | None, typer.Option(help="Its scheduler_config.json. Default: the one in the folder.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Take a network that diffusers trained as a server or head checkpoint, if it fits the plan."""
    from dataclasses import asdict

    from collafuse_edge.importing.network import describe_import
    from collafuse_edge.importing.network import import_network as run
    from collafuse_runtimes.files.plan_file import read_plan

    report = run(source, out, role, read_plan(plan), scheduler)
    result = {key: value for key, value in asdict(report).items() if key not in ("plan", "network")}
    emit(result, as_json, *describe_import(report))
