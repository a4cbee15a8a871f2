"""`--compile` trains the network that was written, or says why it cannot."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from small_training import SHAPE, small_network, small_run

from collafuse_edge.training.compiled import require_same_gradients
from collafuse_edge.training.loop import train
from collafuse_edge.training.presets import build_network
from collafuse_runtimes.errors import CheckFailed, InputError


def test_compile_without_a_compiler_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match="compile needs a compiler and no-such-compiler is not here; install one, or"):
        train(small_run(tmp_path / "c", compile=True))
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"compile needs a compiler and g\+\+ is not here"):
        train(small_run(tmp_path / "c", compile=True))


class Lossy(torch.nn.Module):
    """Stands for a compiler's work: the right output, but some tensors get no gradient, or the opposite one."""

    def __init__(self, network: torch.nn.Module, start: str, factor: float) -> None:
        super().__init__()
        self.network, self.start, self.factor = network, start, factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = {
            name: value.detach() + self.factor * (value - value.detach()) if name.startswith(self.start) else value
            for name, value in self.network.named_parameters()
        }
        return torch.func.functional_call(self.network, weights, (x, 3), {"return_dict": False})[0]


def loss(module: torch.nn.Module) -> torch.Tensor:
    x = torch.randn((2, *SHAPE), generator=torch.Generator().manual_seed(0))
    output = module(x) if isinstance(module, Lossy) else module(x, 3, return_dict=False)[0]
    return (output - 1).square().mean()


def test_lost_and_wrong_gradients_are_found() -> None:
    network = build_network(small_network(), 0)
    honest = Lossy(network, "mid_block", 1)
    require_same_gradients(network, honest, loss)
    for start, factor in (("mid_block", 0), ("down_blocks", -1), ("", 0)):
        lossy = Lossy(network, start, factor)
        assert torch.allclose(loss(lossy), loss(network))
        with pytest.raises(CheckFailed, match=r"gives this network other gradients \(mean cosine .*; train without"):
            require_same_gradients(network, lossy, loss)
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU")
def test_a_compiled_network_trains_alike_or_is_refused(tmp_path: Path) -> None:
    """torch 2.13's CPU compiler loses every gradient below the last up-sampling: it is refused, nothing is written."""
    plain = train(small_run(tmp_path / "plain"))
    try:
        compiled = train(small_run(tmp_path / "compiled", compile=True))
    except CheckFailed as refused:
        assert "other gradients" in str(refused)
        assert [p.name for p in tmp_path.iterdir()] == ["plain"]
        return
    curves = [np.array([loss for _, loss in run.training["losses"]]) for run in (plain, compiled)]
    assert np.abs(curves[0] - curves[1]).max() < 1e-3
