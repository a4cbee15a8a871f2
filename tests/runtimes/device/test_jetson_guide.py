"""docs/jetson.md: every collafuse-edge command in it exists, with the options it is shown with."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from places import ROOT

from collafuse_edge.cli.app import app
from collafuse_runtimes.engines import ENGINES

GUIDE = (ROOT / "docs" / "jetson.md").read_text()
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
SHOWN = re.findall(r"(?:^\$ |`)(collafuse-edge [^`\n]+)", GUIDE, re.MULTILINE)


def test_the_guide_shows_each_step_of_a_device() -> None:
    assert len(SHOWN) >= 12
    assert {command.split()[1] for command in SHOWN} == {"doctor", "verify", "infer", "export", "bench"}
    used = {engine for command in SHOWN for engine in re.findall(r"--engine (\S+)", command)}
    assert used == {"ort-cuda", "ort-tensorrt", "tensorrt"}


@pytest.mark.parametrize("command", SHOWN)
def test_a_command_can_be_parsed(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, name, *arguments = shlex.split(command)
    command_of = COMMANDS[name]
    if name == "bench":
        command_of = command_of.commands[arguments.pop(0)]
    parsed = command_of.make_context(name, arguments).params
    assert parsed.get("engine", "ort-cpu") in {*ENGINES, None}
    given = {word.removeprefix("--").replace("-", "_") for word in arguments if word.startswith("--")}
    assert all(parsed[option] is not None for option in given - {"json"})


def test_options_an_engine_is_shown_with_are_its_own() -> None:
    for command in SHOWN:
        for engine in set(re.findall(r"--engine (\S+)", command)):
            for option in ("threads", "spinning", "checkpoint", "gpu", "cache"):
                if f"--{option} " in command:
                    assert option in ENGINES[engine].options, command


def test_its_links_and_files_exist() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", GUIDE):
        assert (ROOT / "docs" / link).exists(), link
    for path in ("runtimes/device-constraints.txt", "tests/support/arm64_root.sh"):
        assert (ROOT / path).exists()


def test_the_cache_folder_it_names_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    from collafuse_runtimes.engines.ort.gpu import default_cache

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert f"`{default_cache()}`".replace("/home/somebody", "~") in GUIDE
