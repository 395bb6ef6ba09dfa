"""What a run will take before it takes it, and what is chosen from that: precision and micro-batch.

bash run_train.sh RECIPE --dry_run                    for this machine
bash run_train.sh RECIPE --dry_run --gpu "A100 40GB"  for another one; a number alone is its memory in GiB
"""

import dataclasses
import functools
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle

from common.errors import UserError
from data import Sizes, dataset_files
from models import Config, TwoNetworksConfig, count_parameters, resnet
from models.vit import ViTConfig
from models.weights import PRETRAINED_URLS
from reproduce.recipes import Recipe

_TO_USE = 0.8  # of a GPU's memory; the rest is left to the framework and to fragments
_ON_CPU = 32  # micro-batch of `auto`
_LARGEST = 256
_SHARES_OF_PEAK = (0.4, 0.2)  # that training of a ViT reaches on a GPU


@dataclass(frozen=True)
class Gpu:
    """A card: its memory, and the peaks of its makers' data sheets, dense, in TFLOP/s."""

    name: str
    gib: float
    peak_16: float = 0.0  # bf16, or fp16 where there is no bf16; 0 = not known
    peak_32: float = 0.0
    bf16: bool = True
    fp16: bool = True  # compute capability 7.0 on: below, Paddle takes fp32 instead and warns at most
    fused: bool = True  # has PaddlePaddle's fused attention: compute capability 8.0 on


_CARDS = (
    Gpu("H200", 141, 989, 67),
    Gpu("H100", 80, 989, 67),
    Gpu("A100", 40, 312, 19.5),
    Gpu("L40S", 48, 362, 91.6),
    Gpu("A6000", 48, 155, 38.7),
    Gpu("A10", 24, 125, 31.2),
    Gpu("4090", 24, 165, 82.6),
    Gpu("3090", 24, 71, 35.6),
    Gpu("V100", 32, 125, 15.7, bf16=False, fused=False),
    Gpu("T4", 16, 65, 8.1, bf16=False, fused=False),
)


def gpu_here() -> Gpu:
    """The current GPU of Paddle, with its peaks where the card is known."""
    found = paddle.device.cuda.get_device_properties(paddle.get_device())  # of this process, not of the first one
    card = _known(found.name) or Gpu(found.name, 0)
    return dataclasses.replace(
        card,
        name=found.name,
        gib=found.total_memory / 2**30,
        bf16=paddle.amp.is_bfloat16_supported(),
        fp16=found.major >= 7,
        fused=found.major >= 8 and _build_has_fused_attention(),
    )


def _build_has_fused_attention() -> bool:
    """Whether this build of Paddle has a kernel for it; without one it would take plain attention and not say so."""
    flags = paddle.framework._global_flags()
    return any(flags.get(f"FLAGS_{kernel}_attn_available", False) for kernel in ("flash", "mem_efficient"))


def gpu_named(text: str) -> Gpu:
    """The card that `--gpu` names, such as "A100 40GB", "H100" or "24". Raises UserError for one that is not known."""
    card, size = _known(text), re.search(r"(?<![A-Za-z\d])(\d+) *(?:GB|GiB)?$", text.strip(), re.IGNORECASE)
    if size and (card is None or size[1] != card.name):
        return dataclasses.replace(card or Gpu(f"{size[1]} GiB", 0), gib=float(size[1]))
    if card is None:
        raise UserError(f"--gpu {text}: known are {', '.join(each.name for each in _CARDS)}; or give its memory in GiB")
    return card


def _known(name: str) -> Gpu | None:
    words = re.split(r"[^A-Za-z0-9]+", name.upper())
    return next((card for card in _CARDS if card.name in words), None)


@dataclass(frozen=True)
class Plan:
    """Counts of a run. FLOPs are those of the matrix products; a backward pass costs twice a forward pass."""

    parameters: int
    tokens: int  # of one image; 0 in a convolutional network
    train_images: int
    epochs: float
    processes: int
    micro_batches: int  # of one process, an update
    flops_per_step: int
    flops_training: int
    flops_evaluation: int
    memory_bytes: int  # of one process, in training or in evaluation, whichever takes more


def with_epochs(recipe: Recipe, sizes: Sizes) -> Recipe:
    """The recipe with `num_epochs` turned into updates; a batch crosses the border of two epochs."""
    if not recipe.num_epochs:
        return recipe
    steps = math.ceil(sizes.train / recipe.batch_size)
    return dataclasses.replace(recipe, num_steps=recipe.num_epochs * steps, eval_every=steps)


