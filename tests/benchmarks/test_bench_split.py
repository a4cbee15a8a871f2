"""`bench split`: both sides of every cut measured, joined only where they belong together, and shown whole."""

import html.parser
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import refusal, run_cli
from heads import PLAN
from small_product import product

from collafuse_benchmarks.energy.measurement import EnergyResult
from collafuse_benchmarks.energy.result import IdlePower, RawSamples, SensorEnergy, Statistic, Timeline
from collafuse_benchmarks.energy.sensors.base import SensorInfo
from collafuse_benchmarks.energy.settings import EnergySettings
from collafuse_benchmarks.measure import timing
from collafuse_benchmarks.measure.timing import Mode
from collafuse_benchmarks.pages.document import to_markdown
from collafuse_benchmarks.pages.folder import Stamp
from collafuse_benchmarks.split import page as page_split
from collafuse_benchmarks.split.page import split_document
from collafuse_benchmarks.split.parts import Name, Part, Row, Weights, handover_bytes
from collafuse_benchmarks.split.report import SplitOptions, split_report
from collafuse_benchmarks.split.settings import Limits
from collafuse_benchmarks.split.table import Link, join, joules_per_image, share_checks
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.engines.base import Trajectory
from collafuse_runtimes.engines.ort.cpu import OrtCpuEngine
from collafuse_runtimes.errors import InputError, PlanMismatch
from collafuse_runtimes.files.handover import read_handover
from collafuse_runtimes.files.sealed import write_json

SHORT = Mode("quick", warmup=0, runs=10, seconds=0.0, cold_starts=0)
STAMP = Stamp("split", "now", "0")


@pytest.fixture(autouse=True)
def short_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(timing.MODES, "quick", SHORT)
    monkeypatch.setattr(timing, "SETTLE_S", 0.0)
    monkeypatch.setattr(timing.gc, "collect", lambda: 0)  # torch in the same process makes it slow


def row(c: float, steps: int, ms: float, energy: EnergyResult | None = None, **changes: Any) -> Row:
    found = Row(
        cut_ratio=c, steps=steps, name="a.head", network=Weights("small", 1, "ab" * 32), engine="ort-cpu",
        precision="fp32", samples_ms=(ms,) * 10, turns=(1,) * 10, energy=energy, is_right=True,
    )  # fmt: skip
    return replace(found, **changes)


def part(side: Name, *rows: Row, plan: SplitPlan = PLAN, machine: str = "bench", **changes: Any) -> Part:
    shared, state = plan.with_cut_ratio(0.0), {"machine": {"board": machine}}
    return replace(Part(side, shared, shared.fingerprint, machine, state, state, (), "quick", rows, True), **changes)


def joules(scope: str, mean: float | None) -> SensorEnergy:
    reason = None if mean is not None else "counter did not move"
    none = Statistic("unavailable", None, None, 0, "not asked for")
    gross = none if mean is None else Statistic("measured", mean, 0.1, 2, None)
    idle = IdlePower(None, "not asked for", 0, 0)
    samples = RawSamples("monotonic", (), (), (), None)
    info = SensorInfo(scope, "power", scope, "made up", 1.0)
    return SensorEnergy(info, idle, idle, None, None, (), replace(gross, reason=reason), none, samples)


def energy(*sensors: SensorEnergy) -> EnergyResult:
    return EnergyResult(EnergySettings(), Timeline(None, (), None), sensors, {}, True)


SERVER = part("server", row(0, 50, 500), row(0.2, 40, 400), row(0.4, 30, 300), machine="server")
EDGE = part("edge", row(0.2, 10, 30), row(0.4, 20, 60), row(1, 50, 150))


def test_every_cut_has_both_baselines_and_its_total() -> None:
    rows = join(PLAN, [EDGE, SERVER], Link(8.0, latency_ms=2.0))
    size = handover_bytes(PLAN.with_cut_ratio(0.2))
    found = [(r.cut_ratio, r.server_ms, r.edge_ms) for r in rows]
    assert found == [(0, 500, 0), (0.2, 400, 30), (0.4, 300, 60), (1, 0, 150)]
    assert [r.transfer_bytes > 16 * 16 * 4 for r in rows] == [True, True, True, False]
    assert rows[1].transfer_ms == pytest.approx(2 + size * 8 / 8000)
    assert rows[1].total_ms == pytest.approx(430 + 2 + size / 1000)
    assert (rows[3].transfer_bytes, rows[3].transfer_ms, rows[3].total_ms) == (0, 0, 150)
    assert [r.noise_level for r in rows] == [PLAN.with_cut_ratio(c).noise_level for c in (0, 0.2, 0.4, 1)]
    assert rows[0].noise_level == 0


