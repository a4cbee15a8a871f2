"""A report's folder is whole or not there, and a report.json from elsewhere is shown or refused in one line."""

import copy
import os
import shutil
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from command_line import refusal, run_cli
from fast_clock import FastClock
from file_size import file_size_limit
from heads import default_head, handover
from scripted_sensor import Scripted, constant
from small_product import copy_product, listing, product, words

from collafuse_benchmarks.energy import run as energy_run
from collafuse_benchmarks.energy import sensors
from collafuse_benchmarks.energy.measurement import measure_energy
from collafuse_benchmarks.energy.run import Calls
from collafuse_benchmarks.energy.sensors import Found
from collafuse_benchmarks.measure import timing
from collafuse_benchmarks.measure.timing import Mode
from collafuse_benchmarks.pages import plots
from collafuse_benchmarks.pages.document import Document, Paragraph, to_html
from collafuse_benchmarks.pages.folder import FORMAT, ReportFolder
from collafuse_runtimes.disk import atomic
from collafuse_runtimes.errors import ArtefactError
from collafuse_runtimes.files.handover import write_handover
from collafuse_runtimes.files.sealed import read_json, write_json

SHORT = Mode("quick", warmup=0, runs=10, seconds=0.0, cold_starts=1)


@pytest.fixture(autouse=True)
def short_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(timing.MODES, "quick", SHORT)
    monkeypatch.setattr(timing, "SETTLE_S", 0.0)
    monkeypatch.setattr(timing.gc, "collect", lambda: 0)  # torch in the same process makes it slow


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders "latency", "energy" and "split"; the energy of a sensor that is made up."""
    clock = FastClock()
    found = Found((Scripted(constant(5.0), clock),), {"rapl": "not here"})
    folder = tmp_path_factory.mktemp("reports")
    write_handover(folder / "x.tc.safetensors", handover(default_head(), 6))
    with (
        mock.patch.dict(timing.MODES, quick=SHORT),
        mock.patch.object(timing, "SETTLE_S", 0.0),
        mock.patch.object(sensors, "find_sensors", lambda gpu: found),
        mock.patch.object(energy_run, "measure_energy", partial(measure_energy, clock=clock)),
    ):
        for command in (
            ("latency", default_head().path, folder / "x.tc.safetensors"),
            ("energy", default_head().path, folder / "x.tc.safetensors", "--idle-s", 1, "--trials", 1),
            ("split", product() / "edge.head"),
        ):
            made = run_cli("bench", *command, "--threads", 1, "--out", folder / command[0])
            assert made.code == 0, made
    return folder


def places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every field of a payload but the machine's facts; of a list the first entry."""
    pairs = (
        list(value.items())
        if isinstance(value, dict)
        else list(enumerate(value[:1]))
        if isinstance(value, list)
        else []
    )
    for key, inner in pairs:
        yield (*before, key)
        if key not in ("state_before", "state_after", "samples_ms", "plan"):
            yield from places(inner, (*before, key))


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.full), 5])
@pytest.mark.parametrize("kind", ["latency", "energy", "split"])
def test_a_sealed_report_that_lacks_or_mistypes_a_field_is_shown_or_refused(
    kind: str, every: int, reports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every field, or every fifth: of one parity as of the other."""
    monkeypatch.setattr(plots, "draw", lambda *_: "<svg/>")
    monkeypatch.setattr(atomic.os, "fsync", lambda _: None)
    good, report, out = read_json(reports / kind / "report.json", FORMAT), tmp_path / "report.json", tmp_path / "out"
    refused = 0
    for i, place in islice(enumerate(places(good)), None, None, every):
        bad = copy.deepcopy(good)
        holder = bad
        for key in place[:-1]:
            holder = holder[key]
        if i % 2 and isinstance(holder, dict):
            del holder[place[-1]]
        else:
            holder[place[-1]] = []
        write_json(report, FORMAT, bad)
        for command in (("report", report, "--out", out), ("split", "--merge", report))[: 1 + (kind == "split")]:
            result = run_cli("bench", *command)
            assert result.code in (0, 2), (place, result)
            if result.code:
                refused += 1
                assert result.err.count("\n") == 1 and result.err.startswith("error: "), (place, result)
                assert not out.exists(), place
            shutil.rmtree(out, ignore_errors=True)
    assert refused > 20 / every


def test_samples_that_are_no_numbers_leave_no_half_report(reports: Path, tmp_path: Path) -> None:
    payload = read_json(reports / "latency" / "report.json", FORMAT)
    payload["series"][1]["samples_ms"] = ["fast", {}]
    write_json(tmp_path / "report.json", FORMAT, payload)
    line = refusal("bench", "report", tmp_path / "report.json", "--out", tmp_path / "out")
    assert "report.json: series[1].samples_ms[0] is 'fast'; valid: a number from" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json"]


def test_a_page_that_cannot_be_written_leaves_no_half_report(
    reports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, _: bytes) -> None:
        raise ArtefactError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr("collafuse_benchmarks.pages.folder.write_bytes", full)
    line = refusal("bench", "report", reports / "split", "--out", tmp_path / "out")
    assert "No space left on device" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["split @edge.head --out @new", "latency @edge.head @x.tc.safetensors --out @new"])
def test_a_full_disk_leaves_no_folder(command: str, tmp_path: Path) -> None:
    site = copy_product(tmp_path / "site")
    before = listing(site)
    with file_size_limit(4000):  # room for hand-over files, not for a report
        result = run_cli("bench", *words(command, site))
    assert (result.code, result.out) == (2, "")
    assert f"error: cannot write {site}/new/report.json: File too large; nothing was changed" in result.err
    assert listing(site) == before


def test_values_that_no_file_can_hold_leave_no_folder(tmp_path: Path) -> None:
    with (
        pytest.raises(ArtefactError, match="a value is NaN or infinite"),
        ReportFolder(tmp_path / "out", "test", lambda *_: Document("", ())) as folder,
    ):
        folder.save(Calls((float("nan"),)))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_may_not_be_written_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)
    with pytest.raises(ArtefactError, match=r"cannot write .*/out: this user may not write there; choose a writable"):
        ReportFolder(tmp_path / "out", "test", lambda *_: Document("", ()))


def test_words_in_names_do_not_change_the_page() -> None:
    page = to_html(Document("BODY TITLE $title <b>", (Paragraph("TITLE $body </body>"),)))
    assert page.count("<h1>BODY TITLE $title &lt;b&gt;</h1>") == 1
    assert page.count("<p>TITLE $body &lt;/body&gt;</p>") == 1


@pytest.mark.parametrize("samples", [[1.0] * 20, [1.0] * 20 + [1.0 + 2**-52] * 20, [1e15] * 40, [-1e15, 1e15], [0.0]])
def test_samples_that_are_nearly_the_same_are_drawn(samples: list[float]) -> None:
    assert plots.distributions({"x": samples}, "milliseconds").startswith("<svg")
