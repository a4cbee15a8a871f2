"""`bench split` puts a score beside the ways whose images it judges, and beside no others."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import done, refusal
from heads import PLAN
from small_product import product
from test_bench_split import STAMP, part, row, short_modes  # noqa: F401

from collafuse_benchmarks.pages.document import to_markdown
from collafuse_benchmarks.split.page import split_document
from collafuse_benchmarks.split.report import SplitOptions, SplitReport, split_report
from collafuse_benchmarks.split.scores import Score, Scores
from collafuse_runtimes.diffusion.samplers import Sampler
from collafuse_runtimes.errors import InputError
from collafuse_runtimes.files.sealed import read_json

DDIM, DDPM = Sampler("ddim"), Sampler("ddpm")
AT = PLAN.with_cut_ratio(0.4)
WEIGHTS = "ab" * 32
SERVER = part("server", row(0, 50, 500), row(0.4, 30, 300))
EDGE = part(
    "edge",
    row(0.4, 10, 30, sampler=DDIM),
    row(0.4, 5, 15, sampler=DDIM),
    row(0.4, 5, 12, sampler=DDIM, engine="openvino"),
    row(0.4, 5, 9, sampler=DDIM, precision="int8-cpu"),
)


def score(kid: float = 0.25, **changes: Any) -> Score:
    found = Score(
        kid_mean=kid, kid_error=0.02, fingerprint=AT.fingerprint, cut_ratio=0.4, head_sha256=WEIGHTS, precision="fp32",
        sampler=DDIM, steps=5, server_sha256=WEIGHTS, server_steps=30, extractor_sha256="e", real="mri", real_count=5,
        estimator="u", printed={},
    )  # fmt: skip
    return replace(found, **changes)


def table(images: Scores | None = None, handovers: Scores | None = None) -> SplitReport:
    return split_report([EDGE, SERVER], SplitOptions(image_scores=images or {}, handover_scores=handovers or {}))


def kids(report: SplitReport, key: str = "image_kid") -> list[float | None]:
    return [getattr(row, key) for row in report.rows]


def test_a_score_stands_beside_its_own_step_count_and_precision_on_every_engine() -> None:
    report = table({0.4: [score(), score(0.9, precision="int8-cpu")]})
    assert kids(report) == [None, None, 0.25, 0.25, 0.9]  # c = 0, then 10 steps, 5, 5 on openvino, 5 in int8
    assert kids(report, "image_kid_error") == [None, None, 0.02, 0.02, 0.02]
    page = to_markdown(split_document(report, STAMP))
    assert page.count("| 0.25 +- 0.02 |") == 2
    assert page.count("| 0.9 +- 0.02 |") == 1


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"steps": 20}, "it has device steps 20, c = 0.4, a.head, 10 steps on ort-cpu has 10"),
        ({"head_sha256": "c" * 64}, f"it has weights {'c' * 16}, c = 0.4, a.head, 10 steps on ort-cpu has {'ab' * 8}"),
        ({"sampler": DDPM}, "it has sampler ddpm (eta 0.0), c = 0.4, a.head, 10 steps on ort-cpu has ddim (eta 0.0)"),
        ({"precision": "fp16"}, "it has precision fp16, c = 0.4, a.head, 10 steps on ort-cpu has fp32"),
        ({"server_steps": 6}, "it has server steps 6, c = 0.4, a.head, 5 steps on ort-cpu has 30"),
        ({"server_sha256": "d" * 64}, f"it has server {'d' * 16}, c = 0.4, a.head, 5 steps on ort-cpu has "),
        ({"fingerprint": "e" * 64}, "the score for c = 0.4 is of another plan than this report's"),
        ({"head_sha256": None, "steps": None, "sampler": None, "precision": None}, "it has weights none, c = 0.4"),
    ],
)
def test_a_score_of_other_images_is_refused(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError) as caught:
        table({0.4: [score(**changes)]})
    assert line in str(caught.value)


def test_two_scores_of_one_way_are_refused() -> None:
    with pytest.raises(InputError, match=r"--image-kid gives two scores for c = 0\.4, a\.head, 5 steps on"):
        table({0.4: [score(), score(0.3)]})


def test_the_score_of_a_hand_over_belongs_to_the_server_and_its_steps() -> None:
    of_tensors = score(3.0, head_sha256=None, steps=None, sampler=None, precision=None)
    assert kids(table(handovers={0.4: [of_tensors]}), "handover_kid") == [None, 3.0, 3.0, 3.0, 3.0]
    with pytest.raises(InputError, match=r"--handover-kid: .* it has server steps 6"):
        table(handovers={0.4: [replace(of_tensors, server_steps=6)]})


def test_without_a_head_finished_images_are_the_servers() -> None:
    at_0 = PLAN.with_cut_ratio(0.0).fingerprint
    of_server = {"cut_ratio": 0.0, "fingerprint": at_0, "server_steps": 50}
    no_head = dict.fromkeys(("head_sha256", "steps", "sampler", "precision"))
    assert kids(table({0.0: [score(0.1, **of_server, **no_head)]}))[0] == 0.1
    with pytest.raises(InputError, match="c = 0, all on the server has none"):
        table({0.0: [score(0.1, **of_server)]})


def test_a_part_of_an_older_release_is_not_asked_for_its_sampler() -> None:
    old = part("edge", row(0.4, 5, 15))
    report = split_report([old, SERVER], SplitOptions(image_scores={0.4: [score(sampler=DDPM)]}))
    assert kids(report) == [None, 0.25]


def test_from_infer_to_the_table_the_step_count_stays_with_the_score(tmp_path: Path) -> None:
    done("infer", product() / "edge.head", product() / "x.tc.safetensors", "--steps", 2, "--out", tmp_path / "i")
    words = ("--data", product() / "data.npz", "--extractor", product() / "extractor.onnx", "--json")
    (tmp_path / "2.json").write_text(done("evaluate", tmp_path / "i", *words))
    (tmp_path / "t.json").write_text(done("evaluate", product() / "x.tc.safetensors", *words))
    options = ("--image-kid", f"0.5={tmp_path}/2.json", "--handover-kid", f"0.5={tmp_path}/t.json")
    done("bench", "split", product() / "edge.head", *options, "--out", tmp_path / "out")
    rows = read_json(tmp_path / "out" / "report.json", "collafuse-bench")["rows"]
    of_2 = json.loads((tmp_path / "2.json").read_text())["kid_mean"]
    assert [(row["edge"]["steps"], row["image_kid"]) for row in rows] == [(5, None), (2, of_2)]
    assert rows[0]["edge"]["sampler"] == DDIM.to_dict()
    line = refusal("bench", "split", product() / "edge.head", "--image-kid", f"0.5={tmp_path}/t.json")
    assert "is of no way in this report: it has weights none" in line
