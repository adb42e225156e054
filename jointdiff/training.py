"""The training loop: Accelerate moves it over devices; every random number follows from (seed, rank, images seen).

Nothing is carried from step to step but the weights, their moving average and the optimisers' moments, so a run that
was killed and resumed takes the very steps of one that was not.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.diffusion.loss import DenoisingLoss
from jointdiff.errors import InputError
from jointdiff.reconstruct.checkpoint import save_denoiser
from jointdiff.seeds import seed_of
from jointdiff.settings import TrainingConfig
from jointdiff.simulate.mock import Simulator

LEVELS = 8
"""Bins in noise level that the loss is logged in."""

KEPT = 2
"""Resume states that stay on disk."""

Validate = Callable[[Denoiser, int], None]
"""(denoiser with averaged weights, step) → None; logs what it finds."""


class Progress:
    """How far a run is; Accelerate keeps it beside the weights."""

    def __init__(self):
        self.step = 0

    def state_dict(self) -> dict:
        return {"step": self.step}

    def load_state_dict(self, state: dict) -> None:
        self.step = state["step"]


class MovingAverage(nn.Module):
    """Exponential moving average of a denoiser's weights: what is validated and shipped."""

    def __init__(self, denoiser: Denoiser, halflife: float):
        super().__init__()
        self.denoiser = deepcopy(denoiser).requires_grad_(False).eval()
        self._halflife = halflife

    @torch.no_grad()
    def update(self, denoiser: Denoiser, step: int) -> None:
        """After ``step`` steps; the half-life grows with the run until it reaches its own."""
        keep = 0.5 ** (1 / min(self._halflife, 1 + step / 10))
        torch._foreach_lerp_(list(self.denoiser.parameters()), list(denoiser.parameters()), 1 - keep)


def learning_rate(step: int, settings: TrainingConfig) -> float:
    """Linear warm-up, a plateau, and a linear decay to zero over the last ``decay`` of the run."""
    up = (step + 1) / max(settings.warmup_steps, 1)
    down = (settings.steps - step) / max(settings.decay * settings.steps, 1)
    return settings.learning_rate * min(1.0, up, down)


