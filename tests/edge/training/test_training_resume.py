"""A run that was stopped or killed goes on to exactly the weights of an unbroken one."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import done, refusal
from diffusers.training_utils import EMAModel
from small_training import PLAN, SHAPE, easy_images, small_network, small_run

from collafuse_edge.training.loop import train
from collafuse_edge.training.presets import build_network
from collafuse_edge.training.resume import Progress, TrainState, read_resume, resume_path, write_resume
from collafuse_edge.training.tasks import ClientTask, ServerTask
from collafuse_edge.upload import make_paper_shard, make_shard
from collafuse_runtimes.errors import ArtefactError, CheckFailed, InputError
from collafuse_runtimes.files.sealed import read_tensors, write_tensors

STEPS = 40
COMMON = ("--preset", "tiny", "--steps", STEPS, "--batch-size", 4, "--warmup-steps", 5, "--cpu",
          "--checkpoint-minutes", 0)  # fmt: skip


def sha256(checkpoint: Path) -> list[str]:
    names = ("model.safetensors", "diffusion_pytorch_model.safetensors")
    return [hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() for name in names]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done("init", "--size", 8, "--timesteps", 20, "--out", folder / "plan.json")
    done(
        "upload",
        "--data",
        "phantom:0:12",
        "--plan",
        folder / "plan.json",
        "--key",
        folder / "key",
        "--out",
        folder / "shard",
    )
    return folder


def client(site: Path, out: Path) -> tuple[object, ...]:
    return ("train-client", "--data", "phantom:0:12", "--plan", site / "plan.json", "--out", out, *COMMON)


def server(site: Path, out: Path) -> tuple[object, ...]:
    return ("train-server", site / "shard", "--out", out, *COMMON, "--mixed-precision", "bf16")


COMMANDS = {"client": client, "server": server}


@pytest.fixture(scope="module")
def killed(site: Path) -> Iterator[dict[str, Path]]:
    """Checkpoint paths of real processes, killed with SIGKILL after they saved their state a few times."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes, outs = {}, {}
    for role, command in COMMANDS.items():
        outs[role] = site / f"killed-{role}"
        line = [sys.executable, "-m", "collafuse_edge", *map(str, command(site, outs[role]))]
        processes[role] = subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        for role, process in processes.items():
            wait_for_saves(resume_path(outs[role]), 3, process)
            process.kill()
            assert process.wait() == -signal.SIGKILL
        yield outs
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()


def wait_for_saves(path: Path, saves: int, process: subprocess.Popen[bytes]) -> None:
    seen: set[int] = set()
    deadline = time.monotonic() + 300
    while len(seen) < saves and time.monotonic() < deadline:
        if path.exists():
            seen.add(path.stat().st_mtime_ns)
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.002)
    assert len(seen) == saves


@pytest.mark.parametrize("role", ["client", "server"])
def test_killed_and_resumed_is_bit_identical_to_unbroken(site: Path, killed: dict[str, Path], role: str) -> None:
    step = read_tensors(resume_path(killed[role]), "collafuse-resume")[1]["progress"]["step"]
    assert 1 <= step < STEPS
    assert not killed[role].exists()
    out = done(*COMMANDS[role](site, killed[role]), "--resume")
    assert f"trained   {STEPS} steps" in out
    assert not resume_path(killed[role]).exists()
    unbroken = site / f"unbroken-{role}"
    done(*COMMANDS[role](site, unbroken))
    assert sha256(killed[role]) == sha256(unbroken)
    assert len(set(sha256(unbroken))) == 2


def stopping_after(step: int, number: signal.Signals) -> Any:
    def on_step(progress: Progress, _: float) -> None:
        if progress.step == step:
            os.kill(os.getpid(), number)

    return on_step


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_state_and_says_how_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    handler = signal.getsignal(number)
    run = small_run(tmp_path / "c", steps=7, lr_schedule="cosine", warmup_steps=2)
    with pytest.raises(CheckFailed, match=r"^stopped at step 3 of 7; continue with --resume$"):
        train(run, stopping_after(3, number))
    assert signal.getsignal(number) is handler
    assert [p.name for p in tmp_path.iterdir()] == ["c.resume.safetensors"]
    resumed = train(replace(run, resume=True))
    unbroken = train(replace(run, out=tmp_path / "d"))
    assert sha256(tmp_path / "c") == sha256(tmp_path / "d")
    assert resumed.training["losses"] == unbroken.training["losses"]
    assert [step for step, _ in resumed.training["losses"]] == [1, 2, 3, 4, 5, 6, 7]


