"""`disclose` on drawn and on real images: what it says, what it writes and to whom, and what it refuses."""

import json
import socket
import stat
from pathlib import Path

import numpy as np
import pytest
from command_line import done, refusal, run_cli
from PIL import Image

from collafuse_edge.data import Selection, load_images
from collafuse_edge.disclosure.halves import make_halves, own_shape
from collafuse_edge.upload.similarity import near_duplicate_groups

PHANTOMS = "phantom:0:60"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """plan.json, a key, shards of both protocols, and a report on the phantoms with a network of few steps."""
    here = tmp_path_factory.mktemp("disclose")
    done("init", "--size", 16, "--cut-ratio", 0.3, "--out", here / "plan.json")
    common = ("--data", PHANTOMS, "--plan", here / "plan.json", "--key", here / "site.key")
    done("upload", *common, "--out", here / "site.shard.safetensors")
    done("upload", *common, "--protocol", "paper", "--draws", 1, "--out", here / "paper.shard.safetensors")
    done("disclose", PHANTOMS, "--plan", here / "plan.json", "--attacker-steps", 8, "--out", here / "report")
    return here


def report(folder: Path, name: str = "report") -> dict:
    return json.loads((folder / name / "report.json").read_text())


def test_every_cut_is_attacked_and_the_plans_own_too(folder: Path) -> None:
    found = report(folder)
    assert [cut["cut_ratio"] for cut in found["cuts"]] == [0.2, 0.3, 0.4, 0.6, 0.8]
    assert found["images"] == 60
    assert found["attacked"] == found["groups"] // 2
    for cut in found["cuts"]:
        assert cut["at_plan_size"]["candidates"] == found["groups"]
        assert cut["network"]["psnr"] > 0
        assert cut["verdict"].endswith(".")


def test_a_noisier_cut_hides_more(folder: Path) -> None:
    best = [max(cut["wiener"]["psnr"], cut["network"]["psnr"]) for cut in report(folder)["cuts"]]
    assert best == sorted(best, reverse=True)


def test_pictures_are_in_the_page_alone_and_for_its_owner_alone(folder: Path) -> None:
    page = folder / "report" / "report.html"
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert "data:image/png;base64," in page.read_text()
    for shareable in ("report.json", "report.md"):
        text = (folder / "report" / shareable).read_text()
        assert "base64" not in text
        assert len(text) < 40_000


def test_the_page_is_made_again_without_pictures(folder: Path, tmp_path: Path) -> None:
    done("bench", "report", folder / "report", "--out", tmp_path / "again")
    assert (tmp_path / "again" / "report.md").read_bytes() == (folder / "report" / "report.md").read_bytes()
    assert "base64" not in (tmp_path / "again" / "report.html").read_text()


def test_the_same_seed_gives_the_same_figures(folder: Path) -> None:
    arguments = ("disclose", PHANTOMS, "--plan", folder / "plan.json", "--attacker-steps", 8)
    done(*arguments, "--out", folder / "again")
    first, second = report(folder), report(folder, "again")
    assert first["cuts"] == second["cuts"]


def test_the_first_line_is_the_answer_for_the_plans_cut(folder: Path) -> None:
    out = done("disclose", PHANTOMS, "--plan", folder / "plan.json", "--attacker-steps", 0, "--out", folder / "lines")
    first, header, *rows = out.splitlines()
    assert first.startswith("at c = 0.3 ")
    assert header.split()[:3] == ["c", "noise", "level"]
    assert [row.split()[0] for row in rows[:5]] == ["0.2", "0.3", "0.4", "0.6", "0.8"]
    assert any(line.startswith("warning   The pictures show private images") for line in rows)


def test_without_a_network_the_figure_is_null_with_a_reason(folder: Path) -> None:
    cut = report(folder, "lines")["cuts"][0] if (folder / "lines").exists() else None
    if cut is None:
        done("disclose", PHANTOMS, "--plan", folder / "plan.json", "--attacker-steps", 0, "--out", folder / "lines")
        cut = report(folder, "lines")["cuts"][0]
    assert cut["network"] is None
    assert cut["network_reason"] == "no attacker's network was asked for"


