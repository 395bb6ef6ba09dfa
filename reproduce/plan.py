"""What a run will take before it takes it: parameters, operations, memory, files. Printed by `--dry_run`."""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle

from data import IMAGES, dataset_files
from models.pretrained import PRETRAINED_URLS
from models.vit import ViTConfig
from reproduce.recipes import Recipe

_BYTES = 4  # float32; mixed precision keeps float32 weights and momentum and halves the activations


@dataclass(frozen=True)
class Plan:
    """Counts of a run. FLOPs are those of the matrix products; a backward pass costs twice a forward pass."""

    parameters: int
    tokens: int  # of one image
    train_images: int
    epochs: float
    micro_batches: int  # an update
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


def make_plan(recipe: Recipe, config: ViTConfig) -> Plan:
    """Count what `recipe` takes on the network `config`, on one process."""
    per_class, held_out = recipe.train_per_class, recipe.validation_per_class
    train_images = recipe.num_classes * per_class or IMAGES[recipe.dataset][0] - recipe.num_classes * held_out
    parameters = count_parameters(config)
    per_step = 3 * config.flops_per_image() * recipe.batch_size * recipe.num_views
    images_at_once = min(recipe.micro_batch_size, recipe.batch_size) * recipe.num_views
    bytes_each = _BYTES if recipe.precision == "fp32" else _BYTES // 2
    activations = images_at_once * activation_numbers(config) * bytes_each
    return Plan(
        parameters=parameters,
        tokens=config.tokens,
        train_images=train_images,
        epochs=recipe.num_steps * recipe.batch_size / train_images,
        micro_batches=math.ceil(recipe.batch_size / recipe.micro_batch_size),
        flops_per_step=per_step,
        flops_training=per_step * recipe.num_steps,
        flops_evaluation=config.flops_per_image() * evaluated_images(recipe),
        memory_bytes=3 * parameters * _BYTES + activations,  # weights, gradients, momentum
    )


def evaluated_images(recipe: Recipe) -> int:
    """Images that pass through the network in all evaluations of the run."""
    if not recipe.eval_every:
        return 0
    validations = math.ceil(recipe.num_steps / recipe.eval_every)
    if recipe.select_on == "test":
        tests = validations
    else:
        tests = (recipe.num_steps - 1) // recipe.test_every if recipe.test_every else 0
    tests += 2  # the best and the last weights
    return validations * recipe.num_classes * recipe.validation_per_class + tests * IMAGES[recipe.dataset][1]


def count_parameters(config: ViTConfig) -> int:
    """Numbers that are trained."""
    d, m = config.width, config.mlp_width
    embedding = 3 * config.patch_size**2 * d + d + d + config.tokens * d
    qkv_bias = 3 * d if config.qkv_bias else 0
    block = 4 * d + (4 * d * d + d + qkv_bias) + (2 * d * m + m + d)
    return embedding + config.depth * block + 2 * d + d * config.num_classes + config.num_classes


def activation_numbers(config: ViTConfig) -> int:
    """Numbers that one image's forward pass keeps for the backward pass: what each layer needs of its input.

    An upper estimate: for ViT-B/16 at 384 px, two views of 3 images and the rest came to 3.6 GiB on a CPU, 4.1 by
    this count.
    """
    t, d, m = config.tokens, config.width, config.mlp_width
    mask = 0.25 if config.dropout else 0  # one byte a number
    attention = config.heads * t * t + 6 * t * d  # weights; input, its norm, query, key, value, output
    mlp = 2 * t * d + 2 * t * m + mask * (t * m + t * d)  # input, its norm; before and after GELU and dropout
    return int(config.depth * (attention + mlp) + 3 * config.image_size**2)


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
    if recipe.pretrained:
        path = Path(recipe.pretrained)
        files[path] = PRETRAINED_URLS.get(path.name, "")
    return files


def describe(recipe: Recipe, plan: Plan) -> list[str]:
    """The plan as lines for people."""
    views = recipe.num_views
    return [
        f"network:    {recipe.model}, {plan.parameters:,} parameters, {recipe.image_size} px = {plan.tokens} tokens",
        f"samples:    {plan.train_images:,} training images ({recipe.dataset}), {plan.epochs:.1f} epochs",
        f"step:       {recipe.batch_size} images x {views} view{'s' * (views > 1)} = "
        f"{recipe.batch_size * views * plan.tokens:,} tokens, in {plan.micro_batches} micro-batch"
        f"{'es' * (plan.micro_batches > 1)} of up to {min(recipe.micro_batch_size, recipe.batch_size)}",
        f"work:       {plan.flops_per_step:.3e} FLOPs a step, {plan.flops_training:.3e} in {recipe.num_steps:,} steps, "
        f"{plan.flops_evaluation:.3e} in evaluation (matrix products)",
        f"memory:     about {plan.memory_bytes / 2**30:.1f} GiB a process in {recipe.precision} (estimate: weights, "
        "gradients, momentum, activations of one micro-batch)",
    ]
