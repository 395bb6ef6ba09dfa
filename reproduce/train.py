"""Train a recipe: the whole experiment, top to bottom.

    bash run_train.sh                     the headline where a GPU is present, `digits` where none is
    bash run_train.sh digits              a minute or two on 2 cores, test accuracy above 95 %
    bash run_train.sh RECIPE --dry_run    what it would take, without running it
    bash run_train.sh --list              the recipes

A run writes logs/<run>/ (its evidence), checkpoints/<run>/ (weights) and images/<run>.png (its curves). SIGTERM or
Ctrl-C saves and stops it; the same command continues a run that was stopped, however it was stopped.

    bash run_train.sh RECIPE              all GPUs that are visible (CUDA_VISIBLE_DEVICES=0 for one)
    NPROC=2 bash run_train.sh RECIPE      two processes: on a CPU, or on the first two GPUs
    sbatch run_train.sh RECIPE            the nodes and GPUs that SLURM gives (see the script's head)
"""

import contextlib
import dataclasses
import math
import sys
import time
from pathlib import Path

import paddle
from tqdm import tqdm

from common.errors import UserError
from data import fingerprint, load_dataset
from data.augment import Augmentation
from data.sampling import augmentation_rng, dropout_seed, network_seed, pieces, step_samples
from models import build
from models.weights import load_weights, read_weights, save_weights
from reproduce import ROOT, checkpoint, distributed
from reproduce.cli import run_command, say
from reproduce.evaluate import Interrupted, evaluate_each
from reproduce.job import finish, prepare
from reproduce.optim import learning_rate
from reproduce.rdrop import rdrop_loss, views
from reproduce.recipes import Recipe
from reproduce.run_log import machine, open_log
from reproduce.stop import Stopped, StopRequest

AMP_DTYPES = {"fp32": "float16", "bf16": "bfloat16", "fp16": "float16"}  # auto_cast is off in fp32


