"""Recipes: everything that defines a run, by name. `bash run_train.sh --list` prints them.

The command line is made from the fields of `Recipe`: each is an option of the same name.
"""

import argparse
import dataclasses
import functools
import math
import operator
from dataclasses import dataclass

from common.errors import UserError, near
from data import CLASSES
from data.augment import SCALES
from models import NAMES, Config, model_config
from reproduce.optim import SCHEDULES
from reproduce.rdrop import FORMS

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
CHOICE = ("train_per_class", "validation_per_class", "validation_share", "split_seed")  # of images
_LIMITS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}


def setting(default, help: str, choices=(), hardware: bool = False, **limits):
    """A field of a recipe; `limits` are names of _LIMITS. `hardware`: it does not change what the run means."""
    metadata = {"help": help, "choices": choices, "hardware": hardware, "limits": limits}
    return dataclasses.field(default=default, metadata=metadata)


share = functools.partial(setting, at_least=0, below=1)
machine = functools.partial(setting, hardware=True)


@dataclass(frozen=True)
class Recipe:
    """One run. The help text of each field gives its unit, its meaning and the value that switches it off."""

    name: str
    summary: str

    # data
    dataset: str = setting("cifar100", "data set", tuple(CLASSES))
    train_per_class: int = setting(0, "training images kept of each class; 0 keeps all", at_least=0)
    validation_per_class: int = setting(10, "training images of each class held out to validate; 0 = none", at_least=0)
    validation_share: float = share(0.0, "share of each class held out instead (0.1 = 90/10); 0 = off")
    strict: bool = setting(False, "stop at a picture of a table that cannot be read; off: leave it out, with its name")
    split_seed: int = setting(0, "which images these options choose; the same in a study", at_least=0, below=2**63)
    image_size: int = setting(384, "pixels a side after cropping and resizing", at_least=1)
    scale: str = setting("-1..1", "what pixel values become; imagenet = its mean and deviation", tuple(SCALES))
    crop_min_area: float = setting(0.05, "smallest random crop, share of the area; 1 = off", above=0, at_most=1)
    flip: bool = setting(False, "mirror half of the training images; the official code does not")

    # network
    model: str = setting("ViT-B_16", "network", NAMES)
    second_model: str = setting("", "another network beside it: the two are the views; '' = none", ("", *NAMES))
    pretrained: str = setting("", "weight file to start from; '' starts from random weights")
    second_pretrained: str = setting("", "weight file of the second network")
    dropout: float = share(0.1, "rate after the position embedding and in each MLP, or a ResNet's; 0 = off")
    attention_dropout: float = share(0.0, "dropout rate of the attention weights; 0 = off")
    projection_dropout: float = share(0.0, "dropout rate after the attention's projection; 0 = off")

    # loss: see rdrop.rdrop_loss
    num_views: int = setting(2, "2 = R-Drop's two views of each image; 1 = plain cross-entropy", at_least=1, at_most=2)
    alpha: float = setting(0.3, "strength of the KL term; 0 = off. 0.3 here is the paper's 0.6", at_least=0)
    kl_sum_over: int = setting(1, "1 = mean KL (paper); n = summed over micro-batches of n (official: 32)", at_least=1)
    loss_form: str = setting("sum", "views added up (paper, official) or averaged (blog, port)", FORMS)

    # optimisation
    optimizer: str = setting("momentum", "SGD with momentum, or Adam", ("momentum", "adam"))
    num_epochs: int = setting(0, "passes over the images: sets num_steps and eval_every; 0 = off", at_least=0)
    num_steps: int = setting(10_000, "updates", at_least=1)
    batch_size: int = setting(512, "images an update; each is seen num_views times", at_least=1)
    learning_rate: float = setting(1e-2, "peak rate", above=0, below=math.inf)
    schedule: str = setting("cosine", "course of the rate after the warm-up", SCHEDULES)
    warmup_steps: int = setting(500, "updates of linear warm-up; 0 = none", at_least=0)
    momentum: float = share(0.9, "momentum of SGD; 0 = plain SGD")
    weight_decay: float = setting(0.0, "L2 coefficient; 0 = off", at_least=0)
    max_grad_norm: float = setting(1.0, "global L2 norm that gradients are clipped to; 0 = off", at_least=0)
    seed: int = setting(42, "seed of order, crops, dropout and initial weights", at_least=0, below=2**63)

    # evaluation
    eval_every: int = setting(100, "updates between two validations; 0 = no evaluation at all", at_least=0)
    test_every: int = setting(0, "updates between two looks at the test set; 0 = only at the end", at_least=0)
    select_on: str = setting("validation", "chooses the best; 'test' only to repeat others", ("validation", "test"))

    # hardware, but for precision: does not change what the run means
    micro_batch_size: int = machine(0, "images at once; 0 = auto: a power of two that fits, 32 on a CPU", at_least=0)
    recompute: bool = machine(False, "keep the blocks' inputs alone, compute the rest twice: less memory, slower")
    eval_batch_size: int = machine(100, "images at once in evaluation", at_least=1)
    precision: str = setting("auto", "auto = bf16 where the GPU has it, else fp32; 16 bits need a GPU", PRECISIONS)
    device: str = machine("auto", "auto = the GPU where there is one", ("auto", "cpu", "gpu"))
    workers: int = machine(4, "processes that decode image files; 0 = none", at_least=0)
    data_dir: str = machine("", "folder with the data; '' = data/downloads")
    save_every: int = machine(0, "updates between two saved states; 0 = 100, on a GPU 10 minutes", at_least=0)
    log_every: int = machine(10, "updates between two training records", at_least=1)

    def split(self) -> dict:
        """The options of `data.load_dataset` and `data.dataset_sizes` that choose images."""
        return {name: getattr(self, name) for name in CHOICE}

    def network(self, num_classes: int) -> Config:
        """The configuration of the network, or of both."""
        rates = {name: getattr(self, name) for name in ("dropout", "attention_dropout", "projection_dropout")}
        return model_config(self.model, num_classes, self.image_size, self.second_model, **rates)

    def meaning(self) -> dict:
        """The fields that define the run's result: all but its name and the hardware ones."""
        return {f.name: getattr(self, f.name) for f in SETTINGS if not f.metadata["hardware"]}


