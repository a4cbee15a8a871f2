"""The head bundle ``NAME.head/``: one head, ready for a device (docs/formats.md).

model.onnx          one denoising step; ``step`` picks a row of the baked tables
golden.safetensors  an input and the trajectory expected from it, per baked step count
manifest.json       plan, sampler, row ranges, tensors, precision, versions, parity figures, sha256 of the other files
*.engine            optional: TensorRT engines, each for one kind of machine
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from collafuse_runtimes.diffusion.distilled import Distilled
from collafuse_runtimes.diffusion.fitted import FittedRows, read_fitted, require_rows_in, require_rows_of
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.diffusion.plan import SplitPlan, Transition
from collafuse_runtimes.diffusion.samplers import Sampler, step_table
from collafuse_runtimes.disk.regular_file import read_bytes
from collafuse_runtimes.errors import ArtefactError, CollafuseError, InputError
from collafuse_runtimes.files.bundle_manifest import check_manifest
from collafuse_runtimes.files.onnx_file import read_graph
from collafuse_runtimes.files.sealed import read_json, sha256_file, write_json
from collafuse_runtimes.networks.classes import read_class_names
from collafuse_runtimes.text import one_line

FORMAT = "collafuse-head"
HISTORY_IN, HISTORY_OUT = "x_0_old", "x_0"
"""What a sampler with history takes from the step before and gives to the next; zeros before the first step."""
MODEL, GOLDEN, MANIFEST = "model.onnx", "golden.safetensors", "manifest.json"
MOST_BYTES = 1 << 28
"""Of one file; a head is small."""
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
        key: what it was built from, with and on (``engines.trt.cache``).
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
        sampler: the head's sampler, baked into the graph.
        row_ranges: one per baked step count; the first is the default.
        precision: of the network, one of PRECISIONS; sampler arithmetic and tensors at the border are float32.
        opset: ONNX opset of the graph.
        num_classes: classes of a conditional head, None otherwise.
        network: what was exported.
        parity: figures of the check against the torch network at export time (``VerifyReport.to_dict``).
        tools: versions of the tools that wrote it.
        float_layers: nodes of the graph that an int8 head leaves in float.
        engines: TensorRT engines in the bundle; none, as a rule.
        held: path to bytes of the files that ``read_bundle`` read and checked; what runs is these, whatever the files
            have become. Empty for a bundle that is being written.
        class_names: of a conditional head's classes, where they have names and the release that trained it kept them.
        fitted: rows in place of the sampler's own; exactly where ``sampler.fitted``.
        distilled: of a head made for these steps alone; None for all others.
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
    held: Mapping[Path, bytes] = field(default_factory=dict, repr=False, compare=False)
    class_names: tuple[str, ...] | None = None
    fitted: FittedRows | None = None
    distilled: Distilled | None = None

    @property
    def model_path(self) -> Path:
        """The ONNX file."""
        return self.path / MODEL

    def content(self, name: str) -> bytes:
        """The bytes of one of its files: those that were checked, or, while it is written, the file's.

        Raises:
            ArtefactError: the file is missing or unreadable.
        """
        held = self.held.get(self.path / name)
        return read_bytes(self.path / name, MOST_BYTES, follow=False) if held is None else held

    @property
    def model(self) -> bytes:
        """The ONNX file's bytes."""
        return self.content(MODEL)

    @property
    def model_sha256(self) -> str:
        """Hex digest of ``model``."""
        return hashlib.sha256(self.model).hexdigest()

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The graph's inputs, in order."""
        image = ("batch", *self.plan.image_shape)
        noise = [TensorInfo("noise", "float32", image)] if self.sampler.is_stochastic else []
        label = [TensorInfo("label", "int32", ("batch",))] if self.num_classes is not None else []
        history = [TensorInfo(HISTORY_IN, "float32", image)] if self.sampler.has_history else []
        return (TensorInfo("sample", "float32", image), TensorInfo("step", "int32", (1,)), *noise, *label, *history)

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """The graph's outputs, in order."""
        image = ("batch", *self.plan.image_shape)
        history = [TensorInfo(HISTORY_OUT, "float32", image)] if self.sampler.has_history else []
        return (TensorInfo("next_sample", "float32", image), *history)

    @property
    def transitions(self) -> tuple[Transition, ...]:
        """(t, t_prev) of every row of the tables, all row ranges in order."""
        return tuple(transition for r in self.row_ranges for transition in r.transitions)

    @property
    def table(self) -> Float32Array:
        """(rows, 7) float32: the step coefficients of every row, columns as in ``StepCoefficients``."""
        return self.solver_table if self.fitted is None else self.fitted.table

    @property
    def solver_table(self) -> Float32Array:
        """As ``table``, before anything was fitted."""
        return step_table(self.plan, self.transitions, self.sampler)

    def table_of(self, rows: RowRange) -> Float32Array:
        """The coefficients of one row range, (steps, 7) float32."""
        return self.table[rows.first_row : rows.first_row + rows.steps]

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
            f"{steps} steps are not baked into {self.path}; valid: {valid} (or export the head again with that count)"
        )


