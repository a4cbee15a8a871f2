"""Where to cut, on the models of the brain MRI experiment: c in {0, 0.2, 0.4, 0.6, 0.8, 1}, both sides on this machine.

    python benchmarks/experiments/brain_mri_split.py work/brain_mri        # after brain_mri.py work/brain_mri

One client's local-only head knows every timestep, so it is exported for each cut; the server knows those of c >= 0.2.
For each cut of these: hand-over, images, KID of both. Then `bench split` measures all ways: its report is the record.
Every step is a `collafuse-edge` command whose output is kept in OUT/log.txt; what is there already is not made again.
"""

import argparse
import json
import os
from pathlib import Path

from brain_mri import IMAGES, SAMPLER, SIZE, TIMESTEPS, images_of

from collafuse_benchmarks.commands import run
from collafuse_benchmarks.pages import plots
from collafuse_benchmarks.pages.folder import read_report

CLIENT, CUTS = "glioma_tumor", ("0.2", "0.4", "0.6", "0.8", "1.0")
LINK_MBPS, LINK_LATENCY_MS = 100, 5
LIMITS = ("--max-latency-ms", 2000, "--min-noise-level", 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder that brain_mri.py wrote")
    parser.add_argument("--mode", default="quick", help="of bench split")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="where the record goes")
    arguments = parser.parse_args()
    shared = Path(os.environ.get("COLLAFUSE_DATA", "../shared/data"))
    data, extractor = shared / "brain_mri_64.npz", shared.parent / "weights" / "squeezenet1_0_features.onnx"
    work = arguments.out / "split"
    work.mkdir(exist_ok=True)
    scores = [word for c in CUTS for word in score(arguments.out, work, c, data, extractor)]
    report = work / "report"
    if not report.exists():
        heads = [work / f"{c}.head" for c in CUTS]
        link = ("--link-mbps", LINK_MBPS, "--link-latency-ms", LINK_LATENCY_MS)
        options = ("--server", arguments.out / "server", "--mode", arguments.mode, *link, *LIMITS, *scores)
        run(arguments.out, "bench", "split", *heads, *options, "--out", report)
    publish(report, arguments.results)


def score(out: Path, work: Path, c: str, data: Path, extractor: Path) -> list[object]:
    """Export the head for this cut, make the images, judge them and the tensors; options for `bench split`."""
    plan, head, tensors, images = (work / f"{c}{end}" for end in (".json", ".head", ".tc.safetensors", ".out"))
    if not images.exists():
        run(out, "init", "--size", SIZE, "--timesteps", TIMESTEPS, "--cut-ratio", c, "--out", plan)
        run(out, "export", out / f"{CLIENT}.local", "--cut-ratio", c, "--sampler", SAMPLER, "--out", head)
        server = () if c == "1.0" else ("--server", out / "server")
        run(out, "handoff", "--plan", plan, *server, "--count", IMAGES, "--sampler", SAMPLER, "--out", tensors)
        run(out, "infer", head, tensors, "--batch-size", "50", "--out", images)
    options: list[object] = []
    for option, generated in (("--image-kid", images), ("--handover-kid", tensors)):
        file = work / f"{c}{option}.json"
        if not file.exists():
            found = run(out, "evaluate", generated, *images_of(data, CLIENT), "--extractor", extractor)
            file.write_text(json.dumps({**found, "real": f"{data.name}, {CLIENT}", "generated": generated.name}))
        options += [option, f"{c}={file}"]
    return options


def publish(report: Path, results: Path) -> None:
    """The report and a picture of its table."""
    results.mkdir(parents=True, exist_ok=True)
    for end in ("json", "md", "html"):
        (results / f"split_cpu.{end}").write_bytes((report / f"report.{end}").read_bytes())
    rows = read_report(report, "split")["rows"]
    parts = {"server": "server_ms", "transfer": "transfer_ms", "device": "edge_ms"}
    picture = plots.stacked(
        [f"c = {row['cut_ratio']:g}" for row in rows],
        {name: [row[key] for row in rows] for name, key in parts.items()},
        "milliseconds for one image",
    )
    (results / "split_cpu.svg").write_text(picture)
    print((results / "split_cpu.md").read_text())


if __name__ == "__main__":
    main()
