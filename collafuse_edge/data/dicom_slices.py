"""Slices of DICOM series, read with pydicom.

Only the tags in ``TAGS`` are read from a file: what a picture is made of. No name, date, identifier or comment is ever
in memory, so none can leave. A series' identifier groups its files and is not shown.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from collafuse_edge.data.bounded import require_memory
from collafuse_edge.data.image_set import Float32Array, Source
from collafuse_edge.data.notes import Notes
from collafuse_edge.data.pixels import isotropic
from collafuse_edge.data.scaling import HOUNSFIELD, Scaling, Window, hounsfield, windowed
from collafuse_edge.data.volumes import scale_volume, slice_bounds
from collafuse_runtimes.errors import InputError

EXTENSIONS = (".dcm", ".dicom", ".ima")
TAGS = (
    "SeriesInstanceUID", "Modality", "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "ImagerPixelSpacing", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel",
    "PhotometricInterpretation", "PlanarConfiguration", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "PixelPaddingValue",
)  # fmt: skip
_PIXELS = ("PixelData",)
_MAGIC_AT, _MAGIC = 128, b"DICM"
MAX_PIXELS = 1 << 27


@dataclass(frozen=True)
class _Slice:
    """One frame of one file.

    Attributes:
        series: what groups files; never shown.
        order: (position along the slices' normal or 0, instance number, frame).
    """

    path: Path
    frame: int
    series: str
    order: tuple[float, int, int]


def is_dicom(path: Path) -> bool:
    """By name, or by the four letters after the preamble."""
    if path.name.lower().endswith(EXTENSIONS):
        return True
    try:
        with path.open("rb") as stream:
            return stream.read(_MAGIC_AT + 4)[_MAGIC_AT:] == _MAGIC
    except OSError:
        return False


def open_series(paths: list[Path], slices: tuple[int, int] | None, scaling: Scaling | None = None) -> Source:
    """Slices of every series among the files, each in the order of its positions.

    Stored values become real ones by slope and intercept. Black and white are --window's, else the file's own window,
    else those of ``scale_volume``. MONOCHROME1 is turned over. Slices are stretched to square pixels.

    Args:
        slices: START and STOP of the slices to take from every series; None means all.

    Raises:
        InputError: pydicom is missing; a file cannot be read, has no pixels or needs a decoder that is not installed;
            a series has fewer slices than were asked for.
    """
    frames = [frame for path in paths for frame in _frames(path)]
    frames.sort(key=lambda frame: (frame.series, frame.order))
    chosen: list[list[_Slice]] = []
    lengths = []
    for _, group in groupby(frames, key=lambda frame: frame.series):
        series = list(group)
        lengths.append(len(series))
        chosen.append([series[i] for i in slice_bounds(f"a series of {paths[0].parent}", len(series), slices)])
    table = [frame for series in chosen for frame in series]
    scale = scaling or Scaling()
    source = Source(len(table), lambda rows: _planes([table[row] for row in rows], scale, source.notes))
    source.notes.say(f"{len(lengths)} series of {', '.join(map(str, lengths[:12]))} slices, sorted by position")
    return source


def _planes(wanted: list[_Slice], scaling: Scaling, notes: Notes) -> Iterator[Float32Array]:
    for _, group in groupby(wanted, key=lambda frame: frame.series):
        yield from _series(list(group), scaling, notes)


def _series(frames: list[_Slice], scaling: Scaling, notes: Notes) -> Iterator[Float32Array]:
    """Images of one series; all of it is in memory, so that it is scaled as a whole."""
    planes, headers = [], []
    taken = 0
    for path, of_file in groupby(frames, key=lambda frame: frame.path):
        header, pixels = _decoded(path)
        for frame in of_file:
            planes.append(_real_values(header, pixels[frame.frame]))
            headers.append(header)
            taken += planes[-1].size
            if taken > MAX_PIXELS:
                raise InputError(f"a series of {path.parent} has more than {MAX_PIXELS} pixels; choose with --slices")
    if not planes:
        return
    window = scaling.window or _own_window(headers)
    name = f"the series of {frames[0].path}"
    if planes[0].ndim == 3:
        units = [plane / np.float32(2 ** int(headers[0].get("BitsStored", 8)) - 1) for plane in planes]
    elif window is not None:
        units = [windowed(plane, window) for plane in planes]
        notes.say(_window_note(window, scaling.window is None))
    else:
        units = _scaled_together(name, planes, headers[0], scaling, notes)
    for header, unit, frame in zip(headers, units, frames, strict=True):
        yield _square(frame.path, header, _turned(header, unit, notes), notes)


def _scaled_together(
    name: str, planes: list[Float32Array], header: Any, scaling: Scaling, notes: Notes
) -> list[Float32Array]:
    low, high = min(float(p.min()) for p in planes), max(float(p.max()) for p in planes)
    if header.get("Modality") == "CT" or low <= HOUNSFIELD:
        raise hounsfield(name, low, high)
    flat = np.concatenate([plane.reshape(-1) for plane in planes])
    whole = scale_volume(name, flat, scaling, notes)
    ends = np.cumsum([plane.size for plane in planes])
    return [part.reshape(p.shape) for part, p in zip(np.split(whole, ends[:-1]), planes, strict=True)]


def _window_note(window: Window, own: bool) -> str:
    whose = "the series' own" if own else "--window's"
    return f"window {window[0]:g}:{window[1]:g} ({whose}) mapped to black and white"


def _own_window(headers: list[Any]) -> Window | None:
    """The window of the series' middle file (PS3.3 C.11.2.1.2, linear), or None."""
    header = headers[len(headers) // 2]
    center, width = _first_number(header.get("WindowCenter")), _first_number(header.get("WindowWidth"))
    if center is None or width is None or not width > 1:
        return None
    return center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2


def _turned(header: Any, unit: Float32Array, notes: Notes) -> Float32Array:
    if header.get("PhotometricInterpretation") == "MONOCHROME1":
        notes.add("MONOCHROME1 turned over")
        turned: Float32Array = np.float32(1) - unit
        return turned
    return unit


def _square(path: Path, header: Any, unit: Float32Array, notes: Notes) -> Float32Array:
    spacing = header.get("PixelSpacing") or header.get("ImagerPixelSpacing")
    if spacing is None:
        notes.add("no pixel spacing, taken as square")
        return unit
    try:
        rows, columns = (float(value) for value in spacing)
        image = isotropic(unit, rows, columns)
    except (ValueError, TypeError, InputError) as error:
        raise InputError(f"{path}: {error}") from None
    if image is not unit:
        notes.add(f"stretched to square pixels of {min(rows, columns):g} mm")
    return image


def _real_values(header: Any, stored: npt.NDArray[Any]) -> Float32Array:
    """Stored values by RescaleSlope and RescaleIntercept; padding becomes the smallest other value."""
    slope, intercept = _first_number(header.get("RescaleSlope")), _first_number(header.get("RescaleIntercept"))
    if stored.ndim == 3:
        return stored.astype(np.float32)
    values: Float32Array = stored * np.float32(1 if slope is None else slope) + np.float32(intercept or 0)
    padding = _first_number(header.get("PixelPaddingValue"))
    if padding is not None:
        padded = stored == padding
        if padded.any() and not padded.all():
            values[padded] = values[~padded].min()
    return values.astype(np.float32, copy=False)


def _frames(path: Path) -> list[_Slice]:
    header = _read(path, TAGS, stop_before_pixels=True)
    rows, columns, count = (header.get(name) for name in ("Rows", "Columns", "NumberOfFrames"))
    frames = int(count or 1)
    if not rows or not columns or frames < 1:
        raise InputError(f"{path} has no picture (no Rows and Columns); leave it out, for example with --exclude")
    if int(rows) * int(columns) * frames > MAX_PIXELS:
        raise InputError(
            f"{path} has {columns}x{rows} pixels in {frames} frames; valid: at most {MAX_PIXELS}; split it"
        )
    position = _position(header)
    number = int(_first_number(header.get("InstanceNumber")) or 0)
    series = str(header.get("SeriesInstanceUID", path))
    return [_Slice(path, frame, series, (position, number, frame)) for frame in range(frames)]


def _position(header: Any) -> float:
    """Along the normal of the slices, millimetres; 0 where the file does not say."""
    try:
        across, down = np.array(header.ImageOrientationPatient, np.float64).reshape(2, 3)
        return float(np.cross(across, down) @ np.array(header.ImagePositionPatient, np.float64))
    except (AttributeError, ValueError, TypeError):
        return 0.0


def _decoded(path: Path) -> tuple[Any, npt.NDArray[Any]]:
    """(header, stored values (frames, h, w) or (frames, h, w, 3))."""
    header = _read(path, (*TAGS, *_PIXELS))
    kind = str(header.get("PhotometricInterpretation", ""))
    if not kind.startswith(("MONOCHROME", "RGB", "YBR")):
        raise InputError(f"{path} has photometric interpretation {kind!r}; valid: MONOCHROME1, MONOCHROME2, RGB, YBR")
    require_memory(str(path), 4 * int(header.Rows) * int(header.Columns) * int(header.get("NumberOfFrames") or 1))
    try:
        pixels = np.asarray(header.pixel_array)
    except MemoryError:
        raise
    except Exception as error:  # pydicom and its decoders raise kinds without a common base
        reason = " ".join(str(error).split())[:200]
        decoder = _decoder_hint(header)
        raise InputError(f"cannot read the pixels of {path}: {reason}{decoder}") from None
    shape = (int(header.Rows), int(header.Columns))
    colour = (3,) if int(header.get("SamplesPerPixel", 1)) == 3 else ()
    return header, pixels.reshape(-1, *shape, *colour)


def _decoder_hint(header: Any) -> str:
    try:
        syntax = header.file_meta.TransferSyntaxUID
        name = syntax.name if syntax.is_compressed else None
    except (AttributeError, ValueError):  # no transfer syntax, or one that DICOM does not know
        name = None
    packages = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
    return f" ({name} needs a decoder: {packages}, or save it uncompressed)" if name else ""


def _read(path: Path, tags: tuple[str, ...], *, stop_before_pixels: bool = False) -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise InputError(f"reading {path} needs pydicom; pip install 'collafuse-edge[dicom]'") from error
    try:
        return pydicom.dcmread(path, specific_tags=list(tags), stop_before_pixels=stop_before_pixels)
    except MemoryError:
        raise
    except Exception as error:  # InvalidDicomError, OSError, struct.error, NotImplementedError, ... share no base
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"cannot read {path}: {reason}; fetch it again or leave it out") from None


def _first_number(value: Any) -> float | None:
    """A tag's number, of several the first; None where there is none."""
    try:
        first = value[0] if isinstance(value, list | tuple) or hasattr(value, "__iter__") else value
        return None if first is None or first == "" else float(first)
    except (TypeError, ValueError, IndexError):
        return None
