"""A denoiser made for small devices: convolutions, ReLU and additions, nothing else.

Normalisation, SiLU and concatenated skips force a CPU's engine out of its blocked memory layout and back; without them
a step costs little more than its convolutions. Residual blocks begin as the identity (their second convolution at
zero: Zhang et al. 2019, Fixup, arXiv 1901.09321), which is what lets such a network train without normalisation.
"""

from itertools import pairwise

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn
from torch.nn import functional

EMBEDDING = 64


class EdgeBlock(nn.Module):
    """x + conv(relu(conv(relu(x)) + time)), channels and size kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.time = nn.Linear(EMBEDDING, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.kaiming_normal_(self.conv1.weight, nonlinearity="relu")
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (B, channels, H, W), embedding (1 or B, EMBEDDING)."""
        hidden = self.conv1(functional.relu(x)) + self.time(embedding)[:, :, None, None]
        result: Tensor = x + self.conv2(functional.relu(hidden))
        return result


class EdgeUNet(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A U-Net of ``EdgeBlock``, called as ``UNet2DModel`` is.

    Each resolution has one block on the way down and one on the way up, the coarsest one two; channels change in the
    convolution that halves the size, and in the one before the size is doubled; skips are added.

    Args:
        sample_size: [H, W], for readers of the configuration.
        in_channels: of the images, in and out.
        block_out_channels: per resolution, finest first; multiples of 16 are fast.
        num_class_embeds: classes of a conditional network, None otherwise.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        sample_size: list[int],
        in_channels: int,
        block_out_channels: list[int],
        num_class_embeds: int | None = None,
        time_embedding_type: str = "positional",
        class_embed_type: None = None,
    ) -> None:
        super().__init__()
        widths = list(block_out_channels)
        self.time_proj = Timesteps(EMBEDDING, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(EMBEDDING, EMBEDDING)
        self.class_embedding = None if num_class_embeds is None else nn.Embedding(num_class_embeds, EMBEDDING)
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(EdgeBlock(width) for width in widths)
        pairs = list(pairwise(widths))
        self.downs = nn.ModuleList(nn.Conv2d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in pairs)
        self.mid_block = EdgeBlock(widths[-1])
        self.ups = nn.ModuleList(nn.Conv2d(coarse, fine, 3, padding=1) for fine, coarse in reversed(pairs))
        self.up_blocks = nn.ModuleList(EdgeBlock(width) for width in reversed(widths[:-1]))
        self.conv_out = nn.Conv2d(widths[0], in_channels, 3, padding=1)
        for conv in (self.conv_in, *self.downs, *self.ups):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        for weight in self.conv_out.parameters():
            nn.init.zeros_(weight)

    def forward(
        self, sample: Tensor, timestep: "Tensor | int", class_labels: Tensor | None = None, return_dict: bool = False
    ) -> tuple[Tensor]:
        """Predict epsilon or v.

        Args:
            sample: (B, C, H, W).
            timestep: one for all, or (B,).
            class_labels: (B,) int, of a conditional network.
        """
        del return_dict  # the tuple is all there is
        steps = torch.as_tensor(timestep, device=sample.device).reshape(-1)
        embedding = self.time_embedding(self.time_proj(steps).to(sample.dtype))
        if self.class_embedding is not None:
            embedding = embedding + self.class_embedding(class_labels)
        hidden, skips = self.conv_in(sample), []
        for block, down in zip(self.down_blocks, self.downs, strict=False):
            skips.append(block(hidden, embedding))
            hidden = down(functional.relu(skips[-1]))
        hidden = self.mid_block(self.down_blocks[-1](hidden, embedding), embedding)
        for up, block in zip(self.ups, self.up_blocks, strict=True):
            coarse = up(functional.relu(hidden))
            hidden = functional.interpolate(coarse, scale_factor=2.0, mode="nearest") + skips.pop()
            hidden = block(hidden, embedding)
        return (self.conv_out(functional.relu(hidden)),)
