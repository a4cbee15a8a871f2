"""Two processes train the network that one process trains."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
from command_line import done
from safetensors.numpy import load_file

from collafuse_edge.training.presets import build_network
from collafuse_runtimes.files.checkpoint import read_checkpoint


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_two_processes_give_the_weights_of_one(tmp_path: Path) -> None:
    done("init", "--size", 8, "--timesteps", 20, "--out", tmp_path / "plan.json")
    where = ("--key", tmp_path / "key", "--out", tmp_path / "shard")
    done("upload", "--data", "phantom:0:16", "--plan", tmp_path / "plan.json", *where)
    train = ("train-server", tmp_path / "shard", "--preset", "tiny", "--steps", 3, "--batch-size", 8,
             "--accumulation", 2, "--warmup-steps", 0, "--learning-rate", 1e-4, "--cpu", "--json")  # fmt: skip
    launcher = (sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2,
                "--num_machines", 1, "--mixed_precision", "no", "--dynamo_backend", "no",
                "--main_process_port", free_port(), "-m", "collafuse_edge")  # fmt: skip
    command = list(map(str, (*launcher, *train, "--out", tmp_path / "two")))
    two = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=500, check=False
    )
    assert two.returncode == 0, two.stderr
    result = json.loads(two.stdout)  # one object, from the first process
    assert read_checkpoint(tmp_path / "two", "server").training["processes"] == 2

    alone = json.loads(done(*train, "--out", tmp_path / "one"))
    one = read_checkpoint(tmp_path / "one", "server")
    assert one.training["processes"] == 1
    assert abs(alone["loss"] - result["loss"]) < 1e-5
    start = flat({name: value.numpy() for name, value in build_network(one.network, 0).state_dict().items()})
    for name in ("model", "diffusion_pytorch_model"):
        alone, together = (flat(load_file(tmp_path / run / f"{name}.safetensors")) for run in ("one", "two"))
        # Adam divides by the gradient's size, so rounding alone can move a weight whose gradient is nearly zero:
        # the distance is taken over all weights, against the way they went. It is 1e-4; where both processes take the
        # same half of each batch it is 0.9.
        assert np.linalg.norm(alone - together) < 0.01 * np.linalg.norm(alone - start)


def flat(weights: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([weights[name].ravel() for name in sorted(weights)])
