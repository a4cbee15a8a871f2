"""Which page belongs to which report, and what a wall meter adds to one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collafuse_benchmarks.energy import run as energy_run
from collafuse_benchmarks.energy.page import energy_document
from collafuse_benchmarks.latency import run as latency
from collafuse_benchmarks.latency.page import latency_document
from collafuse_benchmarks.pages.document import Document
from collafuse_benchmarks.pages.folder import FORMAT, JSON, read_report, readable, render, require_place, write_pages
from collafuse_benchmarks.split import report as split_report
from collafuse_benchmarks.split.page import split_document
from collafuse_runtimes.disk.atomic import new_directory
from collafuse_runtimes.disk.found import replaces_own
from collafuse_runtimes.errors import ArtefactError, InputError
from collafuse_runtimes.files.sealed import write_json

PAGES: dict[str, Callable[[dict[str, Any]], Document]] = {
    latency.KIND: latency_document,
    energy_run.KIND: energy_document,
    split_report.KIND: split_document,
}


def make_document_of(kind: str) -> Callable[[dict[str, Any]], Document]:
    """The page of a kind of report.

    Raises:
        ArtefactError: this release knows no such kind.
    """
    if kind not in PAGES:
        raise ArtefactError(f"report of kind {kind!r} is unknown; valid: {', '.join(PAGES)}")
    return PAGES[kind]


@dataclass(frozen=True)
class Remade:
    """A report written once more, and its page; ``note`` says what is not there."""

    payload: dict[str, Any]
    document: Document
    note: str | None


def remake(source: Path, out: Path, meter: Path | None = None, *, overwrite: bool = False) -> Remade:
    """Write a report and its pages anew, all of it or nothing.

    Args:
        source: a report's folder or its JSON file.
        out: new folder.
        meter: CSV of a wall meter, to add to an energy report.
        overwrite: whether to replace a finished report at ``out``.

    Raises:
        InputError: a report is at ``out``, or the report is not of energy and there is a meter.
        ArtefactError: a file is damaged, lacks a field or does not fit, or ``out`` cannot be written.
    """
    require_place(out, overwrite=overwrite)
    payload = read_report(source)
    with readable(source):
        make_document = make_document_of(payload["kind"])
        if meter is not None:
            payload = with_wall_meter(payload, meter)
        document = make_document(payload)
        pages = render(document)
    with new_directory(out, check=replaces_own(FORMAT)) as folder:
        write_json(folder / JSON, FORMAT, payload)
        note = write_pages(folder, pages)
    return Remade(payload, document, note)


def with_wall_meter(payload: dict[str, Any], meter: Path) -> dict[str, Any]:
    """An energy report with a wall meter's figures beside those of the other sensors.

    Raises:
        InputError: the report is of another kind.
        ArtefactError: the file is no meter's, or does not cover the measurement.
    """
    from collafuse_benchmarks.energy.measurement import EnergyResult, with_meter
    from collafuse_benchmarks.energy.result import timeline_from_dict
    from collafuse_benchmarks.energy.sensors.meter import read_meter
    from collafuse_benchmarks.energy.settings import EnergySettings

    if payload["kind"] != energy_run.KIND:
        raise InputError(f"--meter adds to an energy report; this one is of kind {payload['kind']!r}")
    energy = payload["energy"]
    alone = EnergyResult(EnergySettings(**energy["settings"]), timeline_from_dict(energy), (), {}, energy["complete"])
    added = with_meter(alone, read_meter(meter)).to_dict()["energy"]
    name = added[0]["info"]["name"]
    others = [sensor for sensor in energy["energy"] or () if sensor["info"]["name"] != name]
    return {**payload, "energy": {**energy, "energy": [*others, *added], "reason": None}}
