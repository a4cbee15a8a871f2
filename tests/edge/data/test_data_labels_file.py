"""--labels-file: tables as spreadsheets and programs write them; what is wrong in one is named by its row."""

import json
from pathlib import Path

import pytest
from image_trees import load, notes, taken, tree

from collafuse_runtimes.errors import InputError

FILES = ("a/1.png", "a/2.png", "b/3.png")
ROWS = "a/1.png,none\na/2.png,glioma\nb/3.png,none\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tree(tmp_path / "data", *FILES)


def write(root: Path, text: str | bytes, name: str = "labels.csv") -> Path:
    path = root.parent / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(root: Path, text: str | bytes, name: str = "labels.csv", **selection: object) -> str:
    with pytest.raises(InputError) as caught:
        load(root, labels_file=write(root, text, name), **selection)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(root.parent) + "/", "")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.csv", ROWS),
        ("x.csv", "path,label\n" + ROWS),
        ("x.csv", "Image_ID,Diagnosis\n" + ROWS),
        ("x.csv", "\ufeff" + "filename,class\n" + ROWS),
        ("x.csv", ROWS.replace("\n", "\r\n")),
        ("x.csv", ROWS.replace("\n", "\r")),
        ("x.csv", ROWS.replace(",", ";")),
        ("x.csv", ROWS.replace(",", " , ") + "\n \n"),
        ("x.csv", '"a/1.png","none"\n"a/2.png","glioma"\n"b/3.png","none"\n'),
        ("x.csv", ROWS.replace("a/1.png", "./a/1.png").replace("b/3", "b\\3")),
        ("x.csv", ROWS.replace("a/", "").replace("b/", "")),
        ("x.csv", "a/1,none\n2,glioma\n3,none\n"),
        ("x.csv", "age,label,sex,image\n5,none,m,a/1.png\n6,glioma,f,a/2.png\n7,none,f,b/3.png\n"),
        ("x.CSV", ROWS.encode("utf-16")),
        ("x.tsv", ROWS.replace(",", "\t")),
        ("x.json", json.dumps(dict(line.split(",") for line in ROWS.split()))),
        ("x.json", json.dumps([line.split(",") for line in ROWS.split()])),
        ("x.json", json.dumps([dict(zip(("path", "label"), line.split(","), strict=True)) for line in ROWS.split()])),
        ("x.json", json.dumps({"labels": [line.split(",") for line in ROWS.split()]})),
    ],
)
def test_tables_of_every_form_say_the_same(root: Path, name: str, text: str | bytes) -> None:
    loaded = load(root, labels_file=write(root, text, name))
    assert (taken(loaded), loaded.labels.tolist(), loaded.label_names) == ([1, 2, 3], [1, 0, 1], ("glioma", "none"))


def test_names_with_commas_quotes_and_spaces(root: Path) -> None:
    text = 'a/1.png,"grade 2, low"\na/2.png,"said ""none"""\nb/3.png,  plain  \n'
    loaded = load(root, labels_file=write(root, text))
    assert loaded.label_names == ("grade 2, low", "plain", 'said "none"')


@pytest.mark.parametrize("numbers", [("3", "1", "3"), ("3.0", "1.0", "3."), ("03", "01", "3")])
def test_whole_numbers_are_the_numbers_themselves(root: Path, numbers: tuple[str, ...]) -> None:
    text = "".join(f"{file},{number}\n" for file, number in zip(FILES, numbers, strict=True))
    loaded = load(root, labels_file=write(root, text))
    assert (loaded.labels.tolist(), loaded.label_names) == ([3, 1, 3], None)
    assert "classes 1: 1, 3: 2; no image of 0, 2" in loaded.notes


def test_numbers_in_json(root: Path) -> None:
    pairs = [["a/1.png", 1], ["a/2.png", 0.0], ["b/3.png", "1"]]
    assert load(root, labels_file=write(root, json.dumps(pairs), "x.json")).labels.tolist() == [1, 0, 1]


def test_images_without_a_row_are_left_out_and_said(root: Path) -> None:
    loaded = load(root, labels_file=write(root, "a/2.png,x\n"))
    assert taken(loaded) == [2]
    assert "left out: 2 images without a row in labels.csv (first: a/1.png)" in loaded.notes


