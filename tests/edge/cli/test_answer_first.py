"""Of what a command prints for people, the first line is the answer; details follow, and files have the rest."""

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from command_line import done, run_cli
from fast_clock import FastClock
from scripted_sensor import Scripted, constant
from small_product import copy_product, product, words

from collafuse_benchmarks.energy import run as energy_run
from collafuse_benchmarks.energy import sensors
from collafuse_benchmarks.energy.measurement import measure_energy
from collafuse_benchmarks.energy.page import energy_document
from collafuse_benchmarks.energy.result import Statistic
from collafuse_benchmarks.energy.run import EnergyReport
from collafuse_benchmarks.energy.sensors import Found
from collafuse_benchmarks.measure import timing
from collafuse_benchmarks.measure.timing import Mode
from collafuse_benchmarks.pages.document import to_brief
from collafuse_benchmarks.reports import read

SHORT = Mode("quick", warmup=0, runs=10, seconds=0.0, cold_starts=1)
LATENCY = "bench latency @edge.head @x.tc.safetensors"
ENERGY = "bench energy @edge.head @x.tc.safetensors --idle-s 1 --trials 1"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_product(tmp_path_factory.mktemp("answers") / "site")


@pytest.fixture(autouse=True)
def short_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(timing.MODES, "quick", SHORT)
    monkeypatch.setattr(timing, "SETTLE_S", 0.0)


def first_line(command: str, site: Path) -> str:
    return done(*words(command, site)).splitlines()[0]


def test_bench_latency_begins_with_the_head_call_of_its_record(site: Path) -> None:
    answer = first_line(f"{LATENCY} --batch 2,1 --out @latency", site)
    report = json.loads((site / "latency" / "report.json").read_text())
    call = next(one for one in report["series"] if (one["scope"], one["batch"]) == ("head call", 2))["summary"]
    told = re.fullmatch(
        r"([\d.]+) ms for 2 images at once with ort-cpu, 5 steps, fp32; p95 needs more samples"
        r"(, and the machine was not steady)?; the output is right\.",
        answer,
    )
    assert told is not None, answer
    assert float(told[1]) == pytest.approx(call["median"], rel=0.01)
    assert (told[2] is None) == (call["is_steady"] is not False)
    page = (site / "latency" / "report.md").read_text()
    assert page.split("\n\n")[1] == answer


def test_the_state_of_the_machine_is_on_the_page_and_not_on_the_terminal(site: Path) -> None:
    shown = done(*words(f"{LATENCY} --out @machine", site))
    assert "## Machine" in (site / "machine" / "report.md").read_text()
    assert "## Machine" not in shown and "## Output" in shown
    assert "--json" in done(*words(LATENCY, site)).splitlines()[-1]


def test_bench_energy_begins_with_the_joules_of_each_sensor_or_why_there_are_none(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FastClock()
    found = Found((Scripted(constant(5.0), clock),), {})
    monkeypatch.setattr(sensors, "find_sensors", lambda gpu: found)
    monkeypatch.setattr(energy_run, "measure_energy", partial(measure_energy, clock=clock))
    answer = first_line(f"{ENERGY} --out @energy", site)
    assert answer.endswith(" ms a head call with ort-cpu, 5 steps, 1 at once; the output is right.")
    saved = read(site / "energy")
    assert isinstance(saved.report, EnergyReport)
    (sensor,) = saved.report.energy.sensors
    for gross, begun in (
        (Statistic("measured", 2.5, None, 1, None), "2.50 J an image gross, 1.25 J net by scripted (board); "),
        (Statistic("unavailable", None, None, 0, "no reading"), "No energy figure (scripted: no reading); "),
    ):
        seen = replace(sensor, gross=gross, net=Statistic("measured", 1.25, None, 1, None))
        report = replace(saved.report, energy=replace(saved.report.energy, sensors=(seen,)))
        assert to_brief(energy_document(report, saved.stamp)).startswith(begun)


def test_bench_energy_without_a_sensor_says_why_first(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensors, "find_sensors", lambda gpu: Found((), {"rapl": "none here"}))
    monkeypatch.setattr(energy_run, "measure_energy", partial(measure_energy, clock=FastClock()))
    answer = first_line(ENERGY, site)
    assert answer.startswith("No energy figure (rapl: none here); ")


def test_bench_split_begins_with_the_choice(site: Path) -> None:
    lines = done(*words("bench split @edge.head --max-latency-ms 1000", site)).splitlines()
    assert lines[0] == "## Choice"
    assert "--max-latency-ms 1000" in lines[2]


def test_doctor_begins_with_what_works() -> None:
    result = run_cli("doctor", product() / "edge.head", "--json")
    works = [row["engine"] for row in json.loads(result.out)["engines"] if row["works"]]
    answer = done("doctor", product() / "edge.head").splitlines()[0]
    assert answer.startswith(f"works     {', '.join(works)}: {len(works)} of ")


def test_evaluate_begins_with_the_score(site: Path) -> None:
    command = "evaluate @images --data @data.npz --extractor @extractor.onnx"
    score = json.loads(done(*words(command, site), "--json"))["kid_mean"]
    assert first_line(command, site).split()[:2] == ["KID", f"{score:.4g}"]


def test_export_begins_with_where_how_large_and_the_worst_error_against_its_limit(site: Path) -> None:
    answer = first_line("export @head --steps 2 --out @two.head", site)
    worst = json.loads((site / "two.head" / "manifest.json").read_text())
    (found,) = worst["payload"]["parity"]["ranges"] if "payload" in worst else worst["parity"]["ranges"]
    size = (site / "two.head" / "model.onnx").stat().st_size
    assert answer == (
        f"wrote     {site}/two.head: {size / 1e6:.1f} MB, every step is the "
        f"network's: max-abs {found['worst']['max_abs']:.3g} at worst, 0.0001 allowed"
    )