def make_row_ranges(plan: SplitPlan, step_counts: Sequence[int], levels: str = "even") -> tuple[RowRange, ...]:
    """Lay out the tables: the step counts one after another, in the order given.

    Args:
        levels: how the timesteps are spaced, one of ``levels.LEVELS``.

    Raises:
        InputError: the device has no step, or a count is out of range or named twice.
    """
    if plan.cut == 0:
        raise InputError(
            f"cut_ratio {plan.cut_ratio} leaves the device no step, so there is no head; choose a larger one"
        )
    if not step_counts or len(set(step_counts)) < len(step_counts):
        raise InputError(f"step counts {list(step_counts)} are empty or repeat; give each count once, 1 to {plan.cut}")
    return _laid_out([plan.client_transitions(steps, levels) for steps in step_counts])


def row_ranges_at(plan: SplitPlan, lists: Sequence[Sequence[int]]) -> tuple[RowRange, ...]:
    """As ``make_row_ranges``, from the timesteps themselves.

    Raises:
        InputError: as ``SplitPlan.client_transitions_at``; no list, or two of one length.
    """
    if not lists or len({len(timesteps) for timesteps in lists}) < len(lists):
        raise InputError(
            f"timesteps {[list(timesteps) for timesteps in lists]} are empty or repeat a step "
            "count; give one list for each count"
        )
    return _laid_out([plan.client_transitions_at(timesteps) for timesteps in lists])


def _laid_out(trajectories: Sequence[tuple[Transition, ...]]) -> tuple[RowRange, ...]:
    ranges, row = [], 0
    for transitions in trajectories:
        ranges.append(RowRange(len(transitions), row, transitions))
        row += len(transitions)
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
        **({} if bundle.fitted is None else bundle.fitted.to_manifest()),
        **({} if bundle.distilled is None else {"distilled": asdict(bundle.distilled)}),
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
    _require_plain_files(path)
    manifest = read_json(path / MANIFEST, FORMAT)
    held = _read_files(path, manifest.get("files"), manifest.get("engines"))
    try:
        check_manifest(manifest)
        bundle = replace(_bundle_from_manifest(path, manifest), held=held)
        if bundle.fitted is not None:
            require_rows_of(bundle.fitted, bundle.solver_table, [r.steps for r in bundle.row_ranges])
            require_rows_in(bundle.fitted, bundle.model)
        for field, value in _derived(bundle).items():
            if manifest[field] != value:
                raise InputError(f"{field} does not follow from the plan and the sampler; export the head again")
    except (KeyError, TypeError, ValueError) as error:
        raise ArtefactError(f"{path / MANIFEST} lacks or garbles {error}; export the head again") from None
    except CollafuseError as error:
        raise ArtefactError(f"{path / MANIFEST}: {error}") from None
    check_graph(bundle)
    return bundle