RECIPES: dict[str, Recipe] = {}
HEADLINE, SMALL = "cifar100_vit_b16_rdrop", "digits"
SETTINGS = dataclasses.fields(Recipe)[2:]  # all but name and summary


def _recipe(name: str, summary: str, like: Recipe = Recipe("", ""), **settings) -> Recipe:
    """Enter a recipe: the one it is `like`, or the defaults, but for these settings."""
    RECIPES[name] = dataclasses.replace(like, name=name, summary=summary, **settings)
    return RECIPES[name]


_LARGE = {"model": "ViT-L_16", "pretrained": "checkpoints/pretrained/ViT-L_16.npz"}
_BASE = {"model": "ViT-B_16", "pretrained": "checkpoints/pretrained/ViT-B_16.npz"}
_AUGREG = "checkpoints/pretrained/B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz"
_TINY = {"model": "ViT-Ti_16", "pretrained": "checkpoints/pretrained/vit_tiny_patch16_224.safetensors"}

_headline = _recipe(
    HEADLINE,
    "the headline: ViT-B/16 + R-Drop on CIFAR-100 as the official code trains it; paper 93.29 %",
    **_BASE,
    alpha=0.3,  # dropreg/R-Drop vit_src/train.py --alpha; times (KL + KL'), so the paper's 0.6
    kl_sum_over=32,  # its micro-batches of 512 // 16 images, over which it sums the KL
    test_every=1000,
)
_recipe("cifar100_vit_b16_baseline", "the same without R-Drop; paper 92.64 %", _headline, num_views=1)
_recipe(
    "cifar100_vit_b16_rdrop_224",
    "what a co-author answered in issue #25 of the official code: 224 px, rate 8e-3, 20,000 steps",
    _headline,
    image_size=224,
    learning_rate=8e-3,
    num_steps=20_000,
)
_recipe(
    "cifar100_vit_b16_fast",
    "half an hour on an A100 by the estimate: ViT-B/16 + R-Drop at 224 px, 10 epochs of CIFAR-100; not run by us",
    **_BASE,
    image_size=224,
    num_steps=7660,  # 10 epochs of 49,000 images
    batch_size=64,
    warmup_steps=383,  # 5 %, as the headline
    eval_every=766,
)
_recipe("cifar100_vit_l16_rdrop", "ViT-L/16 + R-Drop; paper 93.85 %", _headline, **_LARGE)
_recipe("cifar100_vit_l16_baseline", "ViT-L/16 without R-Drop; paper 93.44 %", _headline, **_LARGE, num_views=1)
_recipe("cifar100_vit_b16_best", "AugReg's weights, mirrored images; not run", _headline, flip=True, pretrained=_AUGREG)
_recipe("imagenet_vit_b16_rdrop", "ViT-B/16 + R-Drop on ImageNet folders; paper 84.38 %", _headline, dataset="imagenet")
_recipe("cifar10_vit_b16_rdrop", "ViT-B/16 + R-Drop, CIFAR-10", _headline, dataset="cifar10", validation_per_class=100)

