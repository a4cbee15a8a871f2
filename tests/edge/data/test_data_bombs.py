"""Compressed files that claim much are refused before memory is taken; volumes keep their proportions."""

import gzip
import io
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest

from collafuse_edge.data import Selection, load_images
from collafuse_runtimes.errors import InputError

SCRIPT = """
import sys
from collafuse_edge.data import load_images
from collafuse_runtimes.errors import InputError
load_images("phantom:0:1", (1, 8, 8))
for path in sys.argv[1:]:
    try:
        load_images(path, (1, 8, 8))
        print("read")
    except InputError as error:
        print(str(error).replace(path, "FILE"))
status = open("/proc/self/status").read()  # getrusage would count the memory of whoever started this
print(int(status.split("VmHWM:")[1].split()[0]) // 1024)
"""


def gzip_of_zeros(path: Path, head: bytes, size: int) -> Path:
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(head)
        for _ in range(size >> 24):
            stream.write(bytes(1 << 24))
    return path


def nifti_head(shape: tuple[int, int, int]) -> bytes:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header["dim"][:4] = (3, *shape)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    return header.binaryblock + bytes(4)


def bomb_npz(path: Path) -> Path:
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": (100, 2000, 2000)})
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("images.npy", "w") as stream,
    ):
        stream.write(member.getvalue())
        for _ in range(25):
            stream.write(bytes(16_000_000))
    return path


def test_bombs_are_refused_in_little_memory(tmp_path: Path) -> None:
    files = [
        gzip_of_zeros(tmp_path / "a-idx3-ubyte.gz", struct.pack(">HBB3I", 0, 8, 3, 100, 2000, 2000), 400_000_000),
        gzip_of_zeros(tmp_path / "b-idx3-ubyte.gz", struct.pack(">HBB3I", 0, 8, 3, 1, 8, 8), 400_000_000),
        gzip_of_zeros(tmp_path / "c.nii.gz", nifti_head((2000, 500, 200)), 400_000_000),
        bomb_npz(tmp_path / "d.npz"),
    ]
    (tmp_path / "e.nii").write_bytes(nifti_head((30000, 30000, 30000)))
    (tmp_path / "f.nii").write_bytes(nifti_head((400, 400, 400)))
    command = [sys.executable, "-c", SCRIPT, *map(str, files), str(tmp_path / "e.nii"), str(tmp_path / "f.nii")]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "decompression bomb" in lines[0]
    assert "more bytes than belong there" in lines[1]
    assert "valid: at most" in lines[2] or "decompression bomb" in lines[2]
    assert "decompression bomb" in lines[3]
    assert "valid: at most" in lines[4]
    assert "truncated or damaged" in lines[5]
    assert int(lines[6]) < 300


def test_an_npz_whose_header_lies_is_refused(tmp_path: Path) -> None:
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 100, 100)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", member.getvalue() + bytes(100))
    with pytest.raises(InputError, match=r"announces 10000000000 bytes in images\.npy and holds 100"):
        load_images(str(tmp_path / "a.npz"), (1, 8, 8))


def test_a_plane_keeps_its_proportions(tmp_path: Path) -> None:
    voxels = np.zeros((24, 8, 1), np.int16)
    voxels[6:18, 2:6] = 100  # 12 voxels of 2 mm, 4 of 6 mm: 24 x 24 mm
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([2.0, 6.0, 5.0, 1.0])), tmp_path / "a.nii")
    loaded = load_images(str(tmp_path / "a.nii"), (1, 24, 24))
    image = loaded.images[0, 0] > 0
    rows, columns = image.any(axis=1).sum(), image.any(axis=0).sum()
    assert abs(int(rows) - int(columns)) <= 1
    assert any("stretched to square pixels of 2 mm" in note for note in loaded.notes)


def test_one_value_is_one_grey_in_all_slices(tmp_path: Path) -> None:
    voxels = np.zeros((4, 4, 3), np.int16)
    voxels[0, 0] = (100, 200, 1000)
    voxels[1, 1] = 100
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "a.nii")
    images = load_images(str(tmp_path / "a.nii"), (1, 4, 4)).images[:, 0, 2, 1]
    assert images[0] == images[1] == images[2] > -1


def test_hounsfield_units_want_a_window(tmp_path: Path) -> None:
    voxels = np.linspace(-1024, -10, 64).reshape(4, 4, 4).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(InputError, match=r"from -1024 to -10, which look like Hounsfield units.*--window LOW:HIGH"):
        load_images(str(tmp_path / "a.nii"), (1, 4, 4))
    loaded = load_images(str(tmp_path / "a.nii"), (1, 4, 4), Selection(window=(-1000.0, 0.0)))
    expected = np.clip((voxels[0, 0, 3] + 1000) / 1000, 0, 1)
    assert (loaded.images[3, 0, 3, 0] + 1) / 2 == pytest.approx(expected)


