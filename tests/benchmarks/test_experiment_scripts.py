"""The scripts behind benchmarks/results run, small, from images to a table of scores with errors."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import done
from places import ROOT
from small_product import write_extractor

pytest.importorskip("torch")
sys.path.append(str(ROOT / "benchmarks" / "experiments"))

import brain_mri
import brain_mri_split
import precision
import solvers

from collafuse_edge.evaluation.evaluate import Generated, real_images
from collafuse_edge.evaluation.evaluate import score as image_score

CLASSES = ("glioma_tumor", "pituitary_tumor")


def in_process(_: Path, *arguments: object) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(done(*arguments, "--json"))
    return result


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two clients of 24 noise images, one training step, 20 generated images, in this process."""
    random = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    (tmp_path / "weights").mkdir()
    labels, split = np.repeat([0, 1], 48), np.tile([0] * 24 + [1] * 24, 2)
    np.savez(
        tmp_path / "data" / "brain_mri_64.npz",
        images=random.integers(0, 256, (96, 8, 8), np.uint8),
        labels=labels,
        split=np.array(["train", "test"])[split],
        label_names=np.array(CLASSES),
    )
    write_extractor(tmp_path / "weights" / "squeezenet1_0_features.onnx")
    steps = ("--preset", "tiny", "--steps", "1", "--batch-size", "4", "--warmup-steps", "0")
    for name, value in {"CLIENTS": CLASSES, "SERVER": steps, "HEAD": steps, "TRAINING": ("--cpu",), "SIZE": 8,
                        "SHAPE": (1, 8, 8), "TIMESTEPS": 10, "IMAGES": 20, "COLUMNS": 2}.items():  # fmt: skip
        for module in (brain_mri, brain_mri_split, precision):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    for module in (brain_mri, brain_mri_split, precision):
        monkeypatch.setattr(module, "run", in_process)
    monkeypatch.setenv("COLLAFUSE_DATA", str(tmp_path / "data"))
    return tmp_path


def score(tmp_path: Path, generated: int) -> dict[str, Any]:
    """Of noise images, by an extractor of a few features."""
    extractor = write_extractor(tmp_path / "e.onnx")
    real, made = np.random.default_rng(0).uniform(-1, 1, (2, 30, 1, 8, 8)).astype(np.float32)
    return image_score(real_images("r", real, extractor), Generated(made[:generated], None), "g", extractor).to_dict()


def test_tables_are_made_of_scores_of_the_new_kind(tmp_path: Path) -> None:
    whole, few = score(tmp_path, 30), score(tmp_path, 5)
    record = {"kid": {name: {"collaboration": whole, "local-only": few} for name in brain_mri.CLIENTS}, "data": "d",
              "generated_per_client": 30, "sampler": "ddpm", "machine": "m",
              "training_seconds": {"total": 60.0, "server": 30.0}}  # fmt: skip
    table = brain_mri.table(record)
    assert "+- its standard error over the images of both\nsides. Estimator: U-statistic over all pairs" in table
    cells = f"{whole['kid_mean']:.3f} +- {whole['kid_error']:.3f} | {few['kid_mean']:.3f} (no error: too few images)"
    assert table.count(f"| {cells} |") == 3
    timings = [{"engine": "ort-cpu", "precision": "fp32", "median_ms": 2.0}]
    comparison = {"ranges": [{"final": {"cosine": 1.0}, "worst": {"max_abs": 0.1}}], "float_layers": [],
                  "timings": timings}  # fmt: skip
    lower = {"comparison": comparison, "kid": {**whole, "kid_mean": whole["kid_mean"] + 0.0125}}
    client = {"fp32": {"kid": whole}, **dict.fromkeys(precision.PRECISIONS, lower)}
    clients = dict.fromkeys(precision.CLIENTS, client)
    of_precision = precision.table({**record, "calibration_tensors": 24, "clients": clients})
    assert of_precision.count("| +0.0125 |") == 6


@pytest.mark.slow
def test_brain_mri_and_its_followers_write_scores_of_the_new_kind(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, results = small / "out", small / "results"
    monkeypatch.setattr(sys, "argv", ["brain_mri.py", str(out), "--results", str(results)])
    brain_mri.main()
    record = json.loads((results / "brain_mri.json").read_text())
    table = (results / "brain_mri.md").read_text()
    assert "+- its standard error over the images of both\nsides. Estimator: U-statistic over all pairs" in table
    for client in CLASSES:
        scores = record["kid"][client]
        assert [scores[what]["steps"] for what in scores] == [2, 10, None, None]
        assert scores["collaboration"]["kid_error"] > 0
        (row,) = re.findall(rf"^\| {client} \| (.*) \|$", table, re.MULTILINE)
        assert row.split(" | ") == [f"{s['kid_mean']:.3f} +- {s['kid_error']:.3f}" for s in scores.values()]

    work = out / "split"
    work.mkdir()
    monkeypatch.setattr(brain_mri_split, "CLIENT", CLASSES[0])
    data, extractor = small / "data" / "brain_mri_64.npz", small / "weights" / "squeezenet1_0_features.onnx"
    options = brain_mri_split.score(out, work, "0.4", data, extractor)
    assert [str(word).split("=")[0] for word in options] == ["--image-kid", "0.4", "--handover-kid", "0.4"]
    image = json.loads(Path(str(options[1]).partition("=")[2]).read_text())
    assert (image["cut"], image["steps"], image["server_steps"]) == (4, 4, 6)


def test_solvers_compares_every_way_on_the_same_tensors(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, results = small / "out", small / "results"
    two_m, ddim = solvers.TWO_M["karras"], solvers.DDIM
    ways = {0.4: [(ddim, 4), (two_m, 2), (solvers.TWO_M["even"], 4)]}
    for name, value in {"CLIENTS": CLASSES, "SIZE": 8, "TIMESTEPS": 10, "DRAWS": 2, "COLUMNS": 2, "run": in_process,
                        "HEADS": {0.4: ("tiny", 1)}, "WAYS": ways, "TRAINING": ("--cpu",)}.items():  # fmt: skip
        monkeypatch.setattr(solvers, name, value)
    monkeypatch.setattr(sys, "argv", ["solvers.py", str(out), "--results", str(results)])
    solvers.main()
    rows = json.loads((results / "solvers.json").read_text())["rows"]
    assert [(row["client"], row["sampler"], row["steps"]) for row in rows] == [
        (client, sampler.text, steps) for client in CLASSES for sampler, steps in ways[0.4]
    ]
    found = solvers.values_of(rows, "dpm++2m", 4)
    assert found["rmse"].max() == 0  # full stride on even levels is what the others are held against
    assert solvers.values_of(rows, two_m.text, 2)["rmse"].min() > 0
    table = (results / "solvers.md").read_text()
    assert re.search(r"^\| ddim \| 4 \| .* \| \+0\.000 \+- 0\.000 \|", table, re.MULTILINE)
    assert (results / "solvers.png").stat().st_size > 100
