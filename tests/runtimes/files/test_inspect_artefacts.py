"""`inspect FILE` says what an artefact is by its content, after the checks of the command that would use it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import done, refusal
from small_product import CLASSES, HANDOVERS, IMAGES, copy_product, product, replace_bytes

from collafuse_edge.artefacts import ARTEFACTS
from collafuse_runtimes.files.plan_file import read_plan
from collafuse_runtimes.files.sealed import sha256_file


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_product(tmp_path_factory.mktemp("inspect") / "site")


def inspected(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done("inspect", path, "--json"))
    assert found["path"] == str(path)
    return found


def test_plan_level_and_noise_are_those_of_the_plan(site: Path) -> None:
    plan = read_plan(site / "plan.json")
    for name in ("plan.json", "a.shard.safetensors", "server", "head", "x.tc.safetensors", "edge.head"):
        found = inspected(site / name)
        assert (found["plan"], found["fingerprint"]) == (plan.to_dict(), plan.fingerprint), name
        assert (found["level"], found["noise_level"]) == (4, plan.noise_level), name
        assert found["alpha_bar"] == pytest.approx(1 / (1 + plan.noise_level**2)), name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plan.json", {"kind": "plan file", "format": "collafuse-plan", "version": 1}),
        ("a.shard.safetensors", {"kind": "shard", "count": IMAGES, "protocol": "upload", "discloses_x_0": False}),
        ("upload.key", {"kind": "secret key", "of": "upload", "checksum": True, "private": True, "version": 2}),
        ("upload.key.ledger.json", {"kind": "ledger of uploads", "count": 2, "images": IMAGES}),
        ("server", {"kind": "checkpoint", "role": "server", "steps": 2, "images": IMAGES, "version": 2}),
        ("head", {"kind": "checkpoint", "role": "client", "network": "tiny", "classes": None}),
        ("head/checkpoint.json", {"kind": "checkpoint", "role": "client"}),
        ("head/model.safetensors", {"kind": "weights of a checkpoint", "discloses_x_0": False}),
        ("x.tc.safetensors", {"kind": "hand-over tensors", "count": HANDOVERS, "server_steps": 5, "seed": 0}),
        ("edge.head", {"kind": "head bundle", "steps": [5, 2], "precision": "fp32", "parity": True}),
        ("edge.head/manifest.json", {"kind": "head bundle", "steps": [5, 2]}),
        ("edge.head/golden.safetensors", {"kind": "golden vectors of a head bundle"}),
        ("images", {"kind": "generated images", "count": HANDOVERS, "image_shape": [1, 8, 8], "head": "edge.head"}),
    ],
)
def test_what_each_artefact_is(site: Path, name: str, expected: dict[str, Any]) -> None:
    found = inspected(site / name)
    assert {key: found[key] for key in expected} == expected
    if (site / name).is_file() and "part_of" not in found and found["kind"] != "secret key":
        assert found["sha256"] == sha256_file(site / name)


def test_names_do_not_matter(site: Path, tmp_path: Path) -> None:
    shutil.copy(site / "x.tc.safetensors", tmp_path / "picture.png")
    assert inspected(tmp_path / "picture.png")["kind"] == "hand-over tensors"
    shutil.copytree(site / "edge.head", tmp_path / "anything")
    assert inspected(tmp_path / "anything")["kind"] == "head bundle"


def test_the_papers_shard_says_that_it_discloses(site: Path) -> None:
    data = ("--data", site / "data.npz", "--plan", site / "plan.json", "--key", site / "upload.key")
    done("upload", *data, "--protocol", "paper", "--out", site / "paper.shard")
    assert inspected(site / "paper.shard")["discloses_x_0"] is True
    assert "discloses x_0  YES: every image follows from" in done("inspect", site / "paper.shard")


@pytest.mark.parametrize("bare", [False, True])
def test_a_keys_digits_are_never_shown(site: Path, tmp_path: Path, bare: bool) -> None:
    digits = (site / "upload.key").read_text().split()[2]
    key = tmp_path / "k"
    key.write_text(f"{digits}\n" if bare else (site / "upload.key").read_text())
    key.chmod(0o644)
    shown = done("inspect", key) + done("inspect", key, "--json")
    assert all(digits[start : start + 8] not in shown for start in range(57))
    assert "OTHERS CAN USE IT: run chmod 600" in shown
    assert ("without a checksum" in shown) is bare


def flipped(data: bytes) -> bytes:
    return data[:-40] + bytes([data[-40] ^ 1]) + data[-39:]


@pytest.mark.parametrize(
    "damaged",
    [
        "plan.json", "a.shard.safetensors", "upload.key", "upload.key.ledger.json", "x.tc.safetensors",
        "server/model.safetensors",
        "head/checkpoint.json", "head/training.json", "edge.head/model.onnx", "edge.head/manifest.json",
        "edge.head/golden.safetensors", "images/images.npz", "images/images.json",
    ],
)  # fmt: skip
def test_damage_is_one_line_and_exit_code_2(tmp_path: Path, damaged: str) -> None:
    site = copy_product(tmp_path / "site")
    replace_bytes(site / damaged, flipped)
    subject = site / damaged.split("/", maxsplit=1)[0]
    line = refusal("inspect", subject)
    assert str(site) in line
    if damaged == "upload.key":
        assert "does not match its own checksum" in line
        assert (site / damaged).read_text().split()[2][:8] not in line


@pytest.mark.parametrize("keep", [0, 4, 20, 300])
def test_a_truncated_file_is_refused_in_one_line(site: Path, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "x.tc.safetensors"
    path.write_bytes((site / "x.tc.safetensors").read_bytes()[:keep])
    assert "it may be damaged beyond telling; valid: " in refusal("inspect", path)


def test_another_version_is_named(site: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text((site / "plan.json").read_text().replace('"version": 1', '"version": 7'))
    assert "has format version 7; this release reads 1" in refusal("inspect", path)


def test_what_is_none_of_the_kinds_lists_them(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    line = refusal("inspect", tmp_path / "notes.txt")
    assert all(kind in line for kind, _ in ARTEFACTS.values()) and "a folder of images" in line
    assert "does not exist" in refusal("inspect", tmp_path / "nothing")
    (tmp_path / "weights.pt").write_bytes(b"PK")
    assert "is a pickle" in refusal("inspect", tmp_path / "weights.pt")


def test_another_tools_network_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    assert "collafuse-edge import" in refusal("inspect", tmp_path)


def test_options_for_images_are_refused(site: Path) -> None:
    line = refusal("inspect", site / "plan.json", "--size", "8")
    assert line == f"error: {site / 'plan.json'} is a plan file, no set of images; leave out --size"


def test_no_torch_is_loaded(site: Path) -> None:
    paths = [
        str(site / name) for name in ("plan.json", "x.tc.safetensors", "edge.head", "head", "images", "upload.key")
    ]
    code = (
        "import sys\nfrom pathlib import Path\nfrom collafuse_edge.artefacts import describe_artefact\n"
        f"kinds = [describe_artefact(Path(path)).kind for path in {paths!r}]\n"
        "print(len(kinds), [m for m in ('torch', 'diffusers', 'onnx', 'onnxruntime') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "6 []"


def test_classes_are_shown(site: Path) -> None:
    assert CLASSES == 2 and product().is_dir()
    assert "classes        none" in done("inspect", site / "head")
