"""--verbose says on stderr what is chosen, read and written; never a tensor, a key, or the name of an image."""

import logging
from pathlib import Path

import numpy as np
import pytest
from command_line import run_cli
from PIL import Image
from small_product import copy_product


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(copy_product(tmp_path / "site"))
    return Path.cwd()


def said(err: str) -> list[str]:
    return [line.removeprefix("verbose   ") for line in err.splitlines() if line.startswith("verbose   ")]


def test_the_engine_and_the_files_are_named_with_sizes(site: Path) -> None:
    verify = ("verify", "edge.head", "--threads", "1")
    quiet, loud = run_cli(*verify), run_cli("--verbose", *verify)
    assert (quiet.code, loud.code, loud.out) == (0, 0, quiet.out)
    lines = said(loud.err)
    assert "engine ort-cpu, as asked: it can run here and takes fp32 heads; told {'threads': 1}" in lines
    assert any(line.startswith("read edge.head/") and line.endswith(" bytes") for line in lines)
    assert said(quiet.err) == []


def test_what_is_written_is_said_with_its_size(site: Path) -> None:
    handoff = ("handoff", "--plan", "plan.json", "--server", "server", "--count", "2", "--out", "new")
    lines = said(run_cli("--verbose", *handoff).err)
    assert f"read plan.json, {(site / 'plan.json').stat().st_size} bytes" in lines
    assert f"wrote new, {(site / 'new').stat().st_size} bytes" in lines


def test_no_name_of_an_image_and_no_secret_is_said(site: Path) -> None:
    (site / "people").mkdir()
    random = np.random.default_rng(0)
    for name in ("doe_jane", "roe_rick"):
        Image.fromarray(random.integers(0, 256, (8, 8), np.uint8)).save(site / "people" / f"{name}.png")
    upload = ("upload", "--data", "people", "--plan", "plan.json", "--key", "upload.key", "--out", "new")
    result = run_cli("--verbose", *upload)
    assert result.code == 0
    assert said(result.err)
    for secret in ("doe_jane", "roe_rick", (site / "upload.key").read_bytes().hex(), (site / "upload.key").read_text()):
        assert secret not in result.err


def test_names_cannot_command_the_terminal_there_either(site: Path) -> None:
    (site / "plan.json").rename(site / "\x1b[2Jplan")
    result = run_cli("--verbose", "handoff", "--plan", "\x1b[2Jplan", "--count", "0", "--out", "new")
    assert any("\\x1b[2Jplan" in line for line in said(result.err))
    assert "\x1b" not in result.err


def test_a_program_without_the_command_line_hears_it_when_it_wants(
    site: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from collafuse_runtimes.files.plan_file import read_plan

    run_cli("--version")
    with caplog.at_level(logging.INFO, logger="collafuse"):
        read_plan(site / "plan.json")
    assert caplog.messages == [f"read {site}/plan.json, {(site / 'plan.json').stat().st_size} bytes"]
