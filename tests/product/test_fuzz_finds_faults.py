"""The fuzzer sees what it looks for: crashes, hangs, greed, unclear refusals and accepted changes."""

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from places import TESTS

sys.path.insert(0, str(TESTS / "fuzz"))

import mutations
import trial
from corpus import KINDS


def refuse() -> int:
    print("error: x is 3; valid: 0 to 2", file=sys.stderr)
    return 2


def say_nothing() -> int:
    return 2


def crash() -> int:
    raise ZeroDivisionError


def hang() -> int:
    time.sleep(60)
    return 0


def take_memory() -> int:
    return len(bytearray(400 << 20)) and 0


def say_too_much() -> int:
    print("error: " + "x" * 5000, file=sys.stderr)
    return 2


def colour_the_terminal() -> int:
    print("error: \x1b[31mred", file=sys.stderr)
    return 2


def die() -> int:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)
    return 0


CASES: dict[Callable[[], int], str | None] = {
    refuse: None,
    say_nothing: "without one line",
    crash: "traceback",
    hang: "over 1 s",
    take_memory: "MB",
    say_too_much: "5007 characters",
    colour_the_terminal: "control characters",
    die: "crash",
}


@pytest.mark.parametrize("behaviour", CASES, ids=lambda b: b.__name__)
def test_a_command_s_behaviour_is_judged(
    behaviour: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "_command", lambda _: behaviour())
    monkeypatch.setattr(trial, "SECONDS", 60.0 if behaviour is take_memory else 1.0)
    outcome = trial.run([], tmp_path)
    if behaviour is take_memory:
        assert outcome.megabytes > 400
        monkeypatch.setattr(trial, "MEGABYTES", 400)
    else:
        monkeypatch.setattr(trial, "MEGABYTES", 1 << 20)
    found, wanted = trial.fault(outcome, may_succeed=True), CASES[behaviour]
    assert (found is None) == (wanted is None)
    assert wanted is None or wanted in str(found)


def test_an_accepted_change_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_command", lambda _: 0)
    monkeypatch.setattr(trial, "MEGABYTES", 1 << 20)
    outcome = trial.run([], tmp_path)
    assert trial.fault(outcome, may_succeed=True) is None
    assert "ACCEPTANCE" in str(trial.fault(outcome, may_succeed=False))


def test_a_whole_run_has_at_least_1500_artefacts() -> None:
    assert sum(kind.count for kind in KINDS.values()) >= 1500


KEY = b"0123456789abcdef" * 4 + b"\n"


def test_every_changed_key_is_told_from_a_key_in_other_spelling(tmp_path: Path) -> None:
    spellings = 0
    for index in range(300):
        path = tmp_path / "site.key"
        path.write_bytes(KEY)
        _, same = mutations.damage(KINDS["key"], tmp_path, b"other", random.Random(index))
        equal = path.read_bytes().decode(errors="replace").lower().split() == KEY.decode().split()
        assert same == equal
        spellings += same
    assert spellings < 30
