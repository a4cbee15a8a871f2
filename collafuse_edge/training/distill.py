"""A head made for very few steps: it learns to land in one step where its teacher lands in many.

The map of the teacher's many deterministic steps from x_n to its image has no noise in it, so plain squared error keeps
the images sharp. Student step i, from timestep t_i to level s_i (the next of its timesteps, clean at the end), is
trained on the x_0 from which DDIM's step lands on the teacher's state z_s (Salimans & Ho 2022, appendix G):

    x_0 = (z_s - (sigma_s / sigma_t) z_t) / (alpha_s - (sigma_s / sigma_t) alpha_t)

with alpha = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar); at the end that is the teacher's image. First on the
teacher's states; then, for steps after the first, on the states that the student itself comes to.
"""

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from collafuse_edge.training.loop import OnStep, TrainRun, train
from collafuse_edge.training.settings import TrainSettings
from collafuse_edge.training.tasks import Batch, IntArray, digest_of
from collafuse_export.calibration import labels_for
from collafuse_export.fitting import Judgement, Part, in_batches, judge, teacher_states
from collafuse_runtimes.diffusion.distilled import Distilled
from collafuse_runtimes.diffusion.levels import spaced_timesteps
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.diffusion.samplers import Sampler, StepCoefficients, step_coefficients, step_table
from collafuse_runtimes.engines.base import Labels
from collafuse_runtimes.engines.torch_engine import predict_function
from collafuse_runtimes.errors import CheckFailed, InputError
from collafuse_runtimes.files.bundle import RowRange, row_ranges_at
from collafuse_runtimes.files.checkpoint import Checkpoint, load_network, read_checkpoint

if TYPE_CHECKING:
    import torch

COUNTS = (1, 2, 4)
TEACHER = Sampler("dpm++2m", levels="karras")
TEACHER_STEPS = 10
OWN_STATES_FROM = 0.4
"""Share of the optimizer steps after which later steps train on the student's own states."""
LEAST = 20
HELD_OUT = 5
"""Every fifth tensor judges and is not trained on."""


@dataclass(frozen=True)
class Distances:
    """Root mean square distance to the teacher's images: the student, and the teacher in as few steps.

    Attributes:
        tensors: judged on.
        student, teacher_ddim, teacher_2m: distances; images in [-1, 1].
        sharpness: power of the student's fine detail relative to that of the teacher's images.
    """

    tensors: int
    student: float
    teacher_ddim: float
    teacher_2m: float
    sharpness: float


@dataclass(frozen=True)
class DistillReport:
    """What a distilled head is worth.

    Attributes:
        steps: of the student.
        tensors: trained on.
        held_out: on tensors of the same kind that it was not trained on.
        server: on tensors that a server handed over, where some were given; what is learnt from local images may be no
            better there.
    """

    steps: int
    tensors: int
    held_out: Distances
    server: Distances | None


class DistillTask:
    """Pairs of states and x_0 of every student step; step and image drawn uniformly.

    Args:
        states: (k, N, C, H, W) float32, what each step begins with.
        targets: (k, N, C, H, W) float32, the x_0 it is to predict.
        timesteps: the k timesteps.
    """

    role = "client"

    def __init__(
        self,
        plan: SplitPlan,
        states: Float32Array,
        targets: Float32Array,
        timesteps: Sequence[int],
        labels: Labels | None,
    ) -> None:
        self.plan, self.states, self.targets, self.timesteps, self.labels = plan, states, targets, timesteps, labels
        rows = [step_coefficients(plan.alpha_bar_at(t), 1.0, Sampler(), plan.prediction_at(t)) for t in timesteps]
        self._rows = np.array([(row.x0_scale, row.x0_out) for row in rows])

    def __len__(self) -> int:
        return int(self.states.shape[1])

    def digest(self) -> str:
        """sha256 over states, targets, timesteps and labels."""
        labels = [] if self.labels is None else [self.labels]
        return digest_of([self.states, self.targets, np.array(self.timesteps), *labels])

    def batch(self, indices: IntArray, generator: "torch.Generator") -> Batch:
        """With x_0 = m (x_t + k F) of ``samplers``, || m k F - (x_0 - m x_t) ||^2 is the squared error of x_0."""
        import torch

        device = generator.device
        step = torch.randint(0, len(self.timesteps), (len(indices),), generator=generator, device=device).cpu().numpy()
        x_t, x_0 = self.states[step, indices], self.targets[step, indices]
        m, k = self._rows[step].T.reshape(2, -1, 1, 1, 1)
        arrays = (x_t, np.array(self.timesteps)[step], (x_0 - m * x_t).astype(np.float32), (m * k).astype(np.float32))
        x, t, target, scale = (torch.from_numpy(array).to(device) for array in arrays)
        labels = None if self.labels is None else torch.from_numpy(self.labels[indices].astype(np.int64)).to(device)
        return Batch(x, t, target, scale=scale, labels=labels)


