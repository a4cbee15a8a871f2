"""The x86 side of ``arm64_root.sh``: make bundles, hand-over files and images; compare the device's images."""

import sys
from pathlib import Path

import numpy as np
from heads import conditional_head, copy_of, default_head, handover, head, inputs, rgb_head

from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.files.handover import write_handover
from collafuse_runtimes.files.images import to_uint8
from collafuse_runtimes.infer import ARRAY_FILE, run_inference

MAX_ABS = {"fp32": 1e-5, "fp16": 5e-2, "int8-cpu": 2e-1}
"""Largest difference of an image in [-1, 1] between the two architectures, by precision. For fp16 and int8, what
``verify`` grants: ONNX Runtime computes fp16 heads in float32 on x86, in float16 on aarch64, and floats that differ in
their last bits can be rounded to another int8 level."""
CASES = {
    "ddim": (default_head, "fp32"),
    "ddpm-conditional": (conditional_head, "fp32"),
    "ddim-noisy-rgb": (rgb_head, "fp32"),
    "ddim-fp16": (lambda: head(precision="fp16"), "fp16"),
    "ddim-int8": (lambda: head(precision="int8-cpu"), "int8-cpu"),
}
COUNT = 3


def make(folder: Path) -> None:
    for name, (make_head, _) in CASES.items():
        bundle, case = make_head(), folder / name
        case.mkdir(parents=True)
        copy_of(bundle, case).rename(case / "edge.head")
        tensors = handover(bundle, COUNT)
        write_handover(case / "x.tc.safetensors", tensors)
        labels = inputs(bundle, COUNT)[1]
        if labels is not None:
            (case / "labels").write_text(",".join(map(str, labels)))
        run_inference(bundle, tensors, case / "x86", labels=labels)
        print(f"{name}: {bundle.precision}, opset {bundle.opset}, {COUNT} tensors")


def compare(folder: Path) -> bool:
    """Print each case's largest difference; whether all are within MAX_ABS."""
    good = True
    for name, (_, precision) in CASES.items():
        here, there = (read_images(folder / name / side) for side in ("x86", "arm64"))
        worst, limit = float(np.abs(here - there).max()), MAX_ABS[precision]
        grey = int(np.abs(to_uint8(here).astype(int) - to_uint8(there)).max())
        good &= worst <= limit
        print(f"{name}: {len(here)} images, max-abs {worst:.3g} (limit {limit:g}), at most {grey} of 255 grey levels")
    return good


def read_images(folder: Path) -> Float32Array:
    with np.load(folder / ARRAY_FILE, allow_pickle=False) as arrays:
        images: Float32Array = arrays["images"]
    return images


if __name__ == "__main__":
    action, place = sys.argv[1], Path(sys.argv[2])
    if action == "make":
        make(place)
    elif not compare(place):
        sys.exit(1)
