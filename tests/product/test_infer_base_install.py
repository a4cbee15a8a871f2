"""verify and infer run where torch, diffusers and onnx do not exist."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from heads import conditional_head, handover

from collafuse_runtimes.files.handover import write_handover
from collafuse_runtimes.infer import run_inference

ON_DEVICE = """
import json, sys
from pathlib import Path
for name in ("torch", "diffusers", "accelerate", "onnx", "onnxscript", "nibabel", "torchmetrics", "scipy"):
    sys.modules[name] = None
import numpy as np
from collafuse_runtimes.files.bundle import read_bundle
from collafuse_runtimes.engines import available_engines
from collafuse_runtimes.files.handover import read_handover
from collafuse_runtimes.infer import run_inference
from collafuse_runtimes.verify import verify_bundle

bundle = read_bundle(Path(sys.argv[1]))
report = verify_bundle(bundle)
run_inference(bundle, read_handover(Path(sys.argv[2])), Path(sys.argv[3]), labels=np.array([0, 1, 2]))
print(json.dumps({"verify": report.to_dict(), "engines": available_engines()}))
"""


def test_device_without_torch_verifies_and_infers_the_same_images(tmp_path: Path) -> None:
    bundle = conditional_head()
    tensors = handover(bundle, 3)
    write_handover(tmp_path / "x.tc.safetensors", tensors)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            ON_DEVICE,
            str(bundle.path),
            str(tmp_path / "x.tc.safetensors"),
            str(tmp_path / "there"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["verify"]["passed"] is True
    assert found["engines"]["ort-cpu"] is None and "torch is not installed" in found["engines"]["torch"]
    here = run_inference(bundle, tensors, tmp_path / "here", labels=np.array([0, 1, 2]))
    for name in here.files:
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes(), name
