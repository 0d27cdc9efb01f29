"""The training loop."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tttlrm.checkpoints import save_model
from tttlrm.training.checkpoint import read_checkpoint, restore, save_checkpoint
from tttlrm.training.data import TrainingData
from tttlrm.training.errors import TrainingError
from tttlrm.training.graphs import GraphedSurfaceTerms, RecordedFunction
from tttlrm.training.groups import Processes
from tttlrm.training.meter import Meter
from tttlrm.training.network import TrainingNetwork, build_model
from tttlrm.training.optimizer import FlatAdamW, FlatParameters, learning_rate
from tttlrm.training.perceptual import load_perceptual_loss
from tttlrm.training.points import surface_terms
from tttlrm.training.progress import Plan, Position
from tttlrm.training.report import Curve, Display
from tttlrm.training.settings import Phase, TrainingSettings
from tttlrm.training.step import Differentiation, backpropagate
from tttlrm.training.summary import WEIGHTS, Origin, RunSummary, write_summary
from tttlrm.training.validation import Validation, Validator, write_contact_sheet

CURVE = "curve.csv"
VALIDATION = "validation.csv"
_CURVE_COLUMNS = (
    "step", "seconds", "phase", "views", "learning_rate", "loss", "mse", "log_mse", "psnr", "perceptual", "opacity",
    "depth", "points", "coverage", "solidity",
    "gradient_norm", "not_finite", "too_long", "steps_per_second", "images_per_second", "memory_gib",
)  # fmt: skip
_VALIDATION_COLUMNS = ("step", "seconds", "height", "width", "views", "psnr", "mean_color", "nearest_view", "gain")
_AGREE_EVERY = 16
"""Steps after which several processes agree on the time that has passed, for which they wait for each other."""


class Trainer:
    """One run; it goes on from its checkpoint where its folder has one."""

    def __init__(
        self, settings: TrainingSettings, processes: Processes, device: torch.device, command: str | None = None
    ) -> None:
        """``command``: what was typed, for the summary."""
        self.settings = settings
        self.processes = processes
        self.device = device
        settings.output.mkdir(parents=True, exist_ok=True)
        self.display = Display(settings.stage, active=processes.rank == 0)
        self.model = build_model(settings, device)
        self.flat = FlatParameters(self.model)
        graphs = settings.compute.graphs and device.type == "cuda"
        self.optimizer = FlatAdamW(
            self.flat,
            settings.optimizer,
            (lambda step: RecordedFunction(step, self.display.say)) if graphs else (lambda step: step),
        )
        saved = read_checkpoint(settings.output)
        self.position = Position() if saved is None else restore(saved, settings, self.optimizer)
        self.compute = settings.compute.to_compute()
        self.perceptual = (
            load_perceptual_loss(
                settings.perceptual_features,
                settings.perceptual_weights,
                device,
                self.compute.dtype or torch.float32,
            )
            if settings.has_perceptual_term
            else None
        )
        self.origin = Origin.of(settings, command, None if saved is None else saved.origin)
        self.plan = Plan(settings.phases, settings.budget)
        self.data = TrainingData(settings.data, settings.seed, device)
        self.network = TrainingNetwork(
            self.model,
            settings.schedule,
            self.compute,
            settings.compute.compile and processes.sp_size == 1,
            self.display.say,
            graphs and processes.sp_size == 1,
        )
        self._surface_terms = GraphedSurfaceTerms(self.display.say) if graphs else surface_terms
        self.meter = Meter(device)
        self._validator = Validator(settings.data, settings.report, device)
        self._averaged = build_model(settings, device, trained=False).requires_grad_(False).eval()
        self._stop = threading.Event()

    def run(self) -> bool:
        """Train to the end of the plan, or of this sitting. True where the run is complete.

        Raises:
            TrainingError: too many bad steps in a row.
        """
        with self._catch_signals(), self.display:
            count = sum(p.numel() for p in self.model.parameters())
            self.display.say(f"{self.settings.stage}: {count:,} parameters, from step {self.position.step}")
            if self._train():
                self._finish()
                return True
        return False

    def averaged_model(self) -> Any:
        """The model with the running mean of the weights, in evaluation mode. One object, updated at each call."""
        self._averaged.load_state_dict(self.flat.named(self.optimizer.mean))
        return self._averaged

    def _train(self) -> bool:
        settings, position, report = self.settings, self.position, self.settings.report
        curve, validation = self._open_curves()
        began, before = time.monotonic(), position.seconds
        while not self.plan.finished(position):
            if self.plan.enter_phase(position):
                self.display.say(f"step {position.step}: {settings.phases[position.phase]}")
            phase = settings.phases[position.phase]
            row = self._step(phase)
            position.step += 1
            agreed = self.processes.world_size == 1 or position.step % _AGREE_EVERY == 0
            if agreed:
                position.seconds = self.processes.agree(before + time.monotonic() - began, self.device)
            done = self.plan.finished(position)
            if position.step % report.log_every == 0 or done:
                self._log(row, curve)
            if position.step % report.validate_every == 0 and not done:
                self._validate(phase, validation)
            if agreed and not done and self._must_stop(position.seconds - before):
                self._save()
                self.display.say(f"stopped at step {position.step}; the same command goes on from there")
                return False
            if position.step % report.checkpoint_every == 0:
                self._save()
        return True

    def _step(self, phase: Phase) -> dict[str, Any]:
        """Take a step, and return what the curve says about it besides means."""
        settings, position, processes = self.settings, self.position, self.processes
        batch = self.data.batch(position.step, phase).scenes(processes.scenes(phase.scenes))
        num_views = batch.inputs.num_views
        progress = self.plan.phase_progress(position)
        how = Differentiation(
            settings.loss_of(phase, progress),
            self.perceptual,
            settings.compute.views_per_rendering,
            settings.model.patch,
            self._surface_terms,
        )
        terms = backpropagate(self.network, batch, processes.shard(num_views), how)
        gradient = processes.sum(self.flat.collect_gradient())
        gradient /= processes.data_groups
        rate = learning_rate(phase, position.step - position.phase_start, progress)
        checked = position.step >= settings.optimizer.skip_from_step
        norm = self.optimizer.step(gradient, rate, settings.optimizer.skip_norm if checked else math.inf)
        # Each process has a part of the other terms, but the whole of this one.
        terms["gradient_norm"] = norm / processes.sp_size
        self.meter.add(terms, phase.scenes * (num_views + batch.targets.num_views))
        return {"phase": position.phase + 1, "views": num_views, "learning_rate": rate}

    def _log(self, row: dict[str, Any], curve: Curve) -> None:
        position, optimizer = self.position, self.optimizer
        numbers = self.meter.read(self.processes)
        counts = torch.stack([optimizer.not_finite, optimizer.too_long, optimizer.bad_in_a_row]).tolist()
        not_finite, too_long, bad = (int(count) for count in counts)
        curve.add(
            {"step": position.step, "seconds": position.seconds, **row, **numbers}
            | {"not_finite": not_finite, "too_long": too_long}
        )
        self.display.update(
            self.plan.progress(position),
            f"step {position.step} loss {numbers['loss']:.4f} PSNR {numbers.get('psnr', math.nan):.2f} dB, "
            f"{numbers['steps_per_second']:.1f} steps/s, {numbers['images_per_second']:.0f} images/s, "
            f"{numbers['memory_gib']:.1f} GiB, {not_finite + too_long} skipped",
        )
        if bad >= self.settings.optimizer.max_bad_steps:
            raise TrainingError(
                f"{bad} steps in a row up to step {position.step} were skipped ({not_finite} of the run not finite, "
                f"{too_long} with a gradient longer than optimizer.skip_norm={self.settings.optimizer.skip_norm}): "
                "lower the learning rate, or raise skip_norm if the gradients are sound"
            )

    def _validate(self, phase: Phase, curve: Curve) -> list[Validation]:
        """Measure the averaged model, on the first process alone. Returns nothing on the others."""
        results: list[Validation] = []
        if self.processes.rank == 0:
            model, settings, position = self.averaged_model(), self.settings, self.position
            for num_views in settings.report.validation_views:
                result = self._validator(model, settings.schedule, self.compute, phase.size, num_views)
                results.append(result)
                height, width = phase.size
                name = f"validation_{position.step:06d}_{height}x{width}_{num_views}views.png"
                write_contact_sheet(result.pictures[:, :8], settings.output / name)
                row = {"psnr": result.psnr, "mean_color": result.mean_color, "nearest_view": result.nearest_view}
                curve.add(
                    {"step": position.step, "seconds": position.seconds, "height": height, "width": width}
                    | {"views": num_views, "gain": result.gain, **row}
                )
                self.display.say(
                    f"step {position.step}: validation {height}x{width}, {num_views} views: PSNR {result.psnr:.2f} dB, "
                    f"gain {result.gain:.2f} (mean colour {result.mean_color:.2f}, nearest {result.nearest_view:.2f})"
                )
        self.processes.barrier()
        self.meter.restart_clock()
        return results

    def _finish(self) -> None:
        """Validate, and write checkpoint, weights and summary."""
        settings = self.settings
        self._save()
        results = self._validate(settings.phases[-1], self._open_curves()[1])
        if self.processes.rank == 0:
            save_model(self.averaged_model(), settings.output / WEIGHTS)
            write_summary(self._summary(results), settings.output)
            self.display.say(f"complete after {self.position.step} steps: {settings.output / WEIGHTS}")
        self.processes.barrier()

    def _summary(self, results: list[Validation]) -> RunSummary:
        return RunSummary(
            settings=self.settings,
            position=self.position,
            origin=self.origin,
            steps_taken=int(self.optimizer.taken),
            steps_not_finite=int(self.optimizer.not_finite),
            steps_too_long=int(self.optimizer.too_long),
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            compiled=self.network.compiled,
            graphed=self.network.graphed,
            device=self.device,
            validation=results,
        )

    def _save(self) -> None:
        if self.processes.rank == 0:
            save_checkpoint(self.settings.output, self.settings, self.position, self.optimizer, self.origin)

    def _open_curves(self) -> tuple[Curve, Curve]:
        output, done, active = self.settings.output, self.position.step, self.processes.rank == 0
        return (
            Curve(output / CURVE, _CURVE_COLUMNS, done, active),
            Curve(output / VALIDATION, _VALIDATION_COLUMNS, done, active),
        )

    def _must_stop(self, seconds: float) -> bool:
        budget = self.settings.budget.stop_after_seconds
        stop = self._stop.is_set() or (budget is not None and seconds >= budget)
        return bool(self.processes.agree(float(stop), self.device))

    @contextmanager
    def _catch_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT end the sitting after the step, with a checkpoint."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {s: signal.signal(s, lambda *_: self._stop.set()) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
