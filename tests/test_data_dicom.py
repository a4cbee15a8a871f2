"""DICOM series: real values, windows, order, proportions; nothing that names a patient is ever read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import done, run_cli

from collafuse_edge.data import ImageSet, Selection, load_images
from collafuse_edge.data.dicom_header import TAGS
from collafuse_runtimes.errors import InputError

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import FileDataset, FileMetaDataset  # noqa: E402
from pydicom.uid import JPEG2000, CTImageStorage, ExplicitVRLittleEndian, generate_uid  # noqa: E402

MARK = "MARKERPATIENT"
WINDOW = {"WindowCenter": 40, "WindowWidth": 400}
RAMP = np.arange(16, dtype=np.uint16).reshape(4, 4) * 100


def write(path: Path, pixels: np.ndarray = RAMP, *, z: float = 0.0, series: str = "1.2.3", **tags: Any) -> Path:
    """One file; ``tags`` replace or, where None, remove what is usual."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
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


def read(path: Path, side: int = 4, **selection: Any) -> ImageSet:
    return load_images(str(path), (1, side, side), Selection(**selection))


def unit(images: ImageSet) -> np.ndarray:
    return (images.images[:, 0] + 1) / 2


def test_values_are_real_ones_and_the_file_s_window_is_used(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.dcm", Modality="CT", RescaleSlope=2, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400
    )
    low, high = 40 - 0.5 - 399 / 2, 40 - 0.5 + 399 / 2
    expected = np.clip((RAMP * 2.0 - 1024 - low) / (high - low), 0, 1)
    np.testing.assert_allclose(unit(read(path))[0], expected, atol=1e-6)
    mine = np.clip((RAMP * 2.0 - 1024 + 1000) / 2000, 0, 1)
    np.testing.assert_allclose(unit(read(path, window=(-1000.0, 1000.0)))[0], mine, atol=1e-6)


def test_ct_without_a_window_asks_for_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", Modality="CT", RescaleIntercept=-1024)
    with pytest.raises(InputError, match=r"Hounsfield.*--window LOW:HIGH"):
        read(path)


def test_monochrome1_is_turned_over(tmp_path: Path) -> None:
    window = {"WindowCenter": 750.5, "WindowWidth": 1501}
    plain = write(tmp_path / "a.dcm", **window)
    turned = write(tmp_path / "b.dcm", PhotometricInterpretation="MONOCHROME1", **window)
    np.testing.assert_allclose(unit(read(turned)), 1 - unit(read(plain)), atol=1e-6)
    assert any("MONOCHROME1 turned over" in note for note in read(turned).notes)


def test_slices_are_sorted_by_position_not_by_name(tmp_path: Path) -> None:
    for name, z in (("a", 30.0), ("b", -10.0), ("c", 10.0)):
        write(tmp_path / name, np.full((4, 4), 1000 + int(z), np.uint16), z=z, InstanceNumber=1)
    images = unit(read(tmp_path))[:, 0, 0]
    assert images[0] < images[1] < images[2] or np.allclose(
        images, np.clip([990 / 1030, 1010 / 1030, 1], 0, 1), atol=2e-3
    )
    assert any("slices sorted by position" in note for note in read(tmp_path).notes)


def test_spacing_is_respected(tmp_path: Path) -> None:
    square = np.zeros((8, 24), np.uint16)
    square[2:6, 6:18] = 1000  # 4 rows of 6 mm, 12 columns of 2 mm: 24 x 24 mm
    path = write(tmp_path / "a.dcm", square, PixelSpacing=[6, 2])
    image = unit(read(path, side=24))[0]
    rows, columns = (image.max(axis=axis) > 0.5 for axis in (1, 0))
    assert abs(int(rows.sum()) - int(columns.sum())) <= 1


def test_signed_pixels_and_padding(tmp_path: Path) -> None:
    pixels = RAMP.astype(np.int16) - 400
    pixels[0, 0] = -2000
    path = write(tmp_path / "a.dcm", pixels, PixelPaddingValue=-2000, BitsStored=16, HighBit=15)
    values = np.where(pixels == -2000, -300, pixels)
    positive = values[values > 0]
    white = np.percentile(positive, 99.5)
    np.testing.assert_allclose(unit(read(path))[0], np.clip(values / white, 0, 1), atol=1e-5)


def test_frames_of_one_file_are_slices(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", np.stack([RAMP, RAMP[::-1]]), NumberOfFrames=2, **WINDOW)
    images = unit(read(path))
    np.testing.assert_allclose(images[1], images[0][::-1], atol=1e-6)
    np.testing.assert_allclose(unit(read(path, slices=(1, 2))), images[1:], atol=1e-6)


def test_no_identifier_leaves_or_is_even_read(tmp_path: Path) -> None:
    names = (
        "PatientName",
        "PatientID",
        "PatientAddress",
        "InstitutionName",
        "ReferringPhysicianName",
        "StudyDescription",
    )
    marks = {name: f"{MARK}{name}"[:60] for name in names}
    folder = tmp_path / "series"
    folder.mkdir()
    write(folder / "a", **marks, StudyInstanceUID="1.2.777.1", StudyDate="19991231", AccessionNumber=MARK[:16])
    assert {"PatientName", "PatientID", "StudyDate", "InstitutionName"} & set(TAGS) == set()
    plan, shard = tmp_path / "plan.json", tmp_path / "a.shard"
    done("init", "--size", 4, "--timesteps", 10, "--cut-ratio", 0.5, "--out", plan)
    result = run_cli("upload", "--data", folder, "--plan", plan, "--key", tmp_path / "k", "--out", shard)
    assert result.code == 0, result
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())
    for place in (
        written,
        result.out.encode(),
        result.err.encode(),
        repr(load_images(str(folder), (1, 4, 4))).encode(),
    ):
        assert MARK.encode() not in place
        assert b"1.2.777.1" not in place
        assert b"19991231" not in place


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no picture": ({"Rows": None, "Columns": None}, "has no picture"),
    "palette": ({"PhotometricInterpretation": "PALETTE COLOR"}, "photometric interpretation 'PALETTE COLOR'"),
    "too few pixels": ({"Rows": 400}, "cannot read the pixels"),
    "enormous": ({"Rows": 65535, "Columns": 65535}, "valid: at most"),
    "zero spacing": ({"PixelSpacing": [0, 1]}, "no distance of pixels"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_one_line(case: str, tmp_path: Path) -> None:
    tags, said = REFUSED[case]
    path = write(tmp_path / "a.dcm", **tags)
    with pytest.raises(InputError) as caught:
        read(path)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("syntax", "said"), [(JPEG2000, "JPEG 2000.*needs a decoder: pip install"), ("1.2.3", "cannot read")]
)
def test_pixels_that_cannot_be_decoded_are_one_line(syntax: str, said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm")
    dataset = pydicom.dcmread(path)
    pixels = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51" + bytes(12)])
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    dataset["PixelData"] = pydicom.dataelem.DataElement(0x7FE00010, "OB", pixels, is_undefined_length=True)
    dataset.save_as(path, implicit_vr=False, little_endian=True)
    with pytest.raises(InputError, match=said):
        read(path)


def test_a_name_alone_makes_no_dicom(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=r"cannot read .*a\.dcm"):
        read(tmp_path / "a.dcm")
