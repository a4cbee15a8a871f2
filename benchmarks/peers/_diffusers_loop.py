"""A head's trajectory by diffusers: UNet2DModel and DDIMScheduler.step, as DDIMPipeline runs them, on any device."""

from pathlib import Path

import torch
from diffusers import DDIMScheduler

from collafuse_runtimes.files.checkpoint import load_network, read_checkpoint


class DiffusersLoop:
    """The network in ``dtype``, the sampler in float32.

    Args:
        head: a client checkpoint of a cosine plan.
        steps: the last ones of the full-stride list.
        compile_mode: of torch.compile, for the network; None runs it eagerly.
    """

    def __init__(
        self,
        head: Path,
        steps: int,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        compile_mode: str | None = None,
    ) -> None:
        checkpoint = read_checkpoint(head, "client")
        network = torch.nn.Module.to(load_network(checkpoint), device, dtype)  # diffusers' own warns about the dtype
        self._network = network if compile_mode is None else torch.compile(network, mode=compile_mode)
        self._dtype = dtype
        self._scheduler = DDIMScheduler(checkpoint.plan.timesteps, beta_schedule="squaredcos_cap_v2", clip_sample=True)
        self._scheduler.set_timesteps(checkpoint.plan.timesteps)
        self._times = [(t.to(device), t) for t in self._scheduler.timesteps[-steps:]]

    @torch.no_grad()
    def step(self, sample: torch.Tensor, k: int) -> torch.Tensor:
        """Step k of (B, C, H, W) float32."""
        on_device, t = self._times[k]
        epsilon = self._network(sample.to(self._dtype), on_device, return_dict=False)[0]
        return self._scheduler.step(epsilon.float(), t, sample).prev_sample

    def denoise(self, sample: torch.Tensor) -> torch.Tensor:
        """The whole trajectory."""
        for k in range(len(self._times)):
            sample = self.step(sample, k)
        return sample
