"""Picture files as hospitals have them: bit depths, WhiteIsZero, EXIF, strips, and what is refused unread."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from collafuse_edge.data import ImageSet, Selection, load_images
from collafuse_edge.data.folders.image_folder import MAX_PIXELS
from collafuse_runtimes.errors import InputError

GREYS = (np.arange(16).reshape(4, 4) * 17).astype(np.uint8)


def tiff(path: Path, pixels: np.ndarray, bits: int, photometric: int, sample_format: int = 1, order: str = "<") -> Path:
    """A baseline TIFF with one strip."""
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    height, width = pixels.shape
    entries = [
        (256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, height),
        (279, len(data)), (339, sample_format),
    ]  # fmt: skip
    directory = struct.pack(f"{order}H", len(entries))
    for tag, value in entries:
        directory += struct.pack(f"{order}HHII", tag, 4, 1, value)
    head = b"II*\0" if order == "<" else b"MM\0*"
    path.write_bytes(head + struct.pack(f"{order}I", 8 + len(data)) + data + directory + bytes(4))
    return path


def read(path: Path, side: int = 4, **selection: object) -> ImageSet:
    return load_images(str(path), (1, side, side), Selection(**selection))  # type: ignore[arg-type]


def unit(images: ImageSet) -> np.ndarray:
    return (images.images[0, 0] + 1) / 2


def refusal(path: Path, **selection: object) -> str:
    with pytest.raises(InputError) as caught:
        read(path, **selection)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert str(path) in message
    return message


def test_white_is_zero_is_the_same_picture_at_every_depth(tmp_path: Path) -> None:
    eight = tiff(tmp_path / "8.tif", 255 - GREYS, 8, 0)
    sixteen = tiff(tmp_path / "16.tif", (65535 - GREYS.astype(np.uint16) * 257), 16, 0)
    plain = tiff(tmp_path / "plain.tif", GREYS, 8, 1)
    for path in (eight, sixteen):
        np.testing.assert_allclose(unit(read(path)), unit(read(plain)), atol=1e-6)
    assert any("white-is-zero turned over" in note for note in read(sixteen).notes)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [0, 1])
def test_byte_order_changes_nothing(order: str, photometric: int, tmp_path: Path) -> None:
    wanted = GREYS if photometric else 255 - GREYS
    path = tiff(tmp_path / "a.tif", GREYS.astype(np.uint16) * 257, 16, photometric, order=order)
    np.testing.assert_allclose(unit(read(path)), wanted / 255, atol=1e-6)


def packed_tiff(path: Path, rows: list[bytes], width: int, bits: int, photometric: int) -> Path:
    """A TIFF whose pixels do not fill bytes."""
    tiff(path, np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), -1), bits, photometric)
    data = path.read_bytes()
    entry = struct.pack("<HHI", 256, 4, 1)
    path.write_bytes(data.replace(entry + struct.pack("<I", len(rows[0])), entry + struct.pack("<I", width)))
    return path


@pytest.mark.parametrize("photometric", [0, 1])
def test_one_and_twelve_bits_fill_the_range(photometric: int, tmp_path: Path) -> None:
    one = packed_tiff(tmp_path / "1.tif", [bytes([0b10100000]), bytes([0b11110000])] * 2, 4, 1, photometric)
    expected = np.array([[1, 0, 1, 0], [1, 1, 1, 1]] * 2)
    np.testing.assert_array_equal(unit(read(one)), expected if photometric else 1 - expected)
    row = bytes([0x00, 0x03, 0xE8, 0x7D, 0x0F, 0xFF])  # 0, 1000, 2000, 4095
    twelve = packed_tiff(tmp_path / "12.tif", [row] * 4, 4, 12, photometric)
    values = np.array([0, 1000, 2000, 4095]) / 4095
    np.testing.assert_allclose(unit(read(twelve))[0], values if photometric else 1 - values, atol=1e-6)


@pytest.mark.parametrize("order", ["<", ">"])
def test_values_of_other_kinds_are_what_the_file_says(order: str, tmp_path: Path) -> None:
    signed = tiff(tmp_path / "s8.tif", GREYS, 8, 1, sample_format=2, order=order)
    assert "dtype int8, -120 to 119" in refusal(signed)
    big = tiff(tmp_path / "u32.tif", GREYS.astype(np.uint32) << 24, 32, 1, order=order)
    np.testing.assert_allclose(unit(read(big, window=(0.0, 255.0 * 2**24))), GREYS / 255, atol=1e-6)
    for bits, kind in ((32, np.float32), (64, np.float64)):
        path = tiff(tmp_path / "f.tif", (GREYS / 255).astype(kind), bits, 1, sample_format=3, order=order)
        np.testing.assert_allclose(unit(read(path)), GREYS / 255, atol=1e-6)
    negative = tiff(tmp_path / "w.tif", GREYS.astype(np.int16), 16, 0, sample_format=2, order=order)
    assert "white-is-zero with int32 pixels, whose white nothing says" in refusal(negative)


def test_signed_pixels_want_a_window_and_get_it(tmp_path: Path) -> None:
    values = np.array([[-1000, -200, 0, 40], [80, 240, 400, 1000]] * 2, np.int16)
    path = tiff(tmp_path / "ct.tif", values, 16, 1, sample_format=2)
    message = refusal(path)
    assert "from -1000 to 1000, which look like Hounsfield units" in message
    assert "--window LOW:HIGH" in message
    expected = np.clip((values + 160) / 400, 0, 1)
    np.testing.assert_allclose(unit(read(path, window=(-160.0, 240.0))), expected, atol=1e-6)


def test_twelve_bits_in_sixteen_are_said_and_mended(tmp_path: Path) -> None:
    for name, peak in (("a", 2000), ("b", 4095)):
        pixels = np.full((4, 4), peak, np.uint16)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    dark = read(tmp_path)
    assert sum("reach only 4095 of 65535" in note and "--max-value 4095" in note for note in dark.notes) == 1
    assert unit(dark).max() == pytest.approx(2000 / 65535)
    mended = read(tmp_path, max_value=4095)
    assert unit(mended).max() == pytest.approx(2000 / 4095)
    assert mended.images[1].max() == 1
    assert not any("reach only" in note for note in mended.notes)
    assert "beyond 0 to --max-value 3000" in refusal(tmp_path / "b.png", max_value=3000)


@pytest.mark.parametrize(
    ("kind", "peak", "remedy"),
    [("u1", 1, 1), ("u1", 63, 63), ("u2", 255, 255), ("u2", 1000, 1023), ("u2", 4096, 16383), ("u2", 16383, 16383)],
)
def test_fewer_bits_than_the_type_holds_are_said(kind: str, peak: int, remedy: int, tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), peak, kind)).save(tmp_path / "a.png")
    full = 255 if kind == "u1" else 65535
    (note,) = (note for note in read(tmp_path).notes if "reach only" in note)
    assert f"reach only {peak} of {full}, so all pixels are in the darkest {100 * peak / full:.1f} %" in note
    assert note.endswith(f"--max-value {remedy}")
    assert unit(read(tmp_path, max_value=remedy)).max() == pytest.approx(peak / remedy)


@pytest.mark.parametrize(("kind", "peak"), [("u1", 0), ("u1", 64), ("u2", 16384)])
def test_a_quarter_of_the_range_is_no_news(kind: str, peak: int, tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), peak, kind)).save(tmp_path / "a.png")
    assert not any("reach only" in note for note in read(tmp_path).notes)


def test_one_bright_pixel_anywhere_says_sixteen_bits(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 2000, np.uint16)).save(tmp_path / "a.png")
    Image.fromarray(np.full((4, 4), 65535, np.uint16)).save(tmp_path / "b.png")
    assert not any("reach only" in note for note in read(tmp_path).notes)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_as_pillow_does(orientation: int, tmp_path: Path) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(GREYS).save(tmp_path / "a.png", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png"))) / 255
    np.testing.assert_allclose(unit(read(tmp_path / "a.png")), expected, atol=1e-6)


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + bytes(60000)])
def test_metadata_never_spoils_a_picture(exif: bytes, tmp_path: Path) -> None:
    Image.fromarray(GREYS).save(tmp_path / "a.jpg", exif=exif, quality=100)
    np.testing.assert_allclose(unit(read(tmp_path / "a.jpg")), GREYS / 255, atol=0.02)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
def test_postscript_is_refused_without_ghostscript(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ghostscript.parent}:{os.environ['PATH']}")
    path = tmp_path / name
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n")
    assert "Pillow finds none of PNG, JPEG" in refusal(path)
    assert not (tmp_path / "ran").exists()


def test_a_strip_keeps_its_proportions_in_little_memory(tmp_path: Path) -> None:
    Image.new("L", (60, 20000), 255).save(tmp_path / "a.png")
    import tracemalloc

    tracemalloc.start()
    image = unit(read(tmp_path / "a.png", side=32))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20
    assert image[:, 15:17].max() > 0.9
    assert image[:, :14].max() == 0


def test_a_long_side_is_averaged_before_it_is_resized(tmp_path: Path) -> None:
    stripes = np.zeros((5000, 5000), np.uint8)
    stripes[:, ::2] = 200
    Image.fromarray(stripes).save(tmp_path / "a.png")
    np.testing.assert_allclose(unit(read(tmp_path / "a.png")), 100 / 255, atol=0.01)


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    side = int(MAX_PIXELS**0.5) + 100
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    import zlib

    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + bytes(4))
    assert f"has {side}x{side} pixels; valid: at most {MAX_PIXELS}" in refusal(tmp_path / "a.png")


def test_webp_is_held_to_half_of_it(tmp_path: Path) -> None:
    Image.new("L", (16383, 2100)).save(tmp_path / "a.webp", quality=1, method=0)
    assert f"has 16383x2100 pixels; valid: at most {MAX_PIXELS // 2}" in refusal(tmp_path / "a.webp")


def test_frames_beyond_the_first_are_said(tmp_path: Path) -> None:
    frames = [Image.fromarray(GREYS), Image.fromarray(255 - GREYS)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert any("first of several frames taken" in note for note in read(tmp_path / "a.gif").notes)
    np.testing.assert_allclose(unit(read(tmp_path / "a.gif")), GREYS / 255, atol=1e-6)


def test_max_value_leaves_eight_bits_their_white(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 255, np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.full((4, 4), 4095, np.uint16)).save(tmp_path / "b.png")
    assert (read(tmp_path, max_value=4095).images == 1).all()


def test_a_colour_profile_is_said_to_be_ignored(tmp_path: Path) -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(GREYS).convert("RGB").save(tmp_path / "a.png", icc_profile=profile)
    loaded = read(tmp_path / "a.png")
    assert "colour profile ignored: 1 image" in loaded.notes
    np.testing.assert_allclose(unit(loaded), GREYS / 255, atol=1e-6)


@pytest.mark.parametrize("kind", ["png", "tif", "jpg", "webp", "gif", "bmp", "pgm"])
def test_damaged_pictures_are_read_or_refused_in_one_line(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import random

    path = tmp_path / f"a.{kind}"
    Image.fromarray(GREYS.repeat(4, 0).repeat(4, 1)).save(path)
    good, chance, refused = path.read_bytes(), random.Random(0), 0
    for number in range(60):
        data = bytearray(good)
        for _ in range(chance.choice([1, 2, 5])):
            data[chance.randrange(min(len(data), 200))] = chance.randrange(256)
        path.write_bytes(data[: chance.randrange(len(data))] if number % 5 == 0 else data)
        try:
            read(path)
        except InputError as error:
            refused += 1
            assert len(str(error).splitlines()) == 1
    assert refused > 5
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["a.png", "a.dcm", "a.nii", "a.npz", "a-idx3-ubyte"])
def test_a_pipe_is_refused_instead_of_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    assert "neither a folder nor a regular file" in refusal(tmp_path / name)
    Image.fromarray(GREYS).save(tmp_path / "b.png")
    loaded = read(tmp_path)
    assert len(loaded) == 1
    assert "left out: files of other kinds (no regular file)" in loaded.notes