# For a CPU; the paper's alpha 0.3 is for 10,000 steps, and a much stronger KL slows so short a schedule down.
_SHORT = {"alpha": 1.0, "batch_size": 64, "micro_batch_size": 64}
_ti16 = _recipe(
    "cifar100_vit_ti16",
    "small and real: ViT-Ti/16 from an ImageNet file, 50 CIFAR-100 images a class, minutes on a CPU",
    **_TINY,
    **_SHORT,
    image_size=64,
    train_per_class=50,
    num_steps=400,
    learning_rate=0.05,
    warmup_steps=40,
    eval_batch_size=250,
)
_recipe("cifar100_vit_ti16_few", "the same with 10 images a class: 400 steps are 26 epochs", _ti16, train_per_class=10)
_recipe(
    SMALL,
    "a small ViT + R-Drop from scratch on 1,797 handwritten digits, one to three minutes on 2 cores",
    **_SHORT,
    dataset="digits",
    validation_per_class=20,
    image_size=8,
    crop_min_area=0.8,
    model="ViT-digits",
    num_steps=1000,
    learning_rate=0.1,
    warmup_steps=100,
    eval_batch_size=500,
)

_images = _recipe(
    "images_vit_b16",
    "your own pictures, folders or a table (--data_dir): ViT-B/16 + R-Drop at 224 px, 10 epochs",
    **_BASE,
    dataset="images",
    validation_per_class=0,
    validation_share=0.1,
    image_size=224,
    crop_min_area=0.2,  # a small object must stay in the picture
    flip=True,
    num_epochs=10,
    batch_size=64,
    warmup_steps=50,
)
_recipe("images_vit_ti16", "the same with ViT-Ti/16, for a CPU or few pictures", _images, **_TINY)
_recipe(
    "growth_stages",
    "the blog's example: Res2Net50 and SE-ResNet50 side by side on pictures of growth stages (--data_dir)",
    dataset="growth_stages",
    validation_per_class=0,
    validation_share=0.1,
    image_size=256,
    crop_min_area=1.0,
    scale="0..1",
    model="Res2Net50_vd_26w_4s",
    second_model="SE_ResNet50_vd",
    dropout=0.0,
    alpha=0.6,
    loss_form="mean",
    kl_sum_over=8,  # its compute_kl_loss sums over the batch
    optimizer="adam",
    learning_rate=3e-4,
    schedule="constant",
    warmup_steps=0,
    max_grad_norm=0.0,
    num_epochs=2,
    batch_size=8,
    micro_batch_size=8,
    log_every=1,
)


def get_recipe(name: str, **changes) -> Recipe:
    """The named recipe with single fields changed. Raises UserError for an unknown name or a bad value.

    A number of steps that is given is what counts, also in a recipe of epochs.
    """
    if name not in RECIPES:
        raise UserError(f"unknown recipe {name!r}: {near(name, RECIPES)} (bash run_train.sh --list)")
    epochs, steps = changes.get("num_epochs"), changes.get("num_steps")
    if epochs and steps is not None:
        raise UserError(f"--num_epochs {epochs} and --num_steps {steps}: give one of them")
    if steps is not None:
        changes["num_epochs"] = 0
    recipe = dataclasses.replace(RECIPES[name], **changes)
    for field in SETTINGS:
        if wrong := what_is_wrong(field, getattr(recipe, field.name)):
            raise UserError(f"--{field.name} {getattr(recipe, field.name)}: {wrong}")
    if recipe.second_pretrained and not recipe.second_model:
        raise UserError(f"--second_pretrained {recipe.second_pretrained}: there is no second network; say --pretrained")
    if recipe.second_model and recipe.num_views != 2:
        raise UserError(f"--second_model {recipe.second_model}: two networks are two views; leave --num_views at 2")
    if recipe.select_on == "validation" and not recipe.validation_per_class and not recipe.validation_share:
        raise UserError("--validation_per_class 0: no images to choose the best on; hold some out, or --select_on test")
    return recipe


def what_is_wrong(field: dataclasses.Field, value) -> str:
    """What is wrong with this value of a field of `Recipe`; "" where nothing is."""
    if type(value) is not field.type and not (field.type is float and type(value) is int):
        return f"must be {field.type.__name__}"
    choices = field.metadata["choices"]
    if choices and value not in choices:
        return near(value, choices)
    for name, limit in field.metadata["limits"].items():
        if not _LIMITS[name](value, limit):  # also where the value is not a number
            return f"must be {name.replace('_', ' ')} {limit}"
    return ""


def add_options(parser) -> None:
    """Add one option for each setting; an option that is not given is absent from the result."""
    for field in SETTINGS:
        text, choices = field.metadata["help"].replace("%", "%%"), field.metadata["choices"]
        if choices:
            text += f" ({', '.join(choices)})"
        kind, metavar = switch if field.type is bool else field.type, field.type.__name__.upper()
        parser.add_argument(f"--{field.name}", type=kind, default=argparse.SUPPRESS, metavar=metavar, help=text)


def switch(text: str) -> bool:
    """The value of an option that is on or off; ValueError for another word, as argparse wants it."""
    if text.lower() not in ("true", "false", "1", "0", "yes", "no", "on", "off"):
        raise ValueError(text)
    return text.lower() in ("true", "1", "yes", "on")
