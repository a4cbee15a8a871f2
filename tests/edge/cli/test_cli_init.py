"""`init` writes a plan, says what it means, and never replaces another one."""

import json
from pathlib import Path

import pytest
from command_line import done, refusal

from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.files.plan_file import read_plan


def test_the_plan_is_what_was_asked_for(tmp_path: Path) -> None:
    done("init", "--size", "48x64", "--channels", 3, "--timesteps", 250, "--schedule", "linear", "--cut-ratio", 0.3,
         "--out", tmp_path / "p.json")  # fmt: skip
    assert read_plan(tmp_path / "p.json") == SplitPlan(
        (3, 48, 64), 250, "linear", cut_ratio=0.3, server_prediction_type="v"
    )
    done("init", "--size", 32, "--out", tmp_path / "q.json")
    assert read_plan(tmp_path / "q.json") == SplitPlan(
        (1, 32, 32), 100, "cosine", cut_ratio=0.2, server_prediction_type="v"
    )


def test_the_lines_say_who_does_what_at_which_noise(tmp_path: Path) -> None:
    plan = SplitPlan((1, 32, 32), server_prediction_type="v")
    alpha_bar_n = plan.alpha_bar[19]
    noise = ((1 - alpha_bar_n) / alpha_bar_n) ** 0.5
    assert done("init", "--size", 32, "--out", tmp_path / "p").splitlines() == [
        "server    80 steps, timesteps 99..20, predicts v",
        "device    20 steps, timesteps 19..0, predicts epsilon",
        f"hand-over level 19: alpha_bar {alpha_bar_n:.4f}, "
        f"noise of standard deviation {noise:.3f} beside an image in [-1, 1]",
        "start     noise of level 99, alpha_bar 2.4e-07",
        f"wrote     {tmp_path / 'p'}, fingerprint {plan.fingerprint[:16]}",
    ]


def test_server_and_heads_may_predict_different_things(tmp_path: Path) -> None:
    options = ("--prediction", "v", "--server-prediction", "epsilon")
    text = done("init", "--size", 32, *options, "--out", tmp_path / "p")
    assert "steps, timesteps 99..20, predicts epsilon" in text and "19..0, predicts v" in text
    plan = read_plan(tmp_path / "p")
    assert (plan.prediction_type, plan.server_prediction_type) == ("v", "epsilon")
    wrong = refusal("init", "--size", 32, "--server-prediction", "x", "--out", tmp_path / "no")
    assert "unknown server-prediction 'x'; valid: epsilon, v" in wrong


@pytest.mark.parametrize(("cut_ratio", "heads"), [(0.2, "epsilon"), (0.8, "epsilon"), (1, "v")])
def test_who_starts_from_noise_alone_predicts_v(cut_ratio: float, heads: str, tmp_path: Path) -> None:
    done("init", "--size", 32, "--cut-ratio", cut_ratio, "--out", tmp_path / "p")
    plan = read_plan(tmp_path / "p")
    assert (plan.prediction_type, plan.server_prediction_type) == (heads, "v")


@pytest.mark.parametrize(
    ("cut_ratio", "lines"),
    [
        (
            0,
            ["server    100 steps, timesteps 99..0", "device    0 steps, nothing (c = 0)", "hand-over level -1"],
        ),
        (
            1,
            [
                "server    0 steps, nothing (c = 1)",
                "device    100 steps, timesteps 99..0",
                "hand-over level 99",
            ],
        ),
    ],
)
def test_the_ends_of_the_range(tmp_path: Path, cut_ratio: float, lines: list[str]) -> None:
    found = done("init", "--size", 32, "--cut-ratio", cut_ratio, "--out", tmp_path / "p").splitlines()
    for line, start in zip(found, lines, strict=False):
        assert line.startswith(start)


def test_json_is_the_plan(tmp_path: Path) -> None:
    plan = SplitPlan((1, 32, 32), server_prediction_type="v")
    result = json.loads(done("init", "--size", 32, "--out", tmp_path / "p", "--json"))
    more = {"cut": 20, "noise_level": plan.noise_level, "start_alpha_bar": plan.alpha_bar[-1]}
    assert result == {**plan.to_dict(), **more, "fingerprint": plan.fingerprint}


def test_the_same_plan_again_is_no_error_and_another_is(tmp_path: Path) -> None:
    path = tmp_path / "p"
    done("init", "--size", 32, "--out", path)
    before = path.read_bytes()
    done("init", "--size", "32x32", "--out", path)
    assert path.read_bytes() == before
    assert "holds another plan; choose another --out, or delete it" in refusal("init", "--size", 16, "--out", path)
    (tmp_path / "notes").write_text("mine")
    assert "a file of another kind is there, not a plan file" in refusal(
        "init", "--size", 16, "--out", tmp_path / "notes"
    )
    assert path.read_bytes() == before
    assert (tmp_path / "notes").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--size", "big"), "size 'big' is not a side or HEIGHTxWIDTH; valid: for example 32 or 64x48"),
        (("--size", "8x8x8"), "size '8x8x8' is not a side"),
        (("--size", "8x"), "size '8x' is not a side"),
        (("--size", "0"), "plan field image_shape is (1, 0, 0)"),
        (("--size", "8", "--channels", 2), "plan field image_shape is (2, 8, 8)"),
        (("--size", "8", "--timesteps", 1), "plan field timesteps is 1; valid: an integer from 2 to 1000"),
        (("--size", "8", "--schedule", "sigmoid"), "unknown schedule 'sigmoid'; valid: cosine, linear"),
        (("--size", "8", "--cut-ratio", 1.5), "plan field cut_ratio is 1.5; valid: a number in [0, 1]"),
        (("--size", "8", "--cut-ratio", "nan"), "plan field cut_ratio is NaN"),
    ],
)
def test_values_out_of_range_write_nothing(tmp_path: Path, options: tuple[object, ...], message: str) -> None:
    assert message in refusal("init", *options, "--out", tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place(tmp_path: Path) -> None:
    assert "cannot write" in refusal("init", "--size", 8, "--out", tmp_path / "nowhere" / "p")
