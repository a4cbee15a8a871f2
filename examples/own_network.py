"""A head and a server of one's own design, through the whole line: python examples/own_network.py OUT [STEPS]

A network is a UNet2DModel of diffusers, told by its keyword arguments; the checkpoint keeps them.
"""

import sys
from pathlib import Path

from collafuse_edge import (
    NetworkConfig,
    SplitPlan,
    TrainSettings,
    export_head,
    infer,
    load_images,
    make_handover,
    train_head,
    train_server,
    upload_images,
)

out, steps = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1000
shape = {"sample_size": [16, 16], "in_channels": 1, "out_channels": 1, "norm_num_groups": 4}
blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "add_attention": False}
head = NetworkConfig("slim", {**shape, **blocks, "block_out_channels": [8, 16], "layers_per_block": 1})
server = NetworkConfig("wide", {**shape, **blocks, "block_out_channels": [16, 32], "layers_per_block": 2})

plan = SplitPlan(image_shape=(1, 16, 16), timesteps=100, cut_ratio=0.4, server_prediction_type="v")
images = load_images("phantom:0:256", plan.image_shape)
settings = TrainSettings(steps=steps, batch_size=32)
out.mkdir(parents=True, exist_ok=True)
upload_images(out / "site.shard.safetensors", images.images, plan, key=out / "site.key")
train_server([out / "site.shard.safetensors"], out / "server", network=server, settings=settings)
train_head(images, plan, out / "head", network=head, settings=settings)
export_head(out / "head", out / "edge.head")
made = infer(out / "edge.head", make_handover(plan, out / "server", count=8), out / "images")
print(f"{len(made)} images in {out / 'images'}; mean of real {images.images.mean():.2f}, of made {made.mean():.2f}")
