"""A hand-over that cannot be made is refused in one line with exit code 2, and nothing is written."""

from pathlib import Path

import pytest
from command_line import refusal
from small_training import SHAPE, untrained

from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.files.plan_file import write_plan

PLAN = SplitPlan(SHAPE, timesteps=20, cut_ratio=0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plans, and checkpoints whose server was trained for c = 0.5."""
    folder = tmp_path_factory.mktemp("handoff")
    untrained(folder / "server", "server", PLAN)
    untrained(folder / "client", "client", PLAN)
    for name, plan in (
        ("plan", PLAN),
        ("low", PLAN.with_cut_ratio(0.4)),
        ("local", PLAN.with_cut_ratio(1)),
        ("long", SplitPlan(SHAPE, timesteps=40, cut_ratio=0.5)),
        ("linear", SplitPlan(SHAPE, timesteps=20, schedule="linear", cut_ratio=0.5)),
        ("large", SplitPlan((1, 16, 16), timesteps=20, cut_ratio=0.5)),
    ):
        write_plan(folder / f"{name}.json", plan)
    return folder


def handoff(
    folder: Path, *options: object, plan: str = "plan", server: str | None = "server", count: object = 2
) -> str:
    named = () if server is None else ("--server", folder / server)
    line = refusal(
        "handoff", "--plan", folder / f"{plan}.json", *named, "--count", count, "--out", folder / "x", *options
    )
    assert not (folder / "x").exists()
    return line


@pytest.mark.parametrize("steps", [0, 11, -1])
def test_steps_out_of_range(folder: Path, steps: int) -> None:
    assert f"server steps {steps} out of range: this plan allows 1 to 10" in handoff(folder, "--steps", steps)


def test_steps_where_the_server_has_none(folder: Path) -> None:
    line = handoff(folder, "--steps", 1, plan="local", server=None)
    assert "server steps 1 out of range: this plan allows 0 (it leaves the server no step)" in line


def test_a_missing_server(folder: Path) -> None:
    assert "cut_ratio 0.5 gives the server 10 steps; name its checkpoint with --server" in handoff(folder, server=None)
    assert "no checkpoint at" in handoff(folder, server="nothing")


def test_a_client_checkpoint(folder: Path) -> None:
    assert "is a client checkpoint; valid here: a server checkpoint" in handoff(folder, server="client")


@pytest.mark.parametrize(("plan", "field"), [("long", "timesteps"), ("linear", "schedule"), ("large", "image_shape")])
def test_a_server_of_another_plan(folder: Path, plan: str, field: str) -> None:
    assert f"plans disagree on {field}: the plan has" in handoff(folder, plan=plan)


def test_a_cut_below_what_the_server_was_trained_for(folder: Path) -> None:
    line = handoff(folder, plan="low")
    assert "cut_ratio 0.4 asks for timesteps down to 8" in line
    assert "was trained for 10 and above; valid: cut_ratio at least 0.5" in line


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "cuda:x"])
def test_a_device_that_is_not_there(folder: Path, device: str) -> None:
    assert f"device '{device}' cannot be used" in handoff(folder, "--device", device)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seed", -1), "seed -1 out of range"),
        (("--seed", 2**64), "seed 18446744073709551616 out of range"),
        (("--first-index", -1), "sample index -1 out of range"),
        (("--batch-size", 0), "batch size 0 out of range: must be at least 1"),
        (("--sampler", "euler"), "unknown sampler 'euler'; valid: ddim, ddpm, dpm++2m"),
        (("--eta", 2), "eta 2.0 out of range"),
        (("--dtype", "int8"), "unknown dtype 'int8'; valid: float32, float16"),
    ],
)
def test_options_out_of_range(folder: Path, options: tuple[object, ...], message: str) -> None:
    assert message in handoff(folder, *options)


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (0, "count 0, batch size 32 out of range: must be at least 1"),
        (10**15, "do not fit into memory; give a smaller --count"),
    ],
)
def test_counts_out_of_range(folder: Path, count: int, message: str) -> None:
    assert message in handoff(folder, count=count)


def test_a_plan_file_that_is_none(folder: Path) -> None:
    assert "cannot read" in handoff(folder, plan="nowhere")
