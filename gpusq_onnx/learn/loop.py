"""The training loop: forward, losses, backward, clip, step, masks; round by round logged, judged and saved.

    every step    each part of the batch: teacher without gradients, student, losses; gradients under masks cleared,
                  clipped; AdamW; zeros written again; scales kept positive; running mean
    every round   (at most 100 steps) losses summed over processes, one row of the curve, the guard's verdict, a note
                  for whoever watches, a checkpoint where the last one is old
    every epoch   the zero patterns verified; at the end, too

Whatever is random follows from the seed and the step's number, so that a run that was killed goes on from its
checkpoint to the same bytes. Source: docs/method.md; the parts' own files say which formula is whose.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from gpusq_onnx.data.source import Source
from gpusq_onnx.errors import PassFailed, UsageError
from gpusq_onnx.files import present
from gpusq_onnx.learn import checkpoint as files
from gpusq_onnx.learn.average import Average
from gpusq_onnx.learn.compare import class_readings, compare, first_look
from gpusq_onnx.learn.feed import Feed, Part, check_labels
from gpusq_onnx.learn.guard import RETRIES, Guard
from gpusq_onnx.learn.hardware import Hardware
from gpusq_onnx.learn.history import History, StudentComparison
from gpusq_onnx.learn.log import Log
from gpusq_onnx.learn.masks import Kept, Masks
from gpusq_onnx.learn.meter import ProgressMeter
from gpusq_onnx.learn.objectives import Objective
from gpusq_onnx.learn.optimiser import optimiser, rate, set_rate
from gpusq_onnx.learn.settings import JUDGED, TrainingOptions
from gpusq_onnx.learn.setup import Setup, phases
from gpusq_onnx.learn.teaching import Teaching
from gpusq_onnx.learn.views import NetworkViews
from gpusq_onnx.progress import NullProgress, Progress
from gpusq_onnx.runtime.machine import freed_memory_kept

ROUNDS, LONGEST = 50, 100  # rounds of a run, and steps of a round at most
SCALE_FLOOR = 2.0**-6  # of a scale's first value: it may shrink, never vanish


def train(
    setup: Setup,
    source: Source,
    settings: TrainingOptions,
    *,
    factors: Sequence[float] | None = None,
    kept: Mapping[str, Kept] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    folder: Path | None = None,
    label: str = "training",
    interval: float = 60.0,
) -> History:
    """Train `setup.student` in place.

    Args:
        setup: student, teacher and what is compared.
        source: the images.
        factors: w_i of each critical map; none: 1.
        kept: zero patterns by initializer (`masks.patterns`).
        folder: for checkpoints and logs; a checkpoint of the same run is gone on from. None: keep none.
        label: what the progress line calls it.
        interval: seconds between checkpoints.

    Raises:
        PassFailed: losses that are not finite, RETRIES times rolled back in vain.
        InvariantError: a pruned weight has moved away from zero.
        UsageError, UnsupportedDataError, EnvironmentLacking: what cannot be trained, or not here.
    """
    if source.whole is not None and source.whole.resized:
        setup = setup.on_all_tokens()
    hardware, progress = Hardware(settings), progress or NullProgress()
    trainer = _Trainer(setup, source, settings, kept or {}, seed, hardware)
    watch = ProgressMeter(progress, label, interval, settings.work)
    thin = None if setup.thin_teacher is None else setup.thin_teacher.to(hardware.device)
    made = present(folder) if folder is not None and hardware.leads else nullcontext()
    with made, Teaching(setup.teacher.to(hardware.device), hardware, thin) as teaching:
        hardware.wait()
        seen, taught = first_look(setup, source, hardware)
        if settings.takes_labels:
            check_labels(source.labels, seen, setup.kinds)
        objective = Objective(
            settings,
            setup.outputs,
            setup.kinds,
            setup.maps,
            [1.0] * len(setup.maps) if factors is None else list(factors),
            class_readings(setup, seen, taught),
        )
        if source.whole is None:  # such feeds have denominators of their own, as parts have
            objective = replace(objective, add=hardware.add, processes=hardware.processes)
        remembered = teaching.remember(source, settings, progress)

        def judged(when: str) -> StudentComparison:
            what = f"{label}: agreement {when}"
            return compare(setup, source, objective, hardware, JUDGED, progress, what)

        before = judged("before")
        with freed_memory_kept():
            trainer.run(objective, teaching, folder, watch)
        after = judged("after")
    trainer.notes += _further(before.soft, after.soft)
    return History(
        before=before,
        after=after,
        steps=trainer.feed.total,
        batch=trainer.feed.rows,
        processes=hardware.processes,
        bf16=hardware.bf16,
        masks=len(trainer.masks),
        checks=trainer.masks.checks,
        remembered=remembered,
        curve=trainer.curve,
        notes=trainer.notes,
    )


def _further(before: float, after: float) -> list[str]:
    """The note that training took the student away from its teacher; none for a difference of less than four digits."""
    first, last = f"{before:.4g}", f"{after:.4g}"
    if after <= before or first == last:
        return []
    moved = f"{first} -> {last}"
    return [f"the model is further from its teacher than it was before ({moved}): a smaller lr, or more epochs"]


class _Trainer:
    """One run: what is trained, and with what."""

    def __init__(
        self,
        setup: Setup,
        source: Source,
        settings: TrainingOptions,
        kept: Mapping[str, Kept],
        seed: int,
        hardware: Hardware,
    ) -> None:
        self.setup, self.source, self.settings, self.hardware = setup, source, settings, hardware
        self.feed = Feed(source, settings, seed, hardware.rank, hardware.processes)
        student = setup.student.train()
        named = list(student.named_parameters())
        self.network = hardware.place(NetworkViews(setup.views))
        self.seed = seed
        self.ends = [(round(share * self.feed.total), apart, thin) for share, apart, thin in phases(settings)]
        self.parameters = [parameter for _, parameter in named]
        self.scales = [p for name, p in named if student.roles[name] == "scale"]
        self.floors = [p.detach() * SCALE_FLOOR for p in self.scales]
        self.masks = Masks(student, student.initializers, kept)
        self.optimiser = optimiser(named, student.roles, settings)
        self.average = Average(self.parameters, settings.average)
        self.guard = Guard(self.parameters)
        self.curve: list[dict[str, float]] = []
        self.notes = [*setup.notes, *self.feed.notes]
        self.key = ""

    def run(self, objective: Objective, teaching: Teaching, folder: Path | None, watch: ProgressMeter) -> None:
        """All steps that are left."""
        total = self.feed.total
        ends = {end for end, _, _ in self.ends}
        length = max(1, min(LONGEST, math.ceil(total / ROUNDS)))
        if folder is not None:
            self.key = self._key()
        start = self._start(folder)
        with Log(folder if self.hardware.leads else None, start) as log:
            self.notes += [note for note in (log.note,) if note and note not in self.notes]
            watch.begin(start, total, self.feed.rows)
            sums: dict[str, Tensor] = {}
            done = start  # steps of earlier rounds
            for step, parts in enumerate(self.feed.steps(start, total), start):
                self._step(step, total, parts, objective, teaching, sums)
                if (step + 1) % self.feed.per_epoch == 0:
                    self.masks.verify(f"epoch {(step + 1) // self.feed.per_epoch}")
                if (step + 1) % length and step + 1 not in ends:
                    continue
                row, done = self._row(sums, step, step + 1 - done), step + 1
                speed = watch.tell(step + 1, row["loss"])
                going = self._judged(row, step, folder, teaching)
                log.write({**row, "epoch": step // self.feed.per_epoch, "images_per_second": speed})
                if not going:
                    break
                if step + 1 in ends:
                    self.guard.forget()
                if folder is not None and self.hardware.leads and watch.save_now(step + 1 == total):
                    self._save(folder, step + 1)
        watch.end()
        self.average.store()
        self.masks.verify("the end")

    def _step(
        self,
        step: int,
        total: int,
        parts: Sequence[Part],
        objective: Objective,
        teaching: Teaching,
        sums: dict[str, Tensor],
    ) -> None:
        set_rate(self.optimiser, self.settings.lr * rate(step, total, self.settings) * self.guard.rate)
        self.optimiser.zero_grad(set_to_none=True)
        view, keep = self._view(step)
        for number, part in enumerate(parts):
            inputs = part.tensors(self.setup.student.inputs, self.hardware.device)
            taught = teaching(part, inputs, keep)
            given = self.setup.handed(taught, apart=view[0])
            with self.hardware.silent(self.network, number + 1 == len(parts)):
                with self.hardware.autocast():
                    seen = self.network(view, inputs, given, keep)
                losses = objective(seen, taught, part.targets(self.hardware.device), len(part))
                (losses.total / len(parts)).backward()  # type: ignore[no-untyped-call]
            for name, value in losses.parts.items():
                sums[name] = sums.get(name, 0) + value / len(parts)
        self.masks.clear_gradients()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        sums["norm"] = sums.get("norm", 0) + norm.detach()
        self.optimiser.step()
        self.masks.apply()
        with torch.no_grad():
            for scale, floor in zip(self.scales, self.floors, strict=True):
                torch.maximum(scale, floor, out=scale)
        self.average.update(step)

    def _view(self, step: int) -> tuple[tuple[bool, bool], Tensor | None]:
        """The view of this step, as far as there is one, and the tokens that go through."""
        apart, thin = next((apart, thin) for end, apart, thin in self.ends if step < end)
        apart = apart and any(cut for cut, _ in self.setup.views)
        thin = thin and (apart, True) in self.setup.views
        view = (apart and (True, thin) in self.setup.views, thin)
        tokens = self.setup.tokens
        return view, tokens.draw(self.seed, step).to(self.hardware.device) if thin and tokens is not None else None

    def _row(self, sums: dict[str, Tensor], step: int, steps: int) -> dict[str, float]:
        """Means over the round's steps and all processes; empties `sums`."""
        found = self.hardware.add(torch.stack([value.float() for value in sums.values()])) / (
            steps * self.hardware.processes
        )
        means = dict(zip(sums, found.tolist(), strict=True))
        sums.clear()
        phase = 1 + sum(step >= end for end, _, _ in self.ends)
        several = {"phase": phase} if len(self.ends) > 1 else {}  # their losses are of different kinds
        return {"step": step + 1, **several, "lr": self.optimiser.param_groups[0]["lr"], **means}

    def _judged(self, row: dict[str, float], step: int, folder: Path | None, teaching: Teaching) -> bool:
        """Whether training goes on. Raises PassFailed where no more can be done, UnsupportedModelError for a teacher
        whose outputs are no numbers."""
        verdict = self.guard.judge(row["loss"], row["norm"], step + 1)
        if verdict in ("go on", "stop"):
            self.curve.append(row)
        if verdict == "go on":
            return True
        best = f"the weights of step {self.guard.best_step} are kept"
        self.average.restart()
        if verdict == "stop":
            rose = f"the loss rose from {self.guard.best_loss:.4g} to {row['loss']:.4g}"
            self.notes.append(f"{rose}: training stopped at step {step + 1}, {best}")
            return False
        teaching.require_finite()
        if verdict == "fail":
            if folder is not None and self.hardware.leads:
                student = self.setup.student
                tensors = {student.initializers[name]: p for name, p in student.named_parameters()}
                files.write(folder / files.BEST, tensors)
            raise PassFailed(
                "the loss is not a number, and does not become one again",
                where=f"step {step + 1}",
                found=f"{RETRIES} returns to the best weights, each with half the learning rate, did not help",
                hint="a smaller lr, or precision=float32"
                + (f"; the best weights: {folder / files.BEST}" if folder else ""),
            )
        self.optimiser.state.clear()
        self.notes.append(f"the loss was not a number at step {step + 1}: {best}, the learning rate is halved")
        return True

    def _key(self) -> str:
        """What makes this run this run: options, data, and the tensors that it starts from."""
        labels = self.source.labels if self.settings.takes_labels else None
        facts = {
            "settings": self.settings.model_dump(mode="json"),
            "seed": self.seed,
            "data": self.source.digest(),
            "labels": None if labels is None else labels.tolist(),
            "preprocess": self.source.describe().get("preprocess"),
            "torch": torch.__version__,
        }
        return files.key_of(facts, [*self.parameters, *self.setup.teacher.buffers()])

    def _save(self, folder: Path, step: int) -> None:
        tensors = self._held()
        for index, parameter in enumerate(self.parameters):
            tensors |= {f"{name}.{index}": value for name, value in self.optimiser.state[parameter].items()}
        state = files.State(step, self.guard.state(), self.curve, self.notes, self.masks.checks)
        files.save(folder, self.key, files.Checkpoint(tensors, state))

    def _held(self) -> dict[str, Tensor]:
        """What every checkpoint of this run holds; an optimiser's moments are forgotten now and then."""
        every: dict[str, Sequence[Tensor]] = {
            "parameter": self.parameters,
            "best": self.guard.best,
            "average": self.average.values,
        }
        return {f"{kind}.{index}": value for kind, values in every.items() for index, value in enumerate(values)}

    def _start(self, folder: Path | None) -> int:
        """The step to begin with, the same in every process."""
        start = self._resume(folder)
        if int(self.hardware.add(torch.tensor(start, device=self.hardware.device))) != start * self.hardware.processes:
            raise UsageError(
                "not every process finds the checkpoint",
                where=str(folder),
                hint="several hosts need an output on a file system that they share",
            )
        return start

    @torch.no_grad()
    def _resume(self, folder: Path | None) -> int:
        """Load a checkpoint, if there is one; the step to go on with."""
        held = self._held()
        moments = [{"step": torch.zeros((), device=p.device), "exp_avg": p, "exp_avg_sq": p} for p in self.parameters]
        groups = [{f"{name}.{index}": own for name, own in group.items()} for index, group in enumerate(moments)]
        found = None if folder is None else files.load(folder, self.key, held, groups, self.feed.total)
        if found is None:
            if folder is not None and (folder / files.NAME).exists():
                self.notes.append(f"{folder} holds a checkpoint of another run (model, data or options): begun anew")
            return 0
        for name, own in held.items():
            own.copy_(found.tensors[name])
        for index, (parameter, group) in enumerate(zip(self.parameters, moments, strict=True)):
            if f"step.{index}" in found.tensors:
                self.optimiser.state[parameter] = {name: found.tensors[f"{name}.{index}"] for name in group}
        state = found.state
        self.guard.load(state.guard)
        self.curve, self.notes, self.masks.checks = state.curve, state.notes, state.checks
        return state.step