def train(recipe: Recipe, run: str, out: Path = ROOT) -> dict:
    """Train `recipe` as the run called `run`, from its newest checkpoint under `out` where there is one.

    Returns the test metrics of the last and of the best weights (see evaluate.py), as run.json has them; without
    evaluation (eval_every 0) there are none, and no best weights.
    Raises UserError for data, weights or settings that cannot be used, and for a loss that is not finite; Stopped
    when a signal asked for it, after saving.
    """
    logs, saved = out / "logs" / run, out / "checkpoints" / run
    state = checkpoint.load_latest(saved)
    if state is not None:
        checkpoint.check_same_meaning(state.meaning, recipe.meaning(), saved)  # before anything takes time
    progress = state.progress if state is not None else checkpoint.Progress()
    distributed.same_everywhere(progress.step, f"{saved}: the processes see different checkpoints there; give --out a "
                             "folder that all nodes share")  # fmt: skip

    # 1. Data, network, optimizer.
    data = load_dataset(recipe.dataset, recipe.data_dir, **recipe.split(), strict=recipe.strict, workers=recipe.workers)
    sizes = f"{len(data.train):,} to train on, {len(data.validation):,} held out of them, {len(data.test):,} to test on"
    say("data", f"{recipe.dataset}, {sizes}")
    for note in data.notes:
        say("note", note)
    meaning = {**recipe.meaning(), "images": fingerprint(data)}
    if state is not None:
        checkpoint.check_same_meaning(state.meaning, meaning, saved)
    if recipe.batch_size > len(data.train):
        say("note", f"a batch of {recipe.batch_size} is larger than the {len(data.train)} training images")
    if recipe.warmup_steps >= recipe.num_steps:
        say("note", f"warm-up of {recipe.warmup_steps} steps is not over after {recipe.num_steps}: the rate stays "
                    f"below {recipe.learning_rate}")  # fmt: skip
    paddle.seed(network_seed(recipe.seed))
    model = build(recipe.network(len(data.class_names)))
    networks = list(getattr(model, "networks", {"": model}).values())  # one, or two side by side
    for part, pretrained in zip(networks, (recipe.pretrained, recipe.second_pretrained), strict=False):
        part.recompute, part.views_split_at = recipe.recompute, recipe.views_split_at
        if recipe.fused:
            part.fuse_attention()
        if pretrained:
            say("weights", f"{pretrained}: {load_weights(part, read_weights(pretrained), replace_head=True)}")
        else:
            say("weights", "random, no pretrained file")
    optimizer = make_optimizer(recipe, model)
    # fp16 gradients underflow without loss scaling; bf16 has the range of fp32
    scaler = paddle.amp.GradScaler() if recipe.precision == "fp16" else None
    if state is not None:
        checkpoint.restore(state, model, optimizer, scaler)
        state = None  # frees the copy
        say("resume", f"{saved}: continues after step {progress.step:,} of {recipe.num_steps:,} "
                      "(--restart starts over)")  # fmt: skip
        if progress.processes != distributed.size():
            say("note", f"it was trained by {progress.processes} processes so far and is by {distributed.size()} from "
                        "here on: the same samples, other dropout masks")  # fmt: skip
    progress.processes = distributed.size()
    distributed.wait()  # each process has taken its own time so far
    distributed.same_weights(model)

    # 2. The record of the run.
    provenance = {"run": run, "recipe": dataclasses.asdict(recipe), "network": dataclasses.asdict(model.config)}
    header = {
        **provenance,
        "images": meaning["images"],
        "machine": machine(),
        "continued_after_step": progress.step,
        "finished": False,
    }
    log = open_log(logs, header, progress.rows, recipe.meaning(), continued=progress.step > 0)
    provenance["class_names"] = data.class_names

    def save_state(folder: Path) -> None:
        checkpoint.save(folder, checkpoint.capture(progress, meaning, model, optimizer, scaler))

    def save_model(path: Path) -> None:
        save_weights(path, model, {**provenance, "step": progress.step})

    if progress.best and progress.best["step"] == progress.step:  # killed between the state and these weights, perhaps
        if not checkpoint.tried(saved / "best.pdparams", save_model):
            raise UserError(f"{saved}: the best weights cannot be written; make room, then give the same command again")
    elif progress.best and not checkpoint.is_of_step(saved / "best.pdparams", progress.best["step"]):
        say("note", f"{saved}/best.pdparams is not that of step {progress.best['step']:,}, as the checkpoint says; the "
                    "best weights are chosen anew from here on")  # fmt: skip
        progress.best = {}

    # 3. The updates.
    began, earlier_seconds = time.perf_counter(), progress.seconds
    first = progress.step + progress.evaluated  # a step that was stopped before its evaluation is taken up there
    images = data.train
    batches = images.stream(
        requests(recipe, len(data.train), progress.step + 1), recipe.image_size, augmentation(recipe), recipe.workers,
        recipe.scale,
    )  # fmt: skip
    model.train()
    with StopRequest() as stop, progress_bar(run, progress.step, recipe.num_steps) as bar:
        for step in range(first, recipe.num_steps + 1):
            last = step == recipe.num_steps
            if step > progress.step:
                started = time.perf_counter()
                rate = learning_rate(step, recipe.learning_rate, recipe.num_steps, recipe.warmup_steps, recipe.schedule)
                optimizer.set_lr(rate)
                paddle.seed(dropout_seed(recipe.seed, step, distributed.rank()))
                parts = accumulate_gradients(recipe, networks, scaler, batches)
                check_finite(parts["loss"], "loss", step, saved)
                norm = apply_gradients(recipe, model, optimizer, scaler)
                if scaler is None:  # with loss scaling such a step is skipped
                    check_finite(norm, "gradient norm", step, saved)
                spent = time.perf_counter() - started
                progress.window.append({**parts, "gradient_norm": norm, "seconds": spent})
                progress.step, progress.evaluated = step, False
                bar.update()

                if step % recipe.log_every == 0 or last:
                    row = training_record(progress.window, rate, recipe.batch_size)
                    log.add(step, row)
                    progress.window = []
                    best = f", best {recipe.select_on} {100 * progress.best['accuracy']:.2f} %" if progress.best else ""
                    speed = row["train/images_per_second"]
                    bar.set_postfix_str(f"loss {row['train/loss']:.3f}, {speed:.0f} images/s{best}")

            best_before, improved = progress.best, False
            with contextlib.suppress(Interrupted):  # by a signal: what is due is evaluated after the restart
                row = {}
                for split in splits_to_evaluate(recipe, step):
                    row |= scores(run_evaluation(recipe, model, data, split, stop), split)
                progress.evaluated = True
                if row:
                    log.add(step, row)
                    accuracy = row.get(f"{recipe.select_on}/accuracy", -1.0)
                    improved = accuracy > progress.best.get("accuracy", -1.0)
                    if improved:
                        progress.best = {"step": step, "accuracy": accuracy, "selected_on": recipe.select_on}
                    listed = ", ".join(f"{name} {value:.4f}" for name, value in row.items())
                    bar.write(f"step {step:,}: {listed}{' (best so far)' if improved else ''}")

            stopped_by = stop.agreed()
            if step % recipe.save_every == 0 or improved or last or stopped_by:
                progress.seconds = earlier_seconds + time.perf_counter() - began
                checkpoint.tried(saved, save_state)
                # after the state, which says so: see "killed" above. A full disk leaves the best weights before.
                if improved and not checkpoint.tried(saved / "best.pdparams", save_model):
                    progress.best = best_before
            if stopped_by:
                raise Stopped(stopped_by, f"after step {step:,}; {where_it_stands(saved)}")

        # 4. The result: the last weights and the best ones, each on the whole test set.
        if distributed.is_main():
            save_model(saved / "last.pdparams")
        result = {"last": {"step": recipe.num_steps}}
        if progress.best:
            try:
                last = best = run_evaluation(recipe, model, data, "test", stop)
                if progress.best["step"] < recipe.num_steps:
                    load_weights(model, read_weights(saved / "best.pdparams"), replace_head=False)
                    best = run_evaluation(recipe, model, data, "test", stop)
            except Interrupted:
                raise Stopped(stop.agreed(), f"in the last evaluation; {where_it_stands(saved)}") from None
            result["last"] |= metrics_of(last, "test")
            result["best"] = {**progress.best, **metrics_of(best, "test")}
            log.add(recipe.num_steps, scores(last, "test"))
            if data.test_is != "test":
                result["test_is"] = data.test_is
            if distributed.is_main():
                best[""].save(logs / "predictions.npz")
    seconds = earlier_seconds + time.perf_counter() - began
    log.close(finished=True, seconds=round(seconds, 1), result=result)
    return result


