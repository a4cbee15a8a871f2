"""A file of options: read as defaults that the command line overrules, written so that it repeats a run."""

import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import done, refusal, run_cli
from small_product import copy_product, listing
from test_command_line_paths import COMMANDS

from collafuse_edge.cli.parts.config import _kept

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
KEEPING = [name for name, leaf in COMMANDS.items() if "save_config" in {p.name for p in leaf.params}]
SAMPLES: dict[Any, tuple[str, list[str]]] = {
    bool: ("true", []),
    int: ("3", ["3"]),
    float: ("3", ["3"]),
    str: ('"some"', ["some"]),
    Path: ('"below/some"', ["below/some"]),
}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(copy_product(tmp_path / "site"))
    return Path.cwd()


def parsed(command: str, words: list[str]) -> tuple[Any, dict[str, Any]]:
    context = COMMANDS[command].make_context(command, words)
    kept = {name: value for name, value in context.params.items() if name not in ("config", "save_config")}
    return context, {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}


def test_the_commands_that_keep_options() -> None:
    assert set(KEEPING) == {
        "upload", "train-client", "train-server", "handoff", "distill", "export", "disclose", "audit", "init",
        "verify", "infer", "evaluate",
        "bench latency", "bench energy", "bench split",
    }  # fmt: skip


@pytest.mark.parametrize("command", KEEPING)
def test_every_option_of_a_file_is_read_as_on_the_command_line(command: str, site: Path) -> None:
    (site / "below").mkdir()
    leaf = COMMANDS[command]
    with leaf.context_class(leaf) as context:
        kept = _kept(context)
    lines, options, arguments = [], [], []
    for parameter in leaf.params:
        key = next((key for key, (name, *_) in kept.items() if name == parameter.name), None)
        if key is None:
            continue
        _, kind, is_list, choices = kept[key]
        text, words = (f'"{choices[-1]}"', [choices[-1]]) if choices else SAMPLES[kind]
        lines.append(f"{key} = {f'[{text}, {text}]' if is_list else text}")
        if parameter.param_type_name == "argument":
            arguments += words * (2 if is_list else 1)
        else:
            options += [parameter.opts[0], *words] * (2 if is_list else 1)
    (site / "all.toml").write_text("\n".join(lines))
    assert len(lines) >= 7
    assert parsed(command, ["--config", "all.toml"])[1] == parsed(command, [*options, *arguments])[1]


def test_the_command_line_wins_whatever_the_order(site: Path) -> None:
    (site / "f.toml").write_text(
        'shards = ["a.shard"]\nout = "new"\nsteps = 7\nseed = 5\ncpu = true\ncompile = true\nclip-norm = 2\n'
    )
    given = ["--steps", "9", "--config", "f.toml", "--no-cpu", "--no-compile"]
    for words in (given, [*given[2:4], *given[:2], *given[4:]]):
        found = parsed("train-server", words)[1]
        assert (found["steps"], found["seed"], found["cpu"], found["compile"]) == (9, 5, False, False)
        assert (found["clip_norm"], [str(path) for path in found["shards"]]) == (2.0, ["a.shard"])
    (shard,) = parsed("train-server", ["--config", "f.toml", "b.shard"])[1]["shards"]
    assert str(shard) == "b.shard"


def test_paths_of_a_file_are_relative_to_its_folder(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (site / "f.toml").write_text(
        'data = "data.npz"\nplan = "plan.json"\nkey = "upload.key"\nout = "new.shard"\nlimit = 4\n'
    )
    monkeypatch.chdir(tmp_path)
    done("upload", "--config", "site/f.toml")
    assert (site / "new.shard").is_file()
    done("upload", "--config", site / "f.toml", "--out", "here.shard", "--data", "phantom:0:4:1")
    assert (tmp_path / "here.shard").is_file()


def test_homes_and_drawn_images_are_no_paths_below_the_file(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of-somebody")
    (site / "f.toml").write_text('data = "phantom:0:8"\nplan = "~/plan.json"\nkey = "/keys/k"\nout = "a"\n')
    found = parsed("upload", ["--config", f"{site}/f.toml"])[1]
    assert found["data"] == "phantom:0:8"
    assert [str(found[name]) for name in ("plan", "key", "out")] == [
        "/home/of-somebody/plan.json", "/keys/k", f"{site}/a",
    ]  # fmt: skip
    (site / "b.toml").write_text('sources = ["a.head"]\nimage-kid = ["0.2=score.json"]\n')
    assert parsed("bench split", ["--config", f"{site}/b.toml"])[1]["image_kid"] == [f"0.2={site}/score.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz = 3", "'stepz' is no option of this command; valid: "),
        ("batch_size = 3", "'batch_size' is no option of this command; valid: accumulation, batch-size, "),
        ("[train-server]\nsteps = 3", "'train-server' is no option of this command"),
        ("json = true", "'json' is no option of this command"),
        ("overwrite = true", "'overwrite' is no option of this command"),
        ('steps = "3"', 'steps is "3"; valid: an integer'),
        ("steps = 3.0", "steps is 3.0; valid: an integer"),
        ("steps = true", "steps is true; valid: an integer"),
        ("steps = [3]", "steps is [3]; valid: an integer"),
        ("cpu = 1", "cpu is 1; valid: true or false"),
        ('clip-norm = "1"', 'clip-norm is "1"; valid: a number'),
        ("clip-norm = true", "clip-norm is true; valid: a number"),
        ("out = 3", "out is 3; valid: a text"),
        ("steps = 2026-11-28", 'steps is "2026-11-28"; valid: an integer'),
        ('shards = "a.shard"', 'shards is "a.shard"; valid: a list, each a text'),
        ("shards = [1]", "shards is [1]; valid: a list, each a text"),
        ('preset = "huge"', "preset is 'huge'; valid: tiny, small, base"),
        ("steps = ", "f.toml is no TOML file"),
        ("steps = 1\nsteps = 2", "f.toml is no TOML file"),
    ],
)
def test_what_a_file_cannot_say_is_refused_with_file_key_and_what_is_valid(text: str, message: str, site: Path) -> None:
    (site / "f.toml").write_text(text)
    before = listing(site)
    line = refusal("train-server", "--config", "f.toml", "a.shard.safetensors", "--out", "new")
    assert line.startswith("error: f.toml") and message in line
    assert listing(site) == before


