"""The server's part of a trajectory: noise in, hand-over tensors out."""
