"""What a run will take before it takes it: parameters, operations, memory, files. Printed by `--dry_run`."""

import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import paddle

from data import Sizes, dataset_files
from models import Config, TwoNetworksConfig, resnet
from models.vit import ViTConfig
from models.weights import PRETRAINED_URLS
from reproduce.recipes import Recipe

_GPU_SIZES = (8, 12, 16, 24, 32, 40, 80)  # GiB
_TO_USE = 0.8  # of a GPU's memory; the rest is left to the framework and to fragments
_MICRO_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
_ENOUGH = 4  # images of a micro-batch from which on computing twice is the worse choice
_BYTES = 4  # float32; mixed precision keeps float32 weights and momentum and halves the activations


class Counts(NamedTuple):
    """Of a network, or of two side by side."""

    parameters: int
    flops_per_image: int  # forward; a multiply-add counts as 2
    activations: int  # numbers that one image's forward pass keeps for the backward pass
    activations_recomputed: int  # the same with recompute


@dataclass(frozen=True)
class Plan:
    """Counts of a run. FLOPs are those of the matrix products; a backward pass costs twice a forward pass."""

    counts: Counts
    tokens: int  # of one image; 0 in a convolutional network
    train_images: int
    epochs: float
    processes: int
    micro_batches: int  # of one process, an update
    flops_per_step: int
    flops_training: int
    flops_evaluation: int
    memory_bytes: int

    def estimate(self, flops_per_second: float) -> tuple[float, str]:
        """Days that the matrix products alone take at this speed, and a sentence about them."""
        training, evaluation = (
            work / flops_per_second / 86_400 for work in (self.flops_training, self.flops_evaluation)
        )
        return training + evaluation, (
            f"at least {_duration(training)} of training and {_duration(evaluation)} of evaluation on this CPU "
            f"(matrix products at the measured {flops_per_second / 1e9:.0f} GFLOP/s)"
        )


def _duration(days: float) -> str:
    for size, unit in ((1, "days"), (1 / 24, "hours"), (1 / 1440, "minutes")):
        if days >= 2 * size:
            return f"{days / size:,.0f} {unit}"
    return f"{days * 86_400:.0f} seconds"


def count(config: Config) -> Counts:
    """By formula for a ViT; a convolutional network is built and run once."""
    if isinstance(config, TwoNetworksConfig):
        return Counts(*map(sum, zip(count(config.first), count(config.second), strict=True)))
    if isinstance(config, ViTConfig):
        return Counts(count_parameters(config), config.flops_per_image(), activation_numbers(config),
                      recompute_numbers(config))  # fmt: skip
    parameters, operations, kept = resnet.measure(config)
    return Counts(parameters, operations, kept, kept)


def with_epochs(recipe: Recipe, sizes: Sizes) -> Recipe:
    """The recipe with `num_epochs` turned into updates; a batch crosses the border of two epochs."""
    if not recipe.num_epochs:
        return recipe
    steps = math.ceil(sizes.train / recipe.batch_size)
    return dataclasses.replace(recipe, num_steps=recipe.num_epochs * steps, eval_every=steps)


def make_plan(recipe: Recipe, config: Config, sizes: Sizes, processes: int = 1) -> Plan:
    """Count what `recipe` takes on the network `config` and on so many images, with that many processes."""
    counts = count(config)
    views = 1 if recipe.second_model else recipe.num_views
    shared = config.flops_by_part()["patch embedding"] if isinstance(config, ViTConfig) and views == 2 else 0
    per_step = 3 * (counts.flops_per_image * views - shared) * recipe.batch_size
    share = math.ceil(recipe.batch_size / processes)
    return Plan(
        counts=counts,
        tokens=getattr(config, "tokens", 0),
        train_images=sizes.train,
        epochs=recipe.num_steps * recipe.batch_size / sizes.train,
        processes=processes,
        micro_batches=math.ceil(share / recipe.micro_batch_size),
        flops_per_step=per_step,
        flops_training=per_step * recipe.num_steps,
        flops_evaluation=counts.flops_per_image * evaluated_images(recipe, sizes),
        memory_bytes=memory_bytes(recipe, counts, min(recipe.micro_batch_size, share)),
    )


def memory_bytes(recipe: Recipe, counts: Counts, micro_batch_size: int) -> int:
    """Memory of one process: weights, gradients, the optimizer's, and the activations of one micro-batch."""
    bytes_each = _BYTES if recipe.precision == "fp32" else _BYTES // 2
    numbers = counts.activations_recomputed if recipe.recompute else counts.activations
    images = micro_batch_size * (1 if recipe.second_model else recipe.num_views)
    copies = 4 if recipe.optimizer == "adam" else 3
    return copies * counts.parameters * _BYTES + images * numbers * bytes_each


def settings_by_memory(recipe: Recipe, counts: Counts) -> list[str]:
    """For GPUs of several sizes the options that fit, a line each: large micro-batches, recompute where none would fit.

    A fifth of the memory is left to the framework and to fragments.
    """
    return [
        f"{gib:>9} GiB: "
        + " or ".join(_fitting_options(recipe, counts, precision, gib) for precision in ("fp32", "bf16"))
        for gib in _GPU_SIZES
    ]


