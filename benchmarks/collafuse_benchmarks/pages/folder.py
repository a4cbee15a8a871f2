"""Where a report is kept: report.json with every sample, and pages made from it for people."""

import importlib.util
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

from collafuse_benchmarks.measure.record import Record
from collafuse_benchmarks.pages.document import Document, to_html, to_markdown
from collafuse_runtimes import __version__
from collafuse_runtimes.disk.atomic import write_bytes
from collafuse_runtimes.disk.found import peek, require_replaceable
from collafuse_runtimes.disk.lock import hold
from collafuse_runtimes.disk.partial import hidden
from collafuse_runtimes.errors import ArtefactError, CollafuseError, InputError
from collafuse_runtimes.files.sealed import read_json, write_json

FORMAT = "collafuse-bench"
JSON, MARKDOWN, HTML = "report.json", "report.md", "report.html"
NO_PLOTS = (
    "no report.html: matplotlib is not installed (pip install 'collafuse-edge[report]'); `collafuse-edge bench report` "
    "makes the page later, on any machine"
)

Report = TypeVar("Report", bound=Record)


@dataclass(frozen=True)
class Stamp(Record):
    """What every report begins with.

    Attributes:
        kind: which report.
        created: UTC, ISO 8601.
        collafuse_edge: version that measured.
    """

    kind: str
    created: str
    collafuse_edge: str


MakeDocument = Callable[[Report, Stamp], Document]


@dataclass(frozen=True)
class Stamped(Generic[Report]):
    """A report as its file holds it, whole or broken off."""

    stamp: Stamp
    report: Report
    make_document: MakeDocument[Report]

    @property
    def payload(self) -> dict[str, Any]:
        """Of report.json."""
        return {**self.stamp.to_dict(), **self.report.to_dict()}

    def document(self) -> Document:
        """Its page."""
        return self.make_document(self.report, self.stamp)


class ReportFolder(Generic[Report]):
    """Saves a running measurement; leaving the ``with`` block, broken off or not, writes the pages of what was saved.

    The folder is made with the first save. report.json is replaced in one step each time, so whatever ends the
    process, the samples of a few seconds ago are there, until the same command is run again.
    """

    def __init__(
        self, folder: Path | None, kind: str, make_document: MakeDocument[Report], *, overwrite: bool = False
    ) -> None:
        """``folder`` None keeps nothing.

        Raises:
            InputError: a finished report is there, and ``overwrite`` is False.
            ArtefactError: something else is there, there is no folder to make it in, or it may not be written.
        """
        if folder is not None:
            require_place(folder, overwrite=overwrite)
        self._lock = ExitStack()
        self._folder, self._make_document = folder, make_document
        self._stamp = Stamp(kind, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), __version__)
        self.saved: Stamped[Report] | None = None
        self.note: str | None = None

    def __enter__(self) -> "ReportFolder[Report]":
        """Raises InputError where another process is measuring into this folder."""
        if self._folder is not None:
            self._lock.enter_context(hold(self._folder, hidden(self._folder, "lock"), "is being measured"))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._lock:
            self._write_pages(kind)

    def _write_pages(self, kind: type[BaseException] | None) -> None:
        if self._folder is None or self.saved is None:
            return
        try:
            self.note = write_pages(self._folder, render(self.saved.document()))
        except ArtefactError:
            if kind is None or not issubclass(kind, CollafuseError):  # the first error says more
                raise

    def save(self, report: Report) -> None:
        """Replace report.json.

        Raises:
            ArtefactError: it cannot be written; the one before is intact.
        """
        saved = Stamped(self._stamp, report, self._make_document)
        if self._folder is not None:
            was_there = self._folder.exists()
            self._folder.mkdir(exist_ok=True)
            try:
                write_json(self._folder / JSON, FORMAT, saved.payload)
            except ArtefactError:
                if not was_there:
                    with suppress(OSError):
                        self._folder.rmdir()
                raise
        self.saved = saved


def read_report(path: Path, kind: str | None = None) -> dict[str, Any]:
    """The payload of a report, from its folder or its JSON file; its fields are not checked.

    Raises:
        ArtefactError: missing, damaged, or of another kind than ``kind``.
    """
    path = path / JSON if path.is_dir() else path
    payload = read_json(path, FORMAT)
    if kind is not None and payload.get("kind") != kind:
        raise ArtefactError(f"{path} is a report of kind {payload.get('kind')!r}; valid here: {kind!r}")
    return payload


def read_fields(path: Path, payload: Mapping[str, Any], kind: type[Report]) -> tuple[Stamp, Report]:
    """What a report's payload says, every field checked; ``path`` names it in errors.

    Raises:
        ArtefactError: names the field that is missing, unknown, of another type or of an odd value.
    """
    names = {field.name for field in fields(Stamp)}
    stamp, body = ({k: v for k, v in payload.items() if (k in names) is wanted} for wanted in (True, False))
    try:
        return Stamp.from_dict(stamp), kind.from_dict(body)
    except InputError as error:
        raise ArtefactError(f"{path}: {error}; measure again with this release") from None


@dataclass(frozen=True)
class Pages:
    """A rendered document; ``html`` None where matplotlib is missing, and with its file's mode."""

    markdown: str
    html: str | None
    html_mode: int = 0o644


def render(document: Document) -> Pages:
    """Everything a folder shows people."""
    lacks_plots = document.has_plots and importlib.util.find_spec("matplotlib") is None
    mode = 0o600 if document.is_private else 0o644
    return Pages(to_markdown(document), None if lacks_plots else to_html(document), mode)


def write_pages(folder: Path, pages: Pages) -> str | None:
    """Write report.md, and report.html where there is one; a note where there is none.

    Raises:
        ArtefactError: a page cannot be written.
    """
    write_bytes(folder / MARKDOWN, pages.markdown.encode(errors="backslashreplace"))
    if pages.html is None:
        return NO_PLOTS
    write_bytes(folder / HTML, pages.html.encode(errors="backslashreplace"), mode=pages.html_mode)
    return None


def require_place(folder: Path, *, overwrite: bool) -> None:
    """Do nothing, or refuse a folder before anything is measured for it.

    Args:
        overwrite: whether a finished report may be replaced; one that was broken off may in any case.

    Raises:
        InputError: a finished report is there, and ``overwrite`` is False.
        ArtefactError: something else is there, there is no folder to make it in, or it may not be written.
    """
    require_replaceable(folder, FORMAT, overwrite=overwrite or _is_broken_off(folder))
    if not folder.parent.is_dir():
        raise ArtefactError(f"cannot write {folder}: there is no folder {folder.parent}; create it first")
    if not os.access(folder if folder.exists() else folder.parent, os.W_OK | os.X_OK):
        raise ArtefactError(f"cannot write {folder}: this user may not write there; choose a writable folder")


def _is_broken_off(folder: Path) -> bool:
    try:
        found = peek(folder / JSON)
    except (ArtefactError, OSError, ValueError, LookupError, TypeError, RecursionError):  # as ``peek`` states
        return False
    return isinstance(found, dict) and found.get("complete") is False