def test_a_missing_or_odd_file(site: Path) -> None:
    assert "cannot read nowhere.toml" in refusal("handoff", "--config", "nowhere.toml")
    (site / "f.toml").write_bytes(b"\xff\xfe = 1")
    assert "f.toml is no TOML file" in refusal("handoff", "--config", "f.toml")
    (site / "f.toml").write_text(f"steps = {'[' * 100_000}")
    assert "f.toml is no TOML file" in refusal("handoff", "--config", "f.toml")


def test_what_a_file_says_in_vain_is_refused_as_on_the_command_line(site: Path) -> None:
    (site / "f.toml").write_text('source = "head"\nout = "new"\nmax-batch = 4\n')
    assert "without --engine no TensorRT engine is built; leave out --max-batch" in refusal(
        "export", "--config", "f.toml"
    )


def test_a_saved_file_repeats_the_run(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handoff = ("handoff", "--plan", "plan.json", "--server", "server", "--count", "2", "--seed", "7", "--steps", "3")
    done(*handoff, "--sampler", "ddim", "--out", "first", "--save-config", "run.toml")
    assert (site / "run.toml").read_text() == "\n".join(
        [
            "# collafuse-edge handoff --config run.toml",
            "# Paths are relative to the folder of this file.",
            'plan = "plan.json"',
            'out = "first"',
            "count = 2",
            'server = "server"',
            "seed = 7",
            "# by default: first-index = 0",
            "steps = 3",
            'sampler = "ddim"',
            "# by default: eta = 0.0",
            '# by default: dtype = "float32"',
            "# by default: batch-size = 32",
            "",
        ]
    )
    monkeypatch.chdir(tmp_path)
    done("handoff", "--config", "site/run.toml", "--out", "again")
    assert (tmp_path / "again").read_bytes() == (site / "first").read_bytes()
    done("handoff", "--config", "site/run.toml", "--out", "third", "--save-config", "third.toml")
    third = (tmp_path / "third.toml").read_text()
    assert 'plan = "site/plan.json"\nout = "third"' in third


def test_a_saved_file_names_what_lies_elsewhere_in_full_and_holds_no_secret(site: Path, tmp_path: Path) -> None:
    (tmp_path / "apart").mkdir()
    upload = ("upload", "--data", "data.npz", "--plan", "plan.json", "--key", "upload.key", "--out", "new")
    done(*upload, "--class", "0", "--class", "1", "--save-config", tmp_path / "apart" / "run.toml")
    text = (tmp_path / "apart" / "run.toml").read_text()
    assert f'key = "{site}/upload.key"\n' in text
    assert 'class = ["0", "1"]\n' in text
    assert (site / "upload.key").read_bytes().hex() not in text and "seed" in text


def test_a_file_is_never_replaced_nor_left_by_a_run_that_failed(site: Path) -> None:
    handoff = ("handoff", "--plan", "plan.json", "--server", "server", "--out", "new", "--save-config")
    (site / "mine.toml").write_text("mine")
    before = listing(site)
    assert "mine.toml exists already; choose another --save-config, or delete it" in refusal(
        *handoff, "mine.toml", "--count", "2"
    )
    refusal(*handoff, "run.toml", "--count", "0")
    assert "there is no folder nowhere; create it first" in refusal(*handoff, "nowhere/run.toml", "--count", "2")
    assert listing(site) == before


def test_without_a_toml_reader_one_line_says_what_to_install(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 0, "final", 0))
    monkeypatch.setitem(sys.modules, "tomli", None)
    (site / "f.toml").write_text("steps = 3")
    assert refusal("handoff", "--config", "f.toml") == (
        "error: --config needs Python 3.11 or newer, or `pip install tomli`"
    )


def test_only_the_first_of_several_processes_writes(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    upload = ("upload", "--data", "data.npz", "--plan", "plan.json", "--key", "upload.key", "--out", "new")
    assert run_cli(*upload, "--save-config", "run.toml").code == 0
    assert not (site / "run.toml").exists()
