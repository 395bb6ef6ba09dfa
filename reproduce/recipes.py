"""Recipes: everything that defines a run, by name. `bash run_train.sh --list` prints them.

The command line is made from the fields of `Recipe`: each is an option of the same name.
"""

import dataclasses
from dataclasses import dataclass

from common.errors import UserError, near
from data import CLASSES, FROM_FILES
from data.augment import SCALES
from models import MODELS, NAMES, Config, model_config
from reproduce.optim import SCHEDULES
from reproduce.rdrop import FORMS


def setting(default, help: str, choices=None, hardware: bool = False):
    """A recipe field. `hardware` marks those that say where and how a run is computed, not what it means."""
    metadata = {"help": help, "choices": choices, "hardware": hardware}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Recipe:
    """One run. The help text of each field gives its unit, its meaning and the value that switches it off."""

    name: str
    summary: str

    # data
    dataset: str = setting("cifar100", "data set", choices=tuple(CLASSES))
    train_per_class: int = setting(0, "training images kept of each class; 0 keeps all")
    validation_per_class: int = setting(10, "training images of each class held out for validation; 0 = none")
    validation_share: float = setting(0.0, "share of each class held out instead (0.1 = 90/10); 0 = off")
    strict: bool = setting(False, "stop at a picture of a table that cannot be read; off: leave it out, with its name")
    split_seed: int = setting(0, "which images the two options above choose; the same for all seeds of a study")
    image_size: int = setting(384, "pixels a side after cropping and resizing")
    scale: str = setting("-1..1", "what pixel values become; imagenet = its mean and deviation", choices=tuple(SCALES))
    crop_min_area: float = setting(0.05, "smallest random crop, share of the image's area; 1 = no random crops")
    flip: bool = setting(False, "mirror half of the training images; the official code does not")

    # network
    model: str = setting("ViT-B_16", "network", choices=NAMES)
    second_model: str = setting("", "another network trained beside it: the two are the views; '' = none",
                                choices=("", *NAMES))  # fmt: skip
    pretrained: str = setting("", "weight file to start from; '' starts from random weights")
    second_pretrained: str = setting("", "weight file of the second network")
    dropout: float = setting(0.1, "dropout rate after the position embedding and twice in each MLP, or before the head "
                             "of a convolutional network; 0 = off")  # fmt: skip
    attention_dropout: float = setting(0.0, "dropout rate of the attention weights; 0 = off")
    projection_dropout: float = setting(0.0, "dropout rate after the attention's output projection; 0 = off")

    # loss: see rdrop.rdrop_loss
    num_views: int = setting(2, "2 = R-Drop's two views of each image; 1 = plain cross-entropy", choices=(1, 2))
    views_split_at: int = setting(0, "0 = R-Drop; k = the views share the first k blocks and their masks: cheaper, "
                                  "and not the paper's")  # fmt: skip
    alpha: float = setting(0.3, "strength of the KL term; 0 = off. 0.3 here is the paper's 0.6")
    kl_sum_over: int = setting(1, "1 = mean KL (the paper); n = the sum over micro-batches of n (official: 32)")
    loss_form: str = setting("sum", "views added up (paper, official) or averaged (blog, port)", choices=FORMS)

    # optimisation
    optimizer: str = setting("momentum", "SGD with momentum, or Adam", choices=("momentum", "adam"))
    num_epochs: int = setting(0, "passes over the training images, validated after each: sets num_steps and "
                              "eval_every; 0 = these as given")  # fmt: skip
    num_steps: int = setting(10_000, "updates")
    batch_size: int = setting(512, "images an update; each is seen num_views times")
    learning_rate: float = setting(1e-2, "peak rate")
    schedule: str = setting("cosine", "course of the rate after the warm-up", choices=SCHEDULES)
    warmup_steps: int = setting(500, "updates of linear warm-up; 0 = none")
    momentum: float = setting(0.9, "momentum of SGD; 0 = plain SGD")
    weight_decay: float = setting(0.0, "L2 coefficient; 0 = off")
    max_grad_norm: float = setting(1.0, "global L2 norm that gradients are clipped to; 0 = off")
    seed: int = setting(42, "seed of order, crops, dropout and initial weights")

    # evaluation
    eval_every: int = setting(100, "updates between two validations; 0 = no evaluation at all")
    test_every: int = setting(0, "updates between two looks at the test set; 0 = only at the end")
    select_on: str = setting(
        "validation", "split that chooses the best checkpoint; 'test' only to repeat the seeds",
        choices=("validation", "test"),
    )  # fmt: skip

    # hardware: does not change what the run means
    micro_batch_size: int = setting(32, "images in memory at once; lower it when memory is short",
                                    hardware=True)  # fmt: skip
    recompute: bool = setting(False, "keep the inputs of the blocks alone and compute the rest twice: less memory, a "
                              "third more time", hardware=True)  # fmt: skip
    fused: bool = setting(False, "attention in one kernel, one update for all weights: for GPUs; not run there by us",
                          hardware=True)  # fmt: skip
    resident: bool = setting(False, "keep the images of cifar10, cifar100 or digits on the GPU; not run there by us",
                             hardware=True)  # fmt: skip
    eval_batch_size: int = setting(100, "images at once in evaluation", hardware=True)
    precision: str = setting("fp32", "bf16 and fp16 need a GPU", choices=("fp32", "bf16", "fp16"))
    device: str = setting("auto", "auto = the GPU where there is one", choices=("auto", "cpu", "gpu"), hardware=True)
    workers: int = setting(4, "processes that decode image files; 0 = none", hardware=True)
    data_dir: str = setting("", "folder with the data; '' = data/downloads", hardware=True)
    save_every: int = setting(100, "updates between two resumable checkpoints", hardware=True)
    log_every: int = setting(10, "updates between two training records", hardware=True)

    @property
    def holds_out(self) -> bool:
        """Whether there are validation images."""
        return self.validation_per_class > 0 or self.validation_share > 0

    def split(self) -> dict:
        """The options of `data.load_dataset` and `data.dataset_sizes` that choose images."""
        names = ("train_per_class", "validation_per_class", "validation_share", "split_seed")
        return {name: getattr(self, name) for name in names}

    def network(self, num_classes: int) -> Config:
        """The configuration of the network, or of both."""
        return model_config(self.model, num_classes, self.image_size, self.second_model, **self.dropout_rates())

    def dropout_rates(self) -> dict[str, float]:
        """The network's options that a recipe sets."""
        return {name: getattr(self, name) for name in ("dropout", "attention_dropout", "projection_dropout")}

    def meaning(self) -> dict:
        """The fields that define the run's result: all but its name and the hardware ones."""
        hardware = {f.name for f in dataclasses.fields(self) if f.metadata.get("hardware")}
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in hardware | {"name", "summary"}}


