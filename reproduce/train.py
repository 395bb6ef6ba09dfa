"""Train a recipe: the whole experiment, top to bottom.

    bash run_train.sh                     the headline where a GPU is present, `digits` where none is
    bash run_train.sh digits              a minute or two on 2 cores, test accuracy above 95 %
    bash run_train.sh RECIPE --dry_run    what it would take, without running it
    bash run_train.sh --list              the recipes

A run writes logs/<run>/ (its evidence), checkpoints/<run>/ (weights) and images/<run>.png (its curves). The same
command started again continues a run that was stopped.
"""

import dataclasses
import math
import sys
import time
from pathlib import Path

import paddle
from tqdm import tqdm

from common.errors import UserError
from data import load_dataset
from data.augment import Augmentation
from data.batches import augmentation_rng, dropout_seed, network_seed, pieces, step_samples
from models import build_model
from models.pretrained import load_weights, read_weights, save_weights
from reproduce import ROOT, checkpoint
from reproduce.command import run_command, say
from reproduce.evaluate import evaluate
from reproduce.prepare import finish, prepare
from reproduce.rdrop import rdrop_loss, views
from reproduce.recipes import Recipe
from reproduce.run_log import RunLog, machine
from reproduce.schedule import learning_rate

AMP_DTYPES = {"fp32": "float16", "bf16": "bfloat16", "fp16": "float16"}  # auto_cast is off in fp32


def train(recipe: Recipe, run: str, out: Path = ROOT) -> dict:
    """Train `recipe` as the run called `run`, from its newest checkpoint under `out` where there is one.

    Returns the test metrics of the last and of the best weights (see evaluate.py), as run.json has them; without
    evaluation (eval_every 0) there are none, and no best weights.
    Raises UserError for data, weights or settings that cannot be used, and for a loss that is not finite.
    """
    began = time.perf_counter()
    logs, saved = out / "logs" / run, out / "checkpoints" / run
    state = checkpoint.load_latest(saved)
    if state is not None:
        checkpoint.check_same_meaning(state.meaning, recipe.meaning(), saved)

    # 1. Data, network, optimizer.
    data = load_dataset(
        recipe.dataset,
        recipe.data_dir,
        train_per_class=recipe.train_per_class,
        validation_per_class=recipe.validation_per_class,
        split_seed=recipe.split_seed,
    )
    sizes = f"{len(data.train):,} to train on, {len(data.validation):,} held out of them, {len(data.test):,} to test on"
    say("data", f"{recipe.dataset}, {sizes}")
    if recipe.batch_size > len(data.train):
        say("note", f"a batch of {recipe.batch_size} is larger than the {len(data.train)} training images")
    if recipe.warmup_steps >= recipe.num_steps:
        say("note", f"warm-up of {recipe.warmup_steps} steps is not over after {recipe.num_steps}: the rate stays "
                    f"below {recipe.learning_rate}")  # fmt: skip
    paddle.seed(network_seed(recipe.seed))
    model = build_model(recipe.model, len(data.class_names), recipe.image_size, **recipe.dropout_rates())
    if recipe.pretrained:
        say("weights", f"{recipe.pretrained}: {load_weights(model, read_weights(recipe.pretrained), True)}")
    else:
        say("weights", "random, no pretrained file")
    optimizer = paddle.optimizer.Momentum(
        recipe.learning_rate, recipe.momentum, model.parameters(), weight_decay=recipe.weight_decay or None
    )
    # fp16 gradients underflow without loss scaling; bf16 has the range of fp32
    scaler = paddle.amp.GradScaler() if recipe.precision == "fp16" else None
    done, best = 0, {}
    if state is not None:
        checkpoint.restore(state, model, optimizer, scaler)
        done, best, state = state.step, state.best, None  # frees the copy
        say("resume", f"{saved}: continues after step {done:,} of {recipe.num_steps:,} (--restart starts over)")

    # 2. The record of the run.
    provenance = {"run": run, "recipe": dataclasses.asdict(recipe), "network": dataclasses.asdict(model.config)}
    header = {**provenance, "machine": machine(), "continued_after_step": done, "finished": False}
    log = RunLog(logs, header, done, recipe.meaning())
    provenance["class_names"] = data.class_names

    if best and best["step"] == done:  # stopped between the state and these weights, perhaps
        save_weights(saved / "best.pdparams", model, {**provenance, "step": done})

    # 3. The updates.
    batches = data.train.stream(
        requests(recipe, len(data.train), done + 1), recipe.image_size, augmentation(recipe), recipe.workers
    )
    window, seconds = [], 0.0
    remedy = "Lower --learning_rate or --alpha, or check the pretrained weights"
    model.train()
    with tqdm(
        total=recipe.num_steps,
        initial=done,
        desc=run,
        unit="step",
        dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 30,
    ) as progress:
        for step in range(done + 1, recipe.num_steps + 1):
            started, last = time.perf_counter(), step == recipe.num_steps
            rate = learning_rate(step, recipe.learning_rate, recipe.num_steps, recipe.warmup_steps, recipe.schedule)
            optimizer.set_lr(rate)
            paddle.seed(dropout_seed(recipe.seed, step))
            parts = accumulate_gradients(recipe, model, scaler, batches)
            if not math.isfinite(parts["loss"]):
                raise UserError(f"step {step}: the loss is {parts['loss']}; {checkpoint.newest(saved)}. {remedy}")
            norm = apply_gradients(recipe, model, optimizer, scaler)
            if scaler is None and not math.isfinite(norm):  # with loss scaling such a step is skipped
                raise UserError(f"step {step}: the gradient norm is {norm}; {checkpoint.newest(saved)}. {remedy}")
            window.append(parts)
            seconds += time.perf_counter() - started
            progress.update()

            if step % recipe.log_every == 0 or last:
                row = {f"train/{name}": sum(p[name] for p in window) / len(window) for name in parts}
                row |= {
                    "train/learning_rate": rate,
                    "train/images_per_second": len(window) * recipe.batch_size / seconds,
                }
                log.add(step, row)
                progress.set_postfix_str(
                    f"loss {row['train/loss']:.3f}, {row['train/images_per_second']:.0f} images/s"
                    + (f", best {recipe.select_on} {100 * best['accuracy']:.2f} %" if best else "")
                )
                window, seconds = [], 0.0

            improved = False
            splits = splits_to_evaluate(recipe, step)
            if splits:
                row = {}
                for split in splits:
                    row |= scores(recipe, model, data, split)
                log.add(step, row)
                accuracy = row.get(f"{recipe.select_on}/accuracy", -1.0)
                improved = accuracy > best.get("accuracy", -1.0)
                if improved:
                    best = {"step": step, "accuracy": accuracy, "selected_on": recipe.select_on}
                listed = ", ".join(f"{name} {value:.4f}" for name, value in row.items())
                progress.write(f"step {step:,}: {listed}{' (best so far)' if improved else ''}")
            if step % recipe.save_every == 0 or improved or last:
                checkpoint.save(saved, checkpoint.capture(step, recipe.meaning(), model, optimizer, scaler, best))
            if improved:  # after the state, which says so: see "resume" above
                save_weights(saved / "best.pdparams", model, {**provenance, "step": step})

    # 4. The result: the last weights and the best ones, each on the whole test set.
    save_weights(saved / "last.pdparams", model, {**provenance, "step": recipe.num_steps})
    result = {"last": {"step": recipe.num_steps}}
    if best:
        last_test = best_test = run_evaluation(recipe, model, data, "test")
        if best["step"] < recipe.num_steps:
            load_weights(model, read_weights(saved / "best.pdparams"), replace_head=False)
            best_test = run_evaluation(recipe, model, data, "test")
        best_test.save(logs / "predictions.npz")
        result["last"]["test"] = last_test.metrics()
        result["best"] = {**best, "test": best_test.metrics()}
        log.add(recipe.num_steps, {f"test/{name}": result["last"]["test"][name] for name in ("accuracy", "nll")})
    log.close(finished=True, seconds=round(time.perf_counter() - began, 1), result=result)
    return result


