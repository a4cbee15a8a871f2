"""What takes one of a fixed set says so: in --help, to the shell's completion, and to who wrote another value."""

import re
from typing import Any, Literal, get_args

import pytest
from command_line import done, refusal
from test_command_line_paths import COMMANDS

from collafuse_benchmarks.measure.timing import MODES
from collafuse_edge import settings
from collafuse_edge.cli.parts import choices
from collafuse_edge.training.presets import PRESETS
from collafuse_edge.training.settings import LR_SCHEDULES, MIXED_PRECISIONS
from collafuse_edge.upload import shard
from collafuse_runtimes.diffusion.levels import LEVELS
from collafuse_runtimes.diffusion.plan import PREDICTION_TYPES
from collafuse_runtimes.diffusion.samplers import SAMPLERS
from collafuse_runtimes.diffusion.schedule import SCHEDULES
from collafuse_runtimes.engines import ENGINES
from collafuse_runtimes.files import handover
from collafuse_runtimes.files.bundle_manifest import PRECISIONS
from collafuse_runtimes.files.checkpoint import ROLES

SETS: list[tuple[str, str, Any, Any]] = [
    ("init", "--schedule", Literal[settings.SCHEDULES], SCHEDULES),
    ("init", "--prediction", Literal[settings.PREDICTIONS], PREDICTION_TYPES),
    ("init", "--server-prediction", Literal[settings.PREDICTIONS], PREDICTION_TYPES),
    ("upload", "--protocol", Literal[settings.PROTOCOLS], shard.TENSORS),
    ("upload", "--dtype", Literal[settings.SHARD_DTYPES], settings.SHARD_DTYPES),
    ("train-client", "--preset", choices.Preset, PRESETS),
    ("train-server", "--preset", choices.Preset, PRESETS),
    ("train-server", "--lr-schedule", Literal[LR_SCHEDULES], LR_SCHEDULES),
    ("train-client", "--mixed-precision", Literal[MIXED_PRECISIONS], MIXED_PRECISIONS),
    ("handoff", "--sampler", choices.Sampler, SAMPLERS),
    ("handoff", "--dtype", choices.HandoverDtype, handover.DTYPES),
    ("export", "--sampler", choices.Sampler, SAMPLERS),
    ("export", "--precision", choices.Precision, PRECISIONS),
    ("export", "--engine", choices.BuiltEngine, ("tensorrt", "tensorrt-rtx")),
    ("verify", "--engine", choices.Engine, ENGINES),
    ("infer", "--engine", choices.Engine, ENGINES),
    ("import", "--role", choices.Role, ROLES),
    ("bench latency", "--engine", choices.Engine, ENGINES),
    ("bench latency", "--mode", choices.Mode, MODES),
    ("bench energy", "--engine", choices.Engine, ENGINES),
    ("bench split", "--mode", choices.Mode, MODES),
    ("bench split", "--dtype", choices.HandoverDtype, handover.DTYPES),
]
sets = pytest.mark.parametrize(("command", "option", "choice", "valid"), SETS)


def test_levels_have_the_librarys_names() -> None:
    assert choices.LEVELS == LEVELS


@sets
def test_the_set_is_the_librarys_and_in_the_help(command: str, option: str, choice: Any, valid: Any) -> None:
    assert set(get_args(choice)) == set(valid)
    assert "|".join(get_args(choice)) in re.sub(r"\s", "", done(*command.split(), "--help"))


@sets
def test_another_value_is_told_the_valid_ones(command: str, option: str, choice: Any, valid: Any) -> None:
    line = refusal(*command.split(), option, "of another kind")
    expected = f"unknown {option[2:]} 'of another kind'; valid: {', '.join(get_args(choice))}"
    assert line == f"error: {expected}; see `collafuse-edge {command} --help`"


def offered(command: str, option: str, begun: str) -> list[str]:
    leaf = COMMANDS[command]
    parameter = next(p for p in leaf.params if option in p.opts)
    with leaf.context_class(leaf) as context:
        return [item.value for item in parameter.shell_complete(context, begun)]


@sets
def test_completion_offers_the_set(command: str, option: str, choice: Any, valid: Any) -> None:
    assert offered(command, option, "") == list(get_args(choice))


@pytest.mark.parametrize(
    ("command", "option", "begun", "items"),
    [("handoff", "--levels", "k", ["karras"]), ("bench split", "--engine", "open", ["openvino", "openvino-bf16"])],
)
def test_completion_offers_names_where_more_than_a_name_is_taken(
    command: str, option: str, begun: str, items: list[str]
) -> None:
    assert offered(command, option, begun) == items
