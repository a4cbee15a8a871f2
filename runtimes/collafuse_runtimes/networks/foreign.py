"""Networks of other tools: told by what is in them, and refused with what to do where a checkpoint is wanted."""

import json
from pathlib import Path
from typing import Any

from collafuse_runtimes.errors import ArtefactError
from collafuse_runtimes.text import one_line

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle")
"""Endings of weights kept as Python pickles, by PyTorch, Lightning, older diffusers and MONAI."""
MAX_CONFIG_BYTES = 1 << 20


def class_name(folder: Path, name: str) -> str | None:
    """``_class_name`` of a diffusers configuration file, "" where it has none; None where there is no such file."""
    path = folder / name
    return str(read_config(path).get("_class_name") or "") if path.is_file() else None


def read_config(path: Path) -> dict[str, Any]:
    """A configuration file of diffusers: a JSON object.

    Raises:
        ArtefactError: it cannot be read, is larger than a configuration can be, or is no JSON object.
    """
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ArtefactError(
                f"{path} has {path.stat().st_size} bytes; a configuration has at most {MAX_CONFIG_BYTES}"
            )
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise ArtefactError(f"cannot read {path}: {error.strerror}; check the path") from None
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{path} is not valid JSON: {one_line(error, 120)}; copy it again") from None
    if not isinstance(found, dict):
        raise ArtefactError(f"{path} holds a {type(found).__name__}, not a JSON object; give a folder of diffusers")
    return found


def require_no_pickle(path: Path) -> None:
    """Refuse a file of pickled weights by its name: reading it would run whatever code is in it.

    Raises:
        ArtefactError: it is one.
    """
    if path.suffix.lower() in PICKLES:
        raise ArtefactError(
            f"{path} is a pickle, which runs code when it is opened, so it is never read here; on a machine where you "
            "trust it, load it in its own tool and save it as safetensors (diffusers: "
            "`model.save_pretrained(FOLDER)`), then `collafuse-edge import FOLDER`"
        )


def require_no_monai(path: Path) -> None:
    """Refuse a bundle of MONAI, or the constructor's arguments of one of its networks.

    Raises:
        ArtefactError: it is one.
    """
    bundle = (path / "configs" / "metadata.json").is_file()
    config = read_config(path / "config.json") if not bundle and (path / "config.json").is_file() else {}
    if bundle or "monai" in str(config.get("_target_", "")) or "spatial_dims" in config:
        raise ArtefactError(
            f"{path} is a network of MONAI, which is not taken: its weights are a pickle, and no file of it says which "
            "schedule it was trained on; valid: a UNet2DModel of diffusers, or a head trained here on those images"
        )


def refuse_foreign(path: Path, role: str | None) -> None:
    """Say what another tool's network is and what to do with it; nothing happens to what is none.

    Args:
        path: given where a checkpoint is wanted.
        role: of the checkpoint wanted.

    Raises:
        ArtefactError: it is another tool's.
    """
    kind = None
    if path.is_dir() and not any((path / name).exists() for name in ("checkpoint.json", "training.json")):
        kind = _kind_of_folder(path)
    elif path.is_file():
        require_no_pickle(path)
        kind = "a single safetensors file of another tool" if path.suffix.lower() == ".safetensors" else None
    if kind is not None:
        source = path if path.is_dir() else "ITS-FOLDER"
        raise ArtefactError(
            f"{path} is {kind}, no checkpoint yet: `collafuse-edge import {source} --role {role or 'client'} "
            "--plan PLAN.json --out CHECKPOINT` makes one"
        )


def _kind_of_folder(path: Path) -> str | None:
    require_no_monai(path)
    pipeline, network = class_name(path, "model_index.json"), class_name(path, "config.json")
    if pipeline is not None:
        return f"a pipeline of diffusers ({pipeline or 'no class named'})"
    if network:
        return f"a network of diffusers ({network})"
    for file in sorted(path.iterdir()):
        require_no_pickle(file)
    return None