_HEADLINE = Recipe(
    "cifar100_vit_b16_rdrop",
    "the headline: ViT-B/16 + R-Drop on CIFAR-100 as the official code trains it; paper 93.29 %",
    pretrained="checkpoints/pretrained/ViT-B_16.npz",
    alpha=0.3,  # dropreg/R-Drop vit_src/train.py --alpha; times (KL + KL'), so the paper's 0.6
    kl_sum_over=32,  # its micro-batches of 512 // 16 images, over which it sums the KL
    test_every=1000,
)


def _variant(base: Recipe, name: str, summary: str, **changes) -> Recipe:
    return dataclasses.replace(base, name=name, summary=summary, **changes)


_TI16 = Recipe(
    "cifar100_vit_ti16",
    "small and real: ViT-Ti/16 from an ImageNet file, 50 CIFAR-100 images a class, minutes on a CPU",
    model="ViT-Ti_16", pretrained="checkpoints/pretrained/vit_tiny_patch16_224.safetensors",
    image_size=64, train_per_class=50,
    alpha=1.0,  # the paper's 0.3 is for 10,000 steps; a much stronger KL slows so short a schedule down
    num_steps=400, batch_size=64, micro_batch_size=64, learning_rate=0.05, warmup_steps=40,
    eval_every=100, eval_batch_size=250, save_every=50,
)  # fmt: skip

