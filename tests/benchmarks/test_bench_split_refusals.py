"""`bench split` refuses what it cannot use or would not use, in one line, before anything is measured."""

import json
import math
import re
from pathlib import Path

import pytest
from command_line import refusal
from heads import PLAN, default_head, head
from small_product import product

from collafuse_runtimes.files.plan_file import read_plan


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ((), "nothing to measure: give head bundles, --server, or both"),
        (("--server", "@server"), "the server's side alone needs --cuts"),
        (
            ("--server", "@server", "--cuts", "0,2"),
            "--cuts '0,2' is not a list of cut ratios; valid: different",
        ),
        (("--server", "@other/server", "@edge.head"), "plans disagree on timesteps"),
        (("@edge.head", "--engine", "ort-cpu,none"), "unknown engine 'none'"),
        (("@edge.head", "--dtype", "int8"), "unknown dtype 'int8'; valid: float32, float16"),
        (("@edge.head", "--link-mbps", "0"), "link speed 0.0 Mbit/s out of range"),
        (("@edge.head", "--image-kid", "0.2"), "--image-kid '0.2' is not C=FILE; valid: for example 0.2=score.json"),
        (("@edge.head", "--image-kid", "0.2=@plan.json"), "is not what `evaluate --json` prints"),
        (("@edge.head", "--mode", "slow"), "unknown mode 'slow'"),
        (("@edge.head", "--server", "@server", "--server-steps", "0"), "server steps 0 out of range"),
        (("@edge.head", "--server", "@server", "--server-steps", "-3"), "server steps -3 out of range"),
        (("@edge.head", "@edge.head"), "edge.head is given twice; give each once"),
        (("@edge.head", "--engine", "ort-cpu,ort-cpu"), "engine ort-cpu is given twice"),
        (("@edge.head", "--max-latency-ms", "nan"), "--max-latency-ms nan out of range: must be above 0"),
        (("@edge.head", "--max-energy-j", "1e400"), "--max-energy-j inf out of range"),
        (
            ("@edge.head", "--link-latency-ms", "5"),
            "without --link-mbps the transfer is not counted; leave out --link-",
        ),
        (("@edge.head", "--cuts", "0.3"), "without --server its side is not measured; leave out --cuts"),
        (("@edge.head", "--server-steps", "3"), "leave out --server-steps"),
        (("@edge.head", "--server-device", "cpu"), "leave out --server-device"),
        (
            ("--server", "@server", "--cuts", "0", "--engine", "ort-cpu"),
            "without a head bundle the device's side is not",
        ),
        (("--server", "@server", "--cuts", "0", "--threads", "1"), "leave out --threads"),
        (("--merge", "@edge.head", "--engine", "openvino"), "--merge measures nothing; leave out --engine"),
        (("--merge", "@edge.head", "--server", "@server"), "leave out --server"),
        (("--merge", "@edge.head", "--mode", "report"), "leave out --mode"),
        (("--merge", "@edge.head", "--nvml-gpu", "1"), "leave out --nvml-gpu"),
        (("--merge", "@edge.head", "--cache", "x"), "leave out --cache"),
    ],
)
def test_bad_options_are_refused(options: tuple[str, ...], line: str, tmp_path: Path) -> None:
    words = [re.sub("@", f"{product()}/", word) for word in options]
    assert line in refusal("bench", "split", *words, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


SCORE = {
    "kid_mean": 0.2, "kid_error": 0.01, "estimator": "u", "extractor_sha256": "a", "real": "mri", "real_count": 5,
    "fingerprint": "f", "cut_ratio": 0.2, "head_sha256": "b", "precision": "fp32",
    "sampler": {"name": "ddim", "eta": 0.0}, "steps": 5, "server_sha256": "c", "server_steps": 5, "unknown": None,
}  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({**SCORE, "kid_raw": math.nan}),
        json.dumps({**SCORE, "kid_error": "small"}),
        json.dumps({**SCORE, "sampler": "ddim"}),
        json.dumps({key: value for key, value in SCORE.items() if key != "server_steps"}),
        json.dumps(SCORE).replace("0.2,", "1e400,", 1),
        json.dumps({**SCORE, "kid_mean": 10**400}),
        json.dumps({**SCORE, "kid_mean": True}),
        json.dumps({**SCORE, "kid_mean": "0.2"}),
        json.dumps({"kid_mean": 0.2}),
        "[" * 100_000,
        "[]",
        "5",
    ],
)  # fmt: skip
def test_a_file_that_is_no_score_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    line = refusal("bench", "split", "x.head", "--image-kid", f"0.2={tmp_path}/a.json")
    assert "a.json is not what `evaluate --json` prints (" in line


def test_a_score_of_an_older_release_is_refused(tmp_path: Path) -> None:
    old = {"kid_mean": 2.9e5, "kid_std": 2.4e4, "extractor_sha256": "a", "real": "mri", "real_count": 5,
           "subsets": 100, "subset_size": 5, "seed": 0}  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(old))
    line = refusal("bench", "split", "x.head", "--image-kid", f"0.2={tmp_path}/a.json")
    assert "it is an older release's mean over subsets, and does not say which steps made its images" in line


def test_a_score_of_no_cut_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({**SCORE, "cut_ratio": 0.3}))
    edge = (product() / "edge.head", "--handover-kid", f"0.3={tmp_path}/a.json", "--out", tmp_path / "out")
    line = refusal("bench", "split", *edge)
    assert "--handover-kid is given for c = 0.3, which is not in this report; valid: 0.5" in line
    assert not (tmp_path / "out").exists()


def test_a_score_of_another_way_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    plan = read_plan(product() / "plan.json")
    (tmp_path / "a.json").write_text(json.dumps({**SCORE, "cut_ratio": 0.5, "fingerprint": plan.fingerprint}))
    edge = (product() / "edge.head", "--image-kid", f"0.5={tmp_path}/a.json", "--out", tmp_path / "out")
    assert "the score for c = 0.5 is of no way in this report: it has weights b, c = 0.5, edge" in refusal(
        "bench", "split", *edge
    )
    assert not (tmp_path / "out").exists()


def test_scores_of_different_extractors_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(SCORE))
    (tmp_path / "b.json").write_text(json.dumps({**SCORE, "extractor_sha256": "b", "cut_ratio": 0.4}))
    both = ("--image-kid", f"0.2={tmp_path}/a.json", "--image-kid", f"0.4={tmp_path}/b.json")
    assert "scores of different extractor_sha256 cannot be compared" in refusal("bench", "split", "x.head", *both)
    wrong = ("--image-kid", f"0.6={tmp_path}/a.json")
    assert "a.json is of c = 0.2, not 0.6; give it to its own cut" in refusal("bench", "split", "x.head", *wrong)


def test_heads_of_different_plans_are_not_swept_together() -> None:
    line = refusal("bench", "split", default_head().path, product() / "edge.head")
    assert "plans disagree on" in line
    assert head().plan == PLAN
