"""Every artefact, damaged in every way, through every command that reads it: one line, exit code 2, nothing written.

Damage that a digest would show is tried on freshly sealed files too, so that their fields are checked.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest
from small_product import (
    IMAGES,
    SIDE,
    copy_product,
    listing,
    product,
    refused,
    replace_bytes,
    words,
    write_extractor,
)

from collafuse_runtimes.files import sealed

HANDOFF = "handoff --plan @plan.json --server @server --count 2 --out @new"
TRAIN_CLIENT = "train-client --data @data.npz --plan @plan.json --preset tiny --steps 2 --cpu --out"
INFER = "infer @edge.head @x.tc.safetensors --out @new"
EVALUATE = "evaluate {} --data @data.npz --extractor @extractor.onnx"
HEAD_READERS = (
    "export @head --out @new",
    "verify @edge.head --engine torch --checkpoint @head",
    f"{INFER} --engine torch --checkpoint @head",
    f"{TRAIN_CLIENT} @head --resume",
)
BUNDLE_READERS = ("verify @edge.head", "verify @edge.head --engine fake", INFER)
SERVER_READERS = (HANDOFF, "train-server @a.shard.safetensors --preset tiny --steps 2 --cpu --out @server --resume")
CHECKPOINT_FILES = (
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "config.json",
    "checkpoint.json",
    "training.json",
)

READERS: dict[str, tuple[str, ...]] = {
    "plan.json": (
        "init --size 16 --out @plan.json",
        "upload --data @data.npz --plan @plan.json --key @upload.key --out @new",
        f"{TRAIN_CLIENT} @new",
        HANDOFF,
    ),
    "a.shard.safetensors": ("train-server @a.shard.safetensors --steps 2 --cpu --out @new",),
    **{f"server/{name}": SERVER_READERS for name in CHECKPOINT_FILES},
    **{f"head/{name}": HEAD_READERS for name in CHECKPOINT_FILES},
    "x.tc.safetensors": (INFER, EVALUATE.format("@x.tc.safetensors")),
    **{f"edge.head/{name}": BUNDLE_READERS for name in ("model.onnx", "golden.safetensors", "manifest.json")},
    "images/images.npz": (EVALUATE.format("@images"), EVALUATE.format("@images/images.npz")),
    "extractor.onnx": (EVALUATE.format("@images"),),
}
CONTENT_READERS: dict[str, tuple[str, ...]] = {
    **{name: READERS[name] for name in ("plan.json", "a.shard.safetensors", "x.tc.safetensors")},
    "server/diffusion_pytorch_model.safetensors": (HANDOFF,),
    "head/diffusion_pytorch_model.safetensors": ("export @head --out @new",),
    **{
        f"{side}/{name}.json": READERS[f"{side}/{name}.json"]
        for side in ("server", "head")
        for name in ("checkpoint", "training")
    },
    "edge.head/golden.safetensors": ("verify @edge.head", "verify @edge.head --engine fake"),
    "edge.head/manifest.json": BUNDLE_READERS,
}
"""Who looks into a sealed file, past the digest that its folder states."""


def refuse_all(
    artefact: str, folder: Path, capfd: pytest.CaptureFixture[str], commands: tuple[str, ...] | None = None
) -> set[str]:
    """Every reader of the artefact refuses it in one line that names it (or its folder) and writes nothing."""
    before, messages = listing(folder), set()
    whole = str(folder / artefact) if "/" not in artefact else str(folder / artefact.partition("/")[0])
    for command in commands or READERS[artefact]:
        if command.startswith("init") and not (folder / artefact).exists():
            continue  # init makes a missing plan file
        message = refused(capfd, *words(command, folder))
        assert whole in message, (command, message)
        assert listing(folder) == before, command
        messages.add(message)
    return messages


def flip(path: Path, position: int) -> None:
    replace_bytes(path, lambda data: data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])


def flip_in_header(path: Path) -> None:
    flip(path, 9 if path.suffix == ".safetensors" else 0)


def flip_in_data(path: Path) -> None:
    data = path.read_bytes()
    digest = data.find(b'"sha256": "')
    flip(path, digest + 20 if path.suffix == ".json" and digest >= 0 else len(data) * 2 // 3)


def put_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


DAMAGE: dict[str, Callable[[Path], None]] = {
    "truncated": lambda path: replace_bytes(path, lambda data: data[: len(data) // 2]),
    "without its last byte": lambda path: replace_bytes(path, lambda data: data.rstrip()[:-1]),
    "empty": lambda path: replace_bytes(path, lambda data: b""),
    "bit flipped in the header": flip_in_header,
    "bit flipped in the data": flip_in_data,
    "missing": Path.unlink,
    "a directory": put_directory,
    "a link to nothing": link_to_nothing,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("artefact", READERS)
def test_damaged_bytes(artefact: str, damage: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if artefact == "extractor.onnx" and damage == "bit flipped in the data":
        pytest.skip("an ONNX file has no digest; the result of evaluate names its sha256 instead")
    folder = copy_product(tmp_path / "site")
    DAMAGE[damage](folder / artefact)
    refuse_all(artefact, folder, capfd)


@pytest.mark.parametrize("artefact", [name for name in READERS if not name.endswith("/config.json")])
def test_another_artefact_in_its_place(artefact: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = copy_product(tmp_path / "site")
    of_the_same_name = [name for name in READERS if Path(name).name == Path(artefact).name]
    for other in {"plan.json", "x.tc.safetensors", "edge.head/model.onnx", "data.npz", *of_the_same_name} - {artefact}:
        source = (product() / other).read_bytes()
        replace_bytes(folder / artefact, lambda _, source=source: source)  # type: ignore[misc]
        refuse_all(artefact, folder, capfd)


@pytest.mark.parametrize("kind", ["missing", "a file"])
@pytest.mark.parametrize("artefact", ["server", "head", "edge.head", "images"])
def test_folder_missing_or_a_file(artefact: str, kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = copy_product(tmp_path / "site")
    shutil.rmtree(folder / artefact)
    if kind == "a file":
        (folder / artefact).write_text("")
    inside = next(name for name in READERS if name.startswith(f"{artefact}/"))
    resumes = () if kind == "a file" else ("--resume",)  # a run without output begins anew
    commands = tuple(command for command in READERS[inside] if not command.endswith(resumes or "\0"))
    refuse_all(artefact, folder, capfd, commands)


Change = Callable[[dict[str, npt.NDArray[Any]], dict[str, Any]], None]


def seal_again(path: Path, change: Change = lambda tensors, payload: None, newer: int = 0) -> None:
    """The file with other content and a valid seal; the folder it belongs to names its new digest.

    Args:
        newer: added to its format version.
    """
    data, tensors = path.read_bytes(), {}
    if path.suffix == ".json":
        payload = json.loads(data)
    else:
        from safetensors.numpy import load

        payload = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["collafuse"])
        tensors = {name: value.copy() for name, value in load(data).items()}
    format_name, version = payload["format"], payload["version"] + newer
    payload = {key: value for key, value in payload.items() if key not in ("format", "version", "sha256")}
    change(tensors, payload)
    with mock.patch.object(sealed, "FORMAT_VERSION", version):
        if tensors:
            sealed.write_tensors(path, format_name, tensors, payload)
        else:
            sealed.write_json(path, format_name, payload, version)
    name_digest(path)


def name_digest(path: Path) -> None:
    """State a member's digest in the file that seals its folder."""
    for sealing in (path.parent / "training.json", path.parent / "manifest.json"):
        if sealing.exists() and sealing != path:
            seal_again(sealing, field(f"files.{path.name}", sealed.sha256_file(path)))


