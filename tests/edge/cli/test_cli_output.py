"""What commands print: documented JSON for programs, help for people, quickly and with what a device has."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from command_line import done
from places import ROOT, SUPPORT
from small_product import HANDOVERS, IMAGES, copy_product, product, run_whole, words

from collafuse_benchmarks.measure import timing
from collafuse_benchmarks.measure.timing import Mode
from collafuse_edge.cli.app import app
from collafuse_runtimes import __version__
from collafuse_runtimes.files.handover import read_handover
from collafuse_runtimes.files.plan_file import read_plan
from collafuse_runtimes.files.sealed import sha256_file

DOCUMENTED = ROOT / "docs" / "command_line.md"
TOP: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
COMMANDS = {
    " ".join((name, *inner)): command
    for name, group in TOP.items()
    for inner, command in ([((), group)] if name != "bench" else [((n,), c) for n, c in group.commands.items()])
}


def documented_keys() -> dict[str, list[str]]:
    rows = re.findall(r"^\| `([a-z]+(?:-[a-z]+)?(?: [a-z]+)?)` \| (.*) \|$", DOCUMENTED.read_text(), re.MULTILINE)
    return {command: re.findall(r"`(\w+)`", keys) for command, keys in rows}


def test_every_command_has_documented_json() -> None:
    assert documented_keys().keys() == COMMANDS.keys()
    assert all(any(option.name == "as_json" for option in command.params) for command in COMMANDS.values())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_product(tmp_path_factory.mktemp("output") / "site")


def json_of(site: Path, capfd: pytest.CaptureFixture[str], command: str) -> dict[str, Any]:
    """The one line on stdout."""
    result = run_whole(capfd, *words(command, site), "--json")
    assert result.code == 0, result
    assert result.out.count("\n") == 1, result
    found: dict[str, Any] = json.loads(result.out)
    assert list(found) == documented_keys()[command.split(maxsplit=1)[0]]
    return found


def test_json_of_init(site: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = json_of(site, capfd, "init --size 24x16 --channels 3 --cut-ratio 0.25 --out @new-plan.json")
    plan = read_plan(site / "new-plan.json")
    more = {"cut": 25, "noise_level": plan.noise_level, "start_alpha_bar": plan.alpha_bar[-1]}
    assert found == {**plan.to_dict(), **more, "fingerprint": plan.fingerprint}


def test_json_of_upload(site: Path, capfd: pytest.CaptureFixture[str]) -> None:
    upload = "upload --data @data.npz --plan @plan.json --key @upload.key --out @new.shard"
    expected = {"shard": f"{site}/new.shard", "count": IMAGES, "protocol": "upload", "discloses_x_0": False, "level": 4}
    found = json_of(site, capfd, upload)
    assert {name: found[name] for name in expected} == expected
    assert (found["key_created"], found["ledger"]) == (False, f"{site}/upload.key.ledger.json")
    assert (found["warnings"], [note["kind"] for note in found["notes"]]) == ([], ["data", "data", "same-level"])
    assert [note["text"] for note in found["notes"][:2]] == [
        f"{IMAGES} images from {site}/data.npz",
        "classes 0: 3, 1: 3",
    ]
    paper = json_of(site, capfd, f"{upload}-paper --protocol paper --draws 2")
    expected = {"shard": f"{site}/new.shard-paper", "count": 2 * IMAGES, "protocol": "paper", "discloses_x_0": True}
    assert {name: paper[name] for name in expected} == expected
    assert [warning["kind"] for warning in paper["warnings"]] == ["cleaner-level"]


@pytest.mark.parametrize(
    "command", ["train-server @a.shard.safetensors", "train-client --data @data.npz --plan @plan.json"]
)
def test_json_of_training(command: str, site: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = site / f"new-{command.split(maxsplit=1)[0]}"
    found = json_of(site, capfd, f"{command} --preset tiny --steps 2 --batch-size 2 --cpu --out @{out.name}")
    assert (found["checkpoint"], found["steps"]) == (str(out), 2)
    assert found["weights_sha256"] == sha256_file(out / "diffusion_pytorch_model.safetensors")
    assert 0 < found["loss"] < 10
    assert found["seconds"] > 0


def test_json_of_handoff(site: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = json_of(site, capfd, "handoff --plan @plan.json --server @server --count 2 --steps 3 --out @new.tc")
    size = (site / "new.tc").stat().st_size
    assert found == {"handover": f"{site}/new.tc", "count": 2, "cut": 5, "level": 4, "steps": 3, "bytes": size}
    assert len(read_handover(site / "new.tc").timesteps) == 3


def test_json_of_export_and_verify(site: Path, capfd: pytest.CaptureFixture[str]) -> None:
    exported = json.loads((product() / "export.json").read_text())
    assert list(exported) == documented_keys()["export"]
    assert exported["bundle"] == str(product() / "edge.head")
    verified = json_of(site, capfd, "verify @edge.head")
    assert exported["parity"].keys() == verified.keys()
    for report in (exported["parity"], verified):
        assert (report["passed"], report["engine"], report["precision"]) == (True, "ort-cpu", "fp32")
        assert [entry["steps"] for entry in report["ranges"]] == [5, 2]
        assert report["ranges"][0]["worst"]["max_abs"] < report["tolerance"]["max_abs"]


def test_json_of_infer(site: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = json_of(site, capfd, "infer @edge.head @x.tc.safetensors --steps 2 --out @new-images")
    assert found == {"out": f"{site}/new-images", "count": HANDOVERS, "steps": 2, "engine": "ort-cpu"}
    assert len(list((site / "new-images").glob("0*.png"))) == HANDOVERS


def test_json_of_disclose(site: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = json_of(site, capfd, "disclose phantom:0:40 --plan @plan.json --attacker-steps 0 --out @disclosed")
    assert (found["kind"], found["images"], found["complete"]) == ("disclosure", 40, True)
    assert [cut["cut_ratio"] for cut in found["cuts"]] == [0.2, 0.4, 0.5, 0.6, 0.8]


def test_json_of_audit(site: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = json_of(site, capfd, "audit @head --data phantom:0:150 --others phantom:0:150:7")
    assert (found["network"], found["role"], found["members"]) == ("head", "client", "phantom:0:150")
    assert found["membership"]["members"] >= 20


def test_json_of_evaluate(site: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = json_of(site, capfd, "evaluate @images --data @data.npz --extractor @extractor.onnx")
    assert -1 < found["kid_mean"] < 1000
    assert -1 < found["kid_raw"] < 10
    few = ("kid_error", "kid_low", "kid_high", "kid_raw_error", "kid_std", "subset_size")
    assert [found[key] for key in few] == [None] * 6
    expected = {
        "real": f"{site}/data.npz",
        "real_count": IMAGES,
        "generated": f"{site}/images",
        "generated_count": HANDOVERS,
        "extractor": "extractor.onnx",
        "extractor_sha256": sha256_file(site / "extractor.onnx"),
        "head": "edge.head",
        "steps": 5,
        "unknown": None,
    }
    assert {key: found[key] for key in expected} == expected


SHORT = Mode("quick", warmup=0, runs=10, seconds=0.0, cold_starts=1)


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        ("latency", "latency @edge.head @x.tc.safetensors"),
        ("energy", "energy @edge.head @x.tc.safetensors --idle-s 1 --trials 1"),
        ("split", "split @edge.head"),
    ],
)
def test_json_of_bench(
    kind: str, command: str, site: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(timing.MODES, "quick", SHORT)
    monkeypatch.setattr(timing, "SETTLE_S", 0.0)
    monkeypatch.setattr(timing.gc, "collect", lambda: 0)  # torch in the same process makes it slow
    result = run_whole(capfd, *words(f"bench {command} --out @{kind}", site), "--json")
    assert result.code == 0, result
    found = json.loads(result.out)
    assert list(found) == documented_keys()[f"bench {kind}"]
    assert (found["kind"], found["complete"], found["collafuse_edge"]) == (kind, True, __version__)
    again = run_whole(capfd, *words(f"bench report @{kind} --out @{kind}-again", site), "--json")
    assert json.loads(again.out) == found
    for page in ("report.md", "report.html"):
        assert (site / f"{kind}-again" / page).read_bytes() == (site / kind / page).read_bytes()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_describes_every_option(command: str) -> None:
    text = " ".join(done(*command.split(), "--help").split())
    assert text.startswith(f"Usage: collafuse-edge {command} ")
    for option in COMMANDS[command].params:
        assert option.help, option.name
        assert " ".join(option.help.split()) in text
        if option.param_type_name == "option":
            assert option.opts[0] in text


def test_version() -> None:
    assert done("--version").strip() == __version__


ON_DEVICE = """
import json, sys
for name in ("torch", "diffusers", "accelerate", "onnx", "onnxscript", "nibabel", "torchmetrics", "scipy"):
    sys.modules[name] = None
