"""A distilled head beats its teacher in as few steps, says what it was made for, and takes no other steps."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import done, refusal
from made_once import made_once
from small_training import easy_images

from collafuse_edge.training.distill import (
    Distillation,
    DistillTask,
    describe_distilled,
    distill,
    student_timesteps,
    target_x_0,
)
from collafuse_edge.training.loop import TrainRun, train
from collafuse_edge.training.presets import network_config
from collafuse_edge.training.settings import TrainSettings
from collafuse_edge.training.tasks import ClientTask
from collafuse_export import ExportSettings, export_head
from collafuse_export.golden import handover_of
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.diffusion.samplers import Sampler, StepCoefficients, apply_step, step_coefficients
from collafuse_runtimes.engines import EngineOptions
from collafuse_runtimes.errors import ArtefactError, CheckFailed, InputError
from collafuse_runtimes.files.bundle import read_bundle
from collafuse_runtimes.files.bundle_text import describe_bundle
from collafuse_runtimes.files.checkpoint import Checkpoint, load_weights, read_checkpoint
from collafuse_runtimes.files.handover import Handover, write_handover
from collafuse_runtimes.verify import verify_bundle

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

PLAN = SplitPlan((1, 8, 8), timesteps=40, cut_ratio=0.5)
SETTINGS = TrainSettings(steps=120, batch_size=16, warmup_steps=5, ema_decay=0.95, learning_rate=1e-3)


def images(count: int) -> Float32Array:
    return easy_images(count, PLAN.image_shape)


def tensors(count: int, plan: SplitPlan = PLAN) -> Float32Array:
    return handover_of(images(count), plan)


def trained(out: Path, plan: SplitPlan, preset: str) -> Checkpoint:
    settings = replace(SETTINGS, steps=150)
    return train(TrainRun(ClientTask(plan, images(64)), network_config(preset, plan), settings, out, cpu=True))


@pytest.fixture(scope="module")
def teacher() -> Checkpoint:
    return read_checkpoint(made_once("teacher", lambda out: trained(out, PLAN, "edge")))


@pytest.fixture(scope="module")
def normalising_teacher() -> Checkpoint:
    """With layers of normalisation, which an edge network has not."""
    return read_checkpoint(made_once("normalising-teacher", lambda out: trained(out, PLAN, "tiny")))


def work(teacher: Checkpoint, out: Path, steps: int = 2, **changes: Any) -> Distillation:
    given: dict[str, Any] = {"x_n": tensors(100, teacher.plan), "settings": SETTINGS, "source": "images",
                             "distinct": 100, "cpu": True, "steps": steps, "out": out, **changes}  # fmt: skip
    return Distillation(teacher, **given)


@pytest.fixture(scope="module")
def student(teacher: Checkpoint) -> Checkpoint:
    return read_checkpoint(made_once("student", lambda out: distill(work(teacher, out))))


@pytest.mark.parametrize("steps", [1, 2])
def test_a_distilled_head_beats_its_teacher_at_the_same_step_count(
    teacher: Checkpoint, steps: int, tmp_path: Path
) -> None:
    checkpoint, report = distill(work(teacher, tmp_path / "s", steps))
    found = report.held_out
    assert found.student < 0.8 * min(found.teacher_ddim, found.teacher_2m)
    assert (report.steps, report.tensors, found.tensors, report.server) == (steps, 80, 20, None)
    assert checkpoint.distilled is not None
    assert checkpoint.distilled.timesteps == tuple(student_timesteps(PLAN, steps))
    assert checkpoint.distilled.teacher_sha256 == teacher.weights_sha256
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_head_of_v_is_distilled_too(tmp_path: Path) -> None:
    teacher = trained(tmp_path / "teacher", replace(PLAN, prediction_type="v"), "tiny")
    _, report = distill(work(teacher, tmp_path / "s", 1))
    found = report.held_out
    assert found.student < 0.8 * min(found.teacher_ddim, found.teacher_2m)


def test_the_target_is_where_ddim_s_step_comes_from() -> None:
    rng = np.random.default_rng(0)
    a, b = PLAN.alpha_bar_at(19), PLAN.alpha_bar_at(4)
    z_t, x_0 = (rng.uniform(-0.9, 0.9, (3, 1, 8, 8)).astype(np.float32) for _ in range(2))
    epsilon = (z_t - np.float32(a**0.5) * x_0) / np.float32((1 - a) ** 0.5)
    row = StepCoefficients(*map(np.float32, step_coefficients(a, b, Sampler())))
    z_s = apply_step(z_t, epsilon, row, (-1, 1))[0]
    np.testing.assert_allclose(target_x_0(z_t, z_s, a, b), x_0, atol=2e-5)
    np.testing.assert_array_equal(target_x_0(z_t, x_0, a, 1.0), x_0)  # the last step: the image itself


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_the_loss_is_the_squared_error_of_x_0(prediction: str) -> None:
    plan, rng = replace(PLAN, prediction_type=prediction), np.random.default_rng(1)
    states, targets = rng.uniform(-1, 1, (2, 2, 6, 1, 8, 8)).astype(np.float32)
    batch = DistillTask(plan, states, targets, (19, 4), None).batch(np.arange(6), torch.Generator().manual_seed(0))
    out = torch.randn(batch.x_t.shape, generator=torch.Generator().manual_seed(1))
    for i, t in enumerate(batch.t.tolist()):
        row = step_coefficients(plan.alpha_bar_at(t), 1.0, Sampler(), prediction)
        x_0 = row.x0_scale * (batch.x_t[i] + row.x0_out * out[i])
        wanted = x_0 - torch.from_numpy(targets[(19, 4).index(t), i])
        np.testing.assert_allclose(batch.scale[i] * out[i] - batch.target[i], wanted, atol=2e-6)
    assert set(batch.t.tolist()) == {19, 4}


def test_a_resumed_run_ends_with_the_same_weights(
    teacher: Checkpoint, student: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = 0

    def stop(*_: Any) -> None:
        nonlocal seen
        seen += 1
        if seen in (20, 90):  # in the first part, and in the second
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            distill(work(teacher, tmp_path / "two", resume=True, checkpoint_minutes=0.0), stop)
    again, _ = distill(work(teacher, tmp_path / "two", resume=True, checkpoint_minutes=0.0))
    for name, weight in load_weights(again).items():
        np.testing.assert_array_equal(weight, load_weights(student)[name])
    assert [path.name for path in tmp_path.iterdir()] == ["two"]


def test_a_servers_tensors_judge_too_and_both_figures_are_said(teacher: Checkpoint, tmp_path: Path) -> None:
    server = tensors(130)[100:]
    _, report = distill(work(teacher, tmp_path / "s", 1, judge_on=server))
    assert report.server is not None
    assert report.server.tensors == 30
    assert report.server.student < 0.8 * min(report.server.teacher_ddim, report.server.teacher_2m)
    here, there = (line for line in describe_distilled(report) if line.startswith("distance"))
    assert f"{report.held_out.student:.4g} RMSE to the teacher's images on 20 held-out tensors" in here
    assert f"{report.server.student:.4g} RMSE to the teacher's images on 30 tensors of the server" in there


def test_a_student_that_is_fragile_on_a_servers_tensors_is_not_written(
    normalising_teacher: Checkpoint, tmp_path: Path
) -> None:
    """Noise without an image is nothing it ever saw: there it is no nearer to its teacher than the few steps."""
    noise = np.random.default_rng(0).standard_normal((30, *PLAN.image_shape)).astype(np.float32)
    with pytest.raises(CheckFailed, match=r"no nearer to its teacher .* on 30 tensors of the server; nothing was writ"):
        distill(work(normalising_teacher, tmp_path / "s", 2, judge_on=4 * noise))
    assert list(tmp_path.iterdir()) == []


def test_a_student_that_learnt_nothing_is_not_written(normalising_teacher: Checkpoint, tmp_path: Path) -> None:
    lazy = replace(SETTINGS, steps=3, learning_rate=1e-9)
    with pytest.raises(CheckFailed, match=r"the student of 1 steps is no nearer .* RMSE .* on 20 held-out tensors"):
        distill(work(normalising_teacher, tmp_path / "s", 1, settings=lazy))
    assert list(tmp_path.iterdir()) == []


def test_export_bakes_its_steps_and_refuses_others(student: Checkpoint, tmp_path: Path) -> None:
    bundle = export_head(student.path, tmp_path / "two.head")
    assert [r.steps for r in bundle.row_ranges] == [2]
    assert [t for t, _ in bundle.transitions] == student_timesteps(PLAN, 2)
    assert bundle.distilled == student.distilled
    assert any(line.startswith("distilled 2 steps (timesteps 19, ") for line in describe_bundle(bundle))
    for engine in ("ort-cpu", "openvino", "torch"):
        options = EngineOptions(checkpoint=student.path) if engine == "torch" else EngineOptions(threads=1)
        assert verify_bundle(bundle, engine, options).passed
    for option in ({"step_counts": (5,)}, {"cut_ratio": 0.25}, {"sampler": Sampler("dpm++2m")}, {"timesteps": (19,)}):
        with pytest.raises(InputError, match=f"was distilled for 2 steps .* leave out {next(iter(option))}"):
            export_head(student.path, tmp_path / "other.head", ExportSettings(**option))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="5 steps are not baked into"):
        bundle.row_range(5)


def test_a_bundle_that_says_it_was_distilled_for_other_steps_is_refused(student: Checkpoint, tmp_path: Path) -> None:
    from collafuse_runtimes.files.bundle import FORMAT, MANIFEST
    from collafuse_runtimes.files.sealed import read_json, write_json

    export_head(student.path, tmp_path / "two.head")
    manifest = read_json(tmp_path / "two.head" / MANIFEST, FORMAT)
    manifest["distilled"]["timesteps"] = [19, 1]
    write_json(tmp_path / "two.head" / MANIFEST, FORMAT, manifest)
    with pytest.raises(ArtefactError, match="row_ranges has other steps than the head was distilled for"):
        read_bundle(tmp_path / "two.head")


def test_the_command_line_from_hand_over_tensors_to_images(teacher: Checkpoint, tmp_path: Path) -> None:
    x_tc = tensors(100)
    handover = Handover(x_tc, PLAN, 0, 0, Sampler().to_dict(), tuple(range(39, 19, -1)), None)
    write_handover(tmp_path / "x.tc.safetensors", handover)
    data = ("--data", tmp_path / "x.tc.safetensors", "--steps", 1, "--train-steps", 120, "--learning-rate", 1e-3)
    out = done("distill", teacher.path, *data, "--ema-decay", 0.95, "--cpu", "--out", tmp_path / "one", "--json")
    report = json.loads(out)["held_out"]
    assert report["student"] < min(report["teacher_ddim"], report["teacher_2m"])
    stored = read_checkpoint(tmp_path / "one", "client").distilled
    assert stored is not None and (stored.source, stored.timesteps) == ("hand-over", (19,))
    done("export", tmp_path / "one", "--out", tmp_path / "one.head")
    done("infer", tmp_path / "one.head", tmp_path / "x.tc.safetensors", "--out", tmp_path / "images")
    with np.load(tmp_path / "images" / "images.npz") as archive:
        assert archive["images"].shape == x_tc.shape
    assert "distilled" in done("inspect", tmp_path / "one.head")
    assert "leave out step_counts" in refusal("export", tmp_path / "one", "--steps", 2, "--out", tmp_path / "x.head")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--steps", 3), "3 steps cannot be distilled; valid: 1, 2 or 4, fewer than the plan's 20"),
        (("--train-steps", 1), "training steps 1 out of range: must be at least 2 for a head of 2 steps"),
        (("--teacher-steps", 1), "teacher steps 1 out of range: must be 3 to 20"),
        (("--data", "phantom:0:10"), "10 tensors are too few to distil and to judge; valid: at least 20"),
    ],
)
def test_what_cannot_be_distilled_is_refused(
    teacher: Checkpoint, options: tuple[Any, ...], message: str, tmp_path: Path
) -> None:
    data = () if "--data" in options else ("--data", "phantom:0:40")
    assert message in refusal("distill", teacher.path, *data, *options, "--cpu", "--out", tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_a_distilled_head_is_no_teacher_and_an_output_is_not_replaced(
    teacher: Checkpoint, student: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="is a distilled head already; give the head it was distilled from"):
        distill(work(student, tmp_path / "s", 1))
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="exists already; choose another --out, or delete it"):
        distill(work(teacher, tmp_path / "there"))


def test_a_description_that_was_changed_is_refused(student: Checkpoint, tmp_path: Path) -> None:
    from collafuse_runtimes.files.checkpoint import CONFIG_FORMAT, DESCRIPTION, TRAINING_FORMAT, VERSION
    from collafuse_runtimes.files.sealed import read_json, sha256_file, write_json

    copy = Path(shutil.copytree(student.path, tmp_path / "copy"))
    config = read_json(copy / DESCRIPTION, CONFIG_FORMAT, VERSION)
    for wrong, message in (
        ({"timesteps": [5, 1]}, "do not fit the plan"),
        ({"source": "x"}, "of another kind"),
        ({"teacher_steps": 0}, "of another kind"),
        ({"teacher_sampler": {"name": "euler"}}, "unknown sampler"),
        ({"timesteps": 3}, "not iterable"),
    ):
        changed = {**config, "distilled": {**config["distilled"], **wrong}}
        write_json(copy / DESCRIPTION, CONFIG_FORMAT, changed, VERSION)
        training = read_json(copy / "training.json", TRAINING_FORMAT, VERSION)
        training["files"][DESCRIPTION] = sha256_file(copy / DESCRIPTION)
        write_json(copy / "training.json", TRAINING_FORMAT, training, VERSION)
        with pytest.raises(ArtefactError, match=message):
            read_checkpoint(copy)
