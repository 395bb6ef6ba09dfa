"""Train a recipe: the whole experiment, top to bottom.

    bash run_train.sh                     the headline where a GPU is present, `digits` where none is
    bash run_train.sh digits              one to three minutes on 2 cores, test accuracy above 95 %
    bash run_train.sh RECIPE --dry_run    what it would take, without running it
    bash run_train.sh --list              the recipes
    bash run_train.sh --gpu_check         two minutes that say whether this GPU computes right
    bash run_train.sh --study NAME        arms x seeds; `--study --help` names the studies

A run writes logs/<run>/ (its evidence), checkpoints/<run>/ (weights) and images/<run>.png (its curves). SIGTERM or
Ctrl-C saves and stops it; the same command continues a run that was stopped, however it was stopped.

    bash run_train.sh RECIPE              all GPUs that are visible (CUDA_VISIBLE_DEVICES=0 for one)
    NPROC=2 bash run_train.sh RECIPE      two processes: on a CPU, or on the first two GPUs
    sbatch run_train.sh RECIPE            the nodes and GPUs that SLURM gives (docs/cluster.md)
"""

import itertools
import math
import time

import paddle

from data import DataSet, load_dataset
from data.augment import Augmentation
from data.sampling import augmentation_rng, dropout_seed, network_seed, pieces, step_samples
from data.splits import ahead
from models import build
from models.fast_cpu import speed_up
from models.vit import compute_by
from models.weights import load_pretrained
from reproduce import distributed
from reproduce.checkpoint import Run
from reproduce.cli import StopRequest, is_out_of_memory, on_gpu, run_command, say
from reproduce.job import Job, finish, prepare
from reproduce.optim import apply_gradients, clip, global_norm, learning_rate, loss_scaler, make_optimizer
from reproduce.rdrop import RDropLoss, rdrop_loss
from reproduce.recipes import Recipe

AMP_DTYPES = {"fp32": "float16", "bf16": "bfloat16", "fp16": "float16"}  # auto_cast is off in fp32


def main() -> None:
    with prepare(__doc__) as job:  # options, device, files, lock
        if job.result is None:  # not trained before
            job.result = train(job)
        finish(job)  # prints the result, draws the curves


def train(job: Job) -> dict:
    """Train `job.recipe` from the run's newest checkpoint, or from the start; returns the result as run.json has it.

    Raises UserError for data, weights or settings that cannot be used and for a loss that is not finite, and Stopped,
    after saving, when a signal asked for it.
    """
    recipe = job.recipe
    data = load_data(recipe)
    model = build_network(recipe, len(data.class_names), job.fused)
    optimizer = make_optimizer(recipe, model)
    scaler = loss_scaler(recipe)
    run = Run(job, data, model, optimizer, scaler)
    model.train()
    with StopRequest() as stop, run.bar:
        for step, found in updates(recipe, model, optimizer, scaler, data.train, run.step + 1):
            run.record(step, found)
            run.validate_if_due()
            run.save_if_due(stop)
        return run.final_evaluation()


def load_data(recipe: Recipe) -> DataSet:
    """The images of the recipe, and what there is to say about them."""
    data = load_dataset(recipe.dataset, recipe.data_dir, **recipe.split(), strict=recipe.strict, workers=recipe.workers)
    sizes = f"{len(data.train):,} to train on, {len(data.validation):,} held out of them, {len(data.test):,} to test on"
    say("data", f"{recipe.dataset}, {sizes}")
    for note in data.notes:
        say("note", note)
    return data


def build_network(recipe: Recipe, num_classes: int, fused: bool):
    """The network of the recipe with its first weights, or two side by side. `fused`: attention in one GPU kernel."""
    paddle.seed(network_seed(recipe.seed))
    model = build(recipe.network(num_classes))
    compute_by(model, recipe.recompute, fused)
    for line in load_pretrained(model, recipe.pretrained, recipe.second_pretrained):
        say("weights", line)
    return speed_up(model)


