"""Whatever is wrong with a command, it ends in one line and exit code 2: no traceback, no usage page."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import done, refusal, run_cli

from collafuse_runtimes import __version__

COMMANDS = ("init", "upload", "train-client", "train-server", "handoff", "export", "verify", "infer")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fly",), "No such command 'fly'"),
        (("init",), "Missing option '--size'"),
        (("init", "--size"), "--size"),
        (("init", "--size", "8", "--colour", "red"), "No such option: --colour"),
        (("verify", "a.head", "--device", "0"), "No such option: --device"),
        (("export", "a.head", "--engine", "tensorrt", "--device", "0"), "No such option: --device"),
        (("init", "--size", "8", "--timesteps", "many"), "Invalid value for '--timesteps'"),
        (("init", "--size", "8", "more"), "unexpected extra argument"),
        (("train-server", "--out", "s"), "Missing argument"),
        (("handoff", "--plan", "p", "--out", "x", "--count", "2.5"), "Invalid value for '--count'"),
    ],
)
def test_usage_errors(arguments: tuple[str, ...], message: str) -> None:
    line = refusal(*arguments)
    assert message in line
    whose = "" if arguments in (("fly",), ("init", "--size")) else f" {arguments[0]}"
    assert line.endswith(f"; see `collafuse-edge{whose} --help`")


def test_help_and_version() -> None:
    assert done("--version") == f"{__version__}\n"
    listed = done("--help")
    assert all(f"  {command} " in listed for command in COMMANDS)
    for command in COMMANDS:
        assert "--json" in done(command, "--help")


def test_no_command_at_all_shows_the_help_and_is_bad_usage() -> None:
    result = run_cli()
    assert (result.code, result.out) == (2, "")
    assert "Usage:" in result.err


def test_an_interrupt_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("collafuse_edge.init.init_plan", interrupted)
    result = run_cli("init", "--size", 8, "--out", tmp_path / "p")
    assert (result.code, result.out, result.err.strip()) == (1, "", "error: stopped")


def test_data_selection_reaches_the_reader(tmp_path: Path) -> None:
    done("init", "--size", 8, "--out", tmp_path / "plan.json")
    np.savez(
        tmp_path / "d.npz",
        images=np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8),
        labels=np.arange(20) % 2,
        label_names=np.array(["left", "right"]),
        split=np.array(["train"] * 12 + ["test"] * 8),
    )
    upload = ("upload", "--data", tmp_path / "d.npz", "--plan", tmp_path / "plan.json", "--key", tmp_path / "key",
              "--out", tmp_path / "s", "--overwrite", "--json")  # fmt: skip

    def count(*options: object) -> int:
        result: int = json.loads(done(*upload, *options))["count"]
        return result

    assert (count(), count("--split", "test"), count("--limit", 5)) == (12, 8, 5)
    assert count("--class", "left") == 6
    assert count("--class", "left", "--class", "1") == 12
    assert "has no class 'up'; valid: left, right" in refusal(*upload, "--class", "up")
    assert "--slices '3' is not START:STOP; valid: for example 60:100" in refusal(*upload, "--slices", "3")
