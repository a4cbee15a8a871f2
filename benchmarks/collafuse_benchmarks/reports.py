"""Which page belongs to which report, and what a wall meter adds to one."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from collafuse_benchmarks.disclosure import report as disclosure
from collafuse_benchmarks.disclosure.page import disclosure_document
from collafuse_benchmarks.energy import run as energy_run
from collafuse_benchmarks.energy.page import energy_document
from collafuse_benchmarks.latency import run as latency
from collafuse_benchmarks.latency.page import latency_document
from collafuse_benchmarks.measure.record import Record
from collafuse_benchmarks.pages.folder import (
    FORMAT,
    JSON,
    MakeDocument,
    Stamped,
    read_fields,
    read_report,
    render,
    require_place,
    write_pages,
)
from collafuse_benchmarks.split import report as split
from collafuse_benchmarks.split.page import split_document
from collafuse_runtimes.disk.atomic import new_directory
from collafuse_runtimes.disk.found import replaces_own
from collafuse_runtimes.errors import ArtefactError, InputError
from collafuse_runtimes.files.sealed import write_json

KINDS: dict[str, tuple[type[Record], MakeDocument[Any]]] = {
    latency.KIND: (latency.LatencyReport, latency_document),
    energy_run.KIND: (energy_run.EnergyReport, energy_document),
    disclosure.KIND: (disclosure.DisclosureReport, disclosure_document),
    split.KIND: (split.SplitReport, split_document),
}
"""Kind of report -> (what it holds, its page)."""


@dataclass(frozen=True)
class Remade:
    """A report written once more; ``note`` says what is not there."""

    saved: Stamped[Record]
    note: str | None


def read(path: Path) -> Stamped[Record]:
    """A report of any kind, from its folder or its JSON file.

    Raises:
        ArtefactError: missing, damaged, of a kind that this release does not know, or a field is missing or odd.
    """
    payload = read_report(path)
    kind = payload.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ArtefactError(f"{path}: unknown kind of report {kind!r}; valid: {', '.join(KINDS)}")
    record, make_document = KINDS[kind]
    stamp, report = read_fields(path, payload, record)
    return Stamped(stamp, report, make_document)


def remake(source: Path, out: Path, meter: Path | None = None, *, overwrite: bool = False) -> Remade:
    """Write a report and its pages anew, all of it or nothing.

    Args:
        source: a report's folder or its JSON file.
        out: new folder.
        meter: CSV of a wall meter, to add to an energy report.
        overwrite: whether to replace a finished report at ``out``.

    Raises:
        InputError: a report is at ``out``, or the report is not of energy and there is a meter.
        ArtefactError: a file is damaged, has an odd field or does not fit, or ``out`` cannot be written.
    """
    require_place(out, overwrite=overwrite)
    saved = read(source)
    if meter is not None:
        saved = replace(saved, report=with_wall_meter(saved.report, saved.stamp.kind, meter))
    pages = render(saved.document())
    with new_directory(out, check=replaces_own(FORMAT)) as folder:
        write_json(folder / JSON, FORMAT, saved.payload)
        note = write_pages(folder, pages)
    return Remade(saved, note)


def with_wall_meter(report: Record, kind: str, meter: Path) -> energy_run.EnergyReport:
    """An energy report with a wall meter's figures beside those of the other sensors.

    Raises:
        InputError: the report is of another kind.
        ArtefactError: the file is no meter's, or does not cover the measurement.
    """
    from collafuse_benchmarks.energy.measurement import with_meter
    from collafuse_benchmarks.energy.sensors.meter import read_meter

    if not isinstance(report, energy_run.EnergyReport):
        raise InputError(f"--meter adds to an energy report; this one is of kind {kind!r}")
    return replace(report, energy=with_meter(report.energy, read_meter(meter)))
