"""DICOM files made for tests."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset  # noqa: E402
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid  # noqa: E402

WINDOW = {"WindowCenter": 40, "WindowWidth": 400}
RAMP = np.arange(16, dtype=np.uint16).reshape(4, 4) * 100


def write(
    path: Path, pixels: np.ndarray = RAMP, *, z: float = 0.0, series: str = "1.2.3", implicit: bool = False, **tags: Any
) -> Path:
    """One file; ``tags`` replace or, where None, remove what is usual."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    usual = {
        "SOPClassUID": CTImageStorage, "SOPInstanceUID": meta.MediaStorageSOPInstanceUID, "SeriesInstanceUID": series,
        "Modality": "MR", "PhotometricInterpretation": "MONOCHROME2", "SamplesPerPixel": 1, "BitsAllocated": 16,
        "BitsStored": 12, "HighBit": 11, "PixelRepresentation": int(pixels.dtype.kind == "i"), "PixelSpacing": [1, 1],
        "Rows": pixels.shape[-2], "Columns": pixels.shape[-1], "ImagePositionPatient": [0, 0, z],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
    }  # fmt: skip
    for name, value in {**usual, **tags}.items():
        if value is not None:
            setattr(dataset, name, value)
    dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path


def colour(path: Path, pixels: np.ndarray, photometric: str, **tags: Any) -> Path:
    """(h, w, 3) uint8."""
    usual = {
        "PhotometricInterpretation": photometric, "SamplesPerPixel": 3, "BitsAllocated": 8, "BitsStored": 8,
        "HighBit": 7, "PlanarConfiguration": 0, "Rows": pixels.shape[0], "Columns": pixels.shape[1],
    }  # fmt: skip
    return write(path, pixels, **{**usual, **tags})


def group(**macros: Dataset) -> Dataset:
    """A functional group of these macros."""
    made = Dataset()
    for name, content in macros.items():
        setattr(made, name, [content])
    return made


def content(**tags: Any) -> Dataset:
    made = Dataset()
    for name, value in tags.items():
        setattr(made, name, value)
    return made
