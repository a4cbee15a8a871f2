"""A training can be driven step by step, and ends where `train` ends."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.optimization import get_scheduler
from small_training import small_run

from collafuse_edge.training.loop import train
from collafuse_edge.training.resume import resume_path
from collafuse_edge.training.run import hold_output
from collafuse_edge.training.settings import TrainSettings
from collafuse_edge.training.trainer import Trainer
from collafuse_runtimes.errors import CheckFailed, InputError


def test_steps_made_by_hand_give_the_weights_and_losses_of_train(tmp_path: Path) -> None:
    usual = train(small_run(tmp_path / "usual"))
    run = small_run(tmp_path / "own")
    with hold_output(run):
        trainer = Trainer.start(run)
        assert (trainer.progress.step, trainer.images_per_second, trainer.is_first_process) == (0, 0, True)
        losses = []
        while not trainer.done:
            losses.append([trainer.progress.step + 1, trainer.step()])
        assert trainer.images_per_second > 0
        own = trainer.publish()
    assert own.weights_sha256 == usual.weights_sha256
    assert losses == usual.training["losses"] == own.training["losses"]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["own", "usual"]


def test_a_trainer_that_is_dropped_continues_from_what_it_saved(tmp_path: Path) -> None:
    usual = train(small_run(tmp_path / "usual", steps=6, lr_schedule="cosine"))
    run = small_run(tmp_path / "own", steps=6, lr_schedule="cosine")
    dropped = Trainer.start(run)
    for _ in range(2):
        dropped.step()
    dropped.save()
    dropped.step()  # lost: made after the save
    resumed = Trainer.start(replace(run, resume=True))
    assert (resumed.progress.step, resumed.images_per_second) == (2, 0)
    while not resumed.done:
        resumed.step()
    assert resume_path(run.out).exists()
    assert resumed.publish().weights_sha256 == usual.weights_sha256
    assert not resume_path(run.out).exists()


def test_a_process_trains_one_run_at_a_time(tmp_path: Path) -> None:
    """The second's accumulation and precision would hold for the first, too."""
    runs = [small_run(tmp_path / "a"), small_run(tmp_path / "b", mixed_precision="bf16", accumulation=2)]
    alone = [train(replace(run, out=tmp_path / f"{run.out.name}-alone")).weights_sha256 for run in runs]
    first = Trainer.start(runs[0])
    first.step()
    second = Trainer.start(runs[1])
    with pytest.raises(InputError, match="was left at step 1 when this process began another; save it, then start it"):
        first.step()
    first.save()
    first = Trainer.start(replace(runs[0], resume=True))
    with pytest.raises(InputError, match="was left at step 0 when this process began another"):
        second.step()
    second = Trainer.start(runs[1])
    while not second.done:
        second.step()
    assert second.publish().weights_sha256 == alone[1]
    assert train(replace(runs[0], resume=True)).weights_sha256 == alone[0]


def test_calls_out_of_turn_are_refused(tmp_path: Path) -> None:
    run = small_run(tmp_path / "c", steps=1)
    trainer = Trainer.start(run)
    with pytest.raises(InputError, match=r"^0 of 1 steps are made; make the others first$"):
        trainer.publish()
    assert not run.out.exists()
    trainer.step()
    with pytest.raises(InputError, match=r"^all 1 steps are made; publish, or start a run of more steps$"):
        trainer.step()
    trainer.save()
    with pytest.raises(InputError, match="is an unfinished run: continue it with --resume, or delete it"):
        Trainer.start(run)
    trainer.publish()
    for resume in (False, True):
        with pytest.raises(InputError, match="exists already; choose another --out, or delete it to train anew"):
            Trainer.start(replace(run, resume=resume))


def test_a_step_that_was_broken_off_is_not_saved(tmp_path: Path) -> None:
    trainer = Trainer.start(small_run(tmp_path / "c", learning_rate=1e30))
    trainer.step()
    trainer.save()
    saved = resume_path(tmp_path / "c").read_bytes()
    with pytest.raises(CheckFailed, match=r"became (nan|inf) at step 2"):
        trainer.step()
    with pytest.raises(CheckFailed, match="step 2 was broken off and cannot be saved; start again from the last"):
        trainer.save()
    assert resume_path(tmp_path / "c").read_bytes() == saved


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (7, 0), (30, 10), (5, 5), (5, 9)])
@pytest.mark.parametrize(("ours", "theirs"), [("cosine", "cosine"), ("constant", "constant_with_warmup")])
def test_learning_rates_are_those_of_diffusers_bit_for_bit(ours: str, theirs: str, steps: int, warmup: int) -> None:
    settings = TrainSettings(steps=steps, warmup_steps=warmup, lr_schedule=ours, learning_rate=3e-3)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=settings.learning_rate)
    schedule = get_scheduler(theirs, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    for step in range(1, steps + 1):
        optimizer.step()
        schedule.step()
        assert settings.learning_rate_at(step) == schedule.get_last_lr()[0]
