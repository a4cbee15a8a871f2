"""TensorRT and TensorRT-RTX: building, keeping and running an engine."""
