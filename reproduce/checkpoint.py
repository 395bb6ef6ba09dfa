"""A run in progress: what is due after an update, its records, its best weights, and the states that it resumes from.

A state is everything that is not a function of (recipe, step): weights, optimizer memory and the progress so far.
The order of samples, the crops and the random numbers of every process are functions of the step (data/sampling.py)
and so is the rate (optim.py), so none of them needs saving. States are written whole or not at all and verified when
read; the last two are kept.
"""

import contextlib
import hashlib
import io
import math
import os
import pickle
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import paddle
from tqdm import tqdm

from common.errors import UserError
from common.safe_pickle import load_pickle
from common.system import atomic_write
from data import fingerprint
from models.weights import load_weights, read_weights, save_weights
from reproduce import distributed
from reproduce.cli import Stopped, on_gpu, say
from reproduce.evaluate import evaluate_parts, metrics_of, scores
from reproduce.recipes import Recipe
from reproduce.run_log import RunLog, machine

_SECONDS_BETWEEN_SAVES = 600  # on a GPU, where 100 updates pass quickly and a state of ViT-B/16 has 690 MB
_STEPS_ON_CPU = 100  # between two saves
_MOST_SKIPPED = 20  # updates in a row: loss scaling has then come from 65,536 to below 1
_RESTART = "say --restart to set the run aside and start over"


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0  # updates done
    best: dict = field(default_factory=dict)  # {"step", "accuracy", "selected_on"}, empty before the first evaluation
    window: list = field(default_factory=list)  # loss and its parts of the updates since the last training record
    rows: list = field(default_factory=list)  # every record so far, as metrics.jsonl has them
    seconds: float = 0.0  # of training, over all starts
    processes: int = 1  # that trained last


@dataclass
class State:
    """What a run needs to go on."""

    progress: Progress
    meaning: dict  # recipe fields that the run was started with
    model: dict[str, np.ndarray]
    optimizer: dict[str, np.ndarray]  # parameter name of the model + accumulator -> array
    scaler: dict  # loss scaling of fp16; empty otherwise


