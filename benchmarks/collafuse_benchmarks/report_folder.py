"""Where a report is kept: report.json with every sample, and pages made from it for people."""

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from collafuse_benchmarks.document import Document, to_html, to_markdown
from collafuse_runtimes import __version__
from collafuse_runtimes.atomic import write_bytes
from collafuse_runtimes.errors import ArtefactError, InputError
from collafuse_runtimes.sealed import read_json, write_json

FORMAT = "collafuse-bench"
JSON, MARKDOWN, HTML = "report.json", "report.md", "report.html"
NO_PLOTS = (
    "no report.html: matplotlib is not installed (pip install 'collafuse-edge[report]'); `collafuse-edge bench report` "
    "makes the page later, on any machine"
)

MakeDocument = Callable[[dict[str, Any]], Document]


class ReportFolder:
    """Saves a running measurement; leaving the ``with`` block, broken off or not, writes the pages of what was saved.

    The folder is made with the first save. report.json is replaced in one step each time, so whatever ends the
    process, the samples of a few seconds ago are there.
    """

    def __init__(self, folder: Path | None, kind: str, make_document: MakeDocument) -> None:
        """``folder`` None keeps nothing.

        Raises:
            InputError: the folder exists and is not empty.
            ArtefactError: there is no folder to make it in.
        """
        if folder is not None:
            _require_new(folder)
        self._folder, self._kind, self._make_document = folder, kind, make_document
        self._created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.payload: dict[str, Any] | None = None
        self.note: str | None = None

    def __enter__(self) -> "ReportFolder":
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None and self.payload is not None:
            self.note = write_pages(self._folder, self._make_document(self.payload))

    def save(self, report: dict[str, Any]) -> None:
        """Replace report.json.

        Raises:
            ArtefactError: it cannot be written; the one before is intact.
        """
        self.payload = {"kind": self._kind, "created": self._created, "collafuse_edge": __version__, **report}
        if self._folder is not None:
            self._folder.mkdir(exist_ok=True)
            write_json(self._folder / JSON, FORMAT, self.payload)


def read_report(path: Path, kind: str | None = None) -> dict[str, Any]:
    """The payload of a report, from its folder or its JSON file.

    Raises:
        ArtefactError: missing, damaged, or of another kind than ``kind``.
    """
    path = path / JSON if path.is_dir() else path
    payload = read_json(path, FORMAT)
    if kind is not None and payload.get("kind") != kind:
        raise ArtefactError(f"{path} is a report of kind {payload.get('kind')!r}; valid here: {kind!r}")
    return payload


def write_pages(folder: Path, document: Document) -> str | None:
    """Write report.md, and report.html where matplotlib is; a note where it is not.

    Raises:
        ArtefactError: a page cannot be written.
    """
    write_bytes(folder / MARKDOWN, to_markdown(document).encode())
    if document.has_plots and importlib.util.find_spec("matplotlib") is None:
        return NO_PLOTS
    write_bytes(folder / HTML, to_html(document).encode())
    return None


def _require_new(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not an empty folder; choose a new folder name or remove it")
    if not folder.parent.is_dir():
        raise ArtefactError(f"cannot write {folder}: there is no folder {folder.parent}; create it first")
