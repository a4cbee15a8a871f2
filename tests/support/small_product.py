"""One small artefact of every kind, made as a user makes them, once per test run."""

import os
import re
import shutil
import stat
import sys
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from command_line import Result, done, run_cli
from made_once import made_once

torch.set_num_threads(1)

TRAINING = ("--steps", 2, "--batch-size", 4, "--warmup-steps", 0, "--preset", "tiny", "--cpu")
SIDE, TIMESTEPS, CLASSES, IMAGES, HANDOVERS = 8, 10, 2, 6, 3
PROGRESS = re.compile(r"(train (client|server)|handoff|infer)( \d+/\d+\b|: about ).*|warning   .* is busy .*")


@lru_cache
def product() -> Path:
    """A folder with every artefact of one plan, and of ``other``, a second plan (T = 12). Copy before you damage.

    plan.json, data.npz, upload.key, a.shard.safetensors, server/, head/, x.tc.safetensors, edge.head/, images/,
    extractor.onnx; export.json: what export printed;
    other/: plan.json, b.shard.safetensors, server/, x.tc.safetensors of the other plan.
    """
    return made_once("product", _make_product)


def _make_product(folder: Path) -> None:
    (folder / "other").mkdir(parents=True)
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (IMAGES, SIDE, SIDE), np.uint8)
    np.savez(folder / "data.npz", images=pixels, labels=np.arange(IMAGES) % CLASSES)
    data = ("--data", folder / "data.npz")
    for place, timesteps, shard in ((folder, TIMESTEPS, "a"), (folder / "other", TIMESTEPS + 2, "b")):
        plan, shard_file = ("--plan", place / "plan.json"), place / f"{shard}.shard.safetensors"
        done("init", "--size", SIDE, "--timesteps", timesteps, "--cut-ratio", 0.5, "--out", place / "plan.json")
        done("upload", *data, *plan, "--key", folder / "upload.key", "--out", shard_file)
        done("train-server", shard_file, *TRAINING, "--out", place / "server")
        handoff = ("--server", place / "server", "--count", HANDOVERS, "--out", place / "x.tc.safetensors")
        done("handoff", *plan, *handoff)
    done("train-client", *data, "--plan", folder / "plan.json", *TRAINING, "--out", folder / "head")
    exported = done(
        "export", folder / "head", "--sampler", "ddim", "--steps", "5,2", "--out", folder / "edge.head", "--json"
    )
    (folder / "export.json").write_text(exported)
    done("infer", folder / "edge.head", folder / "x.tc.safetensors", "--out", folder / "images")
    write_extractor(folder / "extractor.onnx")


def write_extractor(
    path: Path,
    *,
    side: int | str = SIDE,
    channels: int = 3,
    batch: int | str = "batch",
    tensor_type: str = "FLOAT",
    outputs: int = 1,
    pool: int = 2,
    scale: float = 1 / 255,
) -> Path:
    """A feature extractor: mean over pool x pool pixels, scaled, flattened; the defaults are usable."""
    from onnx import TensorProto, checker, helper, save

    kind = getattr(TensorProto, tensor_type)
    features = ["features", "other"][:outputs]
    nodes = [
        helper.make_node("AveragePool", ["images"], ["means"], kernel_shape=[pool, pool], strides=[pool, pool]),
        helper.make_node("Mul", ["means", "scale"], ["scaled"]),
        *(helper.make_node("Flatten", ["scaled"], [name]) for name in features),
    ]
    graph = helper.make_graph(
        nodes,
        "extractor",
        [helper.make_tensor_value_info("images", kind, [batch, channels, side, side])],
        [helper.make_tensor_value_info(name, kind, [batch, "features"]) for name in features],
        [helper.make_tensor("scale", kind, [], [scale])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    save(model, path)
    return path


def listing(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Every path below a folder, hidden ones too, with mode, size and time of change (0, 0 for folders)."""
    stats = {str(path.relative_to(folder)): path.lstat() for path in folder.rglob("*")}
    return {
        name: (s.st_mode, 0, 0) if stat.S_ISDIR(s.st_mode) else (s.st_mode, s.st_size, s.st_mtime_ns)
        for name, s in stats.items()
    }


def copy_product(folder: Path) -> Path:
    """A copy to damage, made of hard links: replace its files, never write into them."""
    return Path(shutil.copytree(product(), folder, copy_function=os.link))


def replace_bytes(path: Path, change: Callable[[bytes], bytes]) -> None:
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(change(data))


def words(command: str, folder: Path) -> list[str]:
    """A command line; words that begin with @ are paths in ``folder``."""
    return [str(folder / word[1:]) if word.startswith("@") else word for word in command.split()]


def run_whole(capfd: pytest.CaptureFixture[str], *arguments: object) -> Result:
    """``run_cli`` with all that reaches the terminal: warnings, errors nobody caught, what libraries print."""

    def show(message: Warning | str, category: type[Warning], *_: object) -> None:
        print(f"{category.__name__}: {message}", file=sys.stderr)

    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for category in (UserWarning, RuntimeWarning, FutureWarning):
            warnings.simplefilter("always", category)
        warnings.showwarning = show
        with mock.patch.object(sys, "unraisablehook", sys.__unraisablehook__):
            result = run_cli(*arguments)
    leaked = capfd.readouterr()
    return Result(result.code, result.out + leaked.out, result.err + leaked.err)


def refused(capfd: pytest.CaptureFixture[str], *arguments: object, code: int = 2, out: str | None = "") -> str:
    """The one line a refused command prints, progress and notes apart; ``out`` None where results may come before."""
    result = run_whole(capfd, *arguments)
    assert result.code == code, (arguments, result)
    said = "".join(line for line in result.out.splitlines(keepends=True) if not line.startswith("note  "))
    assert out is None or said == out, (arguments, result)
    lines = [line for line in result.err.splitlines() if not PROGRESS.fullmatch(line)]
    assert len(lines) == 1, (arguments, result)
    assert lines[0].startswith("error: "), (arguments, result)
    return lines[0]
