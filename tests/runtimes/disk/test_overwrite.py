"""A command replaces nothing unasked, and only what it could have written itself when asked."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import done, refusal
from small_product import copy_product, listing, product, words

from collafuse_benchmarks.measure import timing
from collafuse_benchmarks.measure.timing import Mode
from collafuse_benchmarks.pages import plots
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.disk.found import what_is
from collafuse_runtimes.errors import ArtefactError
from collafuse_runtimes.files.plan_file import write_plan
from collafuse_runtimes.files.sealed import read_json, write_json, write_tensors

UPLOAD = "upload --data @data.npz --plan @plan.json --key @upload.key --out @out"
HANDOFF = "handoff --plan @plan.json --server @server --count 1 --out @out"
INFER = "infer @edge.head @x.tc.safetensors --steps 2 --out @out"
SPLIT = "bench split @edge.head --out @out"
OWN = {UPLOAD: "a.shard.safetensors", HANDOFF: "x.tc.safetensors", INFER: "images"}
FOREIGN = {
    "upload.key": "an upload key is there",
    "data.npz": "a zip archive, such as .npz is there",
    "images/00000.png": "a PNG image is there",
    "plan.json": "a plan file is there",
    "head": "a checkpoint is there",
    "edge.head": "a head bundle is there",
    "empty": "an empty file is there",
    "notes": "a file of another kind is there",
}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = copy_product(tmp_path / "site")
    (folder / "empty").touch()
    (folder / "notes").write_text("mine")
    return folder


def put(site: Path, name: str) -> None:
    source = site / name
    if source.is_dir():
        shutil.copytree(source, site / "out")
    else:
        shutil.copy(source, site / "out")


@pytest.mark.parametrize("command", OWN)
def test_one_of_the_same_kind_is_replaced_when_asked(command: str, site: Path) -> None:
    put(site, OWN[command])
    before = listing(site)
    line = refusal(*words(command, site))
    assert line == f"error: {site}/out exists already; choose another --out, or replace it with --overwrite"
    assert listing(site) == before
    done(*words(command, site), "--overwrite")
    changed = {name for name, stat in listing(site).items() if before.get(name) != stat}
    assert changed and all(name.startswith(("out", "upload.key.ledger")) for name in changed)


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("command", OWN)
def test_another_kind_is_never_replaced(command: str, name: str, site: Path) -> None:
    put(site, name)
    before = listing(site)
    for asked in ((), ("--overwrite",)):
        line = refusal(*words(command, site), *asked)
        is_folder_where_a_file_goes = (site / name).is_dir() and command != INFER
        assert ("a folder or device of that name exists" if is_folder_where_a_file_goes else FOREIGN[name]) in line
    assert listing(site) == before


def test_a_folder_with_one_file_more_is_not_swept_away(site: Path) -> None:
    for name, command in (("images", INFER), ("edge.head", "export @head --steps 2 --out @out --overwrite")):
        put(site, name)
        (site / "out" / "thesis.tex").write_text("years of work")
        assert "is there, not" in refusal(*words(command, site), *(("--overwrite",) if command == INFER else ()))
        assert (site / "out" / "thesis.tex").read_text() == "years of work"
        shutil.rmtree(site / "out")


def test_a_head_is_exported_again_but_another_head_only_when_asked(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing takes seconds: its result is that of the head exported before."""
    model = (site / "edge.head" / "model.onnx").read_bytes()
    monkeypatch.setattr("collafuse_export.onnx_graph.to_onnx", lambda *_: model)
    put(site, "edge.head")
    export = words("export @head --sampler ddim --steps 5,2 --out @out", site)
    done(*export)
    manifest = read_json(site / "out" / "manifest.json", "collafuse-head")
    manifest["network"]["weights_sha256"] = "0" * 64
    (site / "out" / "manifest.json").unlink()
    write_json(site / "out" / "manifest.json", "collafuse-head", manifest)
    before = listing(site)
    line = refusal(*export)
    assert line.endswith("exists already; it is another head's: choose another --out, or replace it with --overwrite")
    assert listing(site) == before
    done(*export, "--overwrite")


def test_init_writes_the_same_plan_again_and_no_other_over_it(site: Path) -> None:
    init = ("init", "--size", 8, "--timesteps", 10, "--out")
    done(*init, site / "plan.json", "--cut-ratio", 0.5)
    assert "holds another plan; choose another --out" in refusal(*init, site / "plan.json", "--cut-ratio", 0.4)
    assert "an upload key is there, not a plan file" in refusal(*init, site / "upload.key")


def test_a_report_is_replaced_when_asked_and_one_that_was_broken_off_in_any_case(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(timing.MODES, "quick", Mode("quick", warmup=0, runs=2, seconds=0.0, cold_starts=1))
    monkeypatch.setattr(timing, "SETTLE_S", 0.0)
    monkeypatch.setattr(timing.gc, "collect", lambda: 0)  # torch in the same process makes it slow
    monkeypatch.setattr(plots, "draw", lambda *_: "<svg/>")
    split = words(SPLIT, site)
    done(*split)
    assert "exists already; choose another --out, or replace it with --overwrite" in refusal(*split)
    done(*split, "--overwrite")
    report = site / "out" / "report.json"
    payload = read_json(report, "collafuse-bench")
    write_json(report, "collafuse-bench", {**payload, "complete": False})
    (site / "out" / ".report.json.0123456789ab.partial").write_text("torn")
    done(*split)
    assert read_json(report, "collafuse-bench")["complete"] is True
    assert sorted(path.name for path in (site / "out").iterdir()) == ["report.html", "report.json", "report.md"]


@pytest.mark.parametrize("name", [n for n in FOREIGN if n not in ("head", "edge.head", "plan.json")])
def test_what_came_there_during_the_work_is_not_replaced_either(name: str, site: Path) -> None:
    """The formats themselves refuse, at the moment of the rename, whoever calls them."""
    put(site, name)
    before = (site / "out").read_bytes()
    with pytest.raises(ArtefactError, match="is there, not a plan file"):
        write_plan(site / "out", SplitPlan((1, 8, 8)))
    with pytest.raises(ArtefactError, match="is there, not a shard"):
        write_tensors(site / "out", "collafuse-shard", {"x": np.zeros(1)}, {})
    assert (site / "out").read_bytes() == before


def test_what_is_there_is_told_without_reading_tensors(tmp_path: Path) -> None:
    """A file of 1 TB, its blocks never written: the header alone is read."""
    data = (product() / "a.shard.safetensors").read_bytes()
    large = tmp_path / "large"
    large.write_bytes(data)
    with large.open("r+b") as file:
        file.truncate(1 << 40)
    assert what_is(large) == ("collafuse-shard", "a shard")
    assert what_is(tmp_path / "nothing") == (None, "")
