"""Long work says how long it takes, and that a busy machine is busy; none of it changes a result."""

import re
from pathlib import Path

import pytest
import torch
from command_line import refusal, run_cli
from small_product import TRAINING, product

from collafuse_edge.cli.parts.pace import Pace, duration
from collafuse_edge.torch_threads import torch_threads
from collafuse_runtimes.device.busy import busy_text
from collafuse_runtimes.files.checkpoint import read_checkpoint

PRESSURE = "some avg10={} avg60=1.00 avg300=0.00 total=1\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"


def proc(root: Path, *, pressure: float | None, load: float) -> Path:
    (root / "proc/pressure").mkdir(parents=True)
    (root / "proc/loadavg").write_text(f"{load:.2f} 9.00 9.00 1/99 1234\n")
    if pressure is not None:
        (root / "proc/pressure/cpu").write_text(PRESSURE.format(f"{pressure:.2f}"))
    return root


@pytest.mark.parametrize(
    ("pressure", "load", "cpus", "text"),
    [
        (96.9, 5.93, 2, "processes waited for a CPU in 97 % of the last 10 s, load average 5.9 on 2 CPUs"),
        (20.0, 0.3, 2, "processes waited for a CPU in 20 % of the last 10 s"),
        (None, 1.0, 1, "load average 1.0 on 1 CPU"),
        (0.0, 8.0, 16, "load average 8.0 on 16 CPUs"),
        (19.9, 0.99, 2, None),
        (0.0, 7.9, 16, None),
        (None, 0.4, 1, None),
    ],
)
def test_a_busy_machine_is_one_whose_cpus_others_use(
    pressure: float | None, load: float, cpus: int, text: str | None, tmp_path: Path
) -> None:
    assert busy_text(proc(tmp_path, pressure=pressure, load=load), cpus) == text


def test_a_machine_that_says_nothing_is_not_called_busy(tmp_path: Path) -> None:
    assert busy_text(tmp_path, 1) is None


def test_the_estimate_comes_after_the_third_step_once_and_leaves_out_the_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    times = iter([30.0, 30.5, 31.0, 32.0])  # the first step took 30 s, the next half a second each
    pace = Pace("train server", 1683, clock=lambda: next(times))
    assert [pace.step(done) for done in (1, 2, 3, 4)] == ["", "0.5 s/step", "0.5 s/step", "0.67 s/step"]
    assert capsys.readouterr().err == (
        "train server: about 14 min on this machine for the 1680 steps to come, 0.5 s each\n"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (42, "42 s"), (99, "99 s"), (100, "2 min"), (840, "14 min"), (5900, "98 min"), (11_520, "3.2 h"),
     (216_000, "2.5 days")],
)  # fmt: skip
def test_durations_are_in_the_unit_people_use(seconds: float, text: str) -> None:
    assert duration(seconds) == text


COMMANDS = {
    "train client": ("train-client", "--data", "@data.npz", "--plan", "@plan.json", *TRAINING, "--steps", 4),
    "train server": ("train-server", "@a.shard.safetensors", *TRAINING, "--steps", 4),
    "handoff": ("handoff", "--plan", "@plan.json", "--server", "@server", "--count", 2),
}


def command(name: str) -> list[object]:
    return [product() / word[1:] if isinstance(word, str) and word[0] == "@" else word for word in COMMANDS[name]]


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_say_how_long_and_whether_the_machine_is_busy(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collafuse_runtimes.device.busy.busy_text", lambda: "load average 9.0 on 2 CPUs")
    result = run_cli(*command(name), "--out", tmp_path / "out")
    assert result.code == 0, result
    first, second, *_, last = result.err.splitlines()
    assert first.startswith(f"warning   {name}: this machine is busy (load average 9.0 on 2 CPUs); every step may take")
    left = 2 if name == "handoff" else 1
    assert re.fullmatch(rf"{name}: about \d+ \w+ on this machine for the {left} steps to come, [\d.e-]+ s each", second)
    assert re.fullmatch(rf"{name} (\d)/\1 .*\b[\d.e-]+ s/step\b.*", last)
    assert name == "handoff" or re.search(r" [\d.]+ images/s$", last)
    monkeypatch.setattr("collafuse_runtimes.device.busy.busy_text", lambda: None)
    assert "busy" not in run_cli(*command(name), "--out", tmp_path / "again").err


@pytest.mark.parametrize("name", COMMANDS)
def test_threads_are_those_asked_for_and_what_was_before_comes_back(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    step = Pace.step
    monkeypatch.setattr(Pace, "step", lambda self, done: seen.append(torch.get_num_threads()) or step(self, done))
    before = torch.get_num_threads()
    assert run_cli(*command(name), "--threads", 3, "--out", tmp_path / "out").code == 0
    assert set(seen) == {3}
    assert torch.get_num_threads() == before
    line = refusal(*command(name), "--threads", 0, "--out", tmp_path / "none")
    assert line == "error: threads 0 out of range: must be 1 to 1024"
    assert not (tmp_path / "none").exists()


def test_a_quota_lowers_the_default_and_not_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr("collafuse_edge.torch_threads.threads_by_quota", lambda: 1)
    with torch_threads(None) as count:
        assert (count, torch.get_num_threads()) == (1, 1)
    with torch_threads(4) as count:
        assert (count, torch.get_num_threads()) == (4, 4)
    monkeypatch.setattr("collafuse_edge.torch_threads.threads_by_quota", lambda: None)
    with torch_threads(None) as count:
        assert count == before


def test_neither_estimate_nor_warning_changes_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collafuse_runtimes.device.busy.busy_text", lambda: "so")
    assert run_cli(*command("train client"), "--out", tmp_path / "told").code == 0
    monkeypatch.setattr("collafuse_runtimes.device.busy.busy_text", lambda: None)
    monkeypatch.setattr(Pace, "step", lambda self, done: "")
    assert run_cli(*command("train client"), "--out", tmp_path / "silent").code == 0
    told, silent = (read_checkpoint(tmp_path / name, "client").weights_sha256 for name in ("told", "silent"))
    assert told == silent