def accumulate_gradients(recipe: Recipe, model, scaler, batches) -> dict:
    """Forward and backward of the micro-batches of one update; returns the loss and its parts as floats.

    Gradients add up to those of the whole batch, whatever the micro-batches: each counts by its share of images.
    """
    parts = {"loss": 0.0, "cross_entropy": 0.0, "kl": 0.0}
    for _ in micro_batches(recipe):
        images, labels = next(batches)  # (n, 3, S, S), (n,)
        with paddle.amp.auto_cast(recipe.precision != "fp32", dtype=AMP_DTYPES[recipe.precision]):
            logits_a, logits_b = views(model, images, recipe.num_views)  # (n, classes) each
        found = rdrop_loss(logits_a, logits_b, labels, recipe.alpha, recipe.kl_sum_over, recipe.loss_form)
        share = len(labels) / recipe.batch_size
        loss = found.loss * share
        (scaler.scale(loss) if scaler else loss).backward()
        for name, value in found._asdict().items():
            parts[name] += float(value) * share
    return parts


def apply_gradients(recipe: Recipe, model, optimizer, scaler) -> float:
    """Clip the global norm, update, clear; returns the norm before clipping.

    With loss scaling, clipping sees the unscaled gradients.
    """
    if scaler:
        scaler.unscale_(optimizer)
    norm = paddle.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm or math.inf)
    if scaler:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()
    optimizer.clear_grad()
    return float(norm)


def requests(recipe: Recipe, num_samples: int, first_step: int):
    """(indices, random numbers) of every micro-batch from update `first_step` on."""
    for step in range(first_step, recipe.num_steps + 1):
        samples = step_samples(recipe.seed, step, recipe.batch_size, num_samples)
        draws = augmentation(recipe).draw(augmentation_rng(recipe.seed, step), recipe.batch_size)
        for piece in micro_batches(recipe):
            yield samples[piece], draws[piece]


def micro_batches(recipe: Recipe) -> list[slice]:
    """The pieces of one update's batch that are computed one after the other."""
    return pieces(recipe.batch_size, math.ceil(recipe.batch_size / recipe.micro_batch_size))


def augmentation(recipe: Recipe) -> Augmentation:
    return Augmentation(min_area=recipe.crop_min_area, flip=recipe.flip)


def run_evaluation(recipe: Recipe, model, data, split: str):
    images = getattr(data, split)
    return evaluate(model, images, recipe.image_size, recipe.eval_batch_size, recipe.workers, split)


def splits_to_evaluate(recipe: Recipe, step: int) -> list[str]:
    """What is evaluated after update `step`; the test set at the end has a place of its own."""
    last = step == recipe.num_steps
    if not recipe.eval_every:
        return []
    validate = step % recipe.eval_every == 0 or last
    test = recipe.test_every and step % recipe.test_every == 0 and not last
    if recipe.select_on == "test":
        test = test or validate
    return ["validation"] * bool(validate and recipe.validation_per_class) + ["test"] * bool(test)


def scores(recipe: Recipe, model, data, split: str) -> dict:
    metrics = run_evaluation(recipe, model, data, split).metrics()
    return {f"{split}/{name}": metrics[name] for name in ("accuracy", "nll")}


def main() -> None:
    job = prepare(__doc__)
    if job.result is None:
        job.result = train(job.recipe, job.run, job.out)
    finish(job)


if __name__ == "__main__":
    run_command(main)
