"""What must not be exported is refused before or after the work, and nothing is left behind."""

from pathlib import Path
from typing import Any

import pytest
from heads import PLAN, checkpoint, copy_of, default_head

import collafuse_export.step_graph
from collafuse_export import ExportSettings, export_head
from collafuse_export.step_graph import CurrentRow, StepGraph, bake_time_embeddings
from collafuse_runtimes.diffusion.samplers import Sampler
from collafuse_runtimes.errors import ArtefactError, CheckFailed, InputError
from collafuse_runtimes.files.bundle import make_row_ranges, read_bundle
from collafuse_runtimes.files.checkpoint import (
    Description,
    NetworkConfig,
    load_weights,
    read_checkpoint,
    write_checkpoint,
)


def test_graph_with_wrong_coefficients_is_not_published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Wrong(StepGraph):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.get_buffer("coefficients")[10, 2] *= 1.01  # c_x0 of one step, one per cent off

    older = copy_of(default_head(), tmp_path)
    before = read_bundle(older)
    monkeypatch.setattr(collafuse_export.step_graph, "StepGraph", Wrong)
    with pytest.raises(CheckFailed, match=r"after step [12]\d of 20: .*max-abs .*asked for fp32: cosine >= 0.999"):
        export_head(checkpoint(), older, ExportSettings(sampler=Sampler()))
    assert read_bundle(older) == before
    assert list(tmp_path.iterdir()) == [older]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int4"}, "unknown precision 'int4'; valid: fp32, fp16"),
        ({"opset": 23}, "unknown opset 23; valid: 20, 17"),
        ({"step_counts": (21,)}, "device steps 21 out of range: this plan allows 1 to 20"),
        ({"step_counts": (0,)}, "device steps 0 out of range"),
        ({"step_counts": (5, 5)}, "give each count once, 1 to 20"),
        ({"step_counts": ()}, "give each count once, 1 to 20"),
    ],
)
def test_unusable_options(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        export_head(checkpoint(), tmp_path / "x.head", ExportSettings(**options))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_head_without_steps_is_refused() -> None:
    with pytest.raises(InputError, match="leaves the device no step, so there is no head"):
        make_row_ranges(PLAN.with_cut_ratio(0.0), [1])


def test_server_checkpoint_is_refused(tmp_path: Path) -> None:
    source = read_checkpoint(checkpoint())
    weights = load_weights(source)
    write_checkpoint(
        tmp_path / "server",
        Description(role="server", plan=PLAN, network=source.network),
        model=weights,
        ema=weights,
        training={},
    )
    with pytest.raises(ArtefactError, match="is a server checkpoint; valid here: a client checkpoint"):
        export_head(tmp_path / "server", tmp_path / "x.head")


def test_network_that_cannot_be_baked_is_refused() -> None:
    import torch
    from diffusers import UNet2DModel

    config = NetworkConfig("fourier", {**read_checkpoint(checkpoint()).network.unet, "time_embedding_type": "fourier"})
    with pytest.raises(InputError, match="time_embedding_type 'fourier'"):
        bake_time_embeddings(UNet2DModel(**config.unet), [1], CurrentRow())
    with pytest.raises(InputError, match="time_embedding_type None"):
        bake_time_embeddings(torch.nn.Identity(), [1], CurrentRow())


def test_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="a folder of other files is there, not a head bundle; choose another name"):
        export_head(checkpoint(), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]
