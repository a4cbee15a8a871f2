"""The edge networks: small, without normalisation, in every precision and on every engine, conditional ones too."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from heads import CLASSES, calibration, inputs, torch_trajectory
from small_training import easy_images, small_run

from collafuse_edge.importing.unet import network_of
from collafuse_edge.training.loop import train
from collafuse_edge.training.presets import PRESETS, build_network, network_config
from collafuse_edge.training.tasks import ClientTask
from collafuse_export import ExportSettings, export_head
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.diffusion.samplers import Sampler
from collafuse_runtimes.engines import EngineOptions, open_engine
from collafuse_runtimes.errors import ArtefactError, InputError
from collafuse_runtimes.files.bundle import MODEL, HeadBundle
from collafuse_runtimes.files.checkpoint import Checkpoint, Description, load_network, read_checkpoint, write_checkpoint
from collafuse_runtimes.networks.network import network_cost
from collafuse_runtimes.verify import verify_bundle

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

PLAN = SplitPlan((1, 16, 16), timesteps=50, cut_ratio=0.4)
EDGE = [name for name, preset in PRESETS.items() if preset.kind == "EdgeUNet"]
NORMAL = {"GroupNormalization", "InstanceNormalization", "LayerNormalization", "BatchNormalization"}


@pytest.fixture(scope="module", params=[False, True], ids=["unconditional", "conditional"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Lively random weights: as built, an edge network predicts zero."""
    classes = CLASSES if request.param else None
    config = network_config("edge", PLAN, classes)
    network = build_network(config, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "conv2" in name or "conv_out" in name:
                weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    path = tmp_path_factory.mktemp("edge") / "head"
    write_checkpoint(
        path, Description(role="client", plan=PLAN, network=config), model=None, ema=weights, training={"steps": 0}
    )
    return read_checkpoint(path)


@pytest.fixture(scope="module")
def bundle(checkpoint: Checkpoint) -> HeadBundle:
    return export_head(checkpoint.path, checkpoint.path.with_suffix(".head"), ExportSettings(step_counts=(5, 2)))


@pytest.mark.parametrize("preset", EDGE)
def test_an_edge_network_costs_about_half_of_tiny(preset: str) -> None:
    plan = SplitPlan((1, 32, 32))
    config, tiny = network_config(preset, plan), network_config("tiny", plan)
    (parameters, flops), (_, least) = (network_cost(build_network(c, 0), plan.image_shape) for c in (config, tiny))
    assert flops < 0.6 * least
    assert parameters < 300_000


def test_it_starts_at_zero_and_the_same_seed_gives_the_same_weights() -> None:
    config = network_config("edge", PLAN)
    one, two, other = (build_network(config, seed) for seed in (3, 3, 4))
    x = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert one(x, torch.tensor([3, 30]))[0].abs().max() == 0
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.conv_in.weight, other.conv_in.weight)


def test_every_image_of_a_batch_has_its_own_timestep(checkpoint: Checkpoint) -> None:
    network = load_network(checkpoint)
    x = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(3) if checkpoint.network.num_classes else None
    together = network(x, torch.tensor([0, 7, 19]), class_labels=labels)[0]
    for k, t in enumerate((0, 7, 19)):
        alone = network(x[k : k + 1], t, class_labels=None if labels is None else labels[k : k + 1])[0]
        np.testing.assert_allclose(together[k], alone[0], atol=1e-5)
    assert (together - network(x, 7, class_labels=labels)[0]).abs().amax(dim=(1, 2, 3))[[0, 2]].min() > 1e-3


def test_it_learns(tmp_path: Path) -> None:
    task = ClientTask(PLAN, easy_images(32, PLAN.image_shape))
    run = small_run(tmp_path / "x", task, network_config("edge", PLAN), steps=60, learning_rate=3e-3, batch_size=16)
    said = train(run).training
    (_, first), *_, (_, last) = said["losses"]
    assert last < 0.5 * first


