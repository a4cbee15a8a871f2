"""Options out of range, unknown, missing or unwanted: one line that says what is valid, exit code 2, nothing written.
A check that ran and failed: one line, exit code 1."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from heads import CLASSES, conditional_head, handover
from small_product import copy_product, listing, product, refused, run_whole, words

from collafuse_runtimes.files.bundle import MODEL, read_bundle, write_manifest
from collafuse_runtimes.files.handover import write_handover

INIT = "init --size 8 --out @new"
UPLOAD = "upload --data @data.npz --plan @plan.json --key @upload.key --out @new"
TRAIN_CLIENT = "train-client --data @data.npz --plan @plan.json --preset tiny --steps 2 --cpu --out @new"
TRAIN_SERVER = "train-server @a.shard.safetensors --preset tiny --steps 2 --cpu --out @new"
HANDOFF = "handoff --plan @plan.json --server @server --count 2 --out @new"
EXPORT = "export @head --out @new"
INFER = "infer @edge.head @x.tc.safetensors --out @new"
VERIFY = "verify @edge.head"
EVALUATE = "evaluate @images --data @data.npz --extractor @extractor.onnx"
SEED_RANGE = "out of range: must be an integer from 0 to 18446744073709551615"
ENGINES = "valid: ort-cpu"

REFUSED = [
    (f"{INIT} --cut-ratio 1.01", "cut_ratio is 1.01; valid: a number in [0, 1]"),
    (f"{INIT} --cut-ratio -0.01", "cut_ratio is -0.01; valid: a number in [0, 1]"),
    (f"{INIT} --cut-ratio nan", "cut_ratio is NaN; valid: a number in [0, 1]"),
    (f"{INIT} --cut-ratio inf", "cut_ratio is inf; valid: a number in [0, 1]"),
    (f"{INIT} --schedule sigmoid", "unknown schedule 'sigmoid'; valid: cosine, linear"),
    (f"{INIT} --timesteps 1", "timesteps is 1; valid: an integer from 2 to 1000"),
    (f"{INIT} --timesteps 1001", "timesteps is 1001; valid: an integer from 2 to 1000"),
    (f"{INIT} --channels 2", "image_shape is (2, 8, 8); valid: (C, H, W) with C 1 or 3"),
    (f"{INIT} --cut-ratio half", "Invalid value for '--cut-ratio'"),
    (f"{UPLOAD} --protocol open", "unknown protocol 'open'; valid: upload, paper"),
    (f"{UPLOAD} --dtype bfloat16", "unknown dtype 'bfloat16'; valid: float16, float32"),
    (f"{UPLOAD} --protocol paper --draws 0", "draws 0 out of range: must be at least 1"),
    (f"{UPLOAD} --protocol paper --draws 99999999999999", "this does not fit into memory"),
    (f"{UPLOAD} --protocol paper --seed -1", f"seed -1 {SEED_RANGE}"),
    (f"{UPLOAD} --limit 0", "limit 0 out of range: must be at least 1"),
    (f"{UPLOAD} --class 7", "has no class '7'; valid: 0, 1"),
    (f"{UPLOAD} --split val", "@data.npz has no splits, so split 'val' cannot be selected"),
    (f"{UPLOAD} --slices 1-3", "--slices '1-3' is not START:STOP; valid: for example 60:100"),
    (UPLOAD.replace("data.npz", "empty"), "@empty"),
    (UPLOAD.replace("@data.npz", "phantom:1:0"), "phantom count 0 out of range"),
    (TRAIN_CLIENT.replace("data.npz", "empty"), "@empty"),
    (TRAIN_CLIENT.replace("data.npz", "nowhere"), "'@nowhere' does not exist"),
    (TRAIN_CLIENT.replace("tiny", "huge"), "unknown preset 'huge'; valid: tiny, small, base"),
    (TRAIN_CLIENT.replace("tiny", "server-large").replace("plan.json", "odd.json"), "must be multiples of 8"),
    (f"{TRAIN_CLIENT} --steps 0", "steps is 0; valid: at least 1"),
    (f"{TRAIN_CLIENT} --batch-size -8", "batch_size is -8; valid: at least 1"),
    (f"{TRAIN_CLIENT} --batch-size 7 --accumulation 2", "valid: multiples of 2"),
    (f"{TRAIN_CLIENT} --accumulation 0", "accumulation is 0; valid: at least 1"),
    (f"{TRAIN_CLIENT} --learning-rate nan", "learning_rate is nan; valid: positive numbers"),
    (f"{TRAIN_CLIENT} --lr-schedule linear", "unknown lr-schedule 'linear'; valid: cosine, constant"),
    (f"{TRAIN_CLIENT} --warmup-steps -1", "warmup_steps is -1; valid: at least 0"),
    (f"{TRAIN_CLIENT} --ema-decay 1", "ema_decay is 1.0; valid: 0 to below 1"),
    (f"{TRAIN_CLIENT} --clip-norm inf", "clip_norm is inf; valid: positive numbers"),
    (f"{TRAIN_CLIENT} --seed -1", f"seed -1 {SEED_RANGE}"),
    (f"{TRAIN_CLIENT} --mixed-precision fp8", "unknown mixed-precision 'fp8'; valid: no, bf16, fp16"),
    (f"{TRAIN_CLIENT} --mixed-precision fp16", "fp16 needs a GPU; valid on a CPU: no, bf16"),
    (f"{TRAIN_CLIENT} --checkpoint-minutes -1", "--checkpoint-minutes -1.0 out of range: must be at least 0"),
    (f"{TRAIN_CLIENT} --checkpoint-minutes nan", "--checkpoint-minutes nan out of range: must be at least 0"),
    (TRAIN_CLIENT.replace("@data.npz", "phantom:0:8") + " --class a", "class"),
    (TRAIN_CLIENT.replace("@data.npz", "@export.json"), "of no known kind"),
    (TRAIN_CLIENT.replace("@new", "@head"), "@head exists already; choose another --out"),
    (TRAIN_SERVER.replace("@new", "@server"), "@server exists already; choose another --out"),
    (TRAIN_SERVER.replace("@a.shard.safetensors ", ""), "Missing argument"),
    (TRAIN_SERVER.replace("@a.shard.safetensors ", "@a.shard.safetensors @nowhere "), "cannot read @nowhere"),
    (f"{HANDOFF} --count 0", "count 0, batch size 32 out of range: must be at least 1"),
    (f"{HANDOFF} --count -5", "count -5, batch size 32 out of range: must be at least 1"),
    (f"{HANDOFF} --batch-size -1", "batch size -1 out of range: must be at least 1"),
    (f"{HANDOFF} --seed 18446744073709551616", f"seed 18446744073709551616 {SEED_RANGE}"),
    (f"{HANDOFF} --first-index -1", f"sample index -1 {SEED_RANGE}"),
    (f"{HANDOFF} --steps 6", "server steps 6 out of range: this plan allows 1 to 5"),
    (f"{HANDOFF} --steps 0", "server steps 0 out of range: this plan allows 1 to 5"),
    (f"{HANDOFF} --sampler euler", "unknown sampler 'euler'; valid: ddim, ddpm, dpm++2m"),
    (f"{HANDOFF} --eta 1.1", "eta 1.1 out of range: must be 0 to 1"),
    (f"{HANDOFF} --eta -0.1", "eta -0.1 out of range: must be 0 to 1"),
    (f"{HANDOFF} --eta nan", "eta nan out of range: must be 0 to 1"),
    (f"{HANDOFF} --sampler ddpm --eta 1", "eta 1.0 has no meaning for ddpm"),
    (f"{HANDOFF} --dtype int8", "unknown dtype 'int8'; valid: float32, float16"),
    (f"{HANDOFF} --device abacus", "device 'abacus' cannot be used"),
    (f"{HANDOFF} --device meta", "device 'meta' cannot be used"),
    (HANDOFF.replace("--server @server ", ""), "gives the server 5 steps; name its checkpoint with --server"),
    (HANDOFF.replace("@server", "@head"), "@head is a client checkpoint; valid here: a server checkpoint"),
    (f"{EXPORT} --steps 6", "device steps 6 out of range: this plan allows 1 to 5"),
    (f"{EXPORT} --steps 0", "device steps 0 out of range: this plan allows 1 to 5"),
    (f"{EXPORT} --steps 5,2,5", "step counts [5, 2, 5] are empty or repeat"),
    (f"{EXPORT} --steps 5;2", "--steps '5;2' is not a list of integers; valid: for example 20,10,5"),
    (f"{EXPORT} --sampler euler", "unknown sampler 'euler'; valid: ddim, ddpm, dpm++2m"),
    (f"{EXPORT} --eta 2", "eta 2.0 out of range: must be 0 to 1"),
    (f"{EXPORT} --precision int8", "unknown precision 'int8'; valid: fp32, fp16"),
    (f"{EXPORT} --opset 18", "unknown opset 18; valid: 20, 17"),
    (EXPORT.replace("@head", "@server"), "@server is a server checkpoint; valid here: a client checkpoint"),
    (EXPORT.replace("@new", "@images"), "cannot write @images: a folder that infer wrote is there, not a head bundle"),
    (EXPORT.replace("@new", "@plan.json"), "cannot write @plan.json: a plan file is there, not a head bundle"),
    (f"{VERIFY} --engine tensorflow", f"unknown engine 'tensorflow'; {ENGINES}"),
    (f"{VERIFY} --engine torch", "engine torch needs the head's checkpoint"),
    (f"{VERIFY} --checkpoint @head", "engine ort-cpu takes no option checkpoint; leave it out"),
    (f"{VERIFY} --threads 0", "threads 0 out of range: must be 1 to 1024"),
    (f"{VERIFY} --threads 2147483648", "threads 2147483648 out of range: must be 1 to 1024"),
    (f"{VERIFY} @edge.head", "unexpected extra argument"),
    (f"{INFER} --engine tensorflow", f"unknown engine 'tensorflow'; {ENGINES}"),
    (f"{INFER} --steps 3", "3 steps are not baked into @edge.head; valid: 5, 2"),
    (f"{INFER} --steps 0", "0 steps are not baked into @edge.head; valid: 5, 2"),
    (f"{INFER} --steps 9999", "9999 steps are not baked into @edge.head; valid: 5, 2"),
    (f"{INFER} --labels 0,1,1", "labels were given but this head is not class-conditional"),
    (f"{INFER} --labels zero", "labels were given but this head is not class-conditional"),
    (f"{INFER} --batch-size 0", "batch size 0 out of range: must be at least 1"),
    (INFER.replace("@new", "@images"), "@images exists already; choose another --out, or replace it with --overwrite"),
    (INFER.replace("@new", "@plan.json"), "cannot write @plan.json: a plan file is there, not a folder that infer"),
    (INFER.replace("@x.tc.safetensors ", ""), "Missing argument 'X.tc.safetensors'"),
    (f"{EVALUATE} --limit 1", "@data.npz has 1 image; valid: at least 2"),
    (EVALUATE.replace("data.npz", "empty"), "@empty"),
    (EVALUATE.replace("@images", "@nowhere"), "cannot read @nowhere"),
    ("evaluate @images", "Missing option '--data'"),
    ("demo --out @images", "@images exists already; choose another --out, or delete it"),
    ("demo --out @plan.json/demo", "cannot use @plan.json/demo: Not a directory"),
    (f"{HANDOFF} --fast", "No such option: --fast"),
    ("fly", "No such command 'fly'"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artefacts that every command of this file leaves as they are; an empty folder; a plan of 12 x 12 pixels."""
    from collafuse_edge.init import init_plan
    from collafuse_edge.settings import PlanSettings

    folder = copy_product(tmp_path_factory.mktemp("options") / "site")
    (folder / "empty").mkdir()
    init_plan(folder / "odd.json", "12", PlanSettings(timesteps=10, cut_ratio=0.5))
    return folder