@dataclass(frozen=True)
class Distillation:
    """What to distil, and how.

    Attributes:
        teacher: a trained head's checkpoint.
        x_n: (N, C, H, W) float32 tensors at the teacher's hand-over level.
        steps: the student's, one of ``COUNTS``.
        teacher_steps: of ``TEACHER``.
        source: "images" or "hand-over", what the tensors are.
        distinct: how many images they come from, tensor j from image j % distinct; all of one image are on one side of
            the judgement.
        labels: (N,) int32 for a conditional head, else None.
        judge_on: (M, C, H, W) float32, tensors of a server that judge too.
    """

    teacher: Checkpoint
    x_n: Float32Array
    steps: int
    settings: TrainSettings
    out: Path
    source: str
    distinct: int
    labels: Labels | None = None
    judge_on: Float32Array | None = None
    teacher_steps: int = TEACHER_STEPS
    checkpoint_minutes: float = 5.0
    resume: bool = False
    cpu: bool = False


def student_timesteps(plan: SplitPlan, steps: int) -> list[int]:
    """The hand-over level first, the others even in log-SNR above timestep 0, whose own step would change little."""
    return spaced_timesteps(plan.alpha_bar, plan.handover_level, 0, steps + 1, "log-snr")[:steps]


def distill(work: Distillation, on_step: OnStep | None = None) -> tuple[Checkpoint, DistillReport]:
    """Train the student and publish it where it is nearer to its teacher than the teacher is in as few steps.

    Raises:
        InputError: a step count, teacher or number of tensors that does not fit; ``out`` exists.
        CheckFailed: the student is no nearer on held-out tensors (nothing is written), or as ``loop.train``.
    """
    plan = work.teacher.plan
    _check(work)
    held_out = np.arange(len(work.x_n)) % work.distinct % HELD_OUT == 0
    (rows,) = row_ranges_at(plan, [student_timesteps(plan, work.steps)])
    seen, unseen = (_trajectories(work, chosen, rows) for chosen in (~held_out, held_out))
    student = _train_student(work, rows, seen, on_step)
    try:
        here = _judged(work, student, rows, unseen, "held-out tensors")
        server = None if work.judge_on is None else _judged_on_server(work, student, rows)
    except CheckFailed:
        shutil.rmtree(student.path)
        raise
    student.path.rename(work.out)
    return read_checkpoint(work.out, "client"), DistillReport(work.steps, int((~held_out).sum()), here, server)


