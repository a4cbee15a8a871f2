"""The shell completes commands and options; the help says who runs what, and the documentation says the same."""

import os
import re
import subprocess
import sys

import pytest
from command_line import done
from places import ROOT

from collafuse_edge.cli.app import WHO, click_command


def completed(words: str) -> list[str]:
    """What bash is offered after these words, by its own protocol."""
    environment = {
        **os.environ,
        "_COLLAFUSE_EDGE_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    ended = subprocess.run(
        [sys.executable, "-m", "collafuse_edge"], capture_output=True, text=True, check=True, env=environment
    )
    return ended.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("collafuse-edge train-", ["train-client", "train-server"]),
        ("collafuse-edge bench l", ["latency"]),
        ("collafuse-edge handoff --samp", ["--sampler"]),
        ("collafuse-edge handoff --sampler dd", ["ddim", "ddpm"]),
    ],
)
def test_bash_completes(words: str, offered: list[str]) -> None:
    assert completed(words) == offered


def test_every_command_stands_once_under_who_runs_it() -> None:
    listed = [name for names in WHO.values() for name in names]
    assert sorted(listed) == sorted(click_command().commands)
    text = done("--help")
    sections = re.split(r"^(\S[^\n]*):$", text, flags=re.MULTILINE)
    found = dict(zip(sections[1::2], sections[2::2], strict=True))
    for who, names in WHO.items():
        assert tuple(re.findall(r"^  ([a-z-]+) ", found[who], re.MULTILINE)) == names


def test_the_documentation_has_the_same_table() -> None:
    rows = re.findall(
        r"^\| (?:the |a |)(\w+)[^|]* \| ((?:`[a-z-]+`(?:, )?)+) \| [^|]+ \|$",
        (ROOT / "docs" / "command_line.md").read_text(),
        re.MULTILINE,
    )
    assert [tuple(re.findall(r"`([a-z-]+)`", names)) for _, names in rows] == list(WHO.values())
    assert all(place in who.lower() for (place, _), who in zip(rows, WHO, strict=True))