def test_a_side_that_was_not_measured_is_a_gap_not_a_zero() -> None:
    (alone,) = join(PLAN, [part("edge", row(0.2, 10, 30))], None)
    assert (alone.server_ms, alone.edge_ms, alone.total_ms, alone.transfer_ms) == (None, 30, None, None)
    assert alone.energy_reason == "server and edge: not measured; energy was not measured"


def test_without_a_stated_link_the_total_is_without_transfer() -> None:
    rows = join(PLAN, [EDGE, SERVER], None)
    assert rows[1].transfer_ms is None
    assert rows[1].total_ms == 430


def test_the_size_handed_over_is_that_of_a_real_file() -> None:
    file = read_handover(product() / "x.tc.safetensors")
    size = (product() / "x.tc.safetensors").stat().st_size
    pixels = math.prod(file.plan.image_shape)
    assert abs(handover_bytes(file.plan) - (size - (len(file) - 1) * 4 * pixels)) < 16
    half = handover_bytes(file.plan, dtype="float16")
    assert handover_bytes(file.plan) - half == pytest.approx(2 * pixels, abs=8)


def test_a_server_of_fewer_steps_lists_fewer_in_the_file() -> None:
    plan = SplitPlan((1, 16, 16), timesteps=1000, cut_ratio=0.2)
    few = part("server", row(0.2, 20, 400), plan=plan)
    (way,) = join(plan, [few], None)
    assert way.transfer_bytes == handover_bytes(plan, 20)
    assert handover_bytes(plan) - handover_bytes(plan, 20) > 3 * 780  # three digits and a comma for most timesteps


@pytest.mark.parametrize(
    ("sensors", "found"),
    [
        ((("cpu package", 2.0), ("gpu", 3.0)), (5.0, "gpu + cpu package")),
        ((("module", 4.0), ("gpu", 3.0)), (4.0, "module")),
        ((("wall", 9.0), ("module", 4.0)), (9.0, "wall")),
        ((("board", None), ("gpu", 3.0)), (3.0, "gpu")),
        ((("module", None),), (None, None)),
        ((), (None, None)),
    ],
)
def test_energy_of_a_side_is_the_widest_figure_there_is(sensors: Any, found: Any) -> None:
    assert joules_per_image(energy(*(joules(*sensor) for sensor in sensors))) == found


def test_energies_are_added_only_where_both_sides_have_one() -> None:
    server = part("server", row(0.2, 40, 400, energy(joules("gpu", 50.0))))
    measured = part("edge", row(0.2, 10, 30, energy(joules("module", 2.0))))
    missing = part("edge", row(0.2, 10, 30, energy(joules("module", None))))
    (whole,), (gap,) = join(PLAN, [server, measured], None), join(PLAN, [server, missing], None)
    assert (whole.server_j, whole.edge_j, whole.total_j) == (50.0, 2.0, 52.0)
    assert whole.energy_scope == "server: gpu; edge: module"
    assert (gap.server_j, gap.edge_j, gap.total_j) == (50.0, None, None)
    assert gap.energy_reason == "edge: module: counter did not move"


@pytest.mark.parametrize(("ms", "holds"), [((31, 62, 150), True), ((45, 60, 150), False)])
def test_times_are_held_against_the_step_counts(ms: tuple[float, ...], holds: bool) -> None:
    rows = [row(c, steps, t) for c, steps, t in zip((0.2, 0.4, 1), (10, 20, 50), ms, strict=True)]
    (check,) = share_checks([part("edge", *rows)])
    assert check.holds is holds
    assert check.ratio[-1] == 1
    assert check.ratio[0] == pytest.approx(ms[0] / ms[2] * 5)


def test_a_machine_that_slows_down_does_not_spoil_the_check() -> None:
    """Half the rounds take twice as long, for all ways: the medians of all samples fall on different sides of it."""
    slow = [1, 2, 1, 2, 1, 2, 1, 2, 1, 2]
    few = row(
        0.2, 10, 30, samples_ms=tuple(30 * k for k in slow for _ in range(1 + k)), turns=tuple(1 + k for k in slow)
    )
    many = row(1, 50, 150, samples_ms=tuple(150 * k for k in slow), turns=(1,) * 10)
    (check,) = share_checks([part("edge", few, many)])
    assert check.ratio == (1, 1) and check.holds


def test_parts_of_different_plans_are_refused() -> None:
    other = SplitPlan((1, 16, 16), timesteps=100, cut_ratio=0.4)
    with pytest.raises(PlanMismatch, match=r"plans disagree on timesteps: part 1 \(edge, bench\) has 50, part 2"):
        split_report([EDGE, part("server", row(0.2, 80, 1), plan=other)], SplitOptions())
    with pytest.raises(PlanMismatch, match="states another plan's fingerprint"):
        split_report([replace(EDGE, family="0" * 64)], SplitOptions())