def _check(work: Distillation) -> None:
    plan = work.teacher.plan
    if work.steps not in COUNTS or work.steps >= plan.cut:
        raise InputError(f"{work.steps} steps cannot be distilled; valid: 1, 2 or 4, fewer than the plan's {plan.cut}")
    if work.steps > 1 and work.settings.steps < 2:
        raise InputError(
            f"training steps {work.settings.steps} out of range: must be at least 2 for a head of {work.steps} steps"
        )
    if not work.steps < work.teacher_steps <= plan.cut:
        raise InputError(f"teacher steps {work.teacher_steps} out of range: must be {work.steps + 1} to {plan.cut}")
    if work.teacher.distilled is not None:
        raise InputError(f"{work.teacher.path} is a distilled head already; give the head it was distilled from")
    if work.distinct < LEAST:
        raise InputError(f"{work.distinct} tensors are too few to distil and to judge; valid: at least {LEAST}")
    if work.out.exists():
        raise InputError(f"{work.out} exists already; choose another --out, or delete it")


@dataclass(frozen=True)
class _Paths:
    """What the student's steps join: of each, (N, C, H, W) float32 states it begins with and is to end at.

    Attributes:
        begins: the first of them are the tensors at the hand-over level.
        ends: the teacher's states; the last of them are its images.
        labels: (N,) int32 for a conditional head, else None.
    """

    begins: list[Float32Array]
    ends: list[Float32Array]
    labels: Labels | None


def _trajectories(work: Distillation, chosen: "np.ndarray[Any, Any]", rows: RowRange) -> _Paths:
    """The teacher's, from some of the tensors."""
    return _paths(work, work.x_n[chosen], None if work.labels is None else work.labels[chosen], rows)


def _paths(work: Distillation, x_n: Float32Array, labels: Labels | None, rows: RowRange) -> _Paths:
    """Where the teacher comes by its many steps."""
    plan = work.teacher.plan
    own = {t for t, _ in rows.transitions}
    karras = {t for t, _ in plan.client_transitions(work.teacher_steps, TEACHER.levels)}
    way = plan.client_transitions_at(sorted(own | karras, reverse=True))
    part = Part(x_n, _predictor(work.teacher, labels))
    states = {plan.handover_level: x_n} | teacher_states(part, plan, way, {prev for _, prev in rows.transitions})
    return _Paths([states[t] for t, _ in rows.transitions], [states[prev] for _, prev in rows.transitions], labels)


def _predictor(head: Checkpoint, labels: Labels | None) -> Callable[[Float32Array, int], Float32Array]:
    network = load_network(head)
    return in_batches(lambda chosen: predict_function(network, chosen), labels)


def target_x_0(z_t: Float32Array, z_s: Float32Array, alpha_bar_t: float, alpha_bar_s: float) -> Float32Array:
    """The x_0 from which DDIM's step from z_t lands on z_s (Salimans & Ho 2022, appendix G), in [-1, 1]."""
    ratio = math.sqrt((1 - alpha_bar_s) / (1 - alpha_bar_t))
    x_0 = (z_s.astype(np.float64) - ratio * z_t) / (math.sqrt(alpha_bar_s) - ratio * math.sqrt(alpha_bar_t))
    clipped: Float32Array = x_0.clip(-1, 1).astype(np.float32)
    return clipped


def _train_student(work: Distillation, rows: RowRange, seen: _Paths, on_step: OnStep | None) -> Checkpoint:
    """One run on the teacher's states; for more than one step a second on the student's own, started from the first."""
    total = work.settings.steps
    first_steps = total if work.steps == 1 else min(round(OWN_STATES_FROM * total), total - 1)
    student = train(_run(work, rows, seen, first_steps, work.teacher, "first"), on_step)
    if work.steps > 1:
        own = replace(seen, begins=_own_states(student, rows, seen))
        whole = train(_run(work, rows, own, total - first_steps, student, "student"), on_step)
        shutil.rmtree(student.path)
        student = whole
    return student


