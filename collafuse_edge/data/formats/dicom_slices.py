"""Slices of DICOM series, read with pydicom; what a file says of them is in ``dicom_header``."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from collafuse_edge.data.formats.bounded import require_memory
from collafuse_edge.data.formats.dicom_header import (
    MAX_PIXELS,
    PIXEL_TAGS,
    Frame,
    Header,
    quiet,
    read_header,
    read_tags,
)
from collafuse_edge.data.formats.volumes import scale_volume, slice_bounds
from collafuse_edge.data.image_set import Float32Array, Source
from collafuse_edge.data.notes import Notes
from collafuse_edge.data.pixels import isotropic
from collafuse_edge.data.scaling import HOUNSFIELD, Scaling, Window, hounsfield, windowed
from collafuse_runtimes.errors import InputError
from collafuse_runtimes.text import one_line

EXTENSIONS = (".dcm", ".dicom", ".ima")
_MAGIC_AT, _MAGIC = 128, b"DICM"


@dataclass(frozen=True)
class _Slice:
    """Frame ``index`` of a file."""

    header: Header
    index: int

    @property
    def frame(self) -> Frame:
        return self.header.frames[self.index]

    @property
    def number(self) -> tuple[int, int]:
        return self.header.number, self.index


def is_dicom(path: Path) -> bool:
    """By name, or by the four letters after the preamble; never anything but a regular file."""
    try:
        if not path.is_file():
            return False
        if path.name.lower().endswith(EXTENSIONS):
            return True
        with path.open("rb") as stream:
            return stream.read(_MAGIC_AT + 4)[_MAGIC_AT:] == _MAGIC
    except (OSError, ValueError):
        return False


def open_series(paths: list[Path], slices: tuple[int, int] | None, scaling: Scaling | None = None) -> Source:
    """Slices of every series among the files, each in the order of its positions.

    Stored values become real ones by slope and intercept. Black and white are --window's, else the file's own window,
    else those of ``scale_volume``. MONOCHROME1 is turned over. Slices are stretched to square pixels. Of several files
    those without a picture are left out.

    Args:
        slices: START and STOP of the slices to take from every series; None means all.

    Raises:
        InputError: pydicom is missing; a file cannot be read or needs a decoder that is not installed; none has
            pixels; a series has fewer slices than were asked for; a maximal value was given.
    """
    scale, notes = scaling or Scaling(), Notes()
    if scale.max_value is not None:
        raise InputError(
            f"--max-value does not fit {paths[0]}: DICOM says itself how stored values are meant; leave it out or give "
            "--window"
        )
    chosen: list[list[_Slice]] = []
    lengths = []
    for series in _all_series(paths, notes):
        lengths.append(len(series))
        chosen.append([series[i] for i in slice_bounds(f"a series of {paths[0].parent}", len(series), slices)])
    notes.say(f"{len(lengths)} series of {', '.join(map(str, lengths[:12]))} slices")
    table = [(number, member) for number, series in enumerate(chosen) for member in series]
    return Source(len(table), lambda rows: _planes([table[row] for row in rows], scale, notes), notes=notes)


def _all_series(paths: list[Path], notes: Notes) -> list[list[_Slice]]:
    headers = [header for path in paths if (header := read_header(path)) is not None]
    if not headers:
        which = f"{paths[0]} has" if len(paths) == 1 else f"all {len(paths)} DICOM files, first {paths[0]}, have"
        raise InputError(
            f"{which} no picture (no Rows and Columns, as in a report or DICOMDIR); give files with images"
        )
    if len(headers) < len(paths):
        notes.say(f"left out: DICOM files without a picture (DICOMDIR, reports, ...), {len(paths) - len(headers)}")
    headers.sort(key=lambda header: header.series)
    groups = [list(group) for _, group in groupby(headers, key=lambda header: header.series)]
    return [_in_order([_Slice(h, i) for h in group for i in range(len(h.frames))], notes) for group in groups]


def _in_order(series: list[_Slice], notes: Notes) -> list[_Slice]:
    placed = [member.frame.position for member in series]
    if None in placed:
        notes.say("slices without a position sorted by their instance numbers")
        return sorted(series, key=lambda member: member.number)
    notes.say("slices sorted by position")
    return sorted(series, key=lambda member: (member.frame.position, member.number))


def _planes(wanted: list[tuple[int, _Slice]], scaling: Scaling, notes: Notes) -> Iterator[Float32Array]:
    for _, group in groupby(wanted, key=lambda row: row[0]):
        yield from _series([member for _, member in group], scaling, notes)


def _series(members: list[_Slice], scaling: Scaling, notes: Notes) -> Iterator[Float32Array]:
    """Images of one series; all of it is in memory, so that it is scaled as a whole."""
    first = members[0].header.path
    pixels = sum(member.header.rows * member.header.columns for member in members)
    if pixels > MAX_PIXELS:
        raise InputError(f"a series of {first.parent} has more than {MAX_PIXELS} pixels; choose with --slices")
    require_memory(f"the series of {first}", 12 * pixels)
    planes: list[Float32Array] = []
    for header, of_file in groupby(members, key=lambda member: member.header):
        stored = _decoded(header)
        planes += [_real_values(member, stored[member.index]) for member in of_file]
    grey = [row for row, plane in enumerate(planes) if plane.ndim == 2]
    if grey:
        scaled = _scaled([members[row] for row in grey], [planes[row] for row in grey], scaling, notes)
        for row, unit in zip(grey, scaled, strict=True):
            planes[row] = unit
    for member, plane in zip(members, planes, strict=True):
        if plane.ndim == 3 and scaling.window is not None:
            raise InputError(f"{member.header.path} is in colour: --window is for grey pictures; leave it out")
        yield _square(member, _turned(member, plane, notes), notes)


def _scaled(members: list[_Slice], planes: list[Float32Array], scaling: Scaling, notes: Notes) -> list[Float32Array]:
    """Grey planes of one series in [0, 1]."""
    window = scaling.window or members[len(members) // 2].frame.window
    if window is not None:
        notes.say(_window_note(window, scaling.window is None))
        return [windowed(plane, window) for plane in planes]
    name = f"the series of {members[0].header.path}"
    low, high = min(float(p.min()) for p in planes), max(float(p.max()) for p in planes)
    if members[0].header.is_ct or low <= HOUNSFIELD:
        raise hounsfield(name, low, high)
    whole = scale_volume(name, np.concatenate([plane.reshape(-1) for plane in planes]), scaling, notes)
    ends = np.cumsum([plane.size for plane in planes])
    return [part.reshape(p.shape) for part, p in zip(np.split(whole, ends[:-1]), planes, strict=True)]


def _window_note(window: Window, own: bool) -> str:
    whose = "the series' own" if own else "--window's"
    return f"window {window[0]:g}:{window[1]:g} ({whose}) mapped to black and white"


def _turned(member: _Slice, unit: Float32Array, notes: Notes) -> Float32Array:
    if member.header.photometric == "MONOCHROME1":
        notes.add("MONOCHROME1 turned over")
        turned: Float32Array = np.float32(1) - unit
        return turned
    return unit


def _square(member: _Slice, unit: Float32Array, notes: Notes) -> Float32Array:
    spacing = member.frame.spacing
    if spacing is None:
        notes.add("no pixel spacing, taken as square")
        return unit
    try:
        image = isotropic(unit, *spacing)
    except InputError as error:
        raise InputError(f"{member.header.path}: {error}") from None
    if image is not unit:
        notes.add(f"stretched to square pixels of {min(spacing):g} mm")
    return image


def _real_values(member: _Slice, stored: npt.NDArray[Any]) -> Float32Array:
    """Stored values by RescaleSlope and RescaleIntercept, colour in [0, 1]; padding as dark as the darkest pixel."""
    header, frame = member.header, member.frame
    if stored.ndim == 3:
        colour: Float32Array = stored.astype(np.float32) / np.float32(2**header.bits - 1)
        return colour.clip(0, 1)
    values: Float32Array = (stored * np.float64(frame.slope) + frame.intercept).astype(np.float32)
    if not np.isfinite(values).all():
        raise InputError(f"{header.path} holds NaN or Inf; mend it or leave it out")
    if header.padding is not None:
        padded = (stored >= header.padding[0]) & (stored <= header.padding[1])
        if padded.any() and not padded.all():
            darkest = np.max if header.photometric == "MONOCHROME1" else np.min
            values[padded] = darkest(values[~padded])
    return values


def _decoded(header: Header) -> npt.NDArray[Any]:
    """Stored values (frames, h, w) or (frames, h, w, 3)."""
    require_memory(str(header.path), 4 * header.rows * header.columns * len(header.frames))
    found: Any = None
    try:
        with quiet():
            found = read_tags(header.path, (*PIXEL_TAGS, "PixelData"))
            if "PixelData" not in found:
                raise InputError(f"{header.path} says how large its picture is and holds none; fetch it again")
            pixels = np.asarray(found.pixel_array)
            colour = (3,) if int(found.get("SamplesPerPixel") or 1) == 3 else ()
            return pixels.reshape(len(header.frames), header.rows, header.columns, *colour)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # pydicom and its decoders raise kinds without a common base
        reason = one_line(error, 200)
        raise InputError(f"cannot read the pixels of {header.path}: {reason}{_decoder_hint(found)}") from None


def _decoder_hint(found: Any) -> str:
    try:
        syntax = found.file_meta.TransferSyntaxUID
        name = syntax.name if syntax.is_compressed else None
    except Exception:  # no transfer syntax, or one that DICOM does not know
        name = None
    packages = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
    return f" ({name} needs a decoder: {packages}, or save it uncompressed)" if name else "; fetch it again"