@pytest.mark.parametrize(("mbps", "latency"), [(0, 0), (-1, 0), (math.nan, 0), (1, -1), (1, math.inf)])
def test_links_that_cannot_be_are_refused(mbps: float, latency: float) -> None:
    with pytest.raises(InputError, match=r"link .* out of range: must be"):
        Link(mbps, latency)


def sweep(*arguments: object) -> dict[str, Any]:
    result = run_cli("bench", "split", *arguments, "--json")
    assert result.code == 0, result
    found: dict[str, Any] = json.loads(result.out)
    return found


def test_both_sides_here_and_the_same_two_parts_merged(tmp_path: Path) -> None:
    bundle, server = product() / "edge.head", product() / "server"
    edge = sweep(bundle, "--threads", 1, "--out", tmp_path / "edge")
    above = sweep("--server", server, "--cuts", "0,0.5,1", "--out", tmp_path / "server")
    merged = sweep("--merge", tmp_path / "edge", tmp_path / "server", "--out", tmp_path / "both")
    here = sweep(bundle, "--server", server, "--threads", 1)
    for found in (merged, here):
        ways = [
            (r["cut_ratio"], r["server"] and r["server"]["steps"], r["edge"] and r["edge"]["steps"])
            for r in found["rows"]
        ]
        assert ways == [(0, 10, None), (0.5, 5, 5), (0.5, 5, 2)]
        for r in found["rows"]:
            assert r["total_ms"] == r["server_ms"] + r["edge_ms"] > 0
            assert r["total_j"] is None and r["energy_reason"]
        assert "was trained for timesteps 5 and above only" in found["rows"][0]["notes"][0]
        assert found["rows"][1]["notes"] == []
    assert merged["parts"] == edge["parts"] + above["parts"]
    assert (edge["rows"][0]["total_ms"], above["rows"][0]["edge_ms"]) == (None, 0)
    assert {len(r["samples_ms"]) for p in here["parts"] for r in p["rows"]} == {10}


def test_a_way_whose_output_is_wrong_says_so_and_is_not_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = OrtCpuEngine._denoise
    first: list[Float32Array] = []

    def two_steps_give_the_first_image(self: OrtCpuEngine, trajectory: Trajectory) -> Float32Array:
        result = right(self, trajectory)
        if trajectory.rows.steps != 2 or trajectory.on_step is not None or len(trajectory.x_tc) != 1:
            return result
        first.append(result)
        return first[0].copy()

    monkeypatch.setattr(OrtCpuEngine, "_denoise", two_steps_give_the_first_image)
    both = (product() / "edge.head", "--server", product() / "server", "--cuts", "0.5", "--threads", 1)
    line = run_cli("bench", "split", *both, "--max-latency-ms", "1e9", "--out", tmp_path / "out")
    assert (line.code, line.out) == (1, "")
    assert "edge.head on ort-cpu: two different batches gave the same images, so its times mean nothing" in line.err
    saved = json.loads((tmp_path / "out" / "report.json").read_text())
    assert saved["complete"] is True
    assert [row["is_right"] for part in saved["parts"] for row in part["rows"]] == [True, True, False]
    assert (saved["choice"]["row"]["edge"]["steps"], saved["choice"]["admissible"]) == (5, 1)
    page = (tmp_path / "out" / "report.md").read_text()
    assert "the output of edge.head on ort-cpu was wrong, so its times mean nothing" in page
    assert len(re.findall(r"\| WRONG \|$", page, re.MULTILINE)) == 1


def test_a_way_without_images_is_not_on_the_front_and_says_so() -> None:
    note = "its images would not be images"
    server = part("server", row(0, 50, 10, note=note), row(0.2, 40, 400), row(0.4, 30, 500))
    rows = split_report([EDGE, server], SplitOptions()).rows
    assert page_split._front(rows) == [
        (10, 0, "c = 0", False),
        (430, PLAN.with_cut_ratio(0.2).noise_level, "c = 0.2", True),
        (560, PLAN.with_cut_ratio(0.4).noise_level, "c = 0.4", True),
    ]
    assert page_split._short(rows[0]) == "c = 0 (no images)"