def test_the_command_stopped_by_a_signal_ends_with_exit_code_1(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = write_resume

    def write_then_signal(path: Path, state: TrainState, progress: Progress, identity: dict[str, Any]) -> None:
        write(path, state, progress, identity)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("collafuse_edge.training.trainer.write_resume", write_then_signal)
    line = refusal(*client(site, tmp_path / "c"), code=1)
    assert line == f"error: stopped at step 2 of {STEPS}; continue with --resume"


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("conditional", {"accumulation": 2}),
        ("upload", {"channels_last": True}),
        ("paper", {"mixed_precision": "bf16"}),
        ("upload", {"seed": 2**64 - 1, "ema_decay": 0.5, "lr_schedule": "cosine"}),
    ],
)
def test_every_kind_of_run_resumes_exactly(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    labels = np.arange(24) % 3
    task = {
        "conditional": lambda: ClientTask(PLAN, easy_images(), labels, 3),
        "upload": lambda: ServerTask([make_shard(easy_images(), PLAN, bytes(32))], ["a"]),
        "paper": lambda: ServerTask([make_paper_shard(easy_images(), PLAN, 2, seed=0)], ["a"]),
    }[kind]()
    network = small_network(3 if kind == "conditional" else None)
    run = small_run(tmp_path / "c", task, network, steps=4, **options)
    with pytest.raises(CheckFailed):
        train(run, stopping_after(2, signal.SIGINT))
    train(replace(run, resume=True))
    train(replace(run, out=tmp_path / "d"))
    assert sha256(tmp_path / "c") == sha256(tmp_path / "d")


def test_a_stop_in_the_last_step_is_a_finished_run(tmp_path: Path) -> None:
    checkpoint = train(small_run(tmp_path / "c", steps=3), stopping_after(3, signal.SIGINT))
    assert checkpoint.training["steps"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unfinished") / "c"
    with pytest.raises(CheckFailed):
        train(small_run(out), stopping_after(2, signal.SIGINT))
    return out


OTHERS = [
    ({"learning_rate": 2e-3}, {}, "settings learning_rate was 0.001, now 0.002"),
    ({"steps": 5}, {}, "settings steps was 4, now 5"),
    ({"seed": 1}, {}, "settings seed was 0, now 1"),
    ({"mixed_precision": "bf16"}, {}, "settings mixed_precision was no, now bf16"),
    ({}, {"task": ClientTask(PLAN.with_cut_ratio(0.4), easy_images())}, "plan cut_ratio was 0.5, now 0.4"),
    (
        {},
        {"task": ClientTask(PLAN, easy_images(), np.arange(24) % 2, 2), "network": small_network(2)},
        "network num_classes was None, now 2",
    ),
]


@pytest.mark.parametrize(("settings", "parts", "difference"), OTHERS, ids=[other[2] for other in OTHERS])
def test_another_run_does_not_continue_this_one(
    unfinished: Path, settings: dict[str, Any], parts: dict[str, Any], difference: str
) -> None:
    before = resume_path(unfinished).read_bytes()
    with pytest.raises(InputError) as refused:
        train(small_run(unfinished, resume=True, **parts, **settings))
    assert f"cannot be continued: {difference}; repeat the first command with --resume" in str(refused.value)
    assert resume_path(unfinished).read_bytes() == before


def test_other_images_do_not_continue_this_run(unfinished: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be continued: data was [0-9a-f]{64}, now [0-9a-f]{64}"):
        train(small_run(unfinished, ClientTask(PLAN, -easy_images()), resume=True))


def test_a_finished_run_is_returned_as_it_is_and_never_as_another(tmp_path: Path) -> None:
    finished = train(small_run(tmp_path / "c"))
    assert train(small_run(tmp_path / "c", resume=True)) == finished
    for settings, parts, difference in OTHERS:
        with pytest.raises(InputError) as refused:
            train(small_run(tmp_path / "c", resume=True, **parts, **settings))
        assert difference in str(refused.value)
    with pytest.raises(InputError, match="images was 24, now 23"):
        train(small_run(tmp_path / "c", ClientTask(PLAN, easy_images(23)), resume=True))
    with pytest.raises(ArtefactError, match="is a client checkpoint; valid here: a server checkpoint"):
        train(small_run(tmp_path / "c", ServerTask([make_shard(easy_images(), PLAN, bytes(32))], ["a"]), resume=True))


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    run = small_run(tmp_path / "c", resume=True)
    with pytest.raises(CheckFailed):
        train(run, stopping_after(1, signal.SIGINT))
    path = resume_path(tmp_path / "c")
    tensors, payload = read_tensors(path, "collafuse-resume")
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ArtefactError, match="truncated, damaged"):
        train(run)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ArtefactError, match="does not match its own sha256"):
        train(run)
    taken = tensors.pop("ema.conv_in.bias")
    write_tensors(path, "collafuse-resume", tensors, payload)
    with pytest.raises(ArtefactError, match=r"lacks or garbles 'ema\.conv_in\.bias'; delete it and train again"):
        train(run)
    write_tensors(path, "collafuse-resume", {**tensors, "ema.conv_in.bias": taken[:-1]}, payload)
    with pytest.raises(ArtefactError, match="lacks or garbles"):
        train(run)


def test_a_state_from_before_the_first_update_can_be_saved(tmp_path: Path) -> None:
    """With fp16 the scaler skips the first updates, and Adam has no moments yet."""

    def state(seed: int) -> TrainState:
        network = build_network(small_network(), seed)
        return TrainState(network, EMAModel(network.parameters()), torch.optim.Adam(network.parameters(), 1e-3), None)

    first, second = state(0), state(1)
    write_resume(tmp_path / "r", first, Progress(step=1), {"data": "x"})
    assert read_resume(tmp_path / "r", second, {"data": "x"}) == Progress(step=1)
    for half in (first, second):
        half.network(torch.ones((1, *SHAPE)), 3, return_dict=False)[0].square().mean().backward()
        half.optimizer.step()
    for a, b in zip(first.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(a, b)
