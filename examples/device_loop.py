"""The loop of a device, on the base install: python examples/device_loop.py edge.head x.tc.safetensors"""

import sys

from collafuse_edge import open_engine, read_bundle, read_handover, verify

head, tensors = read_bundle(sys.argv[1]), read_handover(sys.argv[2])
verify(head).require_passed(sys.argv[1])  # this machine computes what the trained network computed
with open_engine(head) as engine:
    for k, x_tc in enumerate(tensors.x_tc):
        images = engine.denoise(x_tc[None], seed=tensors.seed, sample_indices=[tensors.first_index + k])
        print(f"image {k}: {images.shape[1:]}, values {images.min():.2f} to {images.max():.2f}")