def test_ways_of_several_machines_are_told_apart() -> None:
    other = part("edge", row(0.2, 10, 60), row(0.4, 20, 60), machine="bench")  # one board in two power modes
    report = split_report([EDGE, SERVER, other], SplitOptions(limits=Limits(max_latency_ms=9, min_noise_level=0.1)))
    ways = [(way.cut_ratio, way.edge_ms, way.origin) for way in report.rows if way.cut_ratio == 0.2]
    assert ways == [(0.2, 30, "edge of part 1"), (0.2, 60, "edge of part 3")]
    checks = {(check.side, check.part): check.ratio[0] for check in report.share_checks}
    assert checks == {("edge", 1): pytest.approx(1.0), ("server", 2): pytest.approx(1.0), ("edge", 3): 2.0}
    page = to_markdown(split_document(report, STAMP))
    assert "small (a.head), fp32, ort-cpu (edge of part 3)" in page
    assert page.index("## Choice") < page.index("## Cuts")  # the answer first
    assert [line for line in page.splitlines() if line.startswith("## Part")] == [
        "## Part 1: edge side on bench",
        "## Part 2: server side on server",
        "## Part 3: edge side on bench",
    ]
    assert "would have to be 150.0: c = 1, a.head, 50 steps on ort-cpu (edge of part 1)" in page


def test_merging_refuses_what_does_not_belong(tmp_path: Path) -> None:
    payload = {"kind": "split", "created": "", "collafuse_edge": "", **split_report([EDGE], SplitOptions()).to_dict()}
    write_json(tmp_path / "edge.json", "collafuse-bench", payload)
    write_json(tmp_path / "other.json", "collafuse-bench", {**payload, "kind": "latency"})
    once = tmp_path / "edge.json"
    assert "is given twice; give each report once" in refusal("bench", "split", "--merge", once, once)
    assert "is a report of kind 'latency'; valid here: 'split'" in refusal(
        "bench", "split", "--merge", tmp_path / "other.json"
    )
    assert "--merge needs split reports" in refusal("bench", "split", "--merge")
    once.write_text(once.read_text().replace('"steps": 10', '"steps": 11'))
    assert "does not match its own sha256" in refusal("bench", "split", "--merge", once)


class Page(html.parser.HTMLParser):
    """What a page loads, and how often each tag stands in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data") and not (value or "").startswith("#"):
                self.loads.append(f"{tag} {name}={value}")


def test_the_page_is_one_file_that_loads_nothing(tmp_path: Path) -> None:
    write_json(
        tmp_path / "report.json",
        "collafuse-bench",
        {
            "kind": "split",
            "created": "2026-01-01T00:00:00Z",
            "collafuse_edge": "0",
            **split_report([EDGE, SERVER], SplitOptions()).to_dict(),
        },
    )
    made = run_cli("bench", "report", tmp_path / "report.json", "--out", tmp_path / "out")
    assert made.code == 0, made
    text = (tmp_path / "out" / "report.html").read_text()
    page = Page(text)
    assert page.loads == []
    assert page.tags["svg"] == 2
    assert (
        "script" not in page.tags
        and "link" not in page.tags
        and "@import" not in text
        and "url(" not in re.sub(r"url\(#[^)]*\)", "", text)
    )
    assert page.tags["tr"] > 10
    markdown = (tmp_path / "out" / "report.md").read_text()
    sides = r"c = 0.2 \| 40 \| 10 \| small \(a.head\), fp32, ort-cpu"
    cells = sides + r" \| 0\.\d+ \| 400\.0 \| not counted \| 30\.00 \| 430\.0 \| 7% "
    assert re.search(rf"^\| {cells}", markdown, re.MULTILINE)
    assert "Far from 1 both ways" in markdown


def test_the_page_says_what_would_have_to_give() -> None:
    def page(limits: Limits) -> str:
        report = split_report([EDGE, SERVER], SplitOptions(limits=limits))
        return to_markdown(split_document(report, STAMP))

    kept = page(Limits(max_latency_ms=400, min_noise_level=0.5))
    assert "With --max-latency-ms 400, --min-noise-level 0.5: c = 1, a.head, 50 steps, ort-cpu: 150.0 ms, " in kept
    assert (
        "2 of 4 ways keep the limits; this one is the cheapest by time, since energy was not measured everywhere"
        in kept
    )
    broken = page(Limits(max_latency_ms=100, min_noise_level=0.5))
    assert "No measured way keeps --max-latency-ms 100, --min-noise-level 0.5. What would have to give:" in broken
    assert "--max-latency-ms 100 would have to be 150.0: c = 1, a.head, 50 steps on ort-cpu" in broken


def test_int8_and_float_heads_of_one_cut_are_two_ways() -> None:
    rows = join(PLAN, [part("edge", row(0.4, 20, 60), row(0.4, 20, 45, precision="int8-cpu")), SERVER], None)
    assert [(r.cut_ratio, r.edge_ms) for r in rows if r.cut_ratio == 0.4] == [(0.4, 60), (0.4, 45)]