@pytest.mark.parametrize("artefact", CONTENT_READERS)
def test_another_format_version(artefact: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = copy_product(tmp_path / "site")
    version = 2 if artefact.endswith(("/checkpoint.json", "/training.json")) else 1
    seal_again(folder / artefact, newer=1)
    for message in refuse_all(artefact, folder, capfd, CONTENT_READERS[artefact]):
        assert f"has format version {version + 1}; this release reads {version}" in message


def put_nan(name: str) -> Change:
    return lambda tensors, _: tensors[name].reshape(-1).__setitem__(0, np.nan)


def crop(name: str) -> Change:
    return lambda tensors, _: tensors.update({name: tensors[name][..., :-1].copy()})


def field(name: str, value: Any) -> Change:
    """Another value of a field of the payload; of one inside it with a name like plan.timesteps."""

    def change(_: object, payload: dict[str, Any]) -> None:
        *parents, last = name.split(".", 1)
        for parent in parents:
            payload = payload[parent]
        payload[last] = value

    return change


WEIGHT = "conv_in.weight"
WRONG_CONTENT: list[tuple[str, Change, str]] = [
    ("plan.json", field("plan.cut_ratio", 1.5), "cut_ratio is 1.5; valid: a number in [0, 1]"),
    ("plan.json", field("plan.timesteps", 12), "fingerprint is not that of the plan"),
    ("plan.json", field("plan", None), "a plan needs the fields"),
    ("a.shard.safetensors", put_nan("x_n"), "x_n holds NaN or Inf in 1 of 6 samples"),
    ("a.shard.safetensors", crop("x_n"), "x_n has shape (6, 1, 8, 7); valid: (N >= 1, 1, 8, 8)"),
    ("a.shard.safetensors", field("plan.timesteps", 12), "fingerprint is not that of the plan"),
    ("a.shard.safetensors", field("protocol", "secret"), "unknown protocol 'secret'; valid: upload, paper"),
    ("x.tc.safetensors", put_nan("x_tc"), "x_tc holds NaN or Inf in 1 of 3 samples"),
    ("x.tc.safetensors", crop("x_tc"), "x_tc has shape (3, 1, 8, 7); valid: (N >= 1, 1, 8, 8)"),
    ("x.tc.safetensors", field("plan.timesteps", 12), "fingerprint is not that of the plan"),
    ("x.tc.safetensors", field("seed", -1), "seed -1 out of range"),
    ("server/diffusion_pytorch_model.safetensors", put_nan(WEIGHT), "holds NaN or Inf; train again"),
    ("server/diffusion_pytorch_model.safetensors", crop(WEIGHT), "weights do not fit the network"),
    ("server/checkpoint.json", field("plan.timesteps", 12), "fingerprint is not that of the plan"),
    ("server/checkpoint.json", field("role", "client"), "is a client checkpoint; valid here: a server checkpoint"),
    ("server/training.json", field("files", None), "is not the file training.json names"),
    ("head/diffusion_pytorch_model.safetensors", put_nan(WEIGHT), "holds NaN or Inf; train again"),
    ("head/diffusion_pytorch_model.safetensors", crop(WEIGHT), "weights do not fit the network"),
    ("head/checkpoint.json", field("plan.timesteps", 12), "fingerprint is not that of the plan"),
    ("head/checkpoint.json", field("role", "server"), "is a server checkpoint; valid here: a client checkpoint"),
    ("head/training.json", field("files", None), "is not the file training.json names"),
    ("edge.head/golden.safetensors", put_nan("x_tc"), "x_tc holds NaN or Inf in 1 of 2 samples"),
    ("edge.head/golden.safetensors", crop("x_tc"), "x_tc has shape (2, 1, 8, 7); valid: (N >= 1, 1, 8, 8)"),
    ("edge.head/golden.safetensors", put_nan("trajectory_5"), "trajectory_5 holds NaN or Inf"),
    ("edge.head/golden.safetensors", crop("trajectory_5"), "trajectory_5 has shape (5, 2, 1, 8, 7)"),
    ("edge.head/manifest.json", field("plan.timesteps", 12), "does not follow from the plan"),
    ("edge.head/manifest.json", field("plan.cut_ratio", -1), "cut_ratio is -1; valid: a number in [0, 1]"),
    ("edge.head/manifest.json", field("precision", "int4"), "precision is 'int4'; valid: fp32, fp16"),
    ("edge.head/manifest.json", field("files", {}), "does not name exactly model.onnx and golden.safetensors"),
]


@pytest.mark.parametrize(("artefact", "change", "found"), WRONG_CONTENT, ids=[f"{a}-{f}" for a, _, f in WRONG_CONTENT])
def test_wrong_content_under_a_valid_seal(
    artefact: str, change: Change, found: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = copy_product(tmp_path / "site")
    seal_again(folder / artefact, change)
    for message in refuse_all(artefact, folder, capfd, CONTENT_READERS[artefact]):
        assert found in message


@pytest.mark.parametrize("artefact", [name for name in CONTENT_READERS if name.endswith(".json")])
def test_nan_in_json(artefact: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = copy_product(tmp_path / "site")
    replace_bytes(folder / artefact, lambda data: re.sub(rb'"version": \d', b'"version": NaN', data))
    if artefact.endswith("checkpoint.json"):
        name_digest(folder / artefact)
    for message in refuse_all(artefact, folder, capfd, CONTENT_READERS[artefact]):
        assert "NaN is not a JSON value" in message


OTHER_PLAN = {
    "handoff --plan @other/plan.json --server @server --count 2 --out @new": ("the plan has 12", "@server has 10"),
    "handoff --plan @plan.json --server @other/server --count 2 --out @new": (
        "the plan has 10",
        "@other/server has 12",
    ),
    "infer @edge.head @other/x.tc.safetensors --out @new": ("head @edge.head has 10", "the hand-over file has 12"),
    "train-server @a.shard.safetensors @other/b.shard.safetensors --steps 2 --cpu --out @new": (
        "a.shard.safetensors has 10",
        "b.shard.safetensors has 12",
    ),
    "train-client --data @data.npz --plan @other/plan.json --preset tiny --steps 2 --batch-size 4 --warmup-steps 0 "
    "--cpu --out @head --resume": ("@head cannot be continued: plan timesteps was 10, now 12",),
    "init --size 8 --timesteps 12 --cut-ratio 0.5 --out @plan.json": ("@plan.json holds another plan",),
}


@pytest.mark.parametrize("command", OTHER_PLAN)
def test_artefacts_of_two_plans(command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = copy_product(tmp_path / "site")
    before = listing(folder)
    message = refused(capfd, *words(command, folder))
    for part in OTHER_PLAN[command]:
        assert part.replace("@", f"{folder}/") in message
    assert listing(folder) == before


def save_images(path: Path, **arrays: npt.NDArray[Any]) -> None:
    path.unlink()
    np.savez(path, **arrays)  # type: ignore[arg-type]


GENERATED = np.zeros((IMAGES, 1, SIDE, SIDE), np.float32)


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (np.full_like(GENERATED, np.nan), "NaN or Inf in 6 of 6 samples"),
        (GENERATED[..., 0], "images of shape (6, 1, 8); valid: (N, C, H, W) with N >= 1, C 1 or 3"),
        (GENERATED[:0], "(0, 1, 8, 8)"),
        (GENERATED.repeat(2, axis=1), "(6, 2, 8, 8)"),
        (GENERATED[:, :, :0], "(6, 1, 0, 8)"),
        (GENERATED.astype(complex), "has dtype complex128; valid: float32 or float16"),
        (GENERATED.astype(str), "has dtype <U32; valid: float32 or float16"),
        (np.uint8(GENERATED), "has dtype uint8; valid: float32 or float16"),
        (GENERATED.astype(object), "allow_pickle=False"),
    ],
)
def test_generated_images_of_another_kind(
    images: npt.NDArray[Any], found: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = copy_product(tmp_path / "site")
    save_images(folder / "images/images.npz", images=images)
    for message in refuse_all("images/images.npz", folder, capfd):
        assert found in message


def test_images_without_their_key_and_a_bare_array(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = copy_product(tmp_path / "site")
    save_images(folder / "images/images.npz", pictures=GENERATED)
    refuse_all("images/images.npz", folder, capfd)
    np.save(folder / "images/images.npy", GENERATED)
    (folder / "images/images.npz").unlink()
    (folder / "images/images.npy").rename(folder / "images/images.npz")
    refuse_all("images/images.npz", folder, capfd)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"channels": 1}, "valid: one float32 input (N, 3, H, W)"),
        ({"tensor_type": "FLOAT16"}, "maps tensor(float16) (batch, 3, 8, 8) to tensor(float16) (batch, 48)"),
        ({"scale": np.nan}, "features with NaN or Inf"),
    ],
)
def test_extractors_of_another_kind(
    options: dict[str, Any], found: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = copy_product(tmp_path / "site")
    (folder / "extractor.onnx").unlink()
    write_extractor(folder / "extractor.onnx", **options)
    for message in refuse_all("extractor.onnx", folder, capfd):
        assert found in message