def _fitting_options(recipe: Recipe, counts: Counts, precision: str, gib: int) -> str:
    for recompute in (False, True):
        trial = dataclasses.replace(recipe, precision=precision, recompute=recompute)
        sizes = [n for n in _MICRO_BATCHES if memory_bytes(trial, counts, n) <= _TO_USE * gib * 2**30]
        if sizes and (max(sizes) >= _ENOUGH or recompute):
            return f"--precision {precision} --micro_batch_size {max(sizes)}" + " --recompute true" * recompute
    return f"nothing in {precision}"


def evaluated_images(recipe: Recipe, sizes: Sizes) -> int:
    """Images that pass through the network in all evaluations of the run."""
    if not recipe.eval_every:
        return 0
    validations = math.ceil(recipe.num_steps / recipe.eval_every)
    if recipe.select_on == "test":
        tests = validations
    else:
        tests = (recipe.num_steps - 1) // recipe.test_every if recipe.test_every else 0
    tests += 2  # the best and the last weights
    passes = 2 if recipe.second_model else 1  # of each network, which are evaluated alone and together
    return passes * (validations * sizes.validation + tests * sizes.test)


def count_parameters(config: ViTConfig) -> int:
    """Numbers that are trained."""
    d, m = config.width, config.mlp_width
    embedding = 3 * config.patch_size**2 * d + d + d + config.tokens * d
    qkv_bias = 3 * d if config.qkv_bias else 0
    block = 4 * d + (4 * d * d + d + qkv_bias) + (2 * d * m + m + d)
    return embedding + config.depth * block + 2 * d + d * config.num_classes + config.num_classes


def activation_numbers(config: ViTConfig) -> int:
    """Numbers that one image's forward pass keeps for the backward pass: what each layer needs of its input.

    As Paddle's own layers keep it; in training on a CPU the hidden layers keep no mask (models/fast_cpu.py).
    An upper estimate: for ViT-B/16 at 384 px, two views of 3 images and the rest came to 3.6 GiB on a CPU, 4.1 by
    this count.
    """
    t, d, m = config.tokens, config.width, config.mlp_width
    mask = 0.25 if config.dropout else 0  # one byte a number
    attention = config.heads * t * t + 6 * t * d  # weights; input, its norm, query, key, value, output
    mlp = 2 * t * d + 2 * t * m + mask * (t * m + t * d)  # input, its norm; before and after GELU and dropout
    last = 4 * t * d  # input, its norm, key, value; the rest there is of the class token alone
    return int((config.depth - 1) * (attention + mlp) + last + 3 * config.image_size**2)


def recompute_numbers(config: ViTConfig) -> int:
    """As `activation_numbers`, when only the input of each block is kept and one block at a time is computed anew."""
    inputs = config.depth * config.tokens * config.width
    return inputs + activation_numbers(dataclasses.replace(config, depth=2))


def measured_flops_per_second() -> float:
    """Speed of a float32 matrix product here, best of three, in operations a second."""
    a = paddle.to_tensor(np.random.default_rng(0).random((1024, 1024), np.float32))
    seconds = []
    for _ in range(4):  # the first one warms up
        start = time.perf_counter()
        paddle.matmul(a, a).numpy()
        seconds.append(time.perf_counter() - start)
    return 2 * 1024**3 / min(seconds[1:])


def needed_files(recipe: Recipe) -> dict[Path, str]:
    """Every file or folder that the run reads, each with the address it is fetched from ("" = it must be there)."""
    files = dataset_files(recipe.dataset, recipe.data_dir)
    if recipe.data_dir:  # a folder of the user's: nothing is downloaded into it
        files = dict.fromkeys(files, "")
    for pretrained in (recipe.pretrained, recipe.second_pretrained):
        if pretrained:
            files[Path(pretrained)] = PRETRAINED_URLS.get(Path(pretrained).name, "")
    return files


def describe(recipe: Recipe, plan: Plan) -> list[str]:
    """The plan as lines for people."""
    views, tokens = recipe.num_views, plan.tokens
    at_once = min(recipe.micro_batch_size, math.ceil(recipe.batch_size / plan.processes))
    networks = recipe.model + f" and {recipe.second_model}" * bool(recipe.second_model)
    amount = f" = {recipe.batch_size * views * tokens:,} tokens" if tokens else ""
    lines = [
        f"network:    {networks}, {plan.counts.parameters:,} parameters, {recipe.image_size} px"
        + f" = {tokens} tokens" * bool(tokens),
        f"samples:    {plan.train_images:,} training images ({recipe.dataset}), {plan.epochs:.1f} epochs",
        f"step:       {recipe.batch_size} images x {views} view{'s' * (views > 1)}{amount}, in {plan.micro_batches} "
        f"micro-batch{'es' * (plan.micro_batches > 1)} of up to {at_once}"
        + f" on each of {plan.processes} processes"
        * (plan.processes > 1),
        f"work:       {plan.flops_per_step:.3e} FLOPs a step, {plan.flops_training:.3e} in {recipe.num_steps:,} steps, "
        f"{plan.flops_evaluation:.3e} in evaluation (matrix products)",
        f"memory:     about {plan.memory_bytes / 2**30:.2g} GiB a process in {recipe.precision} (estimate: weights, "
        "gradients, optimizer, activations of one micro-batch)",
    ]
    if tokens and plan.memory_bytes > _TO_USE * _GPU_SIZES[0] * 2**30:
        lines.append("settings by GPU memory, from the same estimate (what the run means stays, but bf16 rounds):")
        lines += settings_by_memory(recipe, plan.counts)
    return lines
