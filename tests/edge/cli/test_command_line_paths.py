"""`~` works in every path of every command; an --out that would harm an input is refused before anything is done."""

import inspect
import os
import pwd
from pathlib import Path
from typing import Any, get_args

import pytest
from command_line import refusal, run_cli
from small_product import copy_product, listing, words

from collafuse_edge.cli.app import click_command
from collafuse_edge.cli.parts.paths import PATHS_IN_TEXT, path_parameters
from collafuse_runtimes.disk.home import expand, user_folder
from collafuse_runtimes.errors import InputError


def leaves(command: Any, name: str = "") -> dict[str, Any]:
    """Every command by its words."""
    children = getattr(command, "commands", {})
    found = {} if children else {name: command}
    for child, inner in children.items():
        found |= leaves(inner, f"{name} {child}".strip())
    return found


COMMANDS = leaves(click_command())
PATHS = [(name, p.name) for name, command in COMMANDS.items() for p in path_parameters(command)]


@pytest.mark.parametrize(("command", "name"), PATHS)
def test_every_path_parameter_knows_the_home(
    command: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x").touch()  # --config reads its file at once
    leaf = COMMANDS[command]
    parameter = next(p for p in leaf.params if p.name == name)
    many = parameter.multiple or parameter.nargs == -1
    with leaf.context_class(leaf) as context:
        value = parameter.process_value(context, ("~/x", "y") if many else "~/x")
    assert (list(value) == [tmp_path / "x", Path("y")]) if many else (value == tmp_path / "x")


def test_no_path_hides_in_a_text_parameter() -> None:
    """Those that do are known, and are expanded where they are taken apart."""
    assert len(PATHS) >= 30
    for command in COMMANDS.values():
        declared = inspect.signature(command.callback).parameters
        for parameter in command.params:
            told = (parameter.help or "").lower()
            kind, *_ = get_args(declared[parameter.name].annotation)
            if str in (kind, *get_args(kind)) and any(word in told for word in ("file", "folder", ".json", ".csv")):
                assert parameter.name in {*PATHS_IN_TEXT, "split", "dtype"}, parameter.name


def test_the_key_of_the_home_is_used_and_no_folder_called_tilde_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = copy_product(tmp_path / "site")
    monkeypatch.setenv("HOME", str(site))
    monkeypatch.chdir(tmp_path)
    upload = ("upload", "--data=~/data.npz", "--plan=~/plan.json", "--key=~/upload.key", "--out=~/new.shard")
    assert run_cli(*upload).code == 0
    assert (site / "new.shard").read_bytes() == (site / "a.shard.safetensors").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_paths_a_shell_would_expand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    me = pwd.getpwuid(os.getuid())
    assert expand("~") == tmp_path
    assert expand(f"~{me.pw_name}/a") == Path(me.pw_dir) / "a"
    assert expand("./~") == Path("./~")
    assert expand("a/~b") == Path("a/~b")
    with pytest.raises(InputError, match=r"^cannot use ~nobody_of_that_name/x: there is no user 'nobody_of_th"):
        expand("~nobody_of_that_name/x")


def test_without_a_home_one_line_says_what_to_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = copy_product(tmp_path / "site")
    monkeypatch.delenv("HOME")
    for variable in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)

    def unknown(_: int) -> None:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    before = listing(site)
    upload = words("upload --data @data.npz --plan @plan.json --out @new", site)
    assert "there is no home folder here; give --key, or set HOME or XDG_CONFIG_HOME to a folder" in refusal(*upload)
    assert "cannot use ~/x: there is no home folder here; give the whole path" in refusal("verify", "~/x")
    assert "cannot use ~/x: there is no home folder here" in refusal(*upload[:2], "~/x", *upload[3:])
    with pytest.raises(InputError, match="give --cache, or set HOME or XDG_CACHE_HOME to a folder"):
        user_folder("XDG_CACHE_HOME", ".cache", "--cache")
    assert listing(site) == before


UPLOAD = "upload --data @data.npz --plan @plan.json --key @upload.key"
HARMFUL = [
    (f"{UPLOAD} --out @upload.key", "would replace it"),
    (f"{UPLOAD} --out @plan.json --overwrite", "would replace it"),
    (f"{UPLOAD} --out @data.npz --overwrite", "would replace it"),
    (f"{UPLOAD} --out @images/../plan.json --overwrite", "would replace it"),
    (f"{UPLOAD} --out @soft --overwrite", "would replace it"),
    (f"{UPLOAD} --out @hard --overwrite", "would replace it"),
    ("upload --data @data.npz --plan @plan.json --key @fresh --out @fresh", "would replace it"),
    ("upload --data @images --plan @plan.json --key @upload.key --out @images/x", "lies in"),
    ("train-client --data @images --plan @plan.json --out @images/head --cpu", "lies in"),
    ("train-server @a.shard.safetensors --out @a.shard.safetensors", "would replace it"),
    ("handoff --plan @plan.json --server @server --count 1 --out @plan.json", "would replace it"),
    ("handoff --plan @plan.json --server @server --count 1 --out @server/x", "lies in"),
    ("export @head --out @head", "would replace it"),
    ("export @head --out @other/../head --overwrite", "would replace it"),
    ("export @head --calibration @x.tc.safetensors --out @x.tc.safetensors --overwrite", "would replace it"),
    ("infer @edge.head @x.tc.safetensors --out @edge.head --overwrite", "would replace it"),
    ("infer @edge.head @x.tc.safetensors --out @edge.head/images", "lies in"),
    ("bench latency @edge.head @x.tc.safetensors --out @edge.head --overwrite", "would replace it"),
    ("bench split @edge.head --image-kid 0.5=@new --out @new", "would replace it"),
    ("bench report @images --out @images --overwrite", "would replace it"),
    ("import @head --role client --plan @plan.json --out @head", "would replace it"),
]


@pytest.mark.parametrize(("command", "why"), HARMFUL, ids=[command for command, _ in HARMFUL])
def test_an_output_that_is_an_input_is_refused(command: str, why: str, tmp_path: Path) -> None:
    site = copy_product(tmp_path / "site")
    (site / "soft").symlink_to("plan.json")
    (site / "hard").hardlink_to(site / "data.npz")
    before = listing(site)
    line = refusal(*(word.replace("=@", f"={site}/") for word in words(command, site)))
    assert why in line and "choose" in line
    assert listing(site) == before