def changed(path: Path, *changes: tuple[str, int, float]) -> Path:
    """A sound small volume with other bytes in its header."""
    nibabel.save(nibabel.Nifti1Image(np.ones((6, 6, 4), np.int16), np.eye(4)), path)
    data = bytearray(path.read_bytes())
    for kind, place, value in changes:
        struct.pack_into(kind, data, place, value)
    path.write_bytes(data)
    return path


NO_SFORM = (("<h", 252, 0), ("<h", 254, 0))
HEADS: dict[str, tuple[tuple[tuple[str, int, float], ...], str]] = {
    "voxels within the header": ((("<f", 108, 0),), "begin at byte 0; valid: 352 to"),
    "voxels far behind it": ((("<f", 108, 1.5e9),), r"begin at byte 1\.5e\+09; valid: 352 to"),
    "voxels nowhere": ((("<f", 108, float("nan")),), "begin at byte nan"),
    "no width": ((*NO_SFORM, ("<f", 80, 0)), "voxels of 0 x 1 x 1 mm"),
    "no number": ((*NO_SFORM, ("<f", 84, float("nan"))), "voxels of 1 x nan x 1 mm"),
    "singular": ((("<f", 280, 0),), "no usable orientation"),
    "unknown type": ((("<h", 70, 26996),), "data code 26996"),
    "no intercept": ((("<f", 112, 1), ("<f", 116, float("nan"))), "invalid intercept nan"),
    "several volumes": ((("<h", 40, 4), ("<h", 48, 2)), "one 3-D volume per file"),
}


@pytest.mark.parametrize("case", HEADS)
def test_heads_of_volumes_are_judged_first(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes, said = HEADS[case]
    with pytest.raises(InputError, match=said) as caught:
        load_images(str(changed(tmp_path / "a.nii", *changes)), (1, 6, 6))
    assert len(str(caught.value).splitlines()) == 1
    assert capsys.readouterr().err == ""


def test_volumes_without_sizes_are_square_and_negative_ones_positive(tmp_path: Path) -> None:
    unset = changed(tmp_path / "a.nii", *NO_SFORM, *(("<f", place, 0.0) for place in (80, 84, 88)))
    assert "volumes without voxel sizes taken as square" in load_images(str(unset), (1, 6, 6)).notes
    negative = changed(tmp_path / "b.nii", *NO_SFORM, ("<f", 80, -2))
    assert "stretched to square pixels of 1 mm: 4 images" in load_images(str(negative), (1, 6, 6)).notes


@pytest.mark.parametrize(("name", "found"), [("a.nii", "a gzip file.*ends in .nii.gz"), ("a.nii.gz", "no gzip file")])
def test_names_that_hide_the_compression_are_said(name: str, found: str, tmp_path: Path) -> None:
    data = changed(tmp_path / "x.nii").read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(data) if name == "a.nii" else data)
    with pytest.raises(InputError, match=found):
        load_images(str(tmp_path / name), (1, 6, 6))


@pytest.mark.parametrize("dimensions", [0, 5, 65, 255])
def test_idx_of_absurd_dimensions(dimensions: int, tmp_path: Path) -> None:
    path = tmp_path / "a-images-idx3-ubyte"
    path.write_bytes(struct.pack(f">HBB{dimensions}I", 0, 8, dimensions, *[1] * dimensions) + b"a")
    with pytest.raises(InputError, match=f"has {dimensions} dimensions; valid: 3"):
        load_images(str(path), (1, 6, 6))


def test_npz_of_other_shapes_says_what_to_do(tmp_path: Path) -> None:
    for shape, said in (((), r"shape \(\); valid"), ((3, 1, 8, 8), r"channels come last: save images\.transpose")):
        np.savez(tmp_path / "a.npz", images=np.zeros(shape, np.uint8))
        with pytest.raises(InputError, match=said):
            load_images(str(tmp_path / "a.npz"), (1, 6, 6))


def test_an_encrypted_npz_is_one_line(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((1, 4, 4), np.uint8))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(InputError, match="encrypted"):
        load_images(str(tmp_path / "a.npz"), (1, 6, 6))


def test_a_volume_beyond_half_of_the_memory_says_so_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collafuse_edge.data.formats.bounded._memory_left", lambda: 2_000_000_000)
    path = gzip_of_zeros(tmp_path / "a.nii.gz", nifti_head((512, 512, 400)), 0)
    monkeypatch.setattr("collafuse_edge.data.formats.nifti_slices.require_room", lambda *sizes: None)
    with pytest.raises(
        InputError, match=r"a\.nii\.gz needs 1\.3 GB, more than half of the 2\.0 GB of memory left; free"
    ):
        load_images(str(path), (1, 8, 8))
