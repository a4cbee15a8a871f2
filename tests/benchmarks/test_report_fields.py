"""A report is read by the types of its fields: what is missing, unknown or odd is named, in one line."""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import ROOT
from test_bench_split import PLAN, energy, joules, part, row

from collafuse_benchmarks import reports
from collafuse_benchmarks.measure.record import Record
from collafuse_benchmarks.measure.subject import EngineUse
from collafuse_benchmarks.pages.document import to_markdown
from collafuse_benchmarks.split import page
from collafuse_benchmarks.split.parts import NoEnergy, Part
from collafuse_benchmarks.split.report import SplitOptions, SplitReport, split_report
from collafuse_benchmarks.split.settings import Limits
from collafuse_benchmarks.split.table import Link
from collafuse_runtimes.errors import ArtefactError, InputError
from collafuse_runtimes.files.sealed import read_json, write_json

OLD = ROOT / "benchmarks" / "results" / "split_cpu.json"
"""Written by release 0.1.0."""


@dataclass(frozen=True)
class Inner(Record):
    kind: Literal["a", "b"]
    pair: tuple[int, float] | None = None


@dataclass(frozen=True)
class Outer(Record):
    derived: ClassVar = ("total",)
    name: str
    values: tuple[float, ...]
    inner: tuple[Inner, ...]
    by_name: dict[str, bool | int | str]
    facts: Mapping[str, Any]
    extra: int | None = None

    @property
    def total(self) -> float:
        return sum(self.values)

    def __post_init__(self) -> None:
        if self.name == "odd":
            raise InputError("name 'odd' is out of range: must be others")


WHOLE = Outer("x", (1.0, 2.5), (Inner("a", (1, 0.5)), Inner("b")), {"n": 1, "is": True, "s": "t"}, {"any": [None, {}]})


def test_what_is_written_is_read_again() -> None:
    written = json.loads(json.dumps(WHOLE.to_dict()))
    assert written["total"] == 3.5
    assert Outer.from_dict(written) == WHOLE
    del written["extra"], written["total"], written["inner"][0]["pair"]
    assert Outer.from_dict(written).extra is None and Outer.from_dict(written).inner[0].pair is None


@pytest.mark.parametrize(
    ("place", "value", "line"),
    [
        (("name",), 5, "name is 5; valid: a text"),
        (("name",), "odd", "it: name 'odd' is out of range: must be others"),
        (("values",), {}, "values is {}; valid: a list"),
        (("values", 1), "fast", "values[1] is 'fast'; valid: a number from -1e+15 to 1e+15"),
        (("values", 0), True, "values[0] is True; valid: a number from -1e+15 to 1e+15"),
        (("values", 0), float("inf"), "values[0] is inf; valid: a number from -1e+15 to 1e+15"),
        (("values", 0), float("nan"), "values[0] is nan; valid: a number from -1e+15 to 1e+15"),
        (("values", 0), 10**400, "; valid: a number from -1e+15 to 1e+15"),
        (("inner", 1), [], "inner[1] is []; valid: an object"),
        (("inner", 1, "kind"), "c", "inner[1].kind is 'c'; valid: a, b"),
        (("inner", 1, "kind"), [], "inner[1].kind is []; valid: a, b"),
        (("inner", 0, "pair"), [1], "inner[0].pair is [1]; valid: a list of 2 or null"),
        (("inner", 0, "pair", 0), 1.5, "inner[0].pair[0] is 1.5; valid: an integer"),
        (("inner", 0, "pair", 0), True, "inner[0].pair[0] is True; valid: an integer"),
        (("inner", 0, "more"), 1, "inner[0] has the unknown field 'more'"),
        (("by_name", "n"), None, "by_name.n is None; valid: true or false or an integer or a text"),
        (("facts",), [], "facts is []; valid: an object"),
        (("extra",), 2**63, "; valid: an integer or null"),
        (("more",), 1, "it has the unknown field 'more'"),
    ],
)
def test_what_is_odd_is_named(place: tuple[Any, ...], value: Any, line: str) -> None:
    written = copy.deepcopy(json.loads(json.dumps(WHOLE.to_dict())))
    holder = written
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    with pytest.raises(InputError) as caught:
        Outer.from_dict(written)
    assert str(caught.value).endswith(line)


