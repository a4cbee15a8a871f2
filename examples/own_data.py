"""A head for images that are an array in memory: python examples/own_data.py OUT [STEPS]

Replace ``images`` by your own: (N, C, H, W) float32 in [-1, 1]. They stay on this machine.
"""

import sys
from pathlib import Path

import numpy as np

from collafuse_edge import SplitPlan, TrainSettings, export_head, infer, make_handover, train_head

out, steps = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2000
y, x = np.mgrid[-1:1:16j, -1:1:16j]
centres = np.random.default_rng(0).uniform(-0.5, 0.5, (256, 2))
discs = [np.where((y - a) ** 2 + (x - b) ** 2 < 0.15, 1.0, -1.0) for a, b in centres]
images = np.array(discs, np.float32)[:, None]

# c = 1 leaves every step to the client, so no server is needed to see what its head has learnt.
plan = SplitPlan(image_shape=(1, 16, 16), timesteps=100, cut_ratio=1.0, prediction_type="v")
settings = TrainSettings(steps=steps, batch_size=32, learning_rate=3e-3)
out.mkdir(parents=True, exist_ok=True)
train_head(images, plan, out / "head", network="edge", settings=settings)
export_head(out / "head", out / "edge.head", steps=[10])
made = infer(out / "edge.head", make_handover(plan, None, count=8), out / "images")
print(f"{len(made)} images in {out / 'images'}; mean of real {images.mean():.2f}, of made {made.mean():.2f}")
