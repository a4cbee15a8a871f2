"""Training ends with one checkpoint directory of documented files, or with none and one line that says why."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import done, refusal
from safetensors.numpy import load_file
from small_training import PLAN, SHAPE, easy_images, small_network, small_run

from collafuse_edge.training.arithmetic import describe_arithmetic
from collafuse_edge.training.loop import train
from collafuse_edge.training.resume import resume_path
from collafuse_edge.training.settings import TrainSettings
from collafuse_edge.training.tasks import Batch, ClientTask
from collafuse_runtimes.errors import ArtefactError, CheckFailed, InputError
from collafuse_runtimes.files.checkpoint import load_network, read_checkpoint


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    done("init", "--size", 8, "--timesteps", 20, "--out", tmp_path / "plan.json")
    return tmp_path / "plan.json"


def test_a_checkpoint_is_five_files(tmp_path: Path) -> None:
    run = small_run(tmp_path / "c", steps=3)
    checkpoint = train(run)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c"]  # no resume state is left behind
    files = sorted(p.name for p in (tmp_path / "c").iterdir())
    weights = ["diffusion_pytorch_model.safetensors", "model.safetensors"]
    assert files == sorted(["checkpoint.json", "config.json", "training.json", *weights])
    assert (checkpoint.role, checkpoint.plan, checkpoint.network) == ("client", PLAN, small_network())
    training = checkpoint.training
    assert training["settings"] == asdict(run.settings)
    assert (training["steps"], training["images"], training["processes"], training["device"]) == (3, 24, 1, "cpu")
    assert [step for step, _ in training["losses"]] == [1, 2, 3]
    assert training["versions"]["torch"] == torch.__version__
    assert set(training) == {
        "settings", "steps", "images", "losses", "seconds", "device", "arithmetic", "processes", "versions",
        "git_commit",
    }  # fmt: skip
    assert training["arithmetic"] == {"bitwise": True, "tf32_convolution": False, "tf32_matmul": False}
    names = [name for name, _ in load_network(checkpoint).named_parameters()]
    for name in weights:
        assert set(load_file(tmp_path / "c" / name)) == set(names)


def test_nothing_of_the_images_is_in_a_checkpoint(tmp_path: Path) -> None:
    images = np.random.default_rng(0).uniform(-1, 1, (24, *SHAPE)).astype(np.float32)
    task = ClientTask(PLAN, images)
    train(small_run(tmp_path / "c", task))
    for file in (tmp_path / "c").iterdir():
        assert task.digest().encode() not in file.read_bytes()
        assert images[0, 0, 0].tobytes() not in file.read_bytes()


def test_an_existing_output_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    with pytest.raises(InputError, match="exists already; choose another --out, or delete it"):
        train(small_run(tmp_path / "c"))
    resume_path(tmp_path / "d").write_bytes(b"")
    with pytest.raises(InputError, match="is an unfinished run: continue it with --resume, or delete it"):
        train(small_run(tmp_path / "d"))
    for resume in (False, True):
        with pytest.raises(ArtefactError, match=r"no folder .*nowhere to write c to; create it first"):
            train(small_run(tmp_path / "nowhere" / "c", resume=resume))


class Poisoned(ClientTask):
    """Targets, or inputs, that are NaN from the third step on."""

    batches, where = 0, "target"

    def batch(self, indices: Any, generator: torch.Generator) -> Batch:
        batch = super().batch(indices, generator)
        self.batches += 1
        if self.batches >= 3:
            getattr(batch, self.where).fill_(float("nan"))
        return batch


@pytest.mark.parametrize("where", ["target", "x_t"])
def test_a_loss_that_is_not_a_number_ends_the_run_without_a_checkpoint(tmp_path: Path, where: str) -> None:
    task = Poisoned(PLAN, easy_images())
    task.where = where
    with pytest.raises(CheckFailed, match=r"^the loss became nan at step 3: lower the learning rate and train anew$"):
        train(small_run(tmp_path / "c", task))
    assert list(tmp_path.iterdir()) == []


def test_a_gradient_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    """The loss is finite still, so without a look at the gradient the last step would publish its damage."""

    class Steep(ClientTask):
        def batch(self, indices: Any, generator: torch.Generator) -> Batch:
            batch = super().batch(indices, generator)
            return Batch(batch.x_t, batch.t, 0 * batch.target, scale=torch.full((len(indices), 1, 1, 1), 1e18))

    run = small_run(tmp_path / "c", Steep(PLAN, easy_images()), steps=1, checkpoint_minutes=0)
    with pytest.raises(CheckFailed, match=r"^the gradient norm became inf at step 1: lower the learning rate"):
        train(run)
    assert list(tmp_path.iterdir()) == []


def test_an_enormous_learning_rate_fails_the_command_with_exit_code_1(tmp_path: Path, plan_file: Path) -> None:
    line = refusal(
        "train-client", "--data", "phantom:0:16", "--plan", plan_file, "--out", tmp_path / "c", "--preset", "tiny",
        "--batch-size", 4, "--steps", 20, "--learning-rate", 1e30, "--clip-norm", 1e30, "--warmup-steps", 0, "--cpu",
        "--checkpoint-minutes", 0, code=1,
    )  # fmt: skip
    assert "lower the learning rate and train anew; the last saved state is" in line
    assert not (tmp_path / "c").exists()


def test_what_this_machine_cannot_do_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mixed precision fp16"):
        train(small_run(tmp_path / "c", mixed_precision="fp16"))
    with pytest.raises(
        InputError, match="batch size 8 cannot be shared by 1 processes with accumulation 3; valid: multip"
    ):
        train(small_run(tmp_path / "c", accumulation=3))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "value", "valid"),
    [
        ("steps", 0, "at least 1"),
        ("batch_size", 0, "at least 1"),
        ("accumulation", -1, "at least 1"),
        ("warmup_steps", -1, "at least 0"),
        ("learning_rate", 0.0, "positive numbers"),
        ("learning_rate", float("nan"), "positive numbers"),
        ("clip_norm", float("inf"), "positive numbers"),
        ("ema_decay", 1.0, "0 to below 1"),
        ("lr_schedule", "linear", "cosine, constant"),
        ("mixed_precision", "int8", "no, bf16, fp16"),
    ],
)
def test_settings_out_of_range_are_refused(setting: str, value: Any, valid: str) -> None:
    with pytest.raises(InputError, match=f"^training setting {setting} is {value}; valid: {valid}$"):
        TrainSettings(**{setting: value})


def test_seeds_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="seed -1 out of range"):
        TrainSettings(seed=-1)


def test_the_command_prints_cost_losses_and_where(tmp_path: Path, plan_file: Path) -> None:
    train_client = ("train-client", "--data", "phantom:0:16", "--plan", plan_file, "--preset", "tiny", "--steps", 3,
                    "--batch-size", 4, "--cpu")  # fmt: skip
    printed = done(*train_client, "--out", tmp_path / "c").splitlines()
    lines = [line for line in printed if not line.startswith("note ")]
    assert lines[0] == "network   tiny: 0.26 M parameters, 0.008 GFLOP a step"
    assert lines[1].startswith("trained   3 steps on 16 images in ")
    assert lines[2] == f"wrote     {tmp_path / 'c'}"
    result = json.loads(done(*train_client, "--out", tmp_path / "d", "--json"))
    checkpoint = read_checkpoint(tmp_path / "d", "client")
    assert (result["steps"], result["checkpoint"]) == (3, str(tmp_path / "d"))
    assert result["weights_sha256"] == checkpoint.weights_sha256 == read_checkpoint(tmp_path / "c").weights_sha256


def test_conditional_needs_labels(tmp_path: Path, plan_file: Path) -> None:
    np.savez(tmp_path / "plain.npz", images=np.zeros((8, 8, 8), np.uint8))
    line = refusal("train-client", "--data", tmp_path / "plain.npz", "--plan", plan_file, "--out", tmp_path / "c",
                   "--conditional", "--cpu")  # fmt: skip
    assert "--conditional needs labels" in line


def test_unknown_presets_and_bad_shards_are_refused(tmp_path: Path, plan_file: Path) -> None:
    client = ("train-client", "--data", "phantom:0:8", "--plan", plan_file, "--out", tmp_path / "c", "--cpu")
    assert "unknown preset 'huge'; valid: tiny, small" in refusal(*client, "--preset", "huge")
    assert "cannot read" in refusal("train-server", tmp_path / "none", "--out", tmp_path / "s", "--cpu")
    assert "is not a readable" in refusal("train-server", plan_file, "--out", tmp_path / "s", "--cpu")


@pytest.mark.parametrize(
    ("device", "told", "recorded"),
    [
        ("cpu", {}, (True, False, False)),
        ("cuda", {}, (False, True, False)),
        ("cuda", {"deterministic": True}, (True, True, False)),
        ("cuda", {"deterministic": True, "benchmark": True}, (False, True, False)),
        ("cuda", {"convolution": False, "matmul": True}, (False, False, True)),
    ],
)
def test_the_record_says_what_a_gpu_may_do_to_the_weights(
    device: str, told: dict[str, bool], recorded: tuple[bool, bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: told.get("deterministic", False))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", told.get("benchmark", False))
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = told.get("convolution", True)
        torch.backends.cuda.matmul.allow_tf32 = told.get("matmul", False)
        names = ("bitwise", "tf32_convolution", "tf32_matmul")
        assert describe_arithmetic(device) == dict(zip(names, recorded, strict=True))
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
