"""docs/formats.md names the keys and tensors of every artefact, no more and no fewer."""

import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import ROOT

from collafuse_benchmarks.measure.record import Record
from collafuse_benchmarks.pages.document import Document
from collafuse_benchmarks.pages.folder import ReportFolder
from collafuse_edge.upload.shard import Shard, write_shard
from collafuse_runtimes.diffusion.distilled import Distilled
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.diffusion.samplers import Sampler
from collafuse_runtimes.files.bundle import HeadBundle, NetworkInfo, make_row_ranges, write_manifest
from collafuse_runtimes.files.golden import Golden, write_golden
from collafuse_runtimes.files.handover import Handover, write_handover
from collafuse_runtimes.files.plan_file import write_plan
from collafuse_runtimes.verify import TOLERANCES, VerifyReport

FORMATS = (ROOT / "docs" / "formats.md").read_text()
PLAN = SplitPlan((1, 8, 8), timesteps=20, cut_ratio=0.5)
IMAGES = np.zeros((2, 1, 8, 8), np.float32)
SEAL = {"format", "version", "sha256"}


def table(section: str, after: str = "\n") -> list[str]:
    """First column of the first table that follows ``after`` in a section."""
    text = FORMATS.split(f"\n## {section}\n")[1].split("\n## ")[0]
    rows = text.split(after, 1)[1].split("|---|", 1)[1].split("\n\n")[0].splitlines()[1:]
    return [row.split("|")[1].strip().strip("`") for row in rows]


def json_keys(path: Path) -> list[str]:
    return sorted(set(json.loads(path.read_text())) - SEAL)