def resolve(recipe: Recipe, config: Config, gpu: Gpu | None, processes: int) -> Recipe:
    """The recipe with `auto` precision and micro-batch replaced by what this GPU, or the CPU (None), computes best.

    The micro-batch is the largest power of two of images that fits. Raises UserError when not even one does.
    """
    if recipe.precision == "auto":
        recipe = dataclasses.replace(recipe, precision="bf16" if gpu is not None and gpu.bf16 else "fp32")
    if recipe.micro_batch_size:
        return recipe
    share, size = math.ceil(recipe.batch_size / processes), _ON_CPU
    if gpu is not None:
        size = _LARGEST
        while size and memory_bytes(recipe, config, size, gpu.fused) > _TO_USE * gpu.gib * 2**30:
            size //= 2
    if size == 0:
        need = memory_bytes(recipe, config, 1, gpu.fused) / 2**30
        text = f"{recipe.name} needs about {need:.0f} GiB for one image in {recipe.precision}, {gpu.name} has"
        raise UserError(f"{text} {gpu.gib:.0f}; say --recompute true, or a smaller --image_size or --model")
    return dataclasses.replace(recipe, micro_batch_size=min(size, share))


def make_plan(recipe: Recipe, config: Config, sizes: Sizes, processes: int = 1, fused: bool = True) -> Plan:
    """Count what `recipe`, resolved, takes on the network `config` and on so many images, with that many processes."""
    per_image, shared = flops_per_image(config), 0
    views = 1 if recipe.second_model else recipe.num_views  # each of two networks sees an image once
    if views == 2 and isinstance(config, ViTConfig):
        shared = config.flops_by_part()["patch embedding"]  # before the first dropout
    per_step = 3 * (per_image * views - shared) * recipe.batch_size
    share = math.ceil(recipe.batch_size / processes)
    return Plan(
        parameters=_parameters(config),
        tokens=getattr(config, "tokens", 0),
        train_images=sizes.train,
        epochs=recipe.num_steps * recipe.batch_size / sizes.train,
        processes=processes,
        micro_batches=math.ceil(share / recipe.micro_batch_size),
        flops_per_step=per_step,
        flops_training=per_step * recipe.num_steps,
        flops_evaluation=per_image * evaluated_images(recipe, sizes),
        memory_bytes=max(
            memory_bytes(recipe, config, min(recipe.micro_batch_size, share), fused),
            evaluation_memory_bytes(recipe, config),
        ),
    )


_measured = functools.lru_cache(resnet.measure)
_parameters = functools.lru_cache(count_parameters)


def flops_per_image(config: Config) -> int:
    """Of one forward pass, of both networks where there are two."""
    if isinstance(config, TwoNetworksConfig):
        return flops_per_image(config.first) + flops_per_image(config.second)
    return sum(config.flops_by_part().values()) if isinstance(config, ViTConfig) else _measured(config)[1]


def memory_bytes(recipe: Recipe, config: Config, images: int, fused: bool) -> int:
    """Of one process in training: weights, gradients, the optimizer's, and what a micro-batch keeps."""
    precision = recipe.precision
    parameters, copies = _parameters(config), 4 if recipe.optimizer == "adam" else 3
    each = 4 * copies
    if precision != "fp32":
        each += 2  # the 16-bit cast of the weights
    views = 1 if recipe.second_model else recipe.num_views
    return each * parameters + images * views * activation_bytes(config, precision, fused, recipe.recompute)


def evaluation_memory_bytes(recipe: Recipe, config: Config) -> int:
    """Of one process in an evaluation: weights, the optimizer's, and the largest part of a block, in fp32.

    0 for convolutional networks, which take more in training.
    """
    if not (isinstance(config, ViTConfig) and recipe.eval_every):
        return 0
    t, d = config.tokens, config.width
    attention = 2 * config.heads * t * t + 5 * t * d  # scores and weights; the block's input, its norm, q, k, v
    mlp = 2 * t * config.mlp_width + 3 * t * d
    copies = 3 if recipe.optimizer == "adam" else 2
    return 4 * (copies * _parameters(config) + recipe.eval_batch_size * max(attention, mlp))


