"""The Typer application; one module per group of people."""

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from collafuse_edge.cli import (
    bench,
    disclosing,
    distilling,
    edge,
    exporting,
    importing,
    inspecting,
    quality,
    server,
    site,
)
from collafuse_edge.cli.parts.config import take_files
from collafuse_edge.cli.parts.paths import expand_homes, keep_inputs
from collafuse_edge.cli.parts.verbose import speak

WHO = {
    "On the site that owns the images": ("init", "disclose", "upload", "train-client"),
    "On the server": ("train-server", "handoff"),
    "On a workstation": ("distill", "export", "import"),
    "On the device": ("verify", "infer", "doctor"),
    "Anywhere": ("inspect", "evaluate", "audit", "bench", "demo"),
}
"""Who runs what; the order of the help."""


class ByWho(TyperGroup):
    """The commands of ``--help`` under who runs them."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each line of ``WHO``."""
        limit = formatter.width - 6 - max(map(len, self.commands))
        for who, names in WHO.items():
            with formatter.section(who):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(limit)) for name in names])


app = typer.Typer(
    name="collafuse-edge",
    cls=ByWho,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Before the command: say on stderr what is chosen, read and written.")
    ] = False,
) -> None:
    """Split diffusion between a server and an edge device: train, export, run and measure a head."""
    speak(verbose)
    if version:
        from collafuse_runtimes import __version__

        print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(2)


for group in (site, disclosing, server, distilling, exporting, edge, inspecting, quality):
    for command in group.COMMANDS:
        app.command()(command)
app.command("import")(importing.import_network)  # a name that no Python function can have
app.add_typer(bench.app)
for info in (*app.registered_commands, *bench.app.registered_commands):
    info.callback = None if info.callback is None else keep_inputs(info.callback)


def click_command() -> Any:
    """The click command of the whole command line."""
    return take_files(expand_homes(typer.main.get_command(app)))