def optimizers(denoiser: Denoiser, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for the blocks' convolutions, AdamW for the rest.

    Muon's steps are scaled to the size of AdamW's (Liu et al. 2025, arXiv 2502.16982): one learning rate serves both.
    """
    matrices = denoiser.network.matrices
    others = [p for p in denoiser.parameters() if all(p is not matrix for matrix in matrices)]
    return [
        torch.optim.Muon(matrices, lr=0.0, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.99), weight_decay=weight_decay),
    ]


class Trainer:
    """One run: a denoiser, the mocks it learns from, and the folder that holds its states.

    folder: gets checkpoints/ (resume states) and model/ (averaged weights). Only the main process writes.
    """

    def __init__(
        self, accelerator: Accelerator, denoiser: Denoiser, simulator: Simulator, settings: TrainingConfig, folder: Path
    ):
        self.accelerator, self.simulator, self.settings, self.folder = accelerator, simulator, settings, folder
        denoiser = denoiser.to(accelerator.device)
        self.average, self.progress = MovingAverage(denoiser, settings.ema_halflife), Progress()
        self.denoiser = denoiser
        loss, found = DenoisingLoss(denoiser, settings.noise_levels), optimizers(denoiser, settings.weight_decay)
        self.loss, *self.optimizers = accelerator.prepare(loss, *found)
        accelerator.register_for_checkpointing(self.average, self.progress)

    def run(self, seed: int, validate: Validate | None = None) -> None:
        """Take the remaining steps; validate (on the main process) and save on the way and at the end."""
        with Meter(self.accelerator, self.settings) as meter:
            if self.progress.step == self.settings.steps:
                self._save_model()
            while self.progress.step < self.settings.steps:
                loss, each, level = self._step(seed, meter)
                self.progress.step += 1
                self.average.update(self.denoiser, self.progress.step)
                meter.record(self.progress.step, loss, each, level, self.optimizers[0].param_groups[0]["lr"])
                with meter.paused():
                    self._take_stock(validate)

    def _take_stock(self, validate: Validate | None) -> None:
        """Validate and save, where it is time to. Every process comes here: they wait for one another."""
        step, settings = self.progress.step, self.settings
        done = step == settings.steps
        if done or step % settings.validate_every == 0:
            self._save_model()  # first, so that what is validated can be named by its file
            if validate is not None and self.accelerator.is_main_process:
                validate(self.average.denoiser, step)
            self.accelerator.wait_for_everyone()
        if done or step % settings.checkpoint_every == 0:
            self.save()

    def _step(self, seed: int, meter: "Meter") -> tuple[Tensor, Tensor, Tensor]:
        step, batch = self.progress.step, self.settings.batch_size
        number = seed_of("training", seed, self.accelerator.process_index, step * batch)
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = learning_rate(step, self.settings)
        with meter.data(step + 1):
            mock = self.simulator.draw(batch, number)
        generator = torch.Generator(self.accelerator.device).manual_seed(seed_of("noise", number))
        loss, each, level = self.loss(mock.truth, mock.observations, self.simulator.grid, generator)
        if not torch.isfinite(loss.detach()):
            raise FloatingPointError(f"the loss is {float(loss.detach())} at step {step + 1}")
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.loss.parameters(), self.settings.gradient_clip)
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.detach(), each, level

    def save(self) -> None:
        """The averaged model, then a resume state: each whole or not at all, and the state last, as it ends a run."""
        states = self.folder / "checkpoints"
        final = states / f"step_{self.progress.step:08d}"
        temporary = states / f".{final.name}"
        if self.accelerator.is_main_process:
            for left in states.glob(".step_*"):  # by a run that was killed while it saved
                shutil.rmtree(left)
        self.accelerator.wait_for_everyone()
        self._save_model()
        self.accelerator.save_state(str(temporary), safe_serialization=True)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
            for old in resume_states(self.folder)[:-KEPT]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def _save_model(self) -> None:
        if self.accelerator.is_main_process:
            save_denoiser(self.average.denoiser, self.folder / "model")

    def resume(self) -> None:
        """Go back to the last state. Raises InputError where there is none, or it cannot be read."""
        states = resume_states(self.folder)
        if not states:
            raise InputError(f"resume: no checkpoint in {self.folder / 'checkpoints'}")
        try:
            self.accelerator.load_state(str(states[-1]))
        except Exception as error:  # each format in a state has exceptions of its own for a broken file
            told = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no more is known'}"
            before = f"; remove it to go on from {states[-2].name}" if len(states) > 1 else ""
            raise InputError(f"resume: cannot read {states[-1]} ({told}){before}") from error


def resume_states(folder: Path) -> list[Path]:
    """The run's whole resume states, oldest first."""
    return sorted((folder / "checkpoints").glob("step_*"))


class Meter:
    """Console and TensorBoard: loss, also against noise level, learning rate, throughput, time share of the data."""

    def __init__(self, accelerator: Accelerator, settings: TrainingConfig):
        self._accelerator, self._settings = accelerator, settings
        self._timed = 0.0
        self._bar = self._new_bar() if accelerator.is_main_process else None
        self._restart()

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _new_bar(self):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        text = TextColumn("{task.description}")
        bar = Progress(TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), text)
        self._task = bar.add_task("", total=self._settings.steps)
        bar.start()
        return bar

    def _restart(self) -> None:
        self._rows: list[tuple[Tensor, Tensor, Tensor]] = []
        self._start = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Does not count the time that the block takes."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def data(self, step: int) -> "_Clock":
        """Times drawing a batch, on the steps that are logged: waiting for the device costs."""
        return _Clock(self, self._accelerator.device, step % self._settings.log_every == 0)

    def record(self, step: int, loss: Tensor, each: Tensor, level: Tensor, rate: float) -> None:
        """Keeps one step's losses; every ``log_every`` steps, writes their means."""
        self._rows.append((loss, each, level))
        if step % self._settings.log_every and step != self._settings.steps:
            return
        loss, each, level = (torch.cat([row[i].flatten() for row in self._rows]) for i in range(3))
        loss, each, level = (self._accelerator.gather(values) for values in (loss, each, level))
        seconds, count = time.perf_counter() - self._start, len(self._rows)
        values = {"loss/train": float(loss.mean()), "rate/learning_rate": rate}
        values["rate/images_per_second"] = len(each) / self._settings.noise_levels / seconds
        if self._timed:
            values["rate/data_share"] = self._timed * count / seconds
        for index in range(LEVELS):
            inside = (level * LEVELS).long() == index
            if inside.any():
                values[f"loss_by_noise_level/{index}"] = float(each[inside].mean())
        self._accelerator.log(values, step=step)
        if self._bar is not None:
            text = f"loss {values['loss/train']:.3f}  {values['rate/images_per_second']:.0f} images/s"
            self._bar.update(self._task, completed=step, description=text)
            if not self._bar.console.is_terminal and step % (10 * self._settings.log_every) == 0:
                self._bar.console.print(f"step {step} of {self._settings.steps}: {text}", highlight=False)
        self._restart()


class _Clock:
    """Times a block once the device is idle."""

    def __init__(self, meter: Meter, device: torch.device, active: bool):
        self._meter, self._device, self._active = meter, device, active

    def __enter__(self) -> None:
        self._start = self._now()

    def __exit__(self, *_) -> None:
        if self._active:
            self._meter._timed = self._now() - self._start

    def _now(self) -> float:
        if self._active and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