def activation_bytes(config: Config, precision: str, fused: bool, recompute: bool = False) -> int:
    """What one image keeps for the backward pass; an upper estimate.

    In fp32 four bytes a number. In 16 bits (AMP O1) layer_norm and softmax compute in fp32, the residual is promoted
    to fp32, and each product keeps a 16-bit cast of its input. Fused attention, used with 16 bits, keeps no weights.
    """
    if isinstance(config, TwoNetworksConfig):
        return sum(activation_bytes(each, precision, fused, recompute) for each in (config.first, config.second))
    if not isinstance(config, ViTConfig):
        return 4 * _measured(config)[2]
    block = block_bytes(config, precision, fused)
    first_and_last = 4 * (4 * config.tokens * config.width + 3 * config.image_size**2)  # there the class token alone
    if recompute:
        return 4 * config.depth * config.tokens * config.width + block + first_and_last
    return (config.depth - 1) * block + first_and_last


def block_bytes(config: ViTConfig, precision: str, fused: bool) -> int:
    """What a block keeps of one image, its input included."""
    t, d, m = config.tokens, config.width, config.mlp_width
    masks = t * m + t * d if config.dropout else 0  # a byte a number
    weights = config.heads * t * t
    if precision == "fp32":
        # input, its norm, q, k, v, output; input, its norm; before and after GELU
        return 4 * (weights + 8 * t * d + 2 * t * m) + masks
    if fused:
        attention = 4 * config.heads * t  # a sum for each query
    else:
        attention = 6 * weights  # softmax in fp32, its 16-bit cast
    # two residuals in fp32; the casts of the norms for q, k, v and fc1; q, k, v, output
    return attention + 8 * t * d + 2 * (8 * t * d + 2 * t * m) + masks


def evaluated_images(recipe: Recipe, sizes: Sizes) -> int:
    """Images that pass through the network in all evaluations of the run."""
    if not recipe.eval_every:
        return 0
    validations = math.ceil(recipe.num_steps / recipe.eval_every)
    tests = 2  # the best and the last weights
    if recipe.select_on == "test":
        tests += validations
    elif recipe.test_every:
        tests += (recipe.num_steps - 1) // recipe.test_every
    networks = 2 if recipe.second_model else 1  # of each network, which are evaluated alone and together
    return networks * (validations * sizes.validation + tests * sizes.test)


def time_needed(training: float, evaluation: float, precision: str, gpu: Gpu | None) -> str:
    """How long so many operations take on this GPU, or on this CPU (None), a sentence. Evaluation is in fp32."""
    if gpu is None:
        speed = measured_flops_per_second()
        seconds = (training + evaluation) / speed
        return f"at least {duration(seconds)} on this CPU (matrix products at {speed / 1e9:.0f} GFLOP/s)"
    peak = gpu.peak_32 if precision == "fp32" else gpu.peak_16
    if not peak:
        return f"not known for {gpu.name}; after 20 updates the run says how long it takes"
    seconds = (training / peak + evaluation / gpu.peak_32) / 1e12
    low, high = (duration(seconds / share) for share in _SHARES_OF_PEAK)
    return f"{low} to {high} at 40 to 20 % of the peak of {gpu.name} in {precision} (estimate)"


def duration(seconds: float) -> str:
    """Such as "3 hours", in the largest unit of which there are at least two."""
    for length, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:.0f} seconds"


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


def describe(recipe: Recipe, plan: Plan) -> list[tuple[str, str]]:
    """The plan as lines for people: (what, text)."""
    networks = f"{recipe.model} and {recipe.second_model}" if recipe.second_model else recipe.model
    tokens = f" = {plan.tokens} tokens" if plan.tokens else ""
    at_once = min(recipe.micro_batch_size, math.ceil(recipe.batch_size / plan.processes))
    step = f"{recipe.batch_size} images x {recipe.num_views} view(s), in {plan.micro_batches} micro-batch(es)"
    work = f"{plan.flops_per_step:.3e} FLOPs a step, {plan.flops_training:.3e} in {recipe.num_steps:,} steps"
    return [
        ("network", f"{networks}, {plan.parameters:,} parameters, {recipe.image_size} px{tokens}"),
        ("samples", f"{plan.train_images:,} training images ({recipe.dataset}), {plan.epochs:.1f} epochs"),
        ("step", f"{step} of up to {at_once} on each of {plan.processes} process(es)"),
        ("work", f"{work}, {plan.flops_evaluation:.3e} in evaluation (matrix products)"),
    ]