_GROWTH = Recipe(
    "growth_stages",
    "the blog's example: Res2Net50 and SE-ResNet50 side by side on pictures of growth stages (--data_dir)",
    dataset="growth_stages", validation_per_class=0, validation_share=0.1,
    image_size=256, crop_min_area=1.0, scale="0..1",
    model="Res2Net50_vd_26w_4s", second_model="SE_ResNet50_vd", dropout=0.0,
    alpha=0.6, loss_form="mean",
    kl_sum_over=8,  # its compute_kl_loss sums over the batch
    optimizer="adam", learning_rate=3e-4, schedule="constant", warmup_steps=0, max_grad_norm=0.0,
    num_epochs=2, batch_size=8, micro_batch_size=8, eval_batch_size=8, log_every=1,
)  # fmt: skip

_ALL = (
    _HEADLINE,
    _variant(_HEADLINE, "cifar100_vit_b16_baseline", "the same without R-Drop; paper 92.64 %", num_views=1),
    _variant(
        _HEADLINE, "cifar100_vit_b16_rdrop_224",
        "what a co-author answered in issue #25 of the official code: 224 px, rate 8e-3, 20,000 steps",
        image_size=224, learning_rate=8e-3, num_steps=20_000,
    ),
    _variant(
        _HEADLINE, "cifar100_vit_l16_rdrop", "ViT-L/16 + R-Drop; paper 93.85 %",
        model="ViT-L_16", pretrained="checkpoints/pretrained/ViT-L_16.npz",
    ),
    _variant(
        _HEADLINE, "cifar100_vit_l16_baseline", "ViT-L/16 without R-Drop; paper 93.44 %",
        model="ViT-L_16", pretrained="checkpoints/pretrained/ViT-L_16.npz", num_views=1,
    ),
    _variant(
        _HEADLINE, "cifar100_vit_b16_best",
        "not run by anyone yet: the headline from AugReg's weights and with mirrored images, which others used",
        pretrained="checkpoints/pretrained/B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz",
        flip=True,
    ),
    _variant(
        _HEADLINE, "imagenet_vit_b16_rdrop", "ViT-B/16 + R-Drop on ImageNet folders; paper 84.38 %",
        dataset="imagenet",
    ),
    _variant(
        _HEADLINE, "cifar10_vit_b16_rdrop", "ViT-B/16 + R-Drop on CIFAR-10; the paper gives no figure",
        dataset="cifar10", validation_per_class=100,
    ),
    _TI16,
    _variant(
        _TI16, "cifar100_vit_ti16_few", "the same with 10 images a class, so that 400 steps are 26 epochs",
        train_per_class=10,
    ),
    Recipe(
        "digits",
        "a small ViT + R-Drop from scratch on scikit-learn's handwritten digits, a minute on 2 cores",
        dataset="digits", validation_per_class=20, image_size=8, crop_min_area=0.8,
        model="ViT-digits",
        alpha=1.0,
        num_steps=1000, batch_size=64, micro_batch_size=64, learning_rate=0.1, warmup_steps=100,
        eval_every=100, eval_batch_size=500, save_every=100,
    ),
    _GROWTH,
    _variant(_GROWTH, "growth_stages_independent", "the same two networks without the KL: neither sees the other",
             alpha=0.0),
    _variant(
        _GROWTH, "growth_stages_single", "one of them with dropout before its head: two masks are the two views",
        second_model="", dropout=0.1,
    ),
    _variant(
        _GROWTH, "growth_stages_vit", "ViT-Ti/16 from an ImageNet file with R-Drop on the same pictures, 224 px",
        model="ViT-Ti_16", second_model="", pretrained="checkpoints/pretrained/vit_tiny_patch16_224.safetensors",
        image_size=224, scale="-1..1", dropout=0.1,
    ),
)  # fmt: skip

RECIPES = {recipe.name: recipe for recipe in _ALL}
HEADLINE, SMALL = "cifar100_vit_b16_rdrop", "digits"


def get_recipe(name: str, **changes) -> Recipe:
    """The named recipe with single fields changed. Raises UserError for an unknown name or a bad value."""
    if name not in RECIPES:
        raise UserError(f"unknown recipe {name!r}: {near(name, RECIPES)} (bash run_train.sh --list)")
    recipe = dataclasses.replace(RECIPES[name], **changes)
    check(recipe)
    return recipe


_FROM_1 = ("num_steps", "batch_size", "micro_batch_size", "eval_batch_size", "image_size", "kl_sum_over",
           "save_every", "log_every")  # fmt: skip
