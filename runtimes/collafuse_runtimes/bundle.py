"""The head bundle ``NAME.head/``: one client head, ready for a device (docs/formats.md).

model.onnx          one denoising step; ``step`` picks a row of the baked tables
golden.safetensors  an input and the trajectory expected from it, per baked step count
manifest.json       plan, sampler, row ranges, tensors, precision, versions, parity figures, sha256 of the other files
*.engine            optional: TensorRT engines, each for one kind of machine
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from collafuse_runtimes.checks import check_images, check_labels
from collafuse_runtimes.classes import read_class_names, shown
from collafuse_runtimes.errors import ArtefactError, CollafuseError, InputError
from collafuse_runtimes.noise import Float32Array
from collafuse_runtimes.plan import SplitPlan, Transition
from collafuse_runtimes.samplers import Sampler
from collafuse_runtimes.sealed import read_json, read_tensors, sha256_file, write_json, write_tensors

FORMAT = "collafuse-head"
GOLDEN_FORMAT = "collafuse-golden"
MODEL, GOLDEN, MANIFEST = "model.onnx", "golden.safetensors", "manifest.json"
PRECISIONS = ("fp32", "fp16", "int8-cpu", "int8-trt")
OPSETS = (20, 17)
ENGINE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.engine")


@dataclass(frozen=True)
class RowRange:
    """Where one baked step count lies in the graph's tables.

    Attributes:
        steps: number of denoising steps.
        first_row: row of step 0; step k is row first_row + k.
        transitions: (t, t_prev) of every step, descending, the last one ends clean.
    """

    steps: int
    first_row: int
    transitions: tuple[Transition, ...]


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of the graph; ``shape`` holds numbers and "batch"."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class NetworkInfo:
    """The network inside the graph.

    Attributes:
        preset: the preset's name.
        parameters: number of weights.
        flops_per_step: multiply-adds counted twice, one image, network alone.
        weights_sha256: of the checkpoint's averaged weights.
    """

    preset: str
    parameters: int
    flops_per_step: int
    weights_sha256: str


@dataclass(frozen=True)
class BundledEngine:
    """A TensorRT engine that the bundle brings along.

    Attributes:
        name: of its file in the bundle.
        key: what it was built from, with and on (``engines.tensorrt_cache``).
        sha256: of its bytes.
    """

    name: str
    key: dict[str, str]
    sha256: str


@dataclass(frozen=True)
class HeadBundle:
    """What a head bundle states about itself.

    Attributes:
        path: the directory.
        plan: the split plan.
        sampler: the client's sampler, baked into the graph.
        row_ranges: one per baked step count; the first is the default.
        precision: of the network, one of PRECISIONS; sampler arithmetic and tensors at the border are float32.
        opset: ONNX opset of the graph.
        num_classes: classes of a conditional head, None otherwise.
        network: what was exported.
        parity: figures of the check against the torch network at export time (``VerifyReport.to_dict``).
        tools: versions of the tools that wrote it.
        float_layers: nodes of the graph that an int8 head leaves in float.
        engines: TensorRT engines in the bundle; none, as a rule.
        class_names: of a conditional head's classes, where they have names and the release that trained it kept them.
    """

    path: Path
    plan: SplitPlan
    sampler: Sampler
    row_ranges: tuple[RowRange, ...]
    precision: str
    opset: int
    num_classes: int | None
    network: NetworkInfo
    parity: dict[str, Any]
    tools: dict[str, str]
    float_layers: tuple[str, ...] = ()
    engines: tuple[BundledEngine, ...] = ()
    class_names: tuple[str, ...] | None = None

    @property
    def model_path(self) -> Path:
        """The ONNX file."""
        return self.path / MODEL

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The graph's inputs, in order."""
        image = ("batch", *self.plan.image_shape)
        noise = [TensorInfo("noise", "float32", image)] if self.sampler.is_stochastic else []
        label = [TensorInfo("label", "int32", ("batch",))] if self.num_classes is not None else []
        return (TensorInfo("sample", "float32", image), TensorInfo("step", "int32", (1,)), *noise, *label)

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """The graph's outputs."""
        return (TensorInfo("next_sample", "float32", ("batch", *self.plan.image_shape)),)

    @property
    def transitions(self) -> tuple[Transition, ...]:
        """(t, t_prev) of every row of the tables, all row ranges in order."""
        return tuple(transition for r in self.row_ranges for transition in r.transitions)

    def row_range(self, steps: int | None = None) -> RowRange:
        """The rows of a baked step count (default: the first one).

        Raises:
            InputError: that count is not baked in; the message lists those that are.
        """
        for candidate in self.row_ranges:
            if steps in (None, candidate.steps):
                return candidate
        valid = ", ".join(str(r.steps) for r in self.row_ranges)
        raise InputError(
            f"{steps} steps are not baked into {self.path}; valid: {valid} (or export again with that count)"
        )