def header_of(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    header: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header


def payload_keys(path: Path) -> list[str]:
    return sorted(set(json.loads(header_of(path)["__metadata__"]["collafuse"])) - SEAL)


def tensor_names(path: Path) -> list[str]:
    return sorted(set(header_of(path)) - {"__metadata__"})


def format_of(path: Path) -> str:
    text = path.read_text() if path.suffix == ".json" else header_of(path)["__metadata__"]["collafuse"]
    name: str = json.loads(text)["format"]
    assert f"`{name}`" in FORMATS
    return name


def test_plan_and_plan_file(tmp_path: Path) -> None:
    write_plan(tmp_path / "plan.json", PLAN)
    assert sorted(table("Plan file")) == json_keys(tmp_path / "plan.json")
    differing = replace(PLAN, server_prediction_type="v")
    assert sorted(table("Common ground", "**The plan**")) == sorted(differing.to_dict())
    assert differing.to_dict().keys() - PLAN.to_dict().keys() == {"server_prediction_type"}
    assert format_of(tmp_path / "plan.json") == "collafuse-plan"


@pytest.mark.parametrize("protocol", ["upload", "paper"])
def test_shard(tmp_path: Path, protocol: str) -> None:
    triple = {"epsilon": IMAGES, "t": np.array([10, 19])} if protocol == "paper" else {}
    path = tmp_path / "x.shard.safetensors"
    write_shard(path, Shard(PLAN, protocol, IMAGES, **triple))
    assert sorted(table("Shard")) == payload_keys(path)
    assert sorted(table("Shard", f"Tensors of the `{protocol}` protocol")) == tensor_names(path)
    assert format_of(path) == "collafuse-shard"


def test_handover(tmp_path: Path) -> None:
    path = tmp_path / "x.tc.safetensors"
    write_handover(path, Handover(IMAGES, PLAN, 0, 0, Sampler().to_dict(), (19,), None))
    assert sorted(table("Hand-over")) == payload_keys(path)
    assert sorted(table("Hand-over", "`server_sha256`")) == tensor_names(path)
    assert format_of(path) == "collafuse-handover"


def test_head_bundle(tmp_path: Path) -> None:
    ranges = make_row_ranges(PLAN, [10, 5])
    report = VerifyReport("ort-cpu", "fp32", TOLERANCES["fp32"], ())
    bundle = HeadBundle(
        path=tmp_path,
        plan=PLAN,
        sampler=Sampler("ddpm"),
        row_ranges=ranges,
        precision="fp32",
        opset=20,
        num_classes=2,
        network=NetworkInfo("tiny", 1, 1, "0" * 64),
        parity=report.to_dict(),
        tools={},
    )
    trajectories = {r.steps: np.zeros((r.steps, *IMAGES.shape), np.float32) for r in ranges}
    write_golden(tmp_path, Golden(IMAGES, trajectories, np.zeros(2, np.int32), 0))
    (tmp_path / "model.onnx").write_bytes(b"")
    write_manifest(bundle)
    manifest, golden = tmp_path / "manifest.json", tmp_path / "golden.safetensors"
    assert sorted(table("Head bundle", "`manifest.json`")) == json_keys(manifest)
    second_order = replace(bundle, sampler=Sampler("dpm++2m"))
    border = [tensor.name for tensor in bundle.inputs] + [second_order.inputs[-1].name]
    assert table("Head bundle", "`model.onnx` computes") == border
    assert [tensor.name for tensor in bundle.outputs] == ["next_sample"]
    assert [tensor.name for tensor in second_order.outputs] == ["next_sample", "x_0"]
    assert sorted(table("Head bundle", "`golden.safetensors`, sealed")) == payload_keys(golden)
    named = {name.replace("<steps>", str(r.steps)) for name in table("Head bundle", "| `seed` |") for r in ranges}
    assert sorted(named) == tensor_names(golden)
    assert (format_of(manifest), format_of(golden)) == ("collafuse-head", "collafuse-golden")
    stated = json.loads(manifest.read_text())
    section = FORMATS.split("\n## Head bundle\n")[1]
    nested = [*stated["network"], *stated["parity"], *stated["row_ranges"][0], *stated["inputs"][0]]
    assert [name for name in nested if not re.search(rf'[`"]{name}[`"]', section)] == []


def test_checkpoint_and_resume_state(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from diffusers.training_utils import EMAModel
    from small_training import small_network, small_run

    from collafuse_edge.training.loop import train
    from collafuse_edge.training.presets import build_network
    from collafuse_edge.training.resume import Progress, TrainState, write_resume

    distilled = Distilled((9,), "0" * 64, {"name": "ddim", "eta": 0.0}, 10, "images")
    run = replace(small_run(tmp_path / "head", steps=1), distilled=distilled)
    train(run)
    for name, format_name in (("checkpoint.json", "collafuse-checkpoint"), ("training.json", "collafuse-training")):
        assert sorted(table("Checkpoint", f"`{name}`, sealed")) == json_keys(tmp_path / "head" / name)
        assert format_of(tmp_path / "head" / name) == format_name
    config = json.loads((tmp_path / "head" / "checkpoint.json").read_text())
    assert list(config["network"]) == ["num_classes", "preset", "unet"]
    section = FORMATS.split("\n## Checkpoint\n")[1].split("\n## ")[0]
    assert [name for name in config["distilled"] if f"`{name}`" not in section] == []
    parameters = [name for name, _ in build_network(small_network(), 0).named_parameters()]
    for name in ("model.safetensors", "diffusion_pytorch_model.safetensors"):
        path = tmp_path / "head" / name
        assert table("Checkpoint", "`model.safetensors` (the") == payload_keys(path)
        assert tensor_names(path) == sorted(parameters)
        assert {entry["dtype"] for key, entry in header_of(path).items() if key != "__metadata__"} == {"F32"}
        assert format_of(path) == "collafuse-weights"
    assert {p.name for p in (tmp_path / "head").iterdir()} == {
        "checkpoint.json",
        "config.json",
        "training.json",
        "model.safetensors",
        "diffusion_pytorch_model.safetensors",
    }

    network = build_network(small_network(), 0)
    state = TrainState(network, EMAModel(network.parameters()), torch.optim.Adam(network.parameters()), None)
    path = tmp_path / "head.resume.safetensors"
    write_resume(path, state, Progress(), run.identity())
    assert sorted(table("Resume state")) == payload_keys(path)
    kinds = ("model", "ema", "exp_avg", "exp_avg_sq")
    assert tensor_names(path) == sorted(f"{kind}.{name}" for kind in kinds for name in parameters)
    section = FORMATS.split("\n## Resume state\n")[1].split("\n## ")[0]
    assert [kind for kind in kinds if f"`{kind}.P`" not in section] == []
    payload = json.loads(header_of(path)["__metadata__"]["collafuse"])
    assert [key for key in (*payload["identity"], *payload["progress"]) if f"`{key}`" not in section] == []
    assert format_of(path) == "collafuse-resume"


@dataclass(frozen=True)
class Unfinished(Record):
    complete: bool = False


def test_bench_report(tmp_path: Path) -> None:
    """Keys that every kind has; those of one kind are held against docs/command_line.md."""
    with ReportFolder(tmp_path / "out", "latency", lambda *_: Document("", ())) as folder:
        folder.save(Unfinished())
    path = tmp_path / "out" / "report.json"
    assert sorted(table("Bench report")) == json_keys(path)
    assert format_of(path) == "collafuse-bench"


def test_images(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from small_product import product

    path = product() / "images" / "images.json"
    assert sorted(table("Images")) == json_keys(path)
    assert format_of(path) == "collafuse-images"
    section = FORMATS.split("\n## Images\n")[1]
    stated = json.loads(path.read_text())
    nested = [*stated["server"], *stated["head"], *stated["head"]["sampler"]]
    assert [name for name in nested if f"`{name}`" not in section] == []
    assert stated["images_sha256"] == hashlib.sha256((product() / "images" / "images.npz").read_bytes()).hexdigest()