def check_graph(bundle: HeadBundle) -> None:
    """Hold the graph against the manifest, and against what a head may do (``onnx_file``).

    Raises:
        ArtefactError: other opset, inputs or outputs than stated, or something that ``read_graph`` refuses.
    """
    name = str(bundle.model_path)
    facts = read_graph(name, bundle.model)
    stated = tuple(t.name for t in bundle.inputs), tuple(t.name for t in bundle.outputs)
    if facts.opset != bundle.opset:
        raise ArtefactError(
            f"{name} has opset {facts.opset}, its manifest states {bundle.opset}; export the head again"
        )
    if (facts.inputs, facts.outputs) != stated:
        found = one_line(repr((facts.inputs, facts.outputs)), 200)
        raise ArtefactError(f"{name} takes and gives {found}, its manifest states {stated}; export the head again")


def _require_plain_files(path: Path) -> None:
    """Before anything is read: no link, pipe, device or folder, which could wait or go on for ever."""
    for entry in sorted(path.iterdir()):
        if entry.is_symlink() or not entry.is_file():
            raise ArtefactError(f"{path} holds {entry.name!r}, which is no regular file; copy the bundle again")


def _read_files(path: Path, stated: Any, engines: Any) -> dict[Path, bytes]:
    """Each file once; its digest is of the very bytes that are kept."""
    if not isinstance(engines, dict) or not all(ENGINE_NAME.fullmatch(name) for name in engines):
        raise ArtefactError(
            f"{path / MANIFEST} names engines {engines!r}; valid: files *.engine; export the head again"
        )
    if not isinstance(stated, dict) or set(stated) != {MODEL, GOLDEN, *engines}:
        also = f" and its engines {sorted(engines)}" if engines else ""
        raise ArtefactError(
            f"{path / MANIFEST} does not name exactly {MODEL} and {GOLDEN}{also}; export the head again"
        )
    extra = sorted({entry.name for entry in path.iterdir()} - {MODEL, GOLDEN, MANIFEST, *engines})
    if extra:
        raise ArtefactError(f"{path} holds {extra[0]!r}, which is no part of a head bundle; remove it")
    held = {path / name: read_bytes(path / name, MOST_BYTES, follow=False) for name in stated}
    for name, digest in stated.items():
        if hashlib.sha256(held[path / name]).hexdigest() != digest:
            raise ArtefactError(f"{path / name} is not the file the manifest names: damaged or mixed; copy it again")
    return held


def _bundle_from_manifest(path: Path, manifest: dict[str, Any]) -> HeadBundle:
    plan = SplitPlan.from_dict(manifest["plan"])
    sampler, entries = Sampler(**manifest["sampler"]), manifest["row_ranges"]
    if sampler.levels == "even":
        ranges = make_row_ranges(plan, [entry["steps"] for entry in entries])
    else:
        ranges = row_ranges_at(plan, [entry["timesteps"] for entry in entries])
    distilled = Distilled.from_dict(manifest.get("distilled"), plan)
    if distilled is not None and [[t for t, _ in r.transitions] for r in ranges] != [list(distilled.timesteps)]:
        raise InputError("row_ranges has other steps than the head was distilled for; export the head again")
    return HeadBundle(
        path=path,
        plan=plan,
        sampler=sampler,
        row_ranges=ranges,
        precision=manifest["precision"],
        opset=manifest["opset"],
        num_classes=manifest["num_classes"],
        network=NetworkInfo(**manifest["network"]),
        parity=manifest["parity"],
        tools=manifest["tools"],
        float_layers=tuple(manifest["float_layers"]),
        engines=tuple(BundledEngine(name, key, manifest["files"][name]) for name, key in manifest["engines"].items()),
        class_names=read_class_names(manifest.get("class_names"), manifest["num_classes"]),
        fitted=read_fitted(manifest),
        distilled=distilled,
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
