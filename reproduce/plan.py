"""What a run will take before it takes it, and what is chosen from that: precision and micro-batch.

bash run_train.sh RECIPE --dry_run                    for this machine
bash run_train.sh RECIPE --dry_run --gpu "A100 40GB"  for another one; a number alone is its memory in GiB
"""

import dataclasses
import math
import re
from dataclasses import dataclass

import paddle

from common.errors import UserError
from data import Sizes, dataset_sizes
from models import Config, count_parameters, has_batch_norm
from models.costs import activation_bytes, flops_by_part, flops_per_image
from models.vit import ViTConfig
from reproduce.recipes import Recipe

_TO_USE = 0.8  # of a GPU's memory; the rest is left to the framework and to fragments
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # micro-batches of `auto` on a GPU
_ON_CPU = 32  # and on a CPU
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
    flags = paddle.framework._global_flags()  # without such a kernel Paddle takes plain attention and does not say so
    kernels = any(flags.get(f"FLAGS_{name}_attn_available", False) for name in ("flash", "mem_efficient"))
    return dataclasses.replace(
        _known(found.name) or Gpu(found.name, 0),
        name=found.name,
        gib=found.total_memory / 2**30,
        bf16=paddle.amp.is_bfloat16_supported(),
        fp16=found.major >= 7,
        fused=found.major >= 8 and kernels,
    )


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


def with_sizes(recipe: Recipe) -> tuple[Recipe, Config, Sizes]:
    """The recipe with `num_epochs` turned into updates, its network, and its numbers of images."""
    sizes = dataset_sizes(recipe.dataset, recipe.data_dir, **recipe.split())
    if recipe.num_epochs:  # a batch crosses the border of two epochs
        steps = math.ceil(sizes.train / recipe.batch_size)
        recipe = dataclasses.replace(recipe, num_steps=recipe.num_epochs * steps, eval_every=steps)
    return recipe, recipe.network(sizes.classes), sizes


def resolve(recipe: Recipe, config: Config, gpu: Gpu | None, processes: int) -> Recipe:
    """The recipe with `auto` precision and micro-batch replaced by what this GPU, or the CPU (None), computes best.

    The micro-batch of a ViT is the largest power of two of images that fits; with batch norm it is the whole batch.
    Raises UserError when not even one image fits.
    """
    if recipe.precision == "auto":
        recipe = dataclasses.replace(recipe, precision="bf16" if gpu is not None and gpu.bf16 else "fp32")
    if recipe.micro_batch_size:
        return recipe
    size = _ON_CPU
    if has_batch_norm(config):
        size = recipe.batch_size
    elif gpu is not None and isinstance(config, ViTConfig):
        needs = {size: memory_bytes(recipe, config, size, gpu.fused) / 2**30 for size in _SIZES}
        size = max((size for size, need in needs.items() if need <= _TO_USE * gpu.gib), default=0)
        if not size:
            text = f"{recipe.name} needs about {needs[1]:.0f} GiB for one image in {recipe.precision}, {gpu.name} has"
            raise UserError(f"{text} {gpu.gib:.0f}; say --recompute true, or a smaller --image_size or --model")
    return dataclasses.replace(recipe, micro_batch_size=min(size, math.ceil(recipe.batch_size / processes)))


def flops_per_step(recipe: Recipe, config: ViTConfig) -> int:
    """Of an update; a backward pass costs twice a forward pass."""
    per_image = recipe.num_views * flops_per_image(config)
    if recipe.num_views == 2:
        per_image -= flops_by_part(config)["patch embedding"]  # before the first dropout: computed once
    return 3 * per_image * recipe.batch_size


def flops_of_run(recipe: Recipe, config: ViTConfig, sizes: Sizes) -> tuple[int, int]:
    """Of all updates and of all evaluations."""
    images = 0
    if recipe.eval_every:
        validations = math.ceil(recipe.num_steps / recipe.eval_every)
        tests = 2  # the best and the last weights
        if recipe.select_on == "test":
            tests += validations
        elif recipe.test_every:
            tests += (recipe.num_steps - 1) // recipe.test_every
        images = validations * sizes.validation + tests * sizes.test
    return recipe.num_steps * flops_per_step(recipe, config), images * flops_per_image(config)


def memory_bytes(recipe: Recipe, config: ViTConfig, images: int, fused: bool) -> int:
    """Of one process in training: weights, gradients, the optimizer's, and what a micro-batch keeps."""
    each = 16 if recipe.optimizer == "adam" else 12
    if recipe.precision != "fp32":
        each += 2  # the 16-bit cast of the weights
    kept = activation_bytes(config, recipe.precision, fused, recipe.recompute)
    return each * count_parameters(config) + images * recipe.num_views * kept


def time_needed(training: float, evaluation: float, precision: str, gpu: Gpu | None, gpus: int = 1) -> str:
    """How long so many operations take on GPUs like this one; None: on a CPU. Evaluation is in fp32."""
    peak = gpu and (gpu.peak_32 if precision == "fp32" else gpu.peak_16)
    if not peak:
        name = "a CPU" if gpu is None else gpu.name
        return f"not known for {name}; the progress bar of a run says how long it takes"
    seconds = (training / peak + evaluation / gpu.peak_32) / 1e12 / gpus
    low, high = (seconds / share / 3600 for share in _SHARES_OF_PEAK)
    return f"{low:,.1f} to {high:,.1f} hours at 40 to 20 % of the peak of {gpu.name} in {precision} (estimate)"