def _run(work: Distillation, rows: RowRange, paths: _Paths, steps: int, start: Checkpoint, part: str) -> TrainRun:
    plan, teacher = work.teacher.plan, work.teacher
    targets = [
        target_x_0(z_t, z_s, plan.alpha_bar_at(t), plan.alpha_bar_at(prev))
        for z_t, z_s, (t, prev) in zip(paths.begins, paths.ends, rows.transitions, strict=True)
    ]
    timesteps = tuple(t for t, _ in rows.transitions)
    task = DistillTask(plan, np.stack(paths.begins), np.stack(targets), timesteps, paths.labels)
    distilled = Distilled(timesteps, teacher.weights_sha256, TEACHER.to_dict(), work.teacher_steps, work.source)
    settings = replace(work.settings, steps=steps, warmup_steps=min(work.settings.warmup_steps, steps))
    out = work.out.with_name(f".{work.out.name}.{part}")
    return TrainRun(
        task, teacher.network, settings, out, work.checkpoint_minutes, work.resume, work.cpu, teacher.class_names,
        start, distilled,
    )  # fmt: skip


def _own_states(student: Checkpoint, rows: RowRange, seen: _Paths) -> list[Float32Array]:
    """What each step begins with when the student itself made the ones before."""
    from collafuse_runtimes.diffusion.samplers import apply_step

    plan, predict, states = student.plan, _predictor(student, seen.labels), seen.begins[:1]
    table = step_table(plan, rows.transitions, Sampler())
    for (t, _), row in zip(rows.transitions[:-1], table.tolist(), strict=False):
        x = states[-1]
        states.append(apply_step(x, predict(x, t), StepCoefficients(*row), plan.value_range)[0])
    return states


def _judged_on_server(work: Distillation, student: Checkpoint, rows: RowRange) -> Distances:
    assert work.judge_on is not None
    labels = labels_for(range(len(work.judge_on)), work.teacher.network.num_classes)
    return _judged(work, student, rows, _paths(work, work.judge_on, labels, rows), "tensors of the server")


def _judged(work: Distillation, student: Checkpoint, rows: RowRange, unseen: _Paths, what: str) -> Distances:
    """The student and its teacher in as few steps, against the teacher's images.

    Raises:
        CheckFailed: the student is no nearer to them.
    """
    plan, ddim = work.teacher.plan, step_table(work.teacher.plan, rows.transitions, Sampler())
    (karras,) = row_ranges_at(plan, [[t for t, _ in plan.client_transitions(work.steps, "karras")]])
    x_n, images = unseen.begins[0], unseen.ends[-1]
    predict = _predictor(work.teacher, unseen.labels)
    found = judge(_predictor(student, unseen.labels), rows, ddim, x_n, images)
    rivals: list[Judgement] = [
        judge(predict, rows, ddim, x_n, images),
        judge(predict, karras, step_table(plan, karras.transitions, TEACHER), x_n, images),
    ]
    distances = Distances(len(x_n), found.rmse, rivals[0].rmse, rivals[1].rmse, found.sharpness)
    if not all(found.is_better_than(rival) for rival in rivals):
        raise CheckFailed(_no_better(work.steps, distances, what))
    return distances


def _no_better(steps: int, found: Distances, what: str) -> str:
    return (
        f"the student of {steps} steps is no nearer to its teacher than the teacher is in as many: RMSE "
        f"{found.student:.4g} against {found.teacher_ddim:.4g} (ddim) and {found.teacher_2m:.4g} (dpm++2m) on "
        f"{found.tensors} {what}; nothing was written: train longer, or on more tensors"
    )


def describe_distilled(report: DistillReport) -> list[str]:
    """Lines for people."""
    lines = _describe(report.steps, report.held_out, "held-out tensors")
    if report.server is not None:
        return lines + _describe(report.steps, report.server, "tensors of the server")
    return lines


def _describe(steps: int, found: Distances, what: str) -> list[str]:
    return [
        f"distance  {found.student:.4g} RMSE to the teacher's images on {found.tensors} {what}; the teacher in {steps} "
        f"steps: {found.teacher_ddim:.4g} by ddim, {found.teacher_2m:.4g} by dpm++2m",
        f"sharpness {found.sharpness:.3f} of the teacher's",
    ]
