"""DICOM series: real values, windows, order, proportions; nothing that names a patient is ever read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import RAMP, WINDOW, colour, content, group, pydicom, write

from collafuse_edge.data import ImageSet, Selection, load_images
from collafuse_runtimes.errors import InputError


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


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no picture": ({"Rows": None, "Columns": None}, "a.dcm has no picture (no Rows and Columns, as in a report or"),
    "palette": ({"PhotometricInterpretation": "PALETTE COLOR"}, "photometric interpretation 'PALETTE COLOR'"),
    "too few pixels": ({"Rows": 400}, "cannot read the pixels"),
    "enormous": ({"Rows": 65535, "Columns": 65535}, "valid: at most"),
    "no slope": ({"RescaleSlope": 0}, "RescaleSlope 0"),
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
    ("syntax", "said"),
    [("1.2.840.10008.1.2.4.90", "JPEG 2000.*needs a decoder: pip install"), ("1.2.3", "cannot read")],
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


def test_a_picture_without_pixels_is_told_as_such(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm")
    dataset = pydicom.dcmread(path)
    del dataset.PixelData
    dataset.save_as(path, enforce_file_format=True)
    with pytest.raises(InputError, match=r"a\.dcm says how large its picture is and holds none; fetch it again$"):
        read(path)


def test_a_folder_of_reports_alone_says_how_many_were_looked_at(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / f"{name}.dcm", Rows=None, Columns=None)
    with pytest.raises(InputError, match=r"^all 2 DICOM files, first .*a\.dcm, have no picture \(no Rows and Columns"):
        read(tmp_path)


def test_a_name_alone_makes_no_dicom(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=r"cannot read .*a\.dcm"):
        read(tmp_path / "a.dcm")


def test_functional_groups_speak_for_their_frames(tmp_path: Path) -> None:
    def frame(z: float, intercept: float) -> Any:
        values = content(RescaleSlope=2, RescaleIntercept=intercept)
        place = content(ImagePositionPatient=[0, 0, z])
        return group(PlanePositionSequence=place, PixelValueTransformationSequence=values)

    shared = group(
        PixelMeasuresSequence=content(PixelSpacing=[2, 1]),
        PlaneOrientationSequence=content(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
        FrameVOILUTSequence=content(WindowCenter=1000.5, WindowWidth=2001),
    )
    path = write(
        tmp_path / "a.dcm", np.stack([RAMP[[0, 0]]] * 2), Modality="CT", NumberOfFrames=2, PixelSpacing=None,
        ImagePositionPatient=None, ImageOrientationPatient=None, SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=[frame(10, 500), frame(-10, 0)],
    )  # fmt: skip
    images = unit(read(path))
    np.testing.assert_allclose(images[0], np.broadcast_to(2 * RAMP[0] / 2000, (4, 4)), atol=2e-3)
    np.testing.assert_allclose(images[1] - images[0], 0.25, atol=2e-3)
    assert images.shape == (2, 4, 4)


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize(("kind", "darkest"), [("MONOCHROME1", 1000), ("MONOCHROME2", 100)])
def test_padding_is_dark_whichever_way_round(kind: str, darkest: int, implicit: bool, tmp_path: Path) -> None:
    pixels = np.array([[4000, 4001], [100, 1000]], np.uint16)
    path = write(
        tmp_path / "a.dcm", pixels, implicit=implicit, PhotometricInterpretation=kind, PixelPaddingValue=4000,
        PixelPaddingRangeLimit=4001, WindowCenter=550.5, WindowWidth=901,
    )  # fmt: skip
    image = unit(read(path, side=2))[0]
    np.testing.assert_allclose(image[0], 0, atol=1e-6)
    assert image[1, int(darkest == 1000)] == pytest.approx(0)
    assert image[1, int(darkest != 1000)] == pytest.approx(1)


def test_colour_is_read_as_it_looks(tmp_path: Path) -> None:
    rgb = np.array([[[200, 40, 90], [10, 250, 30]]] * 2, np.uint8)
    plain = load_images(str(colour(tmp_path / "a.dcm", rgb, "RGB")), (3, 2, 2)).images
    np.testing.assert_allclose((plain[0].transpose(1, 2, 0) + 1) / 2, rgb / 255, atol=1e-6)
    from PIL import Image

    ybr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    turned = load_images(str(colour(tmp_path / "b.dcm", ybr, "YBR_FULL")), (3, 2, 2)).images
    np.testing.assert_allclose(turned, plain, atol=0.03)
    planes = np.ascontiguousarray(rgb.transpose(2, 0, 1)).reshape(2, 2, 3)
    planar = colour(tmp_path / "c.dcm", planes, "RGB", PlanarConfiguration=1)
    np.testing.assert_allclose(load_images(str(planar), (3, 2, 2)).images, plain, atol=1e-6)
    with pytest.raises(InputError, match="is in colour: --window is for grey"):
        read(tmp_path / "a.dcm", window=(0.0, 100.0))


def test_without_positions_instance_numbers_decide_and_it_is_said(tmp_path: Path) -> None:
    for name, number in (("a", 10), ("b", 2), ("c", 1)):
        write(tmp_path / name, RAMP + np.uint16(number), ImagePositionPatient=None, InstanceNumber=number, **WINDOW)
    loaded = read(tmp_path, window=(0.0, 2000.0))
    assert (unit(loaded)[:, 0, 0] * 2000).round().tolist() == [1, 2, 10]
    assert "slices without a position sorted by their instance numbers" in loaded.notes


def test_files_without_a_picture_are_left_out_of_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "a", **WINDOW)
    write(tmp_path / "DICOMDIR", Rows=None, Columns=None)
    loaded = read(tmp_path)
    assert len(loaded) == 1
    assert "left out: DICOM files without a picture (DICOMDIR, reports, ...), 1" in loaded.notes


def test_deflated_files_are_refused_before_they_grow(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm")
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    dataset.save_as(path)
    with pytest.raises(InputError, match=r"is deflated as a whole.*save it uncompressed"):
        read(path)
