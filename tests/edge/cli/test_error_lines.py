"""An error is one line that a terminal can show, whatever the input was."""

import json
import os
import unicodedata
from pathlib import Path

import pytest
from command_line import done, refusal, run_cli
from hypothesis import given
from hypothesis import strategies as st

from collafuse_benchmarks.pages.folder import read_report
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.files.plan_file import write_plan
from collafuse_runtimes.files.sealed import read_json, write_json
from collafuse_runtimes.text import LINE_LIMIT, one_line, printable, without_surrogates

ANY = st.text(st.characters(), max_size=3000)
LONG = "x" * 100_000


@given(ANY, st.integers(5, 2000))
def test_any_text_fits_on_one_line(text: str, limit: int) -> None:
    line = one_line(text, limit)
    assert len(line) <= limit
    assert not {unicodedata.category(character) for character in line} & {"Cc", "Cs", "Zl", "Zp"}
    assert line.encode().decode() == line


@given(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=200))
def test_plain_words_are_left_as_they_are(text: str) -> None:
    assert printable(text) == text
    assert one_line(text) == text


def test_of_a_long_text_both_ends_are_kept() -> None:
    line = one_line("the value " + "0" * 5000 + "; valid: 1 to 4")
    assert len(line) == LINE_LIMIT
    assert line.startswith("the value 000") and line.endswith("000; valid: 1 to 4") and " ... " in line


@pytest.mark.parametrize(
    "arguments",
    [
        ("init", "--size", LONG),
        ("init", "--size", "8", "--schedule", LONG),
        ("init", "--size", "8", "--colour", LONG),
        ("init", "--size", "8", "--timesteps", "9" * 4000),
        (LONG,),
        ("verify", LONG),
        ("verify", "a/" * 2000),
        ("train-server", "--out", "s", "--preset", LONG, LONG),
        ("upload", "--data", LONG, "--plan", "p", "--out", "o"),
    ],
)
def test_values_of_100_kb(arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(refusal(*arguments)) <= LINE_LIMIT + len("error: ")
    assert list(tmp_path.iterdir()) == []


def test_names_cannot_command_the_terminal(tmp_path: Path) -> None:
    name = tmp_path / "\x1b[2Jred\x07\x9b31m\u202e.json"
    out = done("init", "--size", "8", "--out", name)
    line = refusal("init", "--size", "16", "--out", name)
    for said in (out, line):
        assert all(character.isprintable() for character in said.replace("\n", ""))
        assert "\\x1b[2Jred" in said


def test_lone_surrogates_reach_no_reader(tmp_path: Path) -> None:
    """`\\ud800` is JSON to Python and to nobody else, and no UTF-8 file can hold it."""
    name = os.fsdecode(b"P\xe4")
    write_json(tmp_path / "x", "kind", {"name": name, "list": [{name: 1}]})
    assert read_json(tmp_path / "x", "kind") == {"name": "P\\udce4", "list": [{"P\\udce4": 1}]}
    assert "udce4" in json.dumps(json.loads((tmp_path / "x").read_bytes()), ensure_ascii=False).encode().decode()
    assert without_surrogates("\U0001f600ä") == "\U0001f600ä"


def test_a_report_with_a_lone_surrogate_in_it_is_shown_or_refused(tmp_path: Path) -> None:
    """Sealed by another program: the digest is of the text with the surrogate."""
    import hashlib

    from collafuse_runtimes.files.sealed import canonical

    body = {"format": "collafuse-bench", "version": 1, "kind": "\ud800", "created": "\ud800"}
    sealed = {**body, "sha256": hashlib.sha256(canonical(body)).hexdigest()}
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "report.json").write_bytes(canonical(sealed))
    assert read_report(tmp_path / "old")["kind"] == "\\ud800"
    line = refusal("bench", "report", tmp_path / "old", "--out", tmp_path / "new")
    assert "unknown kind of report '\\\\ud800'" in line


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (MemoryError(), 2, "error: this does not fit into memory; "),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you"), 2, "error: this does not"),
        (OSError(28, "No space left on device", "/x"), 2, "error: cannot use /x: No space left on device; "),
        (OSError(24, "Too many open files"), 2, "error: Too many open files; raise the limit (`ulimit -n`)"),
        (BrokenPipeError(32, "Broken pipe"), 1, ""),
        (KeyboardInterrupt(), 1, "error: stopped"),
    ],
)  # fmt: skip
def test_what_the_system_raises(
    error: BaseException, code: int, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("collafuse_edge.init.init_plan", fail)
    result = run_cli("init", "--size", 8, "--out", tmp_path / "p")
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith(line) and result.err.count("\n") == (line != "")


@pytest.mark.parametrize("error", [RuntimeError("no such case"), ValueError("x"), TypeError("y"), KeyError("z")])
def test_our_own_mistakes_are_not_called_the_users(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("collafuse_edge.init.init_plan", fail)
    with pytest.raises(type(error)):
        run_cli("init", "--size", 8, "--out", tmp_path / "p")


def test_a_plan_file_with_any_value_is_refused_in_one_line(tmp_path: Path) -> None:
    write_plan(tmp_path / "plan.json", SplitPlan((1, 8, 8)))
    good = read_json(tmp_path / "plan.json", "collafuse-plan")
    values = [None, True, -1, 0, 10**400, 1e308, "a" * 100_000, [], [[1] * 9] * 9, {}, {"a": {"b": "\ud800"}}]
    for field in good["plan"]:
        for value in values:
            write_json(tmp_path / "plan.json", "collafuse-plan", {**good, "plan": {**good["plan"], field: value}})
            line = refusal("handoff", "--plan", tmp_path / "plan.json", "--count", 1, "--out", tmp_path / "new")
            assert field in line or "fingerprint" in line
            assert len(line) <= LINE_LIMIT + len("error: ")
