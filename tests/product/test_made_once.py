"""What tests share is made by the first who asks, whole or not at all."""

import subprocess
import sys
from pathlib import Path

import made_once
import pytest
from places import SUPPORT

ASK = """
import sys, time
from pathlib import Path
import made_once
made_once.share_in(Path(sys.argv[1]))

def make(path):
    path.mkdir()
    time.sleep(0.3)
    (path / "whole").touch()

print([file.name for file in made_once.made_once("thing", make).iterdir()])
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(made_once, "_of_the_run", [tmp_path])
    return tmp_path


def test_processes_that_ask_at_once_get_one_whole_thing(tmp_path: Path) -> None:
    asking = [
        subprocess.Popen([sys.executable, "-c", ASK, tmp_path], cwd=SUPPORT, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [process.communicate()[0] for process in asking] == ["['whole']\n"] * 3


def test_what_failed_is_made_anew_from_nothing(folder: Path) -> None:
    def fail(path: Path) -> None:
        path.mkdir()
        (path / "half").touch()
        raise ValueError("no luck")

    with pytest.raises(ValueError, match="no luck"):
        made_once.made_once("thing", fail)
    assert list(made_once.made_once("thing", Path.mkdir).iterdir()) == []
    assert made_once.made_once("thing", fail) == folder / "thing"


def test_one_thing_may_be_made_of_another(folder: Path) -> None:
    def outer(path: Path) -> None:
        made_once.made_once("inner", Path.mkdir).rename(path)

    made_once.made_once("outer", outer)
    assert sorted(path.name for path in folder.iterdir()) == ["inner.lock", "outer", "outer.lock"]