def test_a_finished_shard_is_attacked_as_it_is(folder: Path) -> None:
    shard = ("--shard", folder / "site.shard.safetensors", "--key", folder / "site.key")
    done("disclose", PHANTOMS, "--plan", folder / "plan.json", *shard, "--attacker-steps", 0, "--out", folder / "s")
    cuts = report(folder, "s")["cuts"]
    drawn = next(cut for cut in report(folder)["cuts"] if cut["cut_ratio"] == 0.3)
    assert [cut["cut_ratio"] for cut in cuts] == [0.3]
    assert cuts[0]["as_it_is"]["psnr"] == pytest.approx(drawn["as_it_is"]["psnr"], abs=0.3)
    assert cuts[0]["as_it_is"]["psnr"] != drawn["as_it_is"]["psnr"]
    assert cuts[0]["at_plan_size"]["share"] > 0.9


def test_a_shard_of_other_images_or_another_key_is_refused(folder: Path) -> None:
    shard = ("--plan", folder / "plan.json", "--shard", folder / "site.shard.safetensors", "--attacker-steps", 0)
    done(
        "upload", "--data", PHANTOMS, "--plan", folder / "plan.json", "--key", folder / "b.key", "--out", folder / "b.s"
    )
    other = refusal("disclose", PHANTOMS, *shard, "--key", folder / "b.key", "--out", folder / "no")
    assert "was not made of these images under this key" in other
    less = refusal("disclose", "phantom:0:50", *shard, "--key", folder / "site.key", "--out", folder / "no")
    assert "60 tensors, 50 images" in less
    missing = refusal("disclose", PHANTOMS, *shard, "--key", folder / "none.key", "--out", folder / "no")
    assert "there is no key" in missing
    assert not (folder / "no").exists()
    assert not (folder / "none.key").exists()


def test_a_shard_of_the_papers_protocol_is_said_to_disclose_everything(folder: Path) -> None:
    shard = ("--shard", folder / "paper.shard.safetensors", "--attacker-steps", 0)
    said = refusal("disclose", PHANTOMS, "--plan", folder / "plan.json", *shard, "--out", folder / "no", code=1)
    assert "DISCLOSES every image" in said
    assert int(said.split(" dB")[0].split()[-1]) > 40


def test_a_head_attacks_up_to_the_level_it_was_trained_for(folder: Path) -> None:
    train = ("--plan", folder / "plan.json", "--preset", "tiny", "--steps", 2, "--batch-size", 4)
    done("train-client", "--data", PHANTOMS, *train, "--out", folder / "head")
    done(
        "disclose", PHANTOMS, "--plan", folder / "plan.json", "--attacker", folder / "head", "--out", folder / "by-head"
    )
    found = report(folder, "by-head")
    assert [cut["network"] is None for cut in found["cuts"]] == [False, False, True, True, True]
    assert "trained up to level 29" in found["cuts"][2]["network_reason"]
    assert "checkpoint head (tiny)" in found["attacker"]


def test_a_patients_images_count_together(folder: Path) -> None:
    more = ("--attacker-steps", 0, "--images-per-patient", 9)
    done("disclose", PHANTOMS, "--plan", folder / "plan.json", *more, "--out", folder / "patients")
    image, patient = report(folder, "patients")["cuts"][0]["guarantees"][1:]
    assert (patient["unit"], patient["images"]) == ("one patient", 9)
    assert patient["zcdp"] == pytest.approx(9 * image["zcdp"])
    assert report(folder)["cuts"][0]["patient_reason"].endswith("give --images-per-patient")


def test_nothing_is_sent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    done("disclose", PHANTOMS, "--plan", folder / "plan.json", "--attacker-steps", 2, "--out", folder / "offline")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--cuts", 0), "would be the images themselves"),
        (("--cuts", 1), "nothing to upload"),
        (("--key", "k"), "without --shard no tensor is anybody's; leave out --key"),
        (("--shard", "s", "--cuts", "0.2"), "a shard has its own cut; leave out --cuts"),
        (("--attacker", "h", "--attacker-steps", 9), "--attacker is trained already; leave out --attacker-steps"),
        (("--cuts", "a,b"), "cuts 'a,b' are no numbers; valid: for example 0.2,0.6"),
        (("--delta", 2), "delta 2.0 out of range: must be above 0 and below 1"),
        (("--images-per-patient", 0), "images per patient 0 out of range: must be at least 1"),
        (("--attacked", 1), "attacked 1 out of range: must be at least 2"),
        (("--attacker-steps", -1), "attacker steps -1 out of range: must be at least 0"),
    ],
)
def test_what_cannot_be_asked_is_refused(folder: Path, arguments: tuple[object, ...], said: str) -> None:
    line = refusal("disclose", PHANTOMS, "--plan", folder / "plan.json", "--out", folder / "no", *arguments)
    assert said in line
    assert not (folder / "no").exists()