def where_it_stands(saved: Path) -> str:
    """For the message of a stop; the others wait, as the launcher ends all when one ends."""
    text = checkpoint.newest(saved) if distributed.is_main() else ""
    distributed.wait()
    return text


def make_optimizer(recipe: Recipe, model):
    """One optimizer for all parameters: of two networks, each number is updated by itself as by one of its own."""
    shared = {"parameters": model.parameters(), "weight_decay": recipe.weight_decay or None,
              "use_multi_tensor": recipe.fused}  # fmt: skip
    if recipe.optimizer == "adam":
        return paddle.optimizer.Adam(recipe.learning_rate, **shared)
    return paddle.optimizer.Momentum(recipe.learning_rate, recipe.momentum, **shared)


def accumulate_gradients(recipe: Recipe, networks: list, scaler, batches) -> dict:
    """Forward and backward of the micro-batches of one update; returns the loss and its parts as floats.

    `networks`: one, whose dropout makes the views, or two, which are the views.

    Gradients add up to those of the whole batch, whatever the micro-batches and processes: each counts by its share
    of images. The processes exchange them once.
    """
    parts = {"loss": 0.0, "cross_entropy": 0.0, "kl": 0.0}
    for _ in micro_batches(recipe):
        images, labels = next(batches)  # (n, 3, S, S), (n,)
        share = len(labels) / recipe.batch_size
        with paddle.amp.auto_cast(recipe.precision != "fp32", dtype=AMP_DTYPES[recipe.precision]):
            models = networks if len(networks) > 1 else networks[0]
            logits_a, logits_b = views(models, images, recipe.num_views)  # (n, classes) each
        found = rdrop_loss(logits_a, logits_b, labels, recipe.alpha, recipe.kl_sum_over, recipe.loss_form)
        loss = found.loss * share * distributed.size()  # the exchange averages over the processes
        (scaler.scale(loss) if scaler else loss).backward()
        for name, value in found._asdict().items():
            parts[name] += float(value) * share
    distributed.average_gradients(parameter for network in networks for parameter in network.parameters())
    return dict(zip(parts, map(float, distributed.sum_over_ranks(list(parts.values()))), strict=True))


def apply_gradients(recipe: Recipe, model, optimizer, scaler) -> float:
    """Clip the global norm, update, clear; returns the norm before clipping.

    With loss scaling, clipping sees the unscaled gradients.
    """
    if scaler:
        scaler.unscale_(optimizer)
    norm = clip_gradients(model.parameters(), recipe.max_grad_norm or math.inf)
    if scaler:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()
    optimizer.clear_grad(set_to_zero=False)  # zeros would be added to, and stay in memory until then
    return norm