@dataclass(frozen=True)
class Golden:
    """Test vectors of a bundle.

    Attributes:
        x_tc: (B, C, H, W) float32 at the hand-over level.
        trajectories: by step count, (steps, B, C, H, W) float32: the tensor after each step, from the torch network.
        labels: (B,) int32 for conditional heads, else None.
        seed: of the noise; row i has sample index i.
    """

    x_tc: Float32Array
    trajectories: dict[int, Float32Array]
    labels: npt.NDArray[np.int32] | None
    seed: int


def make_row_ranges(plan: SplitPlan, step_counts: Sequence[int]) -> tuple[RowRange, ...]:
    """Lay out the tables: the step counts one after another, in the order given.

    Raises:
        InputError: the client has no step, or a count is out of range or named twice.
    """
    if plan.cut == 0:
        raise InputError(f"cut_ratio {plan.cut_ratio} leaves the client no step, so there is no head; use a larger one")
    if not step_counts or len(set(step_counts)) < len(step_counts):
        raise InputError(f"step counts {list(step_counts)} are empty or repeat; give each count once, 1 to {plan.cut}")
    ranges, row = [], 0
    for steps in step_counts:
        ranges.append(RowRange(steps, row, plan.client_transitions(steps)))
        row += steps
    return tuple(ranges)


def write_manifest(bundle: HeadBundle) -> None:
    """Seal the bundle: write manifest.json beside the files it names.

    Raises:
        ArtefactError: a file is missing or the folder cannot be written.
    """
    payload = {
        **_derived(bundle),
        "plan": bundle.plan.to_dict(),
        "sampler": bundle.sampler.to_dict(),
        "precision": bundle.precision,
        "opset": bundle.opset,
        "num_classes": bundle.num_classes,
        "class_names": None if bundle.class_names is None else list(bundle.class_names),
        "network": asdict(bundle.network),
        "parity": bundle.parity,
        "tools": bundle.tools,
        "float_layers": list(bundle.float_layers),
        "engines": {engine.name: engine.key for engine in bundle.engines},
        "files": {name: sha256_file(bundle.path / name) for name in (MODEL, GOLDEN, *(e.name for e in bundle.engines))},
    }
    write_json(bundle.path / MANIFEST, FORMAT, payload)


def read_bundle(path: Path) -> HeadBundle:
    """Read a bundle's manifest and check it and every file.

    Raises:
        ArtefactError: missing, extra, truncated, tampered or mixed files, another format version, or a manifest that
            contradicts its own plan.
    """
    if not path.is_dir():
        raise ArtefactError(f"no head bundle at {path}: valid is a folder written by `collafuse-edge export`")
    manifest = read_json(path / MANIFEST, FORMAT)
    _check_files(path, manifest.get("files"), manifest.get("engines"))
    try:
        bundle = _bundle_from_manifest(path, manifest)
        for field, value in _derived(bundle).items():
            if manifest[field] != value:
                raise InputError(f"{field} does not follow from the plan and the sampler; export the head again")
    except (KeyError, TypeError, ValueError) as error:
        raise ArtefactError(f"{path / MANIFEST} lacks or garbles {error}; export the head again") from None
    except CollafuseError as error:
        raise ArtefactError(f"{path / MANIFEST}: {error}") from None
    return bundle


def write_golden(path: Path, golden: Golden) -> None:
    """Write golden.safetensors into the bundle folder ``path``."""
    tensors: dict[str, npt.NDArray[Any]] = {"x_tc": golden.x_tc}
    tensors |= {f"trajectory_{steps}": values for steps, values in golden.trajectories.items()}
    if golden.labels is not None:
        tensors["labels"] = golden.labels
    write_tensors(path / GOLDEN, GOLDEN_FORMAT, tensors, {"seed": golden.seed})


def read_golden(bundle: HeadBundle) -> Golden:
    """The bundle's test vectors.

    Raises:
        ArtefactError: damaged, or not of this bundle's shape and step counts.
    """
    path = bundle.path / GOLDEN
    tensors, payload = read_tensors(path, GOLDEN_FORMAT)
    try:
        x_tc, labels = tensors["x_tc"], tensors.get("labels")
        check_images("x_tc", x_tc, bundle.plan.image_shape)
        check_labels(labels, len(x_tc), bundle.num_classes)
        trajectories = {r.steps: tensors[f"trajectory_{r.steps}"] for r in bundle.row_ranges}
        for steps, values in trajectories.items():
            if values.shape != (steps, *x_tc.shape):
                raise InputError(f"trajectory_{steps} has shape {values.shape}; valid: {(steps, *x_tc.shape)}")
            if not np.isfinite(values).all():
                raise InputError(f"trajectory_{steps} holds NaN or Inf")
        return Golden(x_tc, trajectories, labels, payload["seed"])
    except KeyError as error:
        raise ArtefactError(f"{path} lacks {error}; export the head again") from None
    except CollafuseError as error:
        raise ArtefactError(f"{path}: {error}; export the head again") from None