class Run:
    """One run, new or from its newest checkpoint on. Every process has one; the first process writes.

    A disk that is full ends the run with an OSError. What was saved before is whole, and the run goes on from it.
    """

    def __init__(self, job, data, model, optimizer, scaler):
        self.recipe, self.data, self.model, self.optimizer, self.scaler = job.recipe, data, model, optimizer, scaler
        self.logs, self.saved = job.logs, job.saved
        images = fingerprint(data)
        self.meaning = {**job.recipe.meaning(), "images": images}
        self.progress = Progress()
        if state := load_latest(self.saved):
            self._resume(state)
        self.progress.processes = distributed.size()
        distributed.wait()  # each process has taken its own time so far
        different = "the processes see different checkpoints there; give --out a folder that all nodes share"
        distributed.same_everywhere(self.step, f"{self.saved}: {different}")
        distributed.same_weights(model)
        self._about = {  # also goes into the weight files
            "run": job.run,
            "recipe": asdict(job.recipe),
            "network": asdict(model.config),
            "class_names": data.class_names,
        }
        started = {"machine": machine(), "continued_after_step": self.step, "finished": False}
        self.log = RunLog(self.logs, {**self._about, "images": images, **started}, self.progress.rows)
        self._check_best_weights()
        self._skipped = 0
        self._began = time.perf_counter() - self.progress.seconds  # of training, over all starts
        self._last_save = time.monotonic()
        shown = {"desc": job.run, "total": self.recipe.num_steps, "initial": self.step, "unit": "step"}
        interval = 0.1 if os.isatty(2) else 30  # seconds: where stderr is a file it needs no moving picture
        self.bar = tqdm(**shown, mininterval=interval, dynamic_ncols=True, disable=not distributed.is_main())

    @property
    def step(self) -> int:
        """Updates done."""
        return self.progress.step

    def record(self, step: int, found: dict) -> None:
        """Take what update `step` gave: see train.train_step."""
        self._check_finite(step, found)
        if found["micro_batch_size"] != self.log.header.get("micro_batch_size", self.recipe.micro_batch_size):
            self.log.note(micro_batch_size=found["micro_batch_size"])
        self.progress.window.append(found)
        self.progress.step = step
        self.bar.update()
        if step % self.recipe.log_every == 0 or step == self.recipe.num_steps:
            row = training_record(self.progress.window, self.recipe.batch_size)
            self.log.add(step, row)
            self.progress.window = []
            text = f"loss {row['train/loss']:.3f}, {row['train/images_per_second']:.0f} images/s"
            if self.progress.best:
                text += f", best {self.recipe.select_on} {100 * self.progress.best['accuracy']:.2f} %"
            self.bar.set_postfix_str(text)

    def _check_finite(self, step: int, found: dict) -> None:
        """With loss scaling, an update whose gradients overflow is skipped, and the next one is scaled less."""
        wrong = [name for name in ("loss", "gradient_norm") if not math.isfinite(found[name])]
        overflow = wrong == ["gradient_norm"] and self.scaler.is_enable()
        self._skipped = self._skipped + 1 if overflow else 0
        if wrong and not 0 < self._skipped <= _MOST_SKIPPED:
            text = f"step {step}: the {wrong[0].replace('_', ' ')} is {found[wrong[0]]}"
            advice = "Lower --learning_rate or --alpha, or check the pretrained weights"
            raise UserError(f"{text}; {where_it_stands(self.saved)}. {advice}")

    def validate_if_due(self) -> None:
        """Evaluate what is due after this update; the test set at the end has a place of its own."""
        recipe, last = self.recipe, self.step == self.recipe.num_steps
        if not recipe.eval_every:
            return
        validate = self.step % recipe.eval_every == 0 or last
        test = recipe.test_every and self.step % recipe.test_every == 0 and not last
        row = {}
        if validate and len(self.data.validation):
            row |= scores(self._evaluate("validation"), "validation")
        if test or (validate and recipe.select_on == "test"):
            row |= scores(self._evaluate("test"), "test")
        if not row:
            return
        self.log.add(self.step, row)
        text = f"step {self.step:,}: " + ", ".join(f"{name} {value:.4f}" for name, value in row.items())
        accuracy = row.get(f"{self.recipe.select_on}/accuracy", -1.0)
        if accuracy > self.progress.best.get("accuracy", -1.0):
            self.progress.best = {"step": self.step, "accuracy": accuracy, "selected_on": self.recipe.select_on}
            text += " (best so far)"
        self.bar.write(text)

    def _evaluate(self, split: str) -> dict:
        recipe, images = self.recipe, getattr(self.data, split)
        how = recipe.image_size, recipe.eval_batch_size, recipe.workers
        return evaluate_parts(self.model, images, *how, split, recipe.scale)

    def final_evaluation(self) -> dict:
        """Test the last and the best weights, end the record, whatever signal comes; returns run.json's result."""
        self._save_weights("last")
        result = {"last": {"step": self.step}}
        if self.progress.best:
            last = best = self._evaluate("test")
            if self.progress.best["step"] != self.step:
                load_weights(self.model, read_weights(self.saved / "best.pdparams"), replace_head=False)
                best = self._evaluate("test")
            result["last"] |= metrics_of(last, "test")
            result["best"] = {**self.progress.best, **metrics_of(best, "test")}
            self.log.add(self.step, scores(last, "test"))
            if self.data.test_is != "test":
                result["test_is"] = self.data.test_is
            if distributed.is_main():
                best[""].save(self.logs / "predictions.npz")
        self.log.note(finished=True, seconds=round(time.perf_counter() - self._began, 1), result=result)
        return result

    def save_if_due(self, stop) -> None:
        """Save the state, and the weights when they are the best; raises Stopped when a signal asked to stop."""
        if self.recipe.save_every or not on_gpu():
            due = self.step % (self.recipe.save_every or _STEPS_ON_CPU) == 0
        else:
            due = time.monotonic() - self._last_save > _SECONDS_BETWEEN_SAVES
        stopped_by, due = distributed.largest([stop.signal, due]).tolist()  # of any process
        improved = self.progress.best.get("step") == self.step
        if due or improved or stopped_by or self.step == self.recipe.num_steps:
            self.progress.seconds = time.perf_counter() - self._began
            if distributed.is_main():
                save(self.saved, self.progress, self.meaning, self.model, self.optimizer, self.scaler)
            if improved:  # after the state, which says so: see _check_best_weights
                self._save_weights("best")
            distributed.wait()  # the others have nothing to do meanwhile
            self._last_save = time.monotonic()
        if stopped_by:
            raise Stopped(stopped_by, f"after step {self.step:,}; {where_it_stands(self.saved)}")

    def _save_weights(self, name: str) -> None:
        if distributed.is_main():
            save_weights(self.saved / f"{name}.pdparams", self.model, {**self._about, "step": self.step})

    def _resume(self, state: State) -> None:
        check_same_meaning(state.meaning, self.meaning, self.saved)
        restore(state, self.model, self.optimizer, self.scaler)
        self.progress = state.progress
        text = f"{self.saved}: continues after step {self.step:,} of {self.recipe.num_steps:,}"
        say("resume", f"{text} (--restart starts over)")
        if (before := self.progress.processes) != distributed.size():
            text = f"it was trained by {before} processes so far and is by {distributed.size()} from here on"
            say("note", f"{text}: the same samples, other dropout masks")

    def _check_best_weights(self) -> None:
        """A kill may have come between the state and the best weights that it speaks of."""
        best, path, step = self.progress.best, self.saved / "best.pdparams", None
        if best.get("step") == self.step:
            self._save_weights("best")
            distributed.wait()
        elif best:
            with contextlib.suppress(UserError):  # damaged, or not there
                step = read_weights(path).metadata.get("step")
            if step != best["step"]:
                text = f"{path} is not that of step {best['step']:,}, as the checkpoint says"
                say("note", f"{text}; the best weights are chosen anew from here on")
                self.progress.best = {}


