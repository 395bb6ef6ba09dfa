"""A run in progress: its records, what is due after an update, its best weights, when it is saved, its result."""

import dataclasses
import math
import os
import time

import paddle
from tqdm import tqdm

from common.errors import UserError
from data import fingerprint
from models.weights import load_weights, read_weights, save_weights
from reproduce import checkpoint, distributed
from reproduce.checkpoint import Progress, State
from reproduce.cli import Stopped, on_gpu, say
from reproduce.evaluate import evaluate_parts, metrics_of, scores
from reproduce.run_log import RunLog, machine

_SECONDS_BETWEEN_SAVES = 600  # on a GPU, where 100 updates pass quickly and a state of ViT-B/16 has 690 MB
_STEPS_ON_CPU = 100  # between two saves
_MOST_SKIPPED = 20  # updates in a row: loss scaling has then come from 65,536 to below 1


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
        if state := checkpoint.load_latest(self.saved):
            self._resume(state)
        self.progress.processes = distributed.size()
        distributed.wait()  # each process has taken its own time so far
        different = "the processes see different checkpoints there; give --out a folder that all nodes share"
        distributed.same_everywhere(self.step, f"{self.saved}: {different}")
        distributed.same_weights(model)
        self._about = {  # also goes into the weight files
            "run": job.run,
            "recipe": dataclasses.asdict(job.recipe),
            "network": dataclasses.asdict(model.config),
            "class_names": data.class_names,
        }
        started = {"machine": machine(), "continued_after_step": self.step, "finished": False}
        self.log = RunLog(self.logs, {**self._about, "images": images, **started}, self.progress.rows)
        self._skipped = 0
        self._began = time.perf_counter() - self.progress.seconds
        self._last_save = time.monotonic()
        self.bar = tqdm(
            desc=job.run,
            total=self.recipe.num_steps,
            initial=self.step,
            unit="step",
            mininterval=0.1 if os.isatty(2) else 30,  # seconds: where stderr is a file it needs no moving picture
            dynamic_ncols=True,
            disable=not distributed.is_main(),
        )

    @property
    def step(self) -> int:
        """Updates done."""
        return self.progress.step

    # Updates

    def record(self, step: int, found: dict) -> None:
        """Take what update `step` gave: see train.train_step."""
        self._check_finite(step, found)
        if found["micro_batch_size"] != self.log.header.get("micro_batch_size", self.recipe.micro_batch_size):
            self.log.note(micro_batch_size=found["micro_batch_size"])
        self.progress.window.append(found)
        self.progress.step, self.progress.evaluated = step, False
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
            raise UserError(f"{text}; {checkpoint.where_it_stands(self.saved)}. {advice}")

    # Evaluation

    def validate_if_due(self, stop) -> None:
        """Evaluate what is due and has not been; after a signal it is left to the next start."""
        splits = self._splits_due()
        if self.progress.evaluated or (splits and self._agreed(stop)[0]):
            return
        self.progress.evaluated = True
        if not splits:
            return
        row = {}
        for split in splits:
            row |= scores(self._evaluate(split), split)
        self.log.add(self.step, row)
        text = f"step {self.step:,}: " + ", ".join(f"{name} {value:.4f}" for name, value in row.items())
        accuracy = row.get(f"{self.recipe.select_on}/accuracy", -1.0)
        if accuracy > self.progress.best.get("accuracy", -1.0):
            self.progress.best = {"step": self.step, "accuracy": accuracy, "selected_on": self.recipe.select_on}
            text += " (best so far)"
        self.bar.write(text)

    def _splits_due(self) -> list[str]:
        """What is evaluated after this update; the test set at the end has a place of its own."""
        recipe, step, last = self.recipe, self.step, self.step == self.recipe.num_steps
        if not recipe.eval_every:
            return []
        validate = step % recipe.eval_every == 0 or last
        test = recipe.test_every and step % recipe.test_every == 0 and not last
        splits = ["validation"] if validate and len(self.data.validation) else []
        if test or (validate and recipe.select_on == "test"):
            splits.append("test")
        return splits

    def _evaluate(self, split: str) -> dict:
        recipe, images = self.recipe, getattr(self.data, split)
        how = recipe.image_size, recipe.eval_batch_size, recipe.workers
        return evaluate_parts(self.model, images, *how, split, recipe.scale)

    def final_evaluation(self) -> dict:
        """Test the last and the best weights, end the record; returns the result as run.json has it.

        A signal that comes now changes nothing: with this the run is done.
        """
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
        self.log.note(finished=True, seconds=round(self._seconds(), 1), result=result)
        return result

    # Saving and going on

    def catch_up(self, stop) -> None:
        """After a resume: the evaluation that a signal came before, the best weights that a kill came before."""
        best, path = self.progress.best, self.saved / "best.pdparams"
        if best and best["step"] != self.step and _step_of(path) != best["step"]:
            text = f"{path} is not that of step {best['step']:,}, as the checkpoint says"
            say("note", f"{text}; the best weights are chosen anew from here on")
            self.progress.best = {}
        if self.step:
            self.validate_if_due(stop)
            self.save_if_due(stop)

    def save_if_due(self, stop) -> None:
        """Save the state, and the weights when they are the best; raises Stopped when a signal asked to stop."""
        stopped_by, due = self._agreed(stop)
        improved = self.progress.best.get("step") == self.step
        if due or improved or stopped_by or self.step == self.recipe.num_steps:
            self.progress.seconds = self._seconds()
            if distributed.is_main():
                checkpoint.save(self.saved, self.progress, self.meaning, self.model, self.optimizer, self.scaler)
            if improved:  # after the state, which says so: see catch_up
                self._save_weights("best")
            distributed.wait()  # the others have nothing to do meanwhile
            self._last_save = time.monotonic()
        if stopped_by:
            raise Stopped(stopped_by, f"after step {self.step:,}; {checkpoint.where_it_stands(self.saved)}")

    def _agreed(self, stop) -> list[int]:
        """(the signal that any process has received or 0, whether a save is due): the same in every process."""
        if self.recipe.save_every or not on_gpu():
            due = self.step % (self.recipe.save_every or _STEPS_ON_CPU) == 0
        else:
            due = time.monotonic() - self._last_save > _SECONDS_BETWEEN_SAVES
        return distributed.largest([stop.signal, due]).tolist()

    def _seconds(self) -> float:
        """Of training, over all starts."""
        return time.perf_counter() - self._began

    def _save_weights(self, name: str) -> None:
        if distributed.is_main():
            save_weights(self.saved / f"{name}.pdparams", self.model, {**self._about, "step": self.step})

    def _resume(self, state: State) -> None:
        checkpoint.check_same_meaning(state.meaning, self.meaning, self.saved)
        checkpoint.restore(state, self.model, self.optimizer, self.scaler)
        self.progress = state.progress
        where = f"after step {self.step:,} of {self.recipe.num_steps:,}"
        say("resume", f"{self.saved}: continues {where} (--restart starts over)")
        if (before := self.progress.processes) != distributed.size():
            text = f"it was trained by {before} processes so far and is by {distributed.size()} from here on"
            say("note", f"{text}: the same samples, other dropout masks")


def _step_of(path) -> int | None:
    """After which update a weight file was written; None for one that is damaged or not there."""
    try:
        return read_weights(path).metadata.get("step")
    except UserError:
        return None


def training_record(window: list[dict], batch_size: int) -> dict:
    """Means over the updates of `window`, their rate and speed, and the GPU's peak memory.

    With loss scaling a norm may be infinite: such an update was skipped, and its norm does not count.
    """
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