sys.path.insert(0, sys.argv[1])
from command_line import run_cli
print(json.dumps([vars(run_cli(*arguments)) for arguments in json.load(sys.stdin)]))
"""


def on_device(commands: list[list[str]]) -> list[dict[str, Any]]:
    """Results of commands where only the base install exists."""
    ended = subprocess.run(
        [sys.executable, "-c", ON_DEVICE, str(SUPPORT)],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=True,
    )
    results: list[dict[str, Any]] = json.loads(ended.stdout)
    return results


def test_what_runs_on_the_base_install(tmp_path: Path) -> None:
    folder = copy_product(tmp_path / "site")
    work = [
        "verify @edge.head",
        "infer @edge.head @x.tc.safetensors --out @new",
        "init --size 8 --out @new-plan.json",
        "upload --data @data.npz --plan @plan.json --key @upload.key --out @new.shard",
    ]
    lines = ["--help", "--version", *(f"{command} --help" for command in COMMANDS), *work]
    for line, result in zip(lines, on_device([words(line, folder) for line in lines]), strict=True):
        assert result["code"] == 0, (line, result)
    for name in ("00000.png", "contact_sheet.png"):
        assert (folder / "new" / name).read_bytes() == (product() / "images" / name).read_bytes()
    assert (folder / "new.shard").read_bytes() == (product() / "a.shard.safetensors").read_bytes()


def test_what_does_not_run_on_the_base_install_says_what_to_install(tmp_path: Path) -> None:
    folder = copy_product(tmp_path / "site")
    (folder / "scan.nii").touch()
    before = sorted(folder.rglob("*"))
    needs = {
        "train-client --data @data.npz --plan @plan.json --steps 2 --out @new": "torch",
        "train-server @a.shard.safetensors --steps 2 --out @new": "torch",
        "handoff --plan @plan.json --server @server --count 2 --out @new": "torch",
        "export @head --out @new": "torch",
        "verify @edge.head --engine torch --checkpoint @head": "torch",
        "upload --data @scan.nii --plan @plan.json --key @upload.key --out @new": "nibabel",
        "demo --out @new": "torch",
    }
    for library, result in zip(needs.values(), on_device([words(line, folder) for line in needs]), strict=True):
        assert (result["code"], result["out"]) == (2, "")
        assert re.fullmatch(
            rf"error: .*{library} is not installed.*pip install 'collafuse-edge\[\w+\]'.*\n", result["err"]
        )
    assert sorted(folder.rglob("*")) == before


@pytest.mark.alone
def test_help_is_quick() -> None:
    """Processor time of the quickest of five, so that a busy machine does not count."""

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    seconds = []
    for _ in range(5):
        before = used()
        subprocess.run([sys.executable, "-m", "collafuse_edge", "--help"], capture_output=True, check=True)
        seconds.append(used() - before)
    assert min(seconds) <= 0.4


def test_names_that_are_not_unicode_can_be_printed(tmp_path: Path) -> None:
    out = os.fsencode(tmp_path) + b"/Pl\xe4ne.json"
    command = [sys.executable, "-m", "collafuse_edge", "init", "--size", "8", "--out", os.fsdecode(out)]
    ended = subprocess.run(command, capture_output=True, check=False, env={**os.environ, "PYTHONUTF8": "1"})
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert b"/Pl\\udce4ne.json" in ended.stdout
    assert read_plan(Path(os.fsdecode(out))).timesteps == 100