def test_a_row_said_twice_is_noted(root: Path) -> None:
    loaded = load(root, labels_file=write(root, ROWS + "a/2.png,glioma\n"))
    assert "labels.csv: 1 rows say again what an earlier one said" in notes(loaded)


def test_splits_and_their_table(tmp_path: Path) -> None:
    root = tree(tmp_path / "data", "test/1.png", "train/2.png", "train/3.png")
    table = write(root, "test/1.png,c\ntrain/2.png,a\ntrain/3.png,b\n")
    loaded = load(root, labels_file=table)
    assert (taken(loaded), loaded.labels.tolist(), loaded.label_names) == ([2, 3], [0, 1], ("a", "b", "c"))
    assert load(root, labels_file=table, split="test").labels.tolist() == [2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a/1.png,x\nc/9.png,x\n", "labels.csv row 2 names 'c/9.png', which is no image below data; mend or remove"),
        ("path,label\na/1.png,x\nnope,x\n", "labels.csv row 3 names 'nope', which is no image below data"),
        ("a/1.png,x\na/1.png,y\n", "labels.csv row 2 gives 'a/1.png' the label 'y', but row 1 gave it 'x'; keep one"),
        ("a/1.png,x\n\n1.png, y\n", "labels.csv row 3 gives '1.png' the label 'y', but row 1 gave it 'x'"),
        ("a/1.png, \n", "labels.csv row 1 has no label"),
        ("a/1.png,x\n,x\n", "labels.csv row 2 has no path"),
        ("a/1.png\n", "labels.csv row 1 has the columns a/1.png; valid: two columns, path and label"),
        ("a/1.png,x\na/2.png\n", "labels.csv row 2 has 1 columns"),
        ("image,MEL,NV\na/1.png,0,1\n", "labels.csv row 1 has the columns image, MEL, NV; valid: two columns"),
        ("a/1.png,x|y\n", "labels.csv row 1 has several labels, 'x|y'"),
        ("", "labels.csv holds no row; valid: two columns"),
        ("path,label\n", "labels.csv holds no row"),
        ('a/1.png,"x\n', "labels.csv is no table (unexpected end of data"),
        (b"a/1.png,\xff\n", "labels.csv is not UTF-8 (byte 8); save it as CSV UTF-8"),
    ],
)
def test_what_is_wrong_is_named_by_its_row(root: Path, text: str | bytes, message: str) -> None:
    assert message in refusal(root, text)


def test_a_name_that_two_files_have(root: Path) -> None:
    tree(root, "c/1.png")
    assert "row 1 names '1.png', which may be a/1.png and c/1.png; write the path from" in refusal(root, "1.png,x\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "x.json is not valid JSON"),
        ("3", "x.json holds no pairs; valid: {path: label, ...}"),
        ('[["a/1.png", ["x", "y"]]]', "x.json row 1 has several labels; valid: a path and one label"),
        ('[["a/1.png", null]]', "x.json row 1 has the label None; valid: a path and one label"),
        ('[["a/1.png", 0.5]]', "x.json row 1 has the label 0.5"),
        ('[["a/1.png", "x"], "b"]', "x.json row 2 is no pair"),
        ('{"a/1.png": "x", "a/1.png": "y"}', "x.json row 2 gives 'a/1.png' the label 'y', but row 1 gave it 'x'"),
        ("[" * 100_000, "x.json is not valid JSON"),
    ],
)
def test_what_is_wrong_in_json(root: Path, text: str, message: str) -> None:
    assert message in refusal(root, text, "x.json")


def test_files_that_are_no_tables(root: Path) -> None:
    assert "x.xlsx is of no known kind; valid: files ending in .csv, .tsv, .json" in refusal(root, "", "x.xlsx")
    with pytest.raises(InputError, match=r"cannot read --labels-file .*missing.csv: No such file"):
        load(root, labels_file=root / "missing.csv")
    with pytest.raises(InputError, match="only folders have files to choose and to label; leave it out"):
        from collafuse_edge.data import Selection, load_images

        load_images("phantom:0:2", (1, 16, 16), Selection(labels_file=Path("x.csv")))
