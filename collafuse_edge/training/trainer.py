"""One training as an object that is driven step by step (torch, accelerate; the moving average from diffusers)."""

import math
import time
from typing import TYPE_CHECKING, ClassVar

from collafuse_edge.training.arithmetic import describe_arithmetic
from collafuse_edge.training.compiled import require_compiler, require_same_gradients
from collafuse_edge.training.resume import Progress, TrainState, read_resume, resume_path, write_resume
from collafuse_edge.training.run import TrainRun, require_output
from collafuse_edge.training.settings import TrainSettings
from collafuse_edge.training.tasks import Batch, batch_indices, step_seed
from collafuse_runtimes.device.versions import git_commit, versions
from collafuse_runtimes.errors import CheckFailed, InputError
from collafuse_runtimes.files.checkpoint import Checkpoint, Description, load_network, read_checkpoint, write_checkpoint

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

LOSS_ENTRIES = 100
"""Entries of the loss curve kept in training.json."""


class Trainer:
    """A training between two optimizer steps.

    ``loop.train`` is the usual way through it; a loop of one's own is

        with hold_output(run):
            trainer = Trainer.start(run)
            while not trainer.done:
                loss = trainer.step()
            checkpoint = trainer.publish()

    Of several processes all make the same calls, and the first one writes. A state saved after any step continues to
    the weights of an unbroken run. A process trains one run at a time, as accelerate keeps precision and accumulation
    for the whole process: once another trainer is made, the earlier makes no more steps.

    Attributes:
        run: what is trained.
        progress: where it stands; ``step`` keeps it.
    """

    _made: ClassVar[int] = 0

    def __init__(self, run: TrainRun) -> None:
        """A run at its beginning; ``start`` also looks at the output and resumes.

        Raises:
            InputError: settings the device or the process count cannot honour.
            CheckFailed: ``settings.compile`` is set and the compiled network has other gradients.
        """
        import torch

        Trainer._made += 1
        self._number, self._whole = Trainer._made, True
        accelerator = _make_accelerator(run.settings, run.cpu)
        self.run, self.progress, self._accelerator, self._identity = run, Progress(), accelerator, run.identity()
        self._state = _make_state(run, accelerator)
        network = self._state.network
        model = torch.compile(network) if run.settings.compile else network
        self._model, self._optimizer = accelerator.prepare(model, self._state.optimizer)
        if run.settings.compile:
            with accelerator.no_sync(self._model):
                require_same_gradients(network, self._model, lambda module: self._part_loss(module, self._batch(), 0))
        self._start_clock()

    @classmethod
    def start(cls, run: TrainRun) -> "Trainer":
        """Prepare the run, or take up its resume state where ``run.resume`` is set and there is one.

        Raises:
            InputError: the output exists, settings the device or the process count cannot honour, or a resume state of
                another run.
            ArtefactError: there is no folder to write to, or the resume state is damaged.
            CheckFailed: the compiled network has other gradients.
        """
        require_output(run)
        trainer = cls(run)
        path = resume_path(run.out)
        if run.resume and path.exists():
            trainer.progress = read_resume(path, trainer._state, trainer._identity)
        trainer._start_clock()
        return trainer

    @property
    def done(self) -> bool:
        """Whether all steps are made."""
        return self.progress.step >= self.run.settings.steps

    @property
    def is_first_process(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return bool(self._accelerator.is_main_process)

    @property
    def images_per_second(self) -> float:
        """Of all processes together, from the start of this process to its last step; 0 before a step is made."""
        steps, seconds = self.progress.step - self._first_step, self.progress.seconds - self._seconds_before
        return steps * self.run.settings.batch_size / seconds if seconds > 0 else 0.0

    def step(self) -> float:
        """Make one optimizer step on the global batch.

        Returns:
            The mean loss over all processes.

        Raises:
            InputError: all steps are made, or a later trainer was made in this process.
            CheckFailed: loss or gradient became NaN or Inf.
        """
        if self.done:
            raise InputError(f"all {self.progress.step} steps are made; publish, or start a run of more steps")
        self._require_turn()
        self._whole = False
        for group in self._state.optimizer.param_groups:
            group["lr"] = self.run.settings.learning_rate_at(self.progress.step + 1)
        loss = self._optimizer_step()
        self._state.ema.step(self._state.network.parameters())
        self.progress.add(loss, every=max(self.run.settings.steps // LOSS_ENTRIES, 1))
        self.progress.seconds = self._seconds_before + time.monotonic() - self._started
        self._whole = True
        return loss

    def save(self) -> None:
        """Write the resume state beside the output.

        Raises:
            CheckFailed: the last step was broken off, so the weights are of no step.
            ArtefactError: it cannot be written; an older one is untouched.
        """
        if not self._whole:
            step = self.progress.step + 1
            raise CheckFailed(f"step {step} was broken off and cannot be saved; start again from the last saved state")
        if self.is_first_process:
            write_resume(resume_path(self.run.out), self._state, self.progress, self._identity)

    def publish(self) -> Checkpoint:
        """Write the checkpoint directory and remove the resume state; the trainer is used up then.

        Raises:
            InputError: steps are left to make.
            ArtefactError: it cannot be written.
        """
        if not self.done:
            raise InputError(f"{self.progress.step} of {self.run.settings.steps} steps are made; make the others first")
        if self.is_first_process:
            self._write()
            resume_path(self.run.out).unlink(missing_ok=True)
        self._accelerator.wait_for_everyone()
        self._accelerator.end_training()
        return read_checkpoint(self.run.out, self.run.task.role)

    def any_process(self, flag: bool) -> bool:
        """Whether the flag is set in any process of the run; all of them ask at once."""
        if self._accelerator.num_processes == 1:
            return flag
        import torch

        votes = torch.tensor(float(flag), device=self._accelerator.device)
        return bool(self._accelerator.reduce(votes, reduction="sum") > 0)

    def _require_turn(self) -> None:
        if self._number != Trainer._made:
            raise InputError(
                f"the training of {self.run.out} was left at step {self.progress.step} when this process began another"
                "; save it, then start it with resume"
            )

    def _start_clock(self) -> None:
        self._started = time.monotonic()
        self._first_step, self._seconds_before = self.progress.step, self.progress.seconds

    def _optimizer_step(self) -> float:
        """On this process's share of the global batch; returns the mean loss over all processes."""
        import torch

        settings, accelerator, batch = self.run.settings, self._accelerator, self._batch()
        total, norm = torch.zeros((), device=accelerator.device), torch.zeros(())
        for part in range(settings.accumulation):
            with accelerator.accumulate(self._model):
                loss = self._part_loss(self._model, batch, part)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(self._model.parameters(), settings.clip_norm)
                self._optimizer.step()
                self._optimizer.zero_grad()
                total += loss.detach() / settings.accumulation
        mean = float(accelerator.reduce(total, reduction="mean"))
        self._require_finite("loss", mean)
        if accelerator.scaler is None:  # a gradient scaler skips the step itself and lowers its scale
            self._require_finite("gradient norm", float(norm))
        return mean

    def _batch(self) -> Batch:
        """The global batch of the next step: a function of (seed, step) alone."""
        import torch

        task, settings, step = self.run.task, self.run.settings, self.progress.step
        indices = batch_indices(len(task), settings.batch_size, settings.seed, step)
        generator = torch.Generator(self._accelerator.device).manual_seed(step_seed(settings.seed, step))
        return task.batch(indices, generator)

    def _part_loss(self, model: "torch.nn.Module", batch: Batch, part: int) -> "torch.Tensor":
        """The loss of one accumulation part of this process."""
        import torch

        parts, processes = self.run.settings.accumulation, self._accelerator.num_processes
        own = batch.rows(slice(self._accelerator.process_index * parts + part, None, processes * parts))
        x_t = own.x_t.to(memory_format=torch.channels_last) if self.run.settings.channels_last else own.x_t
        with self._accelerator.autocast():
            predicted = model(x_t, own.t, class_labels=own.labels, return_dict=False)[0]
        return own.loss(predicted)

    def _require_finite(self, name: str, value: float) -> None:
        if math.isfinite(value):
            return
        saved, step = resume_path(self.run.out), self.progress.step + 1
        hint = f"; the last saved state is {saved}" if saved.exists() else ""
        raise CheckFailed(f"the {name} became {value} at step {step}: lower the learning rate and train anew{hint}")

    def _write(self) -> None:
        run, state, device = self.run, self._state, self._accelerator.device.type
        training = {
            "settings": run.settings.to_dict(),
            "steps": self.progress.step,
            "images": len(run.task),
            "losses": [list(pair) for pair in self.progress.losses],
            "seconds": round(self.progress.seconds, 3),
            "device": device,
            "arithmetic": describe_arithmetic(device),
            "processes": self._accelerator.num_processes,
            "versions": versions("collafuse-edge", "torch", "diffusers", "accelerate", "numpy"),
            "git_commit": git_commit(),
        }
        description = Description(run.task.role, run.task.plan, run.network, run.class_names, run.distilled)
        write_checkpoint(run.out, description, model=state.model_tensors(), ema=state.ema_tensors(), training=training)


def _make_state(run: TrainRun, accelerator: "Accelerator") -> TrainState:
    """Network, moving average and optimizer at the run's beginning, on the device."""
    import torch
    from diffusers.training_utils import EMAModel

    from collafuse_edge.training.presets import build_network

    settings = run.settings
    fresh = build_network(run.network, settings.seed) if run.start is None else load_network(run.start)
    network = fresh.train().requires_grad_(True).to(accelerator.device)
    if settings.channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = EMAModel(network.parameters(), decay=settings.ema_decay)
    ema.to(accelerator.device)
    adam = torch.optim.Adam(network.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99))
    return TrainState(network, ema, adam, accelerator.scaler)


def _make_accelerator(settings: TrainSettings, cpu: bool) -> "Accelerator":
    """The device and processes to train on.

    Raises:
        InputError: it cannot honour the precision, the compiler is missing, or the batch cannot be shared.
    """
    accelerator = _fresh_accelerator(settings, cpu)
    if settings.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise InputError("mixed precision fp16 needs a GPU; valid on a CPU: no, bf16")
    if settings.compile:
        require_compiler(accelerator.device.type)
    parts = accelerator.num_processes * settings.accumulation
    if settings.batch_size % parts:
        raise InputError(
            f"batch size {settings.batch_size} cannot be shared by {accelerator.num_processes} processes with "
            f"accumulation {settings.accumulation}; valid: multiples of {parts}"
        )
    return accelerator


def _fresh_accelerator(settings: TrainSettings, cpu: bool) -> "Accelerator":
    """An accelerator of these settings, whatever was trained in this process before."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import GradientAccumulationPlugin

    plugin = GradientAccumulationPlugin(num_steps=settings.accumulation, sync_with_dataloader=False)
    # accelerate keeps the first run's precision for the whole process, and has no public way to forget it.
    AcceleratorState._reset_state()
    try:
        return Accelerator(mixed_precision=settings.mixed_precision, gradient_accumulation_plugin=plugin, cpu=cpu)
    except ValueError as error:
        raise InputError(
            f"mixed precision {settings.mixed_precision} cannot run here: {error}; use --mixed-precision no"
        ) from None