@pytest.mark.parametrize(("name", "line"), [("name", "it lacks name"), ("inner", "it lacks inner")])
def test_what_is_missing_is_named(name: str, line: str) -> None:
    with pytest.raises(InputError, match=f"^{line}$"):
        Outer.from_dict({key: value for key, value in WHOLE.to_dict().items() if key != name})
    with pytest.raises(InputError, match=r"^inner\[1\] lacks kind$"):
        Outer.from_dict({**WHOLE.to_dict(), "inner": [{"kind": "a"}, {}]})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(WHOLE.to_dict())), json_values)
def test_no_value_is_a_traceback(name: str, value: Any) -> None:
    try:
        read = Outer.from_dict({**WHOLE.to_dict(), name: value})
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 300
    else:
        assert Outer.from_dict(read.to_dict()) == read


SERVER = part("server", row(0, 50, 500, energy(joules("gpu", 2.0))), row(0.4, 30, 300, note="no images"))
ROW = row(0, 50, 500).to_dict()
EDGE = part("edge", row(0.4, 10, 30, NoEnergy.because({"ina": "not here"})), row(0.4, 5, 15))


def test_a_split_report_comes_back_as_it_was() -> None:
    options = SplitOptions(Link(8.0), limits=Limits(max_latency_ms=600))
    report = split_report([EDGE, SERVER], options)
    written = json.loads(json.dumps(report.to_dict()))
    assert SplitReport.from_dict(written) == report
    assert written["parts"][0]["rows"][0]["energy"] == {
        "energy": None,
        "reason": "ina: not here",
        "reasons": {"ina": "not here"},
    }
    assert "title" in written["rows"][0] and "title" not in written["choice"]["row"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"side": "middle"}, "side is 'middle'; valid: server, edge"),
        ({"plan": {**PLAN.to_dict(), "timesteps": 0}}, "plan: plan field timesteps is 0; valid: "),
        ({"rows": [{**ROW, "steps": 0}]}, r"rows\[0\]: steps 0 out of range: must be at least 1"),
        ({"rows": [{**ROW, "cut_ratio": 2}]}, r"rows\[0\]: cut_ratio 2 out of range: must be 0"),
        ({"rows": [{**ROW, "energy": {}}]}, r"rows\[0\].energy: it lacks settings, complete"),
        ({"rows": [{**ROW, "sampler": {"name": "x"}}]}, r"rows\[0\].sampler: unknown sampler 'x'"),
    ],
)
def test_what_no_part_can_be_is_refused(change: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=f"^{line}"):
        Part.from_dict({**SERVER.to_dict(), **change})


def samples(payload: dict[str, Any]) -> list[list[float]]:
    return [row["samples_ms"] for part in payload["parts"] for row in part["rows"]]


def test_a_report_of_an_earlier_release_is_read_and_shown(tmp_path: Path) -> None:
    made = reports.remake(OLD, tmp_path / "out")
    way = "| c = 0.2 | 80 | 20 | small (0.2.head), fp32, ort-cpu | 0.318 | 1402 | 5.40 | 49.74 | 1458 | 3% |"
    assert way in to_markdown(made.saved.document()) and way in OLD.with_suffix(".md").read_text()
    old, new = read_json(OLD, "collafuse-bench"), read_json(tmp_path / "out" / "report.json", "collafuse-bench")
    assert (old["created"], old["collafuse_edge"]) == (new["created"], new["collafuse_edge"])
    assert new["noise_level_is"] is None and "noise_level_is" not in old
    assert [part["rows"][0]["samples_ms"] for part in old["parts"]] == [
        p["rows"][0]["samples_ms"] for p in new["parts"]
    ]
    assert old["scores"] == new["scores"]


def test_the_file_is_named_and_what_to_do(tmp_path: Path) -> None:
    payload = read_json(OLD, "collafuse-bench")
    payload["link"]["mbps"] = "fast"
    write_json(tmp_path / "report.json", "collafuse-bench", payload)
    with pytest.raises(ArtefactError) as caught:
        reports.read(tmp_path / "report.json")
    assert str(caught.value) == (
        f"{tmp_path}/report.json: link.mbps is 'fast'; valid: a number from -1e+15 to 1e+15; measure again with this "
        "release"
    )


def test_a_fault_of_our_own_is_not_called_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "_steps", lambda *_: None + 1)  # type: ignore[operator]
    with pytest.raises(TypeError):
        reports.remake(OLD, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["device", "gpu"])
def test_the_index_of_a_gpu_is_read_under_the_name_of_earlier_releases_too(name: str) -> None:
    told = {"name": "ort-cuda", "options": {name: 1}, "arithmetic": "fp32"}
    assert EngineUse.from_dict(told).options == {name: 1}