def describe_bundle(bundle: HeadBundle) -> list[str]:
    """What a bundle is, in lines for people."""
    network, shape = bundle.network, "x".join(map(str, bundle.plan.image_shape))
    counts = ", ".join(str(r.steps) for r in bundle.row_ranges)
    condition = "" if bundle.num_classes is None else f", {bundle.num_classes} classes"
    names = [] if bundle.class_names is None else [f"classes   {shown(bundle.class_names)} (names from your data)"]
    return [
        f"head      {bundle.path}: {network.preset}, {network.parameters:,} parameters{condition}",
        f"work      {network.flops_per_step / 1e6:,.0f} MFLOP per step and image of {shape}",
        f"steps     {counts} from noise level {bundle.plan.handover_level} by {bundle.sampler.name}",
        f"graph     {bundle.precision}, opset {bundle.opset}, {bundle.model_path.stat().st_size / 1e6:.1f} MB",
        *names,
    ]


def _check_files(path: Path, stated: Any, engines: Any) -> None:
    if not isinstance(engines, dict) or not all(ENGINE_NAME.fullmatch(name) for name in engines):
        raise ArtefactError(f"{path / MANIFEST} names engines {engines!r}; valid are files *.engine; export again")
    if not isinstance(stated, dict) or set(stated) != {MODEL, GOLDEN, *engines}:
        also = f" and its engines {sorted(engines)}" if engines else ""
        raise ArtefactError(
            f"{path / MANIFEST} does not name exactly {MODEL} and {GOLDEN}{also}; export the head again"
        )
    extra = sorted({entry.name for entry in path.iterdir()} - {MODEL, GOLDEN, MANIFEST, *engines})
    if extra:
        raise ArtefactError(f"{path} holds {extra[0]!r}, which is no part of a head bundle; remove it")
    for name, digest in stated.items():
        if sha256_file(path / name) != digest:
            raise ArtefactError(f"{path / name} is not the file the manifest names: damaged or mixed; copy it again")


def _engine_from_manifest(name: str, key: Any, sha256: str) -> BundledEngine:
    if not isinstance(key, dict) or not all(isinstance(value, str) for value in key.values()):
        raise InputError(f"the key of engine {name} is {key!r}; valid: an object of texts; export the head again")
    return BundledEngine(name, key, sha256)


def _bundle_from_manifest(path: Path, manifest: dict[str, Any]) -> HeadBundle:
    plan = SplitPlan.from_dict(manifest["plan"])
    ranges = make_row_ranges(plan, [entry["steps"] for entry in manifest["row_ranges"]])
    for field, valid in (("precision", PRECISIONS), ("opset", OPSETS)):
        if manifest[field] not in valid:
            raise InputError(f"{field} {manifest[field]!r} is unknown; valid: {', '.join(map(str, valid))}")
    classes = manifest["num_classes"]
    if classes is not None and not (isinstance(classes, int) and classes >= 1):
        raise InputError(f"num_classes {classes!r} is not a count of classes; export the head again")
    return HeadBundle(
        path=path,
        plan=plan,
        sampler=Sampler(**manifest["sampler"]),
        row_ranges=ranges,
        precision=manifest["precision"],
        opset=manifest["opset"],
        num_classes=classes,
        network=NetworkInfo(**manifest["network"]),
        parity=manifest["parity"],
        tools=manifest["tools"],
        float_layers=tuple(manifest["float_layers"]),
        engines=tuple(
            _engine_from_manifest(name, key, manifest["files"][name]) for name, key in manifest["engines"].items()
        ),
        class_names=read_class_names(manifest.get("class_names"), classes),
    )


def _derived(bundle: HeadBundle) -> dict[str, Any]:
    """Manifest fields that follow from the others; spelt out for readers without this package."""
    return {
        "fingerprint": bundle.plan.fingerprint,
        "row_ranges": [
            {"steps": r.steps, "first_row": r.first_row, "timesteps": [t for t, _ in r.transitions]}
            for r in bundle.row_ranges
        ],
        "inputs": [_tensor_to_dict(tensor) for tensor in bundle.inputs],
        "outputs": [_tensor_to_dict(tensor) for tensor in bundle.outputs],
    }


def _tensor_to_dict(tensor: TensorInfo) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}
