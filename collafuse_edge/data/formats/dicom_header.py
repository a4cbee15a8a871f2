"""What a DICOM file says of its picture, read with pydicom.

Only the tags in ``TAGS`` are read from a file: what a picture is made of. Of the functional groups of a multi-frame
file only distances, positions, slopes and windows are looked at. What pydicom warns of is not shown, and neither is
what it says of a damaged header: both quote the file. A series' identifier groups its files and is not shown.
"""

import math
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from collafuse_edge.data.scaling import Window
from collafuse_runtimes.errors import InputError

PIXEL_TAGS = (
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
)  # fmt: skip
TAGS = (
    *PIXEL_TAGS, "SeriesInstanceUID", "Modality", "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio", "RescaleSlope", "RescaleIntercept", "WindowCenter",
    "WindowWidth", "PixelPaddingValue", "PixelPaddingRangeLimit", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
MAX_PIXELS = 1 << 27
_DEFLATED = "1.2.840.10008.1.2.1.99"
_PHOTOMETRIC = ("MONOCHROME", "RGB", "YBR")


@dataclass(frozen=True)
class Frame:
    """One frame of one file.

    Attributes:
        spacing: distance of neighbouring rows and of neighbouring columns, or None.
        slope, intercept: from stored to real values.
        window: LOW and HIGH of real values (PS3.3 C.11.2.1.2, linear), or None.
        position: along the normal of the slices, millimetres, or None.
    """

    spacing: tuple[float, float] | None
    slope: float
    intercept: float
    window: Window | None
    position: float | None


@dataclass(frozen=True)
class Header:
    """One file.

    Attributes:
        series: what groups files; never shown.
        number: of the instance, 0 where there is none.
        padding: smallest and largest stored value that is no picture, or None.
    """

    path: Path
    series: str
    number: int
    rows: int
    columns: int
    photometric: str
    bits: int
    is_ct: bool
    padding: tuple[float, float] | None
    frames: tuple[Frame, ...]


def read_header(path: Path) -> Header | None:
    """None where the file is good DICOM without a picture: a DICOMDIR, a report, a presentation state.

    Raises:
        InputError: pydicom is missing; the file is damaged, deflated, of a kind that is not read, or too large.
    """
    with _own_words(path):
        found = read_tags(path, TAGS)
        rows, columns, samples = (_whole(found.get(name), 0) for name in ("Rows", "Columns", "SamplesPerPixel"))
        count = _whole(found.get("NumberOfFrames"), 1)
        if rows < 1 or columns < 1 or count < 1:
            return None
        if rows * columns * count > MAX_PIXELS:
            raise InputError(
                f"{path} has {columns}x{rows} pixels in {count} frames; valid: at most {MAX_PIXELS} in all; "
                "save the frames as several files"
            )
        photometric = str(found.get("PhotometricInterpretation") or "")
        if not photometric.startswith(_PHOTOMETRIC) or samples not in (0, 1, 3):
            raise InputError(
                f"{path} has photometric interpretation {photometric[:16]!r}; valid: MONOCHROME1, MONOCHROME2, RGB, YBR"
            )
        return Header(
            path=path,
            series=str(found.get("SeriesInstanceUID") or path),
            number=_instance(found),
            rows=rows,
            columns=columns,
            photometric=photometric,
            bits=_whole(found.get("BitsStored"), 0) or _whole(found.get("BitsAllocated"), 8),
            is_ct=str(found.get("Modality") or "") == "CT",
            padding=_padding(path, found),
            frames=tuple(_frame(path, groups) for groups in _groups(found, count)),
        )
    raise AssertionError("unreachable")


def read_tags(path: Path, tags: tuple[str, ...]) -> Any:
    """The pydicom data set with these tags alone; pixels only where ``tags`` names them.

    Raises:
        InputError: pydicom is missing, or the file is deflated.
        Exception: of many kinds, for a damaged file; to be put into own words.
    """
    try:
        import pydicom
    except ImportError as error:
        raise InputError(f"reading {path} needs pydicom; pip install 'collafuse-edge[dicom]'") from error
    syntax = pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID")
    if syntax == _DEFLATED:  # pydicom would inflate all of it, however much that is
        raise InputError(f"{path} is deflated as a whole, which is not read; save it uncompressed")
    return pydicom.dcmread(path, specific_tags=list(tags), stop_before_pixels="PixelData" not in tags)


@contextmanager
def quiet() -> Iterator[None]:
    """Without pydicom's warnings, which quote what is in the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _own_words(path: Path) -> Iterator[None]:
    try:
        with quiet():
            yield
    except (InputError, MemoryError):
        raise
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or type(error).__name__}; leave it out") from None
    except Exception as error:  # pydicom's, struct's and more share no base; their words quote the file
        reason = "no DICOM" if type(error).__name__ == "InvalidDicomError" else "its header is damaged"
        raise InputError(f"cannot read {path}: {reason}; fetch it again or leave it out") from None


def _groups(found: Any, count: int) -> list[list[Any]]:
    """For every frame the data sets that may speak of it, the nearest first (PS3.3 C.7.6.16)."""
    shared = _items(found.get("SharedFunctionalGroupsSequence"))[:1]
    own = _items(found.get("PerFrameFunctionalGroupsSequence"))
    return [[*own[frame : frame + 1], *shared, found] for frame in range(count)]


def _items(sequence: Any) -> list[Any]:
    return list(sequence) if sequence else []


def _lookup(groups: list[Any], macro: str, name: str) -> Any:
    """``name`` in the nearest group's ``macro``, or at the top of the file."""
    for group in groups[:-1]:
        for item in _items(group.get(macro))[:1]:
            value = item.get(name)
            if value not in (None, ""):
                return value
    return groups[-1].get(name)


def _frame(path: Path, groups: list[Any]) -> Frame:
    slope = _number(path, "RescaleSlope", _lookup(groups, "PixelValueTransformationSequence", "RescaleSlope"))
    intercept = _number(
        path, "RescaleIntercept", _lookup(groups, "PixelValueTransformationSequence", "RescaleIntercept")
    )
    if slope == 0:
        raise InputError(f"{path} has RescaleSlope 0: all its values are the same; mend the file or leave it out")
    center = _number(path, "WindowCenter", _lookup(groups, "FrameVOILUTSequence", "WindowCenter"))
    width = _number(path, "WindowWidth", _lookup(groups, "FrameVOILUTSequence", "WindowWidth"))
    return Frame(
        spacing=_spacing(path, groups),
        slope=1.0 if slope is None else slope,
        intercept=intercept or 0.0,
        window=_window(center, width),
        position=_position(groups),
    )


def _window(center: float | None, width: float | None) -> Window | None:
    if center is None or width is None or not width > 1:
        return None
    return center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2


def _spacing(path: Path, groups: list[Any]) -> tuple[float, float] | None:
    top = groups[-1]
    value = _lookup(groups, "PixelMeasuresSequence", "PixelSpacing") or top.get("ImagerPixelSpacing")
    value = value or top.get("PixelAspectRatio")
    if not value:
        return None
    try:
        rows, columns = (float(side) for side in value)
    except (TypeError, ValueError):
        raise InputError(f"{path} has no two numbers in PixelSpacing; mend the header") from None
    return rows, columns


def _position(groups: list[Any]) -> float | None:
    across_down = _lookup(groups, "PlaneOrientationSequence", "ImageOrientationPatient")
    corner = _lookup(groups, "PlanePositionSequence", "ImagePositionPatient")
    try:
        across, down = np.array(across_down, np.float64).reshape(2, 3)
        position = float(np.cross(across, down) @ np.array(corner, np.float64).reshape(3))
    except (ValueError, TypeError):
        return None
    return position if math.isfinite(position) else None


def _padding(path: Path, found: Any) -> tuple[float, float] | None:
    value = _padding_number(path, found, "PixelPaddingValue")
    if value is None:
        return None
    limit = _padding_number(path, found, "PixelPaddingRangeLimit")
    return (value, value) if limit is None else (min(value, limit), max(value, limit))


def _padding_number(path: Path, found: Any, name: str) -> float | None:
    """Of a file of implicit VR, whose two bytes may be signed, pydicom hands bytes."""
    value = found.get(name)
    if isinstance(value, bytes) and len(value) == 2:
        signed = _whole(found.get("PixelRepresentation"), 0) == 1
        return float(struct.unpack("<h" if signed else "<H", value)[0])
    return _number(path, name, value)


def _instance(found: Any) -> int:
    try:
        return _whole(found.get("InstanceNumber"), 0)
    except (TypeError, ValueError):
        return 0


def _whole(value: Any, default: int) -> int:
    return default if value in (None, "") else int(value)


def _number(path: Path, name: str, value: Any) -> float | None:
    """A tag's finite number, of several the first; None where there is none."""
    if value is not None and not isinstance(value, str | bytes | int | float) and hasattr(value, "__len__"):
        value = value[0] if len(value) else None
    if value in (None, ""):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{path} has no finite number in {name}; mend the header or leave the file out")
    return number