def test_too_few_different_images_are_refused(folder: Path, tmp_path: Path) -> None:
    for name in "abcdef":
        Image.fromarray(np.full((20, 20), 90, np.uint8)).save(tmp_path / f"{name}.png")
    line = refusal("disclose", tmp_path, "--plan", folder / "plan.json", "--out", folder / "no")
    assert "valid: at least 4" in line


def test_a_finished_report_is_not_replaced_unless_told_to(folder: Path) -> None:
    arguments = (
        "disclose",
        PHANTOMS,
        "--plan",
        folder / "plan.json",
        "--attacker-steps",
        0,
        "--out",
        folder / "report",
    )
    before = (folder / "report" / "report.json").read_bytes()
    assert "--overwrite" in refusal(*arguments)
    assert (folder / "report" / "report.json").read_bytes() == before


def test_no_near_duplicate_of_an_attacked_image_is_known_to_the_attacker() -> None:
    images = load_images("phantom:0:80", (1, 16, 16), Selection())
    doubled = np.concatenate([images.images, (images.images + 0.004).clip(-1, 1)])
    twice = type(images)(doubled, None, None, "twice")
    groups = near_duplicate_groups(doubled)
    assert (groups[80:] == groups[:80]).mean() > 0.95
    halves = make_halves(twice, 500, seed=3)
    assert not set(groups[halves.attacked]) & set(groups[halves.references])
    assert len(set(groups[halves.candidates])) == len(halves.candidates) == halves.groups
    assert halves.candidates[: len(halves.attacked)].tolist() == halves.attacked.tolist()


def test_images_are_told_apart_at_their_own_size_too(folder: Path, tmp_path: Path) -> None:
    big = load_images("phantom:0:12", (1, 64, 64), Selection())
    for row, image in enumerate(big.images):
        Image.fromarray(((image[0] + 1) * 127.5).round().astype(np.uint8)).save(tmp_path / f"{row:02}.png")
    images = load_images(str(tmp_path), (1, 16, 16), Selection())
    assert own_shape(images, len(images)) == ((1, 64, 64), None)
    done("disclose", tmp_path, "--plan", folder / "plan.json", "--attacker-steps", 0, "--out", folder / "sizes")
    cut = report(folder, "sizes")["cuts"][-1]
    assert (cut["at_own_size"]["height"], cut["at_plan_size"]["height"]) == (64, 16)
    assert cut["at_own_size"]["share"] >= cut["at_plan_size"]["share"]


def test_sizes_are_bounded_by_memory_and_this_is_said() -> None:
    images = load_images("phantom:0:8", (1, 16, 16), Selection())
    huge = type(images)(images.images, None, None, "huge", found=type(images.found)((((4096, 4096), 8),)))
    shape, note = own_shape(huge, 1000)
    assert shape is not None and 4 * 1000 * shape[1] * shape[2] < 1.1 * (1 << 30)
    assert "easier to tell apart at their own size" in str(note)


def test_real_slices_are_named_at_a_cheap_cut(folder: Path, data_dir: Path) -> None:
    done("init", "--size", 32, "--out", folder / "mri.json")
    arguments = ("--limit", 60, "--cuts", 0.2, "--attacker-steps", 0)
    done("disclose", data_dir / "brain_mri_jpeg", "--plan", folder / "mri.json", *arguments, "--out", folder / "mri")
    cut = report(folder, "mri")["cuts"][0]
    assert cut["at_own_size"]["share"] == cut["at_plan_size"]["share"] == 1.0
    assert cut["wiener"]["psnr"] > cut["mean_image"]["psnr"] + 3
    assert "as good as named" in cut["verdict"]


def test_it_stands_among_the_sites_commands() -> None:
    out = run_cli("--help").out
    assert out.index("upload ") < out.index("On the server") and "disclose" in out[: out.index("On the server")]
