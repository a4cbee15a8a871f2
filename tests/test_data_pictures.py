"""Picture files as hospitals have them: bit depths, WhiteIsZero, EXIF, strips, and what is refused unread."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from collafuse_edge.data import ImageSet, Selection, load_images
from collafuse_edge.data.image_folder import MAX_PIXELS
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


def test_frames_beyond_the_first_are_said(tmp_path: Path) -> None:
    frames = [Image.fromarray(GREYS), Image.fromarray(255 - GREYS)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert any("first of several frames taken" in note for note in read(tmp_path / "a.gif").notes)
    np.testing.assert_allclose(unit(read(tmp_path / "a.gif")), GREYS / 255, atol=1e-6)
