"""Presets give the networks they promise, for the sizes they can take, at the cost the commands print."""

import pytest
import torch

from collafuse_edge.training.presets import PRESETS, build_network, describe_cost, network_config
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.errors import InputError
from collafuse_runtimes.networks.network import network_cost

PAPER_PARAMETERS = 2_439_457


def parameters(preset: str, shape: tuple[int, int, int]) -> int:
    config = network_config(preset, SplitPlan(shape))
    with torch.device("meta"):
        return sum(p.numel() for p in build_network(config, 0).parameters())


def test_the_papers_network_has_the_papers_size() -> None:
    assert abs(parameters("paper", (1, 128, 128)) / PAPER_PARAMETERS - 1) < 0.05


def test_presets_grow() -> None:
    sizes = [parameters(preset, (1, 64, 64)) for preset in ("tiny", "small", "base")]
    assert sizes == sorted(sizes)
    servers = [parameters(preset, (1, 64, 64)) for preset in ("server-small", "server-base", "server-large")]
    assert servers == sorted(servers)
    assert servers[0] > sizes[-1] > 0


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_preset_maps_images_to_noise_of_their_shape(preset: str, channels: int) -> None:
    config = network_config(preset, SplitPlan((channels, 16, 24)), num_classes=4)
    with torch.device("meta"):
        network = build_network(config, 0)
        label = torch.zeros(2, dtype=torch.long)
        epsilon = network(torch.zeros((2, channels, 16, 24)), label, class_labels=label, return_dict=False)[0]
    assert epsilon.shape == (2, channels, 16, 24)


@pytest.mark.parametrize(
    ("preset", "size", "multiple"), [("tiny", (10, 8), 4), ("small", (64, 62), 4), ("paper", (100, 100), 8)]
)
def test_sizes_that_do_not_divide_are_refused_with_the_multiple(
    preset: str, size: tuple[int, int], multiple: int
) -> None:
    with pytest.raises(InputError) as refused:
        network_config(preset, SplitPlan((1, *size)))
    halvings = {4: 2, 8: 3}[multiple]
    assert str(refused.value) == (
        f"preset {preset} halves the image {halvings} times: height and width must be multiples of {multiple}, "
        f"the plan has {size[0]}x{size[1]}; choose another preset or write a plan with another size"
    )


def test_unknown_presets_are_refused_with_the_valid_ones() -> None:
    with pytest.raises(InputError, match=r"unknown preset 'resnet'; valid: tiny, small, base, paper, server-small"):
        network_config("resnet", SplitPlan((1, 8, 8)))


def test_one_seed_gives_one_initialisation_and_leaves_torchs_own_alone() -> None:
    config = network_config("tiny", SplitPlan((1, 8, 8)))
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, other = (build_network(config, seed).conv_in.weight for seed in (3, 3, 4))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_cost_is_counted_from_the_network() -> None:
    """A convolution's operations: 2 per multiply-add, kernel elements times input channels per output value."""
    counts = {}
    for size in (8, 16):
        plan = SplitPlan((1, size, size))
        config = network_config("tiny", plan)
        network = build_network(config, 0)
        expected = 0

        def add(module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            nonlocal expected
            weight = module.weight
            expected += 2 * output[:, 0].numel() * weight.numel() if output.ndim == 4 else 2 * weight.numel()

        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
                module.register_forward_hook(add)
        found = network_cost(network, plan.image_shape)
        assert found[0] == sum(p.numel() for p in network.parameters())
        counts[size] = (found[1], expected)
    for found_flops, counted in counts.values():
        assert 1 <= found_flops / counted < 1.01  # the middle block's attention comes on top where there is one
    assert 3.5 < counts[16][0] / counts[8][0] < 4
    assert describe_cost(network_config("tiny", SplitPlan((1, 8, 8))), SplitPlan((1, 8, 8))) == (
        f"tiny: 0.26 M parameters, {counts[8][0] / 1e9:.3f} GFLOP a step"
    )
