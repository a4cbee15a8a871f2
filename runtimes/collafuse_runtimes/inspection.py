"""What an artefact is, told from its content and checked by its own reader (docs/formats.md).

A new format is one entry of a registry: its format name, and a function from its path to ``Facts``.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collafuse_runtimes.errors import ArtefactError, InputError
from collafuse_runtimes.plan import SplitPlan
from collafuse_runtimes.sealed import read_bytes, sha256_file

Facts = dict[str, tuple[Any, str]]
"""Name of a fact to its value, JSON-ready, and what people read ("" for nothing)."""

Describer = Callable[[Path], Facts]

_MAX_JSON = 64 << 20
_MAX_HEADER = 100 << 20
_IN_FOLDERS = {
    "collafuse-head": ("manifest.json", "golden.safetensors"),
    "collafuse-checkpoint": ("training.json", "config.json", "ema.safetensors", "model.safetensors"),
    "collafuse-bench": ("report.json",),
}
"""A folder's format by the files that state theirs; one that still does is enough, so that damage is named."""
_PARTS = {"collafuse-golden": "collafuse-head"} | dict.fromkeys(
    ("collafuse-training", "collafuse-weights"), "collafuse-checkpoint"
)
IMAGES = "images of infer"


@dataclass(frozen=True)
class Description:
    """An artefact explained.

    Attributes:
        path: as given.
        kind: in words.
        format: name of the format.
        facts: in the order to show them.
    """

    path: Path
    kind: str
    format: str
    facts: Facts

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        values = {name: value for name, (value, _) in self.facts.items()}
        return {"path": str(self.path), "kind": self.kind, "format": self.format, **values}

    def lines(self) -> list[str]:
        """For people."""
        shown = {"is": f"{self.kind} ({self.format})", "path": str(self.path)}
        shown |= {name.replace("_", " "): text for name, (_, text) in self.facts.items() if text}
        return [f"{name.replace('discloses x 0', 'discloses x_0'):<15}{text}" for name, text in shown.items()]


def format_of(path: Path) -> str | None:
    """The format name a file or folder states, or None where it is none of ours or damaged beyond telling.

    Raises:
        ArtefactError: it cannot be read.
    """
    if path.is_dir():
        return _format_of_folder(path)
    if not path.is_file():
        raise ArtefactError(f"cannot read {path}: it is no file or folder; check the path")
    try:
        with path.open("rb") as handle:
            head = handle.read(8)
            if head[:1] == b"{":
                return _format_name(json.loads(head + handle.read(_MAX_JSON)))
            length = int.from_bytes(head, "little")
            if 2 < length <= _MAX_HEADER:
                header = handle.read(length)
                metadata = json.loads(header)["__metadata__"] if header[:1] == b"{" else {}
                return _format_name(json.loads(metadata.get("collafuse", "null")))
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        pass
    except OSError as error:
        raise ArtefactError(f"cannot read {path}: {error.strerror}; check the path") from None
    return None


def _format_of_folder(path: Path) -> str | None:
    for name, files in _IN_FOLDERS.items():
        for file in files:
            stated = format_of(path / file) if (path / file).is_file() else None
            if stated is not None and _PARTS.get(stated, stated) == name:
                return name
    return IMAGES if all((path / file).is_file() for file in ("images.npz", "contact_sheet.png")) else None


def describe(path: Path, name: str, registry: Mapping[str, tuple[str, Describer]]) -> Description:
    """Explain an artefact of a known format.

    Args:
        name: of its format, from ``format_of``.
        registry: format name to what it is in words, and its describer.

    Raises:
        ArtefactError: it is damaged, or of another version.
    """
    kind, describer = registry[name]
    return Description(path, kind, name, describer(path))


def plan_facts(plan: SplitPlan) -> Facts:
    """The plan with its level and noise."""
    shape = "x".join(map(str, plan.image_shape))
    text = (
        f"{shape}, T = {plan.timesteps}, {plan.schedule} schedule, c = {plan.cut_ratio:g}: "
        f"server {plan.t_c} steps, client {plan.cut}"
    )
    return {"plan": (plan.to_dict(), text), "fingerprint": (plan.fingerprint, plan.fingerprint), **level_facts(plan)}


def level_facts(plan: SplitPlan) -> Facts:
    """The hand-over level and its noise, sigma_n / sqrt(alpha_bar_n)."""
    level, alpha_bar = plan.handover_level, plan.alpha_bar_at(plan.handover_level)
    noise = ((1 - alpha_bar) / alpha_bar) ** 0.5
    text = f"{level}: alpha_bar {alpha_bar:.4f}, noise {noise:.3f} (standard deviation, on images in [-1, 1])"
    return {
        "level": (level, "-1: clean, no noise" if level < 0 else text),
        "alpha_bar": (alpha_bar, ""),
        "noise": (noise, ""),
    }


def file_facts(path: Path) -> Facts:
    """Size and digest of one file."""
    data = read_bytes(path)
    return {"bytes": (len(data), str(len(data))), "sha256": (digest := sha256_file(path), digest)}


def disclosure(discloses: bool, text: str) -> Facts:
    """Whether it holds what images of a site can be computed from."""
    return {"discloses_x_0": (discloses, f"{'YES' if discloses else 'no'}: {text}")}


def version_fact() -> Facts:
    """The format version this release reads and has just read."""
    from collafuse_runtimes import FORMAT_VERSION

    return {"version": (FORMAT_VERSION, str(FORMAT_VERSION))}


def unknown(path: Path, kinds: list[str]) -> InputError:
    """The refusal of what is none of the kinds."""
    hint = "it may be damaged beyond telling; " if path.suffix in (".safetensors", ".json", ".key") else ""
    return InputError(f"{path} is no artefact or data set that is known here; {hint}valid: {', '.join(kinds)}")


def _format_name(payload: Any) -> str | None:
    found = payload.get("format") if isinstance(payload, dict) else None
    return found if isinstance(found, str) and found.startswith("collafuse-") else None
