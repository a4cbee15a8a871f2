"""Every command in the README and in docs/session.md runs and prints what is shown; the README's Python runs."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import run_cli
from places import ROOT

README = (ROOT / "README.md").read_text()
SESSION = (ROOT / "docs" / "session.md").read_text()
FIGURES = re.compile(r"\d[\d.e+-]*")


def console_blocks(text: str) -> list[list[str]]:
    return [block.splitlines() for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL)]


def session(text: str) -> list[tuple[str, list[str]]]:
    """(command, shown output lines) of the blocks that run `collafuse-edge`."""
    commands: list[tuple[str, list[str]]] = []
    for block in console_blocks(text):
        for line in block:
            if line.startswith("$ "):
                commands.append((line[2:], []))
            else:
                commands[-1][1].append(line)
    return [entry for entry in commands if entry[0].startswith("collafuse-edge")]


def shape(line: str) -> str:
    """A line with its figures blotted out: times, sizes and losses differ from run to run."""
    return FIGURES.sub("#", line)


def in_a_process(command: str, folder: Path) -> str:
    program = shutil.which("collafuse-edge", path=str(Path(sys.executable).parent))
    done = subprocess.run([str(program), *command.split()[1:]], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def quickly(command: str, folder: Path) -> str:
    """In this process, with a fifteenth of the training steps."""
    result = run_cli(*command.replace("--steps 60", "--steps 4").split()[1:])
    assert result.code == 0, f"{command}: {result.err}"
    return result.out


@pytest.mark.parametrize("run", [quickly, pytest.param(in_a_process, marks=pytest.mark.full)])
def test_the_session_runs_and_prints_what_is_shown(
    run: Callable[[str, Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = session(SESSION)
    assert len(commands) >= 7
    for command, shown in commands:
        said = run(command, tmp_path)
        assert [shape(line) for line in said.splitlines()] == [shape(line) for line in shown], command
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    subprocess.run([sys.executable, "-c", f"{code}\nassert images.shape == (4, 1, 32, 32)"], cwd=tmp_path, check=True)


def test_the_readmes_commands_are_those_of_the_session() -> None:
    shown = [command for command, _ in session(README)]
    assert [command.split()[1] for command in shown] == [
        *("upload", "train-server", "train-client", "handoff", "export", "infer"),
    ]
    assert set(shown) <= {command for command, _ in session(SESSION)}


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120


def test_the_other_commands_are_make_targets_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {line.split()[2] for block in console_blocks(README) for line in block if line.startswith("$ make")}
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_ci_runs_the_readmes_own_test_command_and_the_rest_of_the_tests() -> None:
    commands = (ROOT / ".ci" / "run").read_text().splitlines()
    assert {"make check", "make docs", "make test", "make test-full"} <= set(commands)


def test_links_and_pictures_exist() -> None:
    for page in (README, SESSION, (ROOT / "docs" / "results.md").read_text()):
        folder = ROOT if page is README else ROOT / "docs"
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page):
            assert link.startswith("http") or (folder / link).exists(), link


@pytest.mark.slow
def test_make_demo_ends_in_eight_minutes(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    subprocess.run(["make", "demo"], cwd=clone, check=True, timeout=480)
    assert (clone / "demo-out" / "demo.png").stat().st_size > 1000