def test_the_checkpoint_says_how_to_build_it_and_is_a_folder_of_diffusers(checkpoint: Checkpoint) -> None:
    from collafuse_runtimes.networks.edge_network import EdgeUNet

    said = json.loads((checkpoint.path / "checkpoint.json").read_text())["network"]
    assert said["kind"] == "EdgeUNet"
    assert checkpoint.network.kind == "EdgeUNet"
    theirs = EdgeUNet.from_pretrained(checkpoint.path).eval()
    x = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(2, dtype=torch.long) if checkpoint.network.num_classes else None
    ours = load_network(checkpoint)
    np.testing.assert_allclose(theirs(x, 5, labels)[0].detach(), ours(x, 5, labels)[0], atol=1e-5)


def test_the_graph_has_no_normalisation_and_no_concatenation(bundle: HeadBundle) -> None:
    found = Counter(node.op_type for node in onnx.load(bundle.path / MODEL).graph.node)
    assert not found.keys() & {*NORMAL, "Concat", "Sigmoid"}
    assert found["Conv"] == 2 * 7 + 6 - 2
    assert found["Relu"] >= 16


@pytest.mark.parametrize("engine", ["ort-cpu", "openvino", "torch"])
def test_every_engine_runs_it(bundle: HeadBundle, checkpoint: Checkpoint, engine: str) -> None:
    options = EngineOptions(checkpoint=checkpoint.path) if engine == "torch" else EngineOptions(threads=1)
    assert verify_bundle(bundle, engine, options).passed
    x_tc, labels = inputs(bundle, 2)
    with open_engine(bundle, engine, options) as runs:
        found = runs.denoise(x_tc, 5, labels=labels)
    wanted = torch_trajectory(bundle, 5, x_tc, labels, 0, checkpoint.path)[-1]
    np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("checkpoint", "precision", "opset"),
    [
        *((False, "fp16", 17), (True, "int8-cpu", 20), (False, "int8-trt", 20), (True, "fp32", 17)),
        *(
            pytest.param(*kind, marks=pytest.mark.full)
            for kind in ((True, "fp16", 17), (False, "int8-cpu", 20), (True, "int8-trt", 20), (False, "fp32", 17))
        ),
    ],
    indirect=["checkpoint"],
)
def test_every_precision_and_opset_is_exported(
    checkpoint: Checkpoint, precision: str, opset: int, tmp_path: Path
) -> None:
    made = export_head(
        checkpoint.path,
        tmp_path / "x.head",
        ExportSettings(
            step_counts=(5,),
            precision=precision,
            opset=opset,
            sampler=Sampler("dpm++2m", levels="karras"),
            calibration=calibration(PLAN, 8) if "int8" in precision else None,
        ),
        force=True,
    )
    assert (made.precision, made.opset) == (precision, opset)
    assert verify_bundle(made).passed


def test_sizes_it_cannot_halve_are_refused() -> None:
    with pytest.raises(InputError, match=r"preset edge halves the image 2 times: .* multiples of 4"):
        network_config("edge", replace(PLAN, image_shape=(1, 18, 16)))


def test_a_network_of_an_unknown_kind_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    weights = {"conv_in.weight": np.zeros((1, 1, 3, 3), np.float32)}
    network = replace(checkpoint.network, kind="ResNet")
    write_checkpoint(
        tmp_path / "x", Description(role="client", plan=PLAN, network=network), model=None, ema=weights, training={}
    )
    with pytest.raises(ArtefactError, match="network field kind is 'ResNet'; valid: UNet2DModel or EdgeUNet"):
        read_checkpoint(tmp_path / "x")


def test_import_names_the_class_it_does_not_take() -> None:
    with pytest.raises(ArtefactError, match="_class_name is 'EdgeUNet'; valid: UNet2DModel"):
        network_of({"_class_name": "EdgeUNet"}, Path("config.json"), PLAN, "client")
