"""The script behind benchmarks/results/disclosure.md runs, small; the page of disclosure holds its figures."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import done
from places import ROOT

pytest.importorskip("torch")
sys.path.append(str(ROOT / "benchmarks" / "experiments"))

import disclosure


def in_process(_: Path, *arguments: object) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(done(*arguments, "--json"))
    return result


def test_the_script_makes_a_row_a_cut_with_means_and_intervals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waves = np.random.default_rng(0).uniform(0, 255, (24, 6, 6)).repeat(4, axis=1).repeat(4, axis=2)
    labels, names = np.zeros(24, int), np.array(["glioma_tumor"])
    np.savez(tmp_path / "brain_mri_128.npz", images=waves.astype(np.uint8), labels=labels, label_names=names)
    for name, value in {"run": in_process, "SIZES": (16,), "SEEDS": (0, 1), "STEPS": {32: 1, 64: 1, 16: 2}}.items():
        monkeypatch.setattr(disclosure, name, value)
    monkeypatch.setenv("COLLAFUSE_DATA", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["disclosure.py", str(tmp_path / "out"), "--results", str(tmp_path / "results")])
    disclosure.main()
    record = json.loads((tmp_path / "results" / "disclosure.json").read_text())
    assert [row["cut_ratio"] for row in record["rows"]] == [0.2, 0.4, 0.6, 0.8]
    reports = [json.loads((tmp_path / "out" / f"16-{seed}" / "report.json").read_text()) for seed in (0, 1)]
    first, second = (report["cuts"][0]["wiener"]["psnr"] for report in reports)
    mean, half = record["rows"][0]["wiener"]
    assert mean == pytest.approx((first + second) / 2)
    assert half == pytest.approx(12.7062 * abs(first - second) / 2, rel=1e-4)  # Student's t of one degree


def test_the_page_holds_the_record() -> None:
    record = json.loads((ROOT / "benchmarks" / "results" / "disclosure.json").read_text())
    page = (ROOT / "docs" / "disclosure.md").read_text()
    shown = re.findall(r"^\| (\d+)x\d+ \| ([\d.]+) \|(.*)\|$", page, re.MULTILINE)
    assert len(shown) == len(record["rows"])
    for (size, c, cells), row in zip(shown, record["rows"], strict=True):
        assert (int(size), float(c)) == (row["size"], row["cut_ratio"])
        best = max(row["wiener"], row["network"])
        wanted = [
            f"{row['mean_image'][0]:.1f}",
            f"{best[0]:.1f} +- {best[1]:.1f}",
            *(f"{row[key][0]:.1%} +- {row[key][1]:.1%}" for key in ("at_plan_size", "at_own_size")),
            f"{row['epsilon']:,.0f}",
        ]
        assert [cell.strip() for cell in cells.split("|")] == wanted
