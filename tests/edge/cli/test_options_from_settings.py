"""Options of a command that are fields of a settings dataclass: name, type, default and help stand there, once."""

from dataclasses import dataclass, field, fields
from typing import Annotated, get_type_hints

import pytest
import typer
from test_command_line_paths import COMMANDS
from typer.testing import CliRunner

from collafuse_benchmarks.energy.settings import EnergySettings
from collafuse_benchmarks.split.settings import Limits
from collafuse_edge.cli.parts.fields import Values, takes
from collafuse_edge.settings import PlanSettings, UploadSettings
from collafuse_edge.training.settings import TrainSettings
from collafuse_runtimes.engine_options import EngineOptions

OWN = {
    "train-server": {"steps": 20_000, "batch_size": 64, "learning_rate": 5e-4, "warmup_steps": 500},
    "train-client": {"learning_rate": None},
    "distill": {"learning_rate": 3e-4, "warmup_steps": 20, "ema_decay": 0.995},
}
"""Defaults that are a command's own."""
OF_THE_DEVICE = {"mixed_precision": None, "channels_last": None}
DISTILL = ["batch_size", "learning_rate", "warmup_steps", "ema_decay", "seed"]
TRAINING = [f.name for f in fields(TrainSettings)]
ENGINE = [f.name for f in fields(EngineOptions)]
TAKEN = [
    *((command, TrainSettings, TRAINING) for command in ("train-server", "train-client")),
    ("distill", TrainSettings, DISTILL),
    *((command, EngineOptions, ENGINE) for command in ("verify", "infer")),
    *((f"bench {what}", EngineOptions, ENGINE) for what in ("latency", "energy")),
    ("bench split", EngineOptions, ["threads", "gpu", "cache"]),
    ("export", EngineOptions, ["gpu", "cache"]),
    ("bench energy", EnergySettings, ["trials", "window_s", "idle_s"]),
    *((c, s, [f.name for f in fields(s)]) for c, s in (("init", PlanSettings), ("upload", UploadSettings))),
    ("bench split", Limits, [f.name for f in fields(Limits)]),
]


@pytest.mark.parametrize(("command", "settings", "names"), TAKEN)
def test_defaults_and_help_are_those_of_the_fields(command: str, settings: type, names: list[str]) -> None:
    options = {p.name: p for p in COMMANDS[command].params}
    defaults = {f.name: f.default for f in fields(settings)} | OWN.get(command, {})
    if command.startswith("train-"):
        defaults |= OF_THE_DEVICE
    for name in names:
        assert options[name].default == defaults[name], name
        assert options[name].help == get_type_hints(settings, include_extras=True)[name].__metadata__[0], name
        assert options[name].opts == [f"--{name.replace('_', '-')}"]


@dataclass(frozen=True)
class Oven:
    heat: Annotated[int, "Degrees."] = 180
    mode: Annotated[str, "Where the heat comes from.", ("top", "fan")] = "fan"
    light: Annotated[bool, "Lamp."] = False


@dataclass(frozen=True)
class Cake:
    dish: Annotated[str, typer.Argument(help="What it becomes.")]
    oven: Annotated[Oven, ("heat", "light")] = field(default_factory=Oven)
    minutes: Annotated[int | None, typer.Option("--min", help="How long.")] = None


def bake_cake(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()

    @app.command()
    @takes("cake", Cake)
    def command(*, cake: Cake, loud: bool = False) -> None:
        print(cake, loud)

    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output.strip()


def test_a_command_gets_the_dataclass_and_those_inside_it() -> None:
    oven = "oven=Oven(heat={}, mode='fan', light={})"
    assert bake_cake("pie") == (0, f"Cake(dish='pie', {oven.format(180, False)}, minutes=None) False")
    given = bake_cake("pie", "--heat", "90", "--light", "--min", "4", "--loud")
    assert given == (0, f"Cake(dish='pie', {oven.format(90, True)}, minutes=4) True")


def test_a_field_without_default_is_asked_for_and_one_left_out_inside_is_refused() -> None:
    assert bake_cake()[0] == 2
    assert bake_cake("pie", "--mode", "top")[0] == 2


def bake(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()

    @app.command()
    @takes("oven", Oven, only=("heat", "mode"), heat=200)
    def command(*, dish: str, oven: Values, minutes: int = 5) -> None:
        print(dish, Oven(**oven), minutes)

    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output.strip()


def test_a_command_gets_the_fields_values_and_its_own_defaults() -> None:
    assert bake("pie") == (0, "pie Oven(heat=200, mode='fan', light=False) 5")
    assert bake("--heat", "90", "--mode", "top", "pie")[1] == "pie Oven(heat=90, mode='top', light=False) 5"


def test_a_field_left_out_or_outside_its_set_is_refused() -> None:
    assert bake("pie", "--light")[0] == 2
    assert bake("pie", "--mode", "grill")[0] == 2
