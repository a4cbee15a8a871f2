"""What an artefact is, told from its content and checked by its own reader (docs/formats.md).

A new format is one entry of a registry: its format name, and a function from its path to ``Facts``.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.errors import ArtefactError, InputError
from collafuse_runtimes.files.sealed import read_bytes, sha256_file

Facts = dict[str, tuple[Any, str]]
"""Name of a fact to its value, JSON-ready, and what people read ("" for nothing)."""

Describer = Callable[[Path], Facts]

_MAX_JSON = 64 << 20
_MAX_HEADER = 100 << 20
_IN_FOLDERS = {
    "collafuse-head": ("manifest.json", "golden.safetensors"),
    "collafuse-checkpoint": (
        "checkpoint.json",
        "training.json",
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "ema.safetensors",
        "model.safetensors",
    ),
    "collafuse-images": ("images.json",),
    "collafuse-bench": ("report.json",),
}
"""A folder's format by the files that state theirs; one that still does is enough, so that damage is named."""
_PARTS = {"collafuse-golden": "collafuse-head"} | dict.fromkeys(
    ("collafuse-training", "collafuse-weights"), "collafuse-checkpoint"
)


@dataclass(frozen=True)
class Description:
    """An artefact explained.

    Attributes:
        path: as given.
        kind: in words.
        format: name of the format.
        version: of the format, or None where the file states none.
        facts: in the order to show them.
    """

    path: Path
    kind: str
    format: str
    version: int | None
    facts: Facts

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        values = {name: value for name, (value, _) in self.facts.items()}
        stated = {"path": str(self.path), "kind": self.kind, "format": self.format, "version": self.version}
        return {**stated, **values}

    def lines(self) -> list[str]:
        """For people."""
        version = "" if self.version is None else f", version {self.version}"
        shown = {"is": f"{self.kind} ({self.format}{version})", "path": str(self.path)}
        shown |= {name.replace("_", " "): text for name, (_, text) in self.facts.items() if text}
        return [f"{name.replace(' x 0', ' x_0'):<15}{text}" for name, text in shown.items()]


@dataclass(frozen=True)
class Stated:
    """What a file or folder says it is."""

    format: str
    version: int | None


def stated(path: Path) -> Stated | None:
    """The format a file or folder states, or None where it is none of ours, or damaged beyond telling.

    Raises:
        ArtefactError: it cannot be read.
    """
    if path.is_dir():
        return _stated_in_folder(path)
    if not path.is_file():
        raise ArtefactError(f"cannot read {path}: it is no file or folder; check the path")
    try:
        with path.open("rb") as handle:
            head = handle.read(8)
            if head[:1] == b"{":
                return _stated(json.loads(head + handle.read(_MAX_JSON)))
            length = int.from_bytes(head, "little")
            if 2 < length <= _MAX_HEADER:
                header = handle.read(length)
                metadata = json.loads(header)["__metadata__"] if header[:1] == b"{" else {}
                return _stated(json.loads(metadata.get("collafuse", "null")))
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        pass
    except OSError as error:
        raise ArtefactError(f"cannot read {path}: {error.strerror}; check the path") from None
    return None


def describe(path: Path, found: Stated, registry: Mapping[str, tuple[str, Describer]]) -> Description:
    """Explain an artefact.

    Args:
        found: from ``stated``, with a format of the registry.
        registry: format name to what it is in words, and its describer.

    Raises:
        ArtefactError: it is damaged, or of another version.
    """
    kind, describer = registry[found.format]
    return Description(path, kind, found.format, found.version, describer(path))


def plan_facts(plan: SplitPlan) -> Facts:
    """The plan with its level and noise."""
    shape = "x".join(map(str, plan.image_shape))
    text = (
        f"{shape}, T = {plan.timesteps}, {plan.schedule} schedule, c = {plan.cut_ratio:g}: "
        f"server {plan.t_c} steps of {plan.server_prediction_type}, device {plan.cut} of {plan.prediction_type}; "
        f"alpha_bar[{plan.timesteps - 1}] = {plan.alpha_bar_at(plan.timesteps - 1):.2g}"
    )
    return {"plan": (plan.to_dict(), text), "fingerprint": (plan.fingerprint, plan.fingerprint), **level_facts(plan)}


def level_facts(plan: SplitPlan) -> Facts:
    """The hand-over level and its noise, sigma_n / sqrt(alpha_bar_n)."""
    level, alpha_bar = plan.handover_level, plan.alpha_bar_at(plan.handover_level)
    text = f"{level}: alpha_bar {alpha_bar:.4f}, {plan.noise_text}"
    return {
        "level": (level, "-1: clean, no noise" if level < 0 else text),
        "alpha_bar": (alpha_bar, ""),
        "noise_level": (plan.noise_level, ""),
    }


def file_facts(path: Path) -> Facts:
    """Size and digest of one file."""
    data = read_bytes(path)
    return {"bytes": (len(data), str(len(data))), "sha256": (digest := sha256_file(path), digest)}


def disclosure(discloses: bool, text: str) -> Facts:
    """Whether it holds what images of a site can be computed from."""
    return {"discloses_x_0": (discloses, f"{'YES' if discloses else 'no'}: {text}")}


def unknown(path: Path, kinds: list[str]) -> InputError:
    """The refusal of what is none of the kinds."""
    hint = "it may be damaged beyond telling; " if path.suffix in (".safetensors", ".json", ".key") else ""
    return InputError(f"{path} is no artefact or data set that is known here; {hint}valid: {', '.join(kinds)}")


def _stated_in_folder(path: Path) -> Stated | None:
    for name, files in _IN_FOLDERS.items():
        for file in files:
            found = stated(path / file) if (path / file).is_file() else None
            if found is not None and _PARTS.get(found.format, found.format) == name:
                return Stated(name, found.version)
    is_images = all((path / file).is_file() for file in ("images.npz", "contact_sheet.png", "00000.png"))
    return Stated("collafuse-images", None) if is_images else None


def _stated(payload: Any) -> Stated | None:
    name, version = (payload.get("format"), payload.get("version")) if isinstance(payload, dict) else (None, None)
    if not isinstance(name, str) or not name.startswith("collafuse-"):
        return None
    return Stated(name, version if isinstance(version, int) else None)