@pytest.mark.parametrize(("command", "message"), REFUSED, ids=[command for command, _ in REFUSED])
def test_refused(site: Path, command: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    before = listing(site)
    line = refused(capfd, *words(command, site))
    assert message.replace("@", f"{site}/") in line
    assert listing(site) == before


def test_programs_get_the_same_line_and_no_json(site: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first_of_each = {command.split()[0]: (command, message) for command, message in reversed(REFUSED[:-2])}
    assert len(first_of_each) == 10
    for command, message in first_of_each.values():
        assert message.replace("@", f"{site}/") in refused(capfd, *words(command, site), "--json")


@pytest.mark.parametrize("command", [INIT, UPLOAD, TRAIN_CLIENT, TRAIN_SERVER, HANDOFF, EXPORT, INFER])
def test_no_place_to_write_to_is_found_before_the_work(
    site: Path, command: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before = listing(site)
    for place in ("@nowhere/new", "@plan.json/new"):
        line = refused(capfd, *words(command.replace("@new", place), site))
        assert f"cannot write {site}/{place[1:]}: there is no folder {site}/{place[1:-4]}; create it first" in line
    line = refused(capfd, *words(command, site)[:-1], f"{site}/{'x' * 300}")
    assert "File name too long" in line
    assert listing(site) == before


@pytest.mark.parametrize("command", [INIT, UPLOAD, HANDOFF])
def test_files_do_not_replace_folders_or_devices(site: Path, command: str, capfd: pytest.CaptureFixture[str]) -> None:
    before = listing(site)
    for place in ("/dev/null", str(site / "empty")):
        line = refused(capfd, *words(command.replace("@new", place), site))
        assert f"cannot write {place}: a folder or device of that name exists" in line
    assert Path("/dev/null").is_char_device()
    assert listing(site) == before


@pytest.mark.parametrize(
    ("command", "option"), [("upload", "--data"), ("train-client", "--plan"), ("handoff", "--count")]
)
def test_missing_options_are_named(command: str, option: str, site: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = {"--data": "@data.npz", "--plan": "@plan.json", "--count": "2", "--out": "@new"}
    not_taken = "--data" if command == "handoff" else "--count"
    line = " ".join(f"{name} {value}" for name, value in given.items() if name not in (option, not_taken))
    assert f"Missing option '{option}'" in refused(capfd, *words(f"{command} {line}", site))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, f"this head is class-conditional: give one label from 0 to {CLASSES - 1} per sample"),
        ("0,1", "2 labels for 3 images; valid: one for all, or one for each"),
        ("0,1,3", f"label '3' is no class of this head; valid: numbers 0 to {CLASSES - 1}"),
        ("0,-1,1", f"label '-1' is no class of this head; valid: numbers 0 to {CLASSES - 1}"),
        (
            "glioma",
            "label 'glioma' is no class of this head; valid: numbers 0 to 2 (this head's classes have no names)",
        ),
        ("0,1,99999999999999999999", "label"),
    ],
)
def test_labels_of_a_conditional_head(
    labels: str | None, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = conditional_head()
    write_handover(tmp_path / "x.tc.safetensors", handover(bundle, 3))
    given = [] if labels is None else ["--labels", labels]
    line = refused(capfd, "infer", bundle.path, tmp_path / "x.tc.safetensors", "--out", tmp_path / "new", *given)
    assert message in line
    assert [file.name for file in tmp_path.iterdir()] == ["x.tc.safetensors"]


def test_another_network_fails_verification(capfd: pytest.CaptureFixture[str]) -> None:
    """The fake engine computes something, but not this head."""
    before = listing(product())
    bundle = str(product() / "edge.head")
    line = refused(capfd, "verify", bundle, "--engine", "fake", code=1, out=None)
    assert line.startswith(f"error: {bundle} on fake differs from the torch network after step ")
    assert "asked for fp32: cosine >= 0.999" in line
    result = run_whole(capfd, "verify", bundle, "--engine", "fake", "--json")
    assert result.code == 1
    assert json.loads(result.out)["passed"] is False
    assert listing(product()) == before


def damaged_head(folder: Path, gain: float) -> Path:
    """The bundle with one weight of its graph multiplied and every digest right."""
    import onnx
    from onnx import numpy_helper

    head = Path(shutil.copytree(product() / "edge.head", folder / "edge.head"))
    bundle = read_bundle(head)
    model = onnx.load(head / MODEL)
    weight = next(w for w in model.graph.initializer if w.name.endswith("conv_out.weight"))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(gain), weight.name))
    onnx.save(model, head / MODEL)
    write_manifest(bundle)
    assert read_bundle(head).plan == bundle.plan
    return head


def test_a_replaced_model_fails_verification_though_every_digest_is_right(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    head = damaged_head(tmp_path, gain=1.5)
    result = run_whole(capfd, "verify", head, "--json")
    assert result.code == 1
    assert [r["passed"] for r in json.loads(result.out)["ranges"]] == [False, False]
    assert "differs from the torch network after step" in refused(capfd, "verify", head, code=1, out=None)


def test_a_network_that_gives_no_numbers_is_a_failed_check_and_nothing_is_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    head = damaged_head(tmp_path, gain=np.nan)
    before = listing(tmp_path)
    line = refused(capfd, "infer", head, product() / "x.tc.safetensors", "--out", tmp_path / "new", code=1)
    assert "the first step of" in line and "NaN or Inf; nothing was written" in line
    assert listing(tmp_path) == before