_FROM_0 = ("train_per_class", "validation_per_class", "split_seed", "seed", "eval_every", "test_every", "alpha",
           "warmup_steps", "num_epochs", "weight_decay", "max_grad_norm", "workers", "views_split_at")  # fmt: skip


def check(recipe: Recipe) -> None:
    """Raise UserError for the first value that cannot be trained, naming the option and what it may be."""
    at_least = dict.fromkeys(_FROM_1, 1) | dict.fromkeys(_FROM_0, 0)
    for field in dataclasses.fields(recipe):
        value, choices = getattr(recipe, field.name), field.metadata.get("choices")
        if choices and value not in choices:
            known = near(value, choices) if isinstance(value, str) else f"known: {', '.join(map(str, choices))}"
            raise UserError(f"--{field.name} {value}: {known}")
        if isinstance(value, float) and value != value:
            raise UserError(f"--{field.name} {value}: must be a number")
        if field.name in at_least and value < at_least[field.name]:
            raise UserError(f"--{field.name} {value}: must be at least {at_least[field.name]}")
    for name in ("dropout", "attention_dropout", "projection_dropout", "momentum"):
        if not 0 <= getattr(recipe, name) < 1:
            raise UserError(f"--{name} {getattr(recipe, name)}: must be at least 0 and below 1")
    if not 0 < recipe.crop_min_area <= 1:
        raise UserError(f"--crop_min_area {recipe.crop_min_area}: must be above 0 and at most 1")
    if not 0 < recipe.learning_rate < float("inf"):
        raise UserError(f"--learning_rate {recipe.learning_rate}: must be above 0")
    for name in ("seed", "split_seed"):
        if getattr(recipe, name) >= 2**63:
            raise UserError(f"--{name} {getattr(recipe, name)}: must be below 2^63")
    if recipe.second_pretrained and not recipe.second_model:
        raise UserError(f"--second_pretrained {recipe.second_pretrained}: there is no second network; name it with "
                        "--second_model, or say --pretrained")  # fmt: skip
    if recipe.num_epochs and (recipe.num_steps, recipe.eval_every) != (Recipe.num_steps, Recipe.eval_every):
        raise UserError(f"--num_epochs {recipe.num_epochs} sets --num_steps and --eval_every; to give these, say "
                        "--num_epochs 0")  # fmt: skip
    if recipe.second_model and recipe.num_views != 2:
        raise UserError(f"--second_model {recipe.second_model}: two networks are two views; leave --num_views at 2")
    if recipe.views_split_at:
        depth = MODELS.get(recipe.model, {}).get("depth", 0)
        if recipe.num_views != 2 or recipe.second_model or recipe.views_split_at >= depth:
            raise UserError(f"--views_split_at {recipe.views_split_at}: needs two views of one ViT with more blocks; "
                            f"{recipe.model} has {depth}")  # fmt: skip
    if recipe.fused and not {recipe.model, recipe.second_model or recipe.model} <= MODELS.keys():
        raise UserError(f"--fused true: only ViTs have attention, {recipe.model} is none")
    if recipe.resident and recipe.dataset in FROM_FILES:
        raise UserError(f"--resident true: the images of {recipe.dataset} are read from files, batch by batch")
    if not 0 <= recipe.validation_share < 1:
        raise UserError(f"--validation_share {recipe.validation_share}: must be at least 0 and below 1")
    if recipe.select_on == "validation" and not recipe.holds_out:
        raise UserError("--validation_per_class 0 leaves nothing to choose the best checkpoint on; "
                        "hold some images out or say --select_on test")  # fmt: skip


def add_options(parser) -> None:
    """Add one option for each field of `Recipe`; an option that is not given is absent from the result."""
    import argparse

    for field in dataclasses.fields(Recipe):
        if field.name in ("name", "summary"):
            continue
        kind = _switch if field.type is bool else field.type
        choices = field.metadata["choices"]
        text = field.metadata["help"] + (f" ({', '.join(map(str, choices))})" if choices else "")
        parser.add_argument(
            f"--{field.name}", type=kind, default=argparse.SUPPRESS, metavar=field.type.__name__.upper(),
            help=text.replace("%", "%%"),
        )  # fmt: skip


def _switch(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", "yes", "no", "on", "off"):
        raise ValueError(text)
    return text.lower() in ("true", "1", "yes", "on")
