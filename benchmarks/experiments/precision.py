"""int8 against float32 on the heads of the brain MRI experiment: distance, KID, speed, side by side.

    python benchmarks/experiments/precision.py work/brain_mri        # after brain_mri.py work/brain_mri; minutes

Every step is a `collafuse-edge` command whose output is kept in OUT/log.txt. int8 is calibrated on hand-over tensors
of a seed of their own; images are made from those of the experiment, so KID compares the same 200 trajectories.
"""

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

from brain_mri import CLIENTS, IMAGES, SAMPLER, images_of, run, with_error

CALIBRATION_SEED, CALIBRATION_TENSORS = 1000, 24
PRECISIONS = ("int8-cpu", "fp16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder that brain_mri.py wrote")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="where the record goes")
    arguments = parser.parse_args()
    shared = Path(os.environ.get("COLLAFUSE_DATA", "../shared/data"))
    extractor = shared.parent / "weights" / "squeezenet1_0_features.onnx"
    clients = {client: measure(arguments.out, client, shared / "brain_mri_64.npz", extractor) for client in CLIENTS}
    record = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, CPU only",
        "sampler": SAMPLER,
        "generated_per_client": IMAGES,
        "calibration_tensors": CALIBRATION_TENSORS,
        "clients": clients,
    }
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / "precision_cpu.json").write_text(json.dumps(record, indent=2) + "\n")
    (arguments.results / "precision_cpu.md").write_text(table(record))
    print(table(record))


def measure(out: Path, client: str, data: Path, extractor: Path) -> dict[str, Any]:
    """Export in each precision (kept whatever its speed), make the images, score them."""
    checkpoint, tensors = out / f"{client}.plan", out / f"{client}.plan.tc.safetensors"
    calibration = out / f"{client}.calibration.tc.safetensors"
    run(out, "handoff", "--plan", out / "plan.json", "--server", out / "server", "--count", CALIBRATION_TENSORS,
        "--seed", CALIBRATION_SEED, "--sampler", SAMPLER, "--out", calibration)  # fmt: skip
    found: dict[str, Any] = {"fp32": {"kid": score(out, out / f"{client}.plan.out", data, client, extractor)}}
    for precision in PRECISIONS:
        head, images = out / f"{client}.{precision}.head", out / f"{client}.{precision}.out"
        exported = run(out, "export", checkpoint, "--sampler", SAMPLER, "--precision", precision,
                       "--calibration", calibration, "--force", "--out", head)  # fmt: skip
        if not images.exists():
            run(out, "infer", head, tensors, "--batch-size", "50", "--out", images)
        kid = score(out, images, data, client, extractor)
        found[precision] = {"comparison": exported["precision"], "kid": kid}
    return found


def score(out: Path, images: Path, data: Path, client: str, extractor: Path) -> dict[str, Any]:
    result = run(out, "evaluate", images, *images_of(data, client), "--extractor", extractor)
    return {**result, "generated": images.name}


def table(record: dict[str, Any]) -> str:
    first = record["clients"][CLIENTS[0]]["fp32"]["kid"]
    columns = ("client", "precision", "cosine at the end", "worst max-abs", "KID", "KID less fp32's",
               "time on ort-cpu", "time on openvino", "in float")  # fmt: skip
    rows = [
        "# int8 against float32, brain MRI heads",
        "",
        f"Small heads at 32x32, 20 steps, sampler {record['sampler']}, {record['machine']}. KID against each client's",
        f"training images +- its standard error (estimator: {first['estimator']}; extractor {first['extractor']}),",
        f"{record['generated_per_client']} images made from the same hand-over tensors. int8 is",
        f"calibrated on two thirds of {record['calibration_tensors']} other tensors, its distance taken on the rest.",
        "Time is a whole trajectory of one image, relative to float32 by ort-cpu in the same run.",
        "",
        line(columns),
        "|---" * len(columns) + "|",
    ]
    for client, found in record["clients"].items():
        base = found["fp32"]["kid"]
        of_base = (with_error(base), "0", "1.00", times(found, "fp32", "openvino"), "all")
        rows.append(line((client, "fp32", "1", "0", *of_base)))
        for precision in PRECISIONS:
            comparison, kid = found[precision]["comparison"], found[precision]["kid"]
            ends = comparison["ranges"][0]
            cells = (client, precision, f"{ends['final']['cosine']:.5f}", f"{ends['worst']['max_abs']:.3f}")
            speeds = (times(found, precision, "ort-cpu"), times(found, precision, "openvino"))
            layers = ", ".join(entry["layer"] for entry in comparison["float_layers"]) or "-"
            rows.append(line((*cells, with_error(kid), f"{kid['kid_mean'] - base['kid_mean']:+.4f}", *speeds, layers)))
    return "\n".join(rows) + "\n"


def line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def times(found: dict[str, Any], precision: str, engine: str) -> str:
    """Median time relative to float32 on ort-cpu in the same rounds."""
    timings = found[precision if precision in found and precision != "fp32" else "int8-cpu"]["comparison"]["timings"]
    base = next(t["median_ms"] for t in timings if (t["engine"], t["precision"]) == ("ort-cpu", "fp32"))
    ours = [t["median_ms"] for t in timings if (t["engine"], t["precision"]) == (engine, precision)]
    return f"{ours[0] / base:.2f}" if ours else "-"


if __name__ == "__main__":
    main()
