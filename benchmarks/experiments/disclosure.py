"""What an upload of real images discloses: `disclose` on brain MRI, at two plan sizes, three seeds.

    python benchmarks/experiments/disclosure.py work/disclosure

The images are 128x128, so that is their own size. Every step is a `collafuse-edge` command whose output is kept in
OUT/log.txt; what is there already is not made again. The record has figures alone.
"""

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from collafuse_benchmarks.commands import run
from collafuse_benchmarks.pages.document import Block, Document, Paragraph, Table, to_markdown

SIZES, SEEDS, IMAGES = (32, 64), (0, 1, 2), ("--class", "glioma_tumor")
STEPS = {32: 1500, 64: 800}
COLUMNS = (
    "size", "c", "noise level", "mean image", "tensor itself", "Wiener", "network", "SSIM of the best", "second look",
    "re-identified at the plan's size", "at 128x128", "epsilon, image",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="where the record goes")
    arguments = parser.parse_args()
    data = Path(os.environ.get("COLLAFUSE_DATA", "../shared/data")) / "brain_mri_128.npz"
    arguments.out.mkdir(parents=True, exist_ok=True)
    reports = [one_report(arguments.out, data, size, seed) for size in SIZES for seed in SEEDS]
    arguments.results.mkdir(parents=True, exist_ok=True)
    rows = [row for size in SIZES for row in rows_of([report for report in reports if report["size"] == size])]
    record = {"data": f"{data.name} {' '.join(IMAGES)}", "seeds": list(SEEDS), "steps": STEPS, "rows": rows}
    (arguments.results / "disclosure.json").write_text(json.dumps(record, indent=1) + "\n")
    page = to_markdown(document(rows, reports[0]))
    (arguments.results / "disclosure.md").write_text(page)
    print(page)


def one_report(out: Path, data: Path, size: int, seed: int) -> dict[str, Any]:
    plan, folder = out / f"plan-{size}.json", out / f"{size}-{seed}"
    if not plan.exists():
        run(out, "init", "--size", size, "--out", plan)
    if not folder.exists():
        options = ("--seed", seed, "--attacker-steps", STEPS[size])
        run(out, "disclose", data, *IMAGES, "--plan", plan, *options, "--out", folder)
    return {"size": size, **json.loads((folder / "report.json").read_text())}


def rows_of(reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a cut: each figure's mean over the seeds, and half of its 95 % interval."""
    rows = []
    for cuts in zip(*(report["cuts"] for report in reports), strict=True):
        figures = {
            "mean_image": [cut["mean_image"]["psnr"] for cut in cuts],
            "as_it_is": [cut["as_it_is"]["psnr"] for cut in cuts],
            "wiener": [cut["wiener"]["psnr"] for cut in cuts],
            "network": [cut["network"]["psnr"] for cut in cuts],
            "ssim": [max(cut["wiener"]["ssim"], cut["network"]["ssim"]) for cut in cuts],
            "second_look": [cut["second_look"]["gain"] for cut in cuts],
            "at_plan_size": [cut["at_plan_size"]["share"] for cut in cuts],
            "at_own_size": [cut["at_own_size"]["share"] for cut in cuts],
        }
        first = cuts[0]
        rows.append(
            {
                "size": reports[0]["size"],
                **{key: first[key] for key in ("cut_ratio", "noise_level")},
                "epsilon": first["guarantees"][1]["epsilon"],
                **{name: mean_and_half_interval(values) for name, values in figures.items()},
            }
        )
    return rows


def mean_and_half_interval(values: list[float]) -> list[float]:
    """[mean, half of the 95 % interval], Student's t over the seeds."""
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return [mean, float(student.ppf(0.975, len(values) - 1)) * deviation / math.sqrt(len(values))]


def document(rows: list[dict[str, Any]], report: dict[str, Any]) -> Document:
    text = (
        f"{report['data']}, glioma: {report['images']} images in {report['groups']} groups of near-duplicates, own "
        f"size 128x128; {report['attacked']} attacked, {report['references']} known to the attacker (filters, and an "
        f"`edge` network of {STEPS[32]} and {STEPS[64]} steps). PSNR in dB; mean of {len(SEEDS)} seeds +- half of "
        "the 95 % interval. A second look: gain of the best guess by another release with fresh noise."
    )
    blocks: tuple[Block, ...] = (Paragraph(text), Table(COLUMNS, tuple(map(cells, rows))))
    return Document("What an upload of brain MRI slices discloses", blocks)


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    def cell(name: str, form: str) -> str:
        mean, half = row[name]
        return f"{mean:{form}} +- {half:{form}}"

    return (
        f"{row['size']}x{row['size']}",
        f"{row['cut_ratio']:g}",
        f"{row['noise_level']:.3f}",
        *(cell(name, ".1f") for name in ("mean_image", "as_it_is", "wiener", "network")),
        cell("ssim", ".3f"),
        cell("second_look", ".1f"),
        *(cell(name, ".1%") for name in ("at_plan_size", "at_own_size")),
        f"{row['epsilon']:,.0f}",
    )


if __name__ == "__main__":
    main()
