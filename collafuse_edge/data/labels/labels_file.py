"""``--labels-file``: a table of (path, label) as CSV, TSV or JSON."""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from collafuse_edge.data.notes import Notes, images
from collafuse_runtimes.errors import InputError
from collafuse_runtimes.text import one_line

ENDINGS = (".csv", ".tsv", ".json")
_MAX_BYTES = 256 << 20
_PATH_COLUMN = re.compile(r"(image|img|file|path|name|id)s?|(image|img|file)[-_ ]?(path|name|id|file)s?", re.IGNORECASE)
_LABEL_COLUMN = re.compile(
    r"labels?|class(es|[-_ ]?(name|label|id))?|categor(y|ies)|targets?|diagnosis|dx", re.IGNORECASE
)
_VALID = "valid: two columns, path and label, with or without a header (or among others, named path and label)"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        number: counted from 1, a header included, as a spreadsheet counts.
        path: as written, stripped.
        label: as written, stripped.
    """

    number: int
    path: str
    label: str


def read_labels_file(table: Path, root: Path, files: Sequence[PurePath], notes: Notes) -> dict[PurePath, str]:
    """The label of every file that the table names.

    A path is one from the root, or a file's name, with or without its ending, where only one file has it.

    Args:
        files: of the data folder, relative to ``root``.

    Raises:
        InputError: the table cannot be read, or a row has no label, several, another one than an earlier row of the
            same file, or names no file or more than one; names the row.
    """
    known = _Names(files)
    labels: dict[PurePath, tuple[str, int]] = {}
    again = 0
    for row in _rows(table):
        where = f"{table} row {row.number}"
        if not row.path or not row.label:
            what = "label" if row.path else "path"
            raise InputError(f"{where} has no {what}; valid: one path and one label in every row")
        if "|" in row.label:
            raise InputError(f"{where} has several labels, {row.label!r}; valid: one class for each image")
        file = known.find(where, row.path, root)
        label, first = labels.setdefault(file, (row.label, row.number))
        if label != row.label:
            raise InputError(
                f"{where} gives {row.path!r} the label {row.label!r}, but row {first} gave it {label!r}; keep one"
            )
        again += first != row.number
    if not labels:
        raise InputError(f"{table} holds no row; {_VALID}")
    if again:
        notes.say(f"{table.name}: {again} rows say again what an earlier one said")
    unnamed = [file for file in files if file not in labels]
    if unnamed:
        notes.say(f"left out: {images(len(unnamed))} without a row in {table.name} (first: {unnamed[0].as_posix()})")
    return {file: label for file, (label, _) in labels.items()}


class _Names:
    """Files by path, by name, and by name without ending."""

    def __init__(self, files: Sequence[PurePath]) -> None:
        self._files: dict[str, set[PurePath]] = {}
        for file in files:
            for name in {file.as_posix(), file.name, file.name.split(".")[0], file.with_suffix("").as_posix()}:
                self._files.setdefault(name, set()).add(file)

    def find(self, where: str, path: str, root: Path) -> PurePath:
        given = path if path in self._files else path.replace("\\", "/").removeprefix("./")
        if Path(given).is_absolute() and Path(given).is_relative_to(root):
            given = Path(given).relative_to(root).as_posix()
        found = self._files.get(given, set())
        exact = PurePath(given)
        if exact in found or len(found) == 1:
            return exact if exact in found else next(iter(found))
        if found:
            some = " and ".join(sorted(file.as_posix() for file in found)[:2])
            raise InputError(f"{where} names {path!r}, which may be {some}; write the path from {root}")
        raise InputError(f"{where} names {path!r}, which is no image below {root}; mend or remove the row")


def _rows(table: Path) -> Iterator[Row]:
    ending = table.suffix.lower()
    if ending not in ENDINGS:
        raise InputError(f"--labels-file {table} is of no known kind; valid: files ending in {', '.join(ENDINGS)}")
    text = _text(table)
    return _json_rows(table, text) if ending == ".json" else _table_rows(table, text, ending)


def _text(table: Path) -> str:
    try:
        if table.stat().st_size > _MAX_BYTES:
            raise InputError(f"--labels-file {table} has {table.stat().st_size} bytes; valid: at most {_MAX_BYTES}")
        data = table.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read --labels-file {table}: {error.strerror}; check the path") from None
    try:
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"--labels-file {table} is not UTF-8 (byte {error.start}); save it as CSV UTF-8") from None


def _table_rows(table: Path, text: str, ending: str) -> Iterator[Row]:
    head = text.lstrip().partition("\n")[0]
    delimiter = "\t" if ending == ".tsv" else ";" if ";" in head and "," not in head else ","
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    columns: tuple[int, int] | None = None
    try:
        for number, cells in enumerate(([cell.strip() for cell in row] for row in rows), start=1):
            if not any(cells):
                continue
            if columns is None:
                columns, is_header = _columns(table, number, cells)
                if is_header:
                    continue
            if len(cells) <= max(columns):
                raise InputError(f"{table} row {number} has {len(cells)} columns; {_VALID}")
            yield Row(number, cells[columns[0]], cells[columns[1]])
    except csv.Error as error:
        raise InputError(f"--labels-file {table} is no table ({error}, after row {rows.line_num}); {_VALID}") from None


def _columns(table: Path, number: int, cells: list[str]) -> tuple[tuple[int, int], bool]:
    """Where path and label are, and whether this first row is a header."""
    paths = [index for index, cell in enumerate(cells) if _PATH_COLUMN.fullmatch(cell)]
    labels = [index for index, cell in enumerate(cells) if _LABEL_COLUMN.fullmatch(cell)]
    if paths and labels:
        return (paths[0], labels[0]), True
    if len(cells) == 2:
        return (0, 1), bool(paths or labels)
    raise InputError(f"{table} row {number} has the columns {', '.join(cells)[:80]}; {_VALID}")


def _json_rows(table: Path, text: str) -> Iterator[Row]:
    try:
        found = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        raise InputError(f"--labels-file {table} is not valid JSON: {one_line(error, 80)}") from None
    pairs = found
    if isinstance(found, list) and len(found) == 1 and isinstance(found[0], tuple) and found[0][0] == "labels":
        pairs = found[0][1]  # {"labels": [[path, label], ...]}, StyleGAN's dataset.json
    if not isinstance(pairs, list):
        raise InputError(f"--labels-file {table} holds no pairs; valid: {{path: label, ...}} or [[path, label], ...]")
    for number, pair in enumerate(pairs, start=1):
        path, label = _pair(f"{table} row {number}", pair)
        yield Row(number, path.strip(), str(label).strip())


def _pair(where: str, pair: Any) -> tuple[str, Any]:
    valid = "valid: a path and one label, a text or a whole number"
    if isinstance(pair, list) and pair and all(isinstance(entry, tuple) for entry in pair):  # {"path": p, "label": l}
        fields = dict(pair)
        named = [next((v for k, v in fields.items() if p.fullmatch(k)), None) for p in (_PATH_COLUMN, _LABEL_COLUMN)]
        pair = named
    if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
        raise InputError(f"{where} is no pair; {valid}")
    path, label = pair
    if isinstance(label, list):
        raise InputError(f"{where} has several labels; {valid}")
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if isinstance(label, bool) or not isinstance(label, str | int):
        raise InputError(f"{where} has the label {str(label)[:40]}; {valid}")
    return path, label