def updates(recipe: Recipe, model, optimizer, scaler, images, first: int):
    """Yield (step, what `train_step` gave) for every update from `first` on.

    When memory runs out the update is repeated with micro-batches of half the size.
    """
    step, size = first, recipe.micro_batch_size
    stream = micro_batches(recipe, images, step, size)
    while step <= recipe.num_steps:
        batches = itertools.islice(stream, len(pieces_of_a_batch(recipe, size)))
        found = train_step(recipe, model, optimizer, scaler, step, batches)
        if found is not None:
            yield step, {**found, "micro_batch_size": size}
            step += 1
            continue
        if size == 1:
            raise MemoryError
        size = math.ceil(size / 2)
        say("note", f"step {step:,}: out of memory; goes on with --micro_batch_size {size}")
        if on_gpu():
            paddle.device.cuda.empty_cache()
        stream = micro_batches(recipe, images, step, size)


def train_step(recipe: Recipe, model, optimizer, scaler, step: int, batches) -> dict | None:
    """One update: forward and backward of its micro-batches, then gradients exchanged, clipped and applied.

    Returns means over the batch of loss, cross_entropy and kl, and gradient_norm before clipping, learning_rate and
    seconds, as numbers; None when memory ran out in a process, with nothing changed.
    """
    began = time.perf_counter()
    rate = learning_rate(step, recipe.learning_rate, recipe.num_steps, recipe.warmup_steps, recipe.schedule)
    optimizer.set_lr(rate)
    paddle.seed(dropout_seed(recipe.seed, step, distributed.rank()))
    sums = add_gradients(recipe, model, scaler, batches)
    if distributed.largest([sums is None])[0]:
        optimizer.clear_grad(set_to_zero=False)
        return None
    distributed.average_gradients(model.parameters())
    scaler.unscale_(optimizer)  # the norm is that of the true gradients
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = global_norm(gradients).astype("float64").reshape([1])
    numbers = paddle.concat([distributed.summed(sums), norm])
    names = (*RDropLoss._fields, "gradient_norm")
    found = dict(zip(names, numbers.tolist(), strict=True))  # the one transfer of an update
    clip(gradients, found["gradient_norm"], recipe.max_grad_norm or math.inf)
    apply_gradients(optimizer, scaler)
    return {**found, "learning_rate": rate, "seconds": time.perf_counter() - began}


def add_gradients(recipe: Recipe, model, scaler, batches):
    """Forward and backward of this process's micro-batches: loss, cross-entropy and KL, float64 (3,) on the device.

    Gradients add up to those of the whole batch, whatever the micro-batches and processes: each counts by its share
    of images. None when memory ran out.
    """
    sums = paddle.zeros([3], "float64")
    try:
        for images, labels in batches:
            sums += forward_backward(recipe, model, scaler, images, labels)
    except (MemoryError, RuntimeError, SystemError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    return sums


def forward_backward(recipe: Recipe, model, scaler, images, labels):
    """Add the gradients of a micro-batch, (n, 3, S, S) and (n,), and give its share of the three means.

    A function of its own, so that nothing of one micro-batch is kept while the next one is computed.
    """
    share = len(labels) / recipe.batch_size
    with paddle.amp.auto_cast(recipe.precision != "fp32", dtype=AMP_DTYPES[recipe.precision]):
        logits_a, logits_b = model.views(images) if recipe.num_views == 2 else (model(images), None)
    found = rdrop_loss(logits_a, logits_b, labels, recipe.alpha, recipe.kl_sum_over, recipe.loss_form)
    loss = found.loss * share * distributed.size()  # the exchange averages over the processes
    scaler.scale(loss).backward()
    return paddle.stack(list(found)).detach().astype("float64") * share


def micro_batches(recipe: Recipe, images, first: int, size: int):
    """(images, labels) of every micro-batch of this process from update `first` on, at most `size` images each."""
    augmentation = Augmentation(min_area=recipe.crop_min_area, flip=recipe.flip)

    def requests():
        for step in range(first, recipe.num_steps + 1):
            samples = step_samples(recipe.seed, step, recipe.batch_size, len(images))
            draws = augmentation.draw(augmentation_rng(recipe.seed, step), recipe.batch_size)
            for piece in pieces_of_a_batch(recipe, size):
                yield samples[piece], draws[piece]

    stream = images.stream(requests(), recipe.image_size, augmentation, recipe.workers, recipe.scale)
    return ahead(stream) if on_gpu() else stream


def pieces_of_a_batch(recipe: Recipe, size: int) -> list[range]:
    """The pieces of one update's batch that this process computes one after the other."""
    own = range(recipe.batch_size)[distributed.share(recipe.batch_size)]
    return [own[piece] for piece in pieces(len(own), math.ceil(len(own) / size))]


if __name__ == "__main__":
    run_command(main)