def training_record(window: list[dict], batch_size: int) -> dict:
    """Means over the updates of `window`, their rate and speed, the GPU's peak memory. An infinite norm is left out."""
    seconds = sum(update["seconds"] for update in window)
    row = {}
    for name in ("loss", "cross_entropy", "kl", "gradient_norm"):
        values = [update[name] for update in window if math.isfinite(update[name])]
        if values:
            row[f"train/{name}"] = sum(values) / len(values)
    row["train/learning_rate"] = window[-1]["learning_rate"]
    row["train/images_per_second"] = len(window) * batch_size / seconds
    if on_gpu():
        row["train/gpu_memory_gib"] = paddle.device.cuda.max_memory_reserved() / 2**30
    return row


def save(folder: Path, progress: Progress, meaning: dict, model, optimizer, scaler) -> None:
    """Write a State into `folder` and drop all but the last two. The file begins with the SHA-256 of the rest."""
    remembered = optimizer.state_dict()
    state = {
        "progress": vars(progress),
        "meaning": meaning,
        "model": {name: value.numpy() for name, value in model.state_dict().items()},
        "optimizer": {  # by our names: Paddle's names of parameters count up and differ in each process
            f"{name}|{key.removeprefix(parameter.name)}": value.numpy()
            for name, parameter in model.named_parameters()
            for key, value in remembered.items()
            if key.startswith(f"{parameter.name}_")
        },
        "scaler": scaler.state_dict(),
    }
    payload = pickle.dumps(state, protocol=4)
    path = folder / f"step_{progress.step:08d}.pdstate"
    for newer in _files(folder):
        if newer.name > path.name:  # a damaged one that the run has gone on without
            newer.unlink()
    with atomic_write(path) as file:
        file.write(hashlib.sha256(payload).digest())
        file.write(payload)
    for old in _files(folder)[:-2]:
        old.unlink()


def restore(state: State, model, optimizer, scaler) -> None:
    """Put a state back into freshly built objects of the same recipe."""
    model.set_state_dict({name: paddle.to_tensor(value) for name, value in state.model.items()})
    parameters, found = dict(model.named_parameters()), {}
    for name, value in state.optimizer.items():
        ours, accumulator = name.split("|")
        found[parameters[ours].name + accumulator] = paddle.to_tensor(value)
    optimizer.set_state_dict(found)
    if state.scaler:
        scaler.load_state_dict(state.scaler)


def load_latest(folder: Path) -> State | None:
    """The newest undamaged state of `folder`, None when there is none yet.

    A damaged file is named on stderr and the one before is used. Raises UserError when all are damaged.
    """
    paths = _files(folder)
    for path in reversed(paths):
        content = path.read_bytes()
        digest, payload = content[:32], content[32:]
        if hashlib.sha256(payload).digest() == digest:
            found = load_pickle(io.BytesIO(payload), str(path))
            try:
                return State(**{**found, "progress": Progress(**found["progress"])})
            except (KeyError, TypeError):
                text = f"{path}: was written by another version of this project"
                raise UserError(f"{text}; go on with it, or {_RESTART}") from None
        print(f"warning: {path} is damaged (its checksum does not match)", file=sys.stderr)
    if paths:
        raise UserError(f"{folder}: all checkpoints are damaged; {_RESTART}")
    return None


def where_it_stands(folder: Path) -> str:
    """Which state a run would go on from, for a message."""
    paths = _files(folder)
    return f"the last checkpoint is {paths[-1]}" if paths else "no checkpoint yet"


def _files(folder: Path) -> list[Path]:
    """The states of a run, oldest first: only the project's own names."""
    return sorted(folder.glob(f"step_{8 * '[0-9]'}.pdstate"))


def changed_settings(existing: dict, meaning: dict) -> str:
    """In which settings a run that exists differs from the one asked for, for a message; "" where in none."""
    # A setting that came later was at its default before.
    before = {name: existing.get(name, getattr(Recipe, name, value)) for name, value in meaning.items()}
    changed = [name for name in meaning if before[name] != meaning[name]]
    return "; ".join(f"{name} {before[name]!r} -> {meaning[name]!r}" for name in changed)


def check_same_meaning(existing: dict, meaning: dict, folder: Path) -> None:
    """Raise UserError naming the settings in which a run that exists differs from the one asked for."""
    if changed := changed_settings(existing, meaning):
        text = f"{folder}: holds a run with other settings ({changed}); choose another --run NAME, or"
        raise UserError(f"{text} {_RESTART}")
