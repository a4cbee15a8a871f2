"""Nothing that names a patient leaves, in whatever text of a DICOM file it stands, sound or damaged."""

import random
import warnings
from pathlib import Path

import pytest
from command_line import done, run_cli
from dicom_files import RAMP, WINDOW, content, group, pydicom, write

from collafuse_edge.data import load_images
from collafuse_edge.data.formats.dicom_header import TAGS
from collafuse_runtimes.errors import InputError

MARK = "MARKERPATIENT"
TEXTS = ("PN", "LO", "SH", "ST", "LT", "UT", "UC", "AE")


def marked(path: Path, **tags: object) -> Path:
    """A file with the marker in every text that DICOM's dictionary knows and that is not read."""
    write(path, RAMP.repeat(4, 0).repeat(4, 1), **WINDOW, StudyDate="19991231", StudyInstanceUID="1.2.777.1", **tags)
    dataset = pydicom.dcmread(path)
    for tag, (kind, _, _, _, keyword) in pydicom.datadict.DicomDictionary.items():
        if kind in TEXTS and tag >> 16 >= 8 and keyword and keyword not in TAGS:
            dataset.add_new(tag, kind, MARK)
    inner = content(FrameComments=MARK, FrameAcquisitionDateTime="19991231")
    dataset.PerFrameFunctionalGroupsSequence = [group(FrameContentSequence=inner)]
    dataset.add_new(0x00110010, "LO", MARK)
    dataset.add_new(0x00111001, "LO", MARK)
    dataset.save_as(path)
    assert path.read_bytes().count(MARK.encode()) > 700
    return path


def test_no_text_of_a_file_is_in_shard_checkpoint_bundle_or_output(tmp_path: Path) -> None:
    folder, made = tmp_path / "series", tmp_path / "made"
    folder.mkdir()
    made.mkdir()
    marked(folder / "a")
    marked(folder / "b", ImagePositionPatient=[0, 0, 5])
    plan = made / "plan.json"
    done("init", "--size", 16, "--timesteps", 10, "--cut-ratio", 1, "--out", plan)
    results = [
        run_cli("inspect", folder, "--plan", plan, "--out", made / "sheet.png"),
        run_cli("train-client", "--data", folder, "--plan", plan, "--out", made / "head", "--preset", "edge", "--steps",
                1, "--batch-size", 2),
        run_cli("export", made / "head", "--steps", 2, "--out", made / "bundle"),
        run_cli("init", "--size", 16, "--timesteps", 10, "--cut-ratio", 0.5, "--out", made / "half.json"),
        run_cli("upload", "--data", folder, "--plan", made / "half.json", "--key", made / "k", "--out", made / "s.st"),
    ]  # fmt: skip
    assert [result.code for result in results] == [0] * len(results), results
    loaded = load_images(str(folder), (1, 16, 16))
    places = [path.read_bytes() for path in made.rglob("*") if path.is_file()]
    places += [(result.out + result.err).encode() for result in results] + [repr(loaded).encode()]
    assert len(places) > 10
    for secret in (MARK.encode(), b"1.2.777.1", b"19991231"):
        assert not any(secret in place for place in places)


def test_damage_is_one_line_and_quotes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write(
        tmp_path / "a.dcm", NumberOfFrames=1, InstanceNumber=1, RescaleSlope=2, PatientID=MARK, **WINDOW
    ).read_bytes()
    chance = random.Random(0)
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(250):
            data = bytearray(good)
            for _ in range(chance.choice([1, 2, 5])):
                data[chance.randrange(132, len(data))] = chance.randrange(256)
            (tmp_path / "a.dcm").write_bytes(data)
            try:
                load_images(str(tmp_path / "a.dcm"), (1, 4, 4))
            except InputError as error:
                refused += 1
                assert len(str(error).splitlines()) == 1
                assert MARK not in str(error)
    assert refused > 50
    assert capsys.readouterr().err == ""
