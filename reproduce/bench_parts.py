"""The parts of `reproduce.bench`: who competes in each, on what, and the operations that it takes."""

import dataclasses
import os
from dataclasses import dataclass, field

from models import MODELS
from models.vit import ViTConfig
from reproduce.bench_race import Competitor
from reproduce.recipes import HEADLINE, RECIPES, Recipe

_CLASSES = 100


@dataclass(frozen=True)
class Part:
    """What is measured: seconds of a repetition (a step, a pass over all images, a start of a program)."""

    name: str
    about: dict  # for the record: sizes and settings
    competitors: list[Competitor]  # the first is ours
    images: int  # of a repetition; 0 = does not apply
    repetitions: int = 1  # that a competitor does at once; the mean of their seconds is one measurement
    flops: dict[str, int] = field(default_factory=dict)  # of a repetition, by competitor


@dataclass(frozen=True)
class StepSize:
    recipe: str
    image_size: int
    batch_size: int
    steps: int  # at once
    classes: int = _CLASSES
    splits: tuple[int, ...] = (6, 9, 11)  # values of the recipe's views_split_at


B16 = StepSize("cifar100_vit_b16_rdrop", 224, 8, steps=1)
TI16 = StepSize("cifar100_vit_ti16", 64, 64, steps=5)


def published_flops(config: ViTConfig) -> dict[str, int]:
    """As `config.flops_by_part()`, of the network as published: all tokens in the last block too.

    What every competitor is credited with, however it gets to the same result.
    """
    t, d, depth = config.tokens, config.width, config.depth
    return {
        "patch embedding": 2 * (t - 1) * 3 * config.patch_size**2 * d,
        "key, value": 4 * depth * t * d * d,
        "query, projection": 4 * depth * t * d * d,
        "scores, weighted sum": 4 * depth * t * t * d,
        "MLP": 4 * depth * t * d * config.mlp_width,
        "head": 2 * d * config.num_classes,
    }


def _vit(recipe: Recipe, image_size: int, classes: int) -> ViTConfig:
    return ViTConfig(num_classes=classes, image_size=image_size, **MODELS[recipe.model])


def headline() -> dict:
    """The operations of the whole headline run, and by part of its network for one image."""
    recipe = RECIPES[HEADLINE]
    config = _vit(recipe, recipe.image_size, _CLASSES)
    published = published_flops(config)
    # A backward pass costs two forward passes.
    per_step = 3 * sum(published.values()) * recipe.num_views * recipe.batch_size
    about = {name: getattr(recipe, name) for name in ("model", "image_size", "batch_size", "num_views", "num_steps")}
    by_part = {"published": published, "here": config.flops_by_part()}
    return {**about, "flops_by_part": by_part, "flops_training": per_step * recipe.num_steps}


def step_part(name: str, size: StepSize) -> Part:
    """One training step: forward, backward, clipping, SGD with momentum."""
    recipe = RECIPES[size.recipe]
    # All sum the KL over the batch, as the official code does, so that all compute the same loss.
    changes = {"image_size": size.image_size, "batch_size": size.batch_size, "micro_batch_size": size.batch_size,
               "kl_sum_over": size.batch_size, "num_views": 2}  # fmt: skip
    config = _vit(recipe, size.image_size, size.classes)
    network = {**MODELS[recipe.model], "image_size": size.image_size, "num_classes": size.classes,
               "dropout": recipe.dropout}  # fmt: skip
    peer = {"network": network, "alpha": recipe.alpha, "learning_rate": recipe.learning_rate, "steps": size.steps}
    images = {"count": size.batch_size, "size": size.image_size, "classes": size.classes, "kind": "float32"}

    def ours(competitor: str, **more) -> Competitor:
        options = {"recipe": size.recipe, "changes": changes | more, "classes": size.classes, "steps": size.steps}
        return Competitor(competitor, "reproduce.bench_ours:Step", options, library="paddle", images=images)

    def theirs(competitor: str, task: str, library: str, our_settings: bool) -> Competitor:
        return Competitor(competitor, task, peer, our_settings, library, images)

    competitors = [
        ours("ours"),
        ours("ours_baseline", num_views=1),
        *(ours(f"ours_split_{block}", views_split_at=block) for block in size.splits),
        theirs("pytorch", "bench_torch:Step", "torch", False),
        theirs("seed_like", "bench_seed:Step", "paddle", False),
        theirs("seed_like_tuned", "bench_seed:Step", "paddle", True),
    ]
    forward = sum(published_flops(config).values())
    views = {c.name: 1 if c.name == "ours_baseline" else 2 for c in competitors}
    flops = {competitor: 3 * forward * count * size.batch_size for competitor, count in views.items()}
    about = {"model": recipe.model, **dataclasses.asdict(size), "flops_per_image": forward}
    return Part(name, about, competitors, size.batch_size, size.steps, flops)


def input_part(image_size: int = 384, batch_size: int = 64, batches: int = 2) -> Part:
    """CIFAR-like bytes to float32 batches: random crop, resize, scale. Each competitor has the same single core."""
    images = {"count": 512, "size": 32, "classes": _CLASSES, "kind": "uint8"}
    core = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    changes = {"image_size": image_size, "batch_size": batch_size, "micro_batch_size": batch_size}
    ours = {"recipe": HEADLINE, "changes": changes, "batches": batches}
    peer = {"image_size": image_size, "batch_size": batch_size, "batches": batches}
    competitors = [
        Competitor("ours", "reproduce.bench_ours:Input", ours, images=images, core=core),
        Competitor("paddle_vision", "bench_input:PaddleVision", peer, images=images, core=core),
        Competitor("pillow", "bench_input:Pillow", peer, False, images=images, core=core),
    ]
    return Part("input", {"from_size": 32, **peer}, competitors, batch_size * batches)


def evaluation_part(model: str = "ViT-Ti_16", image_size: int = 224, count: int = 192, batch_size: int = 64) -> Part:
    """Every image once, from bytes to the top 5 classes, confidence and NLL."""
    images = {"count": count, "size": 32, "classes": _CLASSES, "kind": "uint8"}
    changes = {"model": model, "image_size": image_size}
    ours = {"recipe": HEADLINE, "changes": changes, "classes": _CLASSES, "batch_size": batch_size}
    network = {**MODELS[model], "image_size": image_size, "num_classes": _CLASSES}
    competitors = [
        Competitor("ours", "reproduce.bench_ours:Evaluation", ours, images=images),
        Competitor("pytorch", "bench_torch:Evaluation", {"network": network, "batch_size": batch_size}, False,
                   images=images),
    ]  # fmt: skip
    about = {"model": model, "image_size": image_size, "from_size": 32, "batch_size": batch_size}
    return Part("evaluation", about, competitors, count)


def start_part() -> Part:
    """From the start of the program to its first training step, and to its end."""
    recipe = RECIPES["digits"]
    network = {**MODELS[recipe.model], "image_size": recipe.image_size, "num_classes": 10, "dropout": recipe.dropout}
    torch = {"network": network, "alpha": recipe.alpha, "learning_rate": recipe.learning_rate,
             "batch": recipe.batch_size}  # fmt: skip
    competitors = [
        Competitor("ours", "bench_start:Train", {"recipe": recipe.name}, False),
        Competitor("pytorch", "bench_start:Torch", torch, False),
    ]
    return Part("start", {"model": recipe.model, "batch_size": recipe.batch_size}, competitors, 0)


PARTS = {
    "step_b16": lambda: step_part("step_b16", B16),
    "step_ti16": lambda: step_part("step_ti16", TI16),
    "input": input_part,
    "evaluation": evaluation_part,
    "start": start_part,
}
