"""benchmarks/peers/README.md: its code runs, its options and inputs are those of the scripts and of the graph."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from heads import conditional_head
from places import ROOT

PEERS = ROOT / "benchmarks" / "peers"
README = (PEERS / "README.md").read_text()


def test_the_inputs_it_writes_are_those_of_the_graph_it_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PEERS)
    from _head import PLAN, handover_tensors

    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    code = code.replace('"benchmarks/peers"', repr(str(PEERS)))
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60)
    sample = np.fromfile(tmp_path / "sample.bin", np.float32).reshape(1, *PLAN.image_shape)
    np.testing.assert_array_equal(sample, handover_tensors(1))
    assert 0.2 < sample.std() < 1.5, "drawn phantoms, not zeros"
    assert np.fromfile(tmp_path / "step.bin", np.int32).tolist() == [0]
    shape = "x".join(map(str, sample.shape))
    assert README.count(f"--shapes=sample:{shape}") == README.count(f"--optShapes=sample:{shape}") == 1


def test_trtexec_is_told_every_input_by_its_name() -> None:
    names = {tensor.name for tensor in conditional_head().inputs}
    assert names == {"sample", "step", "noise", "label"}
    assert {name for name in names if f"{name}:{name}.bin" in README} == names


@pytest.mark.parametrize("script", ["trajectory.py", "gpu_latency.py"])
def test_its_commands_have_options_that_the_scripts_take(script: str) -> None:
    source = (PEERS / script).read_text()
    taken = set(re.findall(r'add_argument\("(--[a-z]+)"', source))
    shown = {o for line in README.splitlines() if f"peers/{script}" in line for o in re.findall(r"--[a-z]+", line)}
    assert shown and shown <= taken


def test_its_links_exist() -> None:
    for link in re.findall(r"\]\(([^)#]+)", README):
        assert (PEERS / link).exists(), link