def clip_gradients(parameters, max_norm: float) -> float:
    """Scale all gradients by min(1, max_norm / (norm + 1e-6)), torch's rule; returns their global L2 norm before.

    The sums of squares are matrix products: Paddle's own clip_grad_norm_ takes several times longer on a CPU.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    with paddle.no_grad():
        flat = [gradient.flatten() for gradient in gradients]
        norm = float(paddle.stack([paddle.matmul(each, each) for each in flat]).sum().sqrt())
        if norm + 1e-6 > max_norm:
            for gradient in gradients:
                gradient.scale_(max_norm / (norm + 1e-6))
    return norm


def check_finite(value: float, what: str, step: int, saved: Path) -> None:
    if not math.isfinite(value):
        raise UserError(f"step {step}: the {what} is {value}; {checkpoint.newest(saved)}. Lower --learning_rate or "
                        "--alpha, or check the pretrained weights")  # fmt: skip


def training_record(window: list[dict], rate: float, batch_size: int) -> dict:
    """Means of the loss, its parts and the norm before clipping over the updates of `window`, and their speed.

    With loss scaling a norm may be infinite: such an update was skipped, and its norm does not count.
    """
    seconds = sum(update["seconds"] for update in window)
    means = {}
    for name in window[0]:
        values = [update[name] for update in window if math.isfinite(update[name])]
        if name != "seconds" and values:
            means[f"train/{name}"] = sum(values) / len(values)
    return {**means, "train/learning_rate": rate, "train/images_per_second": len(window) * batch_size / seconds}


def progress_bar(title: str, done: int, total: int) -> tqdm:
    return tqdm(
        total=total,
        initial=done,
        desc=title,
        unit="step",
        dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 30,
        disable=not distributed.is_main(),
    )


def requests(recipe: Recipe, num_samples: int, first_step: int):
    """(indices, random numbers) of every micro-batch of this process from update `first_step` on."""
    for step in range(first_step, recipe.num_steps + 1):
        samples = step_samples(recipe.seed, step, recipe.batch_size, num_samples)
        draws = augmentation(recipe).draw(augmentation_rng(recipe.seed, step), recipe.batch_size)
        for piece in micro_batches(recipe):
            yield samples[piece], draws[piece]


def micro_batches(recipe: Recipe) -> list[slice]:
    """The pieces of one update's batch that this process computes one after the other."""
    own = distributed.share(recipe.batch_size)
    length = own.stop - own.start
    return [
        slice(own.start + piece.start, own.start + piece.stop)
        for piece in pieces(length, math.ceil(length / recipe.micro_batch_size))
    ]


def augmentation(recipe: Recipe) -> Augmentation:
    return Augmentation(min_area=recipe.crop_min_area, flip=recipe.flip)


def run_evaluation(recipe: Recipe, model, data, split: str, stop: StopRequest) -> dict:
    """The Evaluation of a split by the name of the network: "" is the whole, "first" and "second" those of a pair."""
    return evaluate_each(
        model, getattr(data, split), recipe.image_size, recipe.eval_batch_size, recipe.workers, split,
        scale=recipe.scale, stop=lambda: stop.signal,
    )  # fmt: skip


def splits_to_evaluate(recipe: Recipe, step: int) -> list[str]:
    """What is evaluated after update `step`; the test set at the end has a place of its own."""
    last = step == recipe.num_steps
    if not recipe.eval_every:
        return []
    validate = step % recipe.eval_every == 0 or last
    test = recipe.test_every and step % recipe.test_every == 0 and not last
    if recipe.select_on == "test":
        test = test or validate
    return ["validation"] * bool(validate and recipe.holds_out) + ["test"] * bool(test)


def scores(found: dict, split: str) -> dict:
    """What is recorded of an evaluation: "test/accuracy", and "test/first_accuracy" of the first of two networks."""
    row = {}
    for network, evaluation in found.items():
        metrics = evaluation.metrics()
        row |= {f"{split}/{network}{'_' * bool(network)}{name}": metrics[name] for name in ("accuracy", "nll")}
    return row


def metrics_of(found: dict, split: str) -> dict:
    """Everything about an evaluation, for run.json."""
    return {f"{split}{'_' * bool(network)}{network}": evaluation.metrics() for network, evaluation in found.items()}


def main() -> None:
    with prepare(__doc__) as job:
        if job.result is None:
            job.result = train(job.recipe, job.run, job.out)
        finish(job)


if __name__ == "__main__":
    run_command(main)
