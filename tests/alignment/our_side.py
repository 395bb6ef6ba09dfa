"""Our side: the product's own functions. Training is a whole `reproduce.train.train`, observed at its seams."""

import contextlib
import dataclasses
import functools
import io
import re
from dataclasses import dataclass, field
from unittest import mock

import numpy as np
import paddle

import models
import reproduce.train as product
from data import load_dataset
from models.fast_cpu import speed_up
from models.weights import load_pretrained, model_from_file
from reproduce import ROOT
from reproduce.evaluate import evaluate
from reproduce.job import Job
from reproduce.rdrop import rdrop_loss
from reproduce.recipes import Recipe

from .masks import Masks, replay_in_paddle

paddle.set_device("cpu")  # the thresholds are those of full float32

NETWORK = {"patch_size": 8, "width": 64, "depth": 2, "heads": 2, "mlp_width": 192}
IMAGE_SIZE, DROPOUT, ALPHA, KL_SUM_OVER = 32, 0.1, 0.3, 32
UPDATES, WARMUP, PEAK_RATE, MICRO_BATCH, MICRO_BATCHES = 20, 5, 0.05, 32, 2
SHOWN_CLASSES = 4  # see `images`
GRADIENT_UPDATES = 3  # the backward stage compares the gradients of that many updates


@functools.cache
def images():
    """CIFAR-100 where it has been unpacked, else the digits: real images in both cases.

    Training shows the first 4 classes only, and the fabricated head favours them: so the losses are about 4, where a
    unit of float32 is 5e-7 at most and a threshold of 1e-6 has room for rounding. At 9.2, the loss of a blind guess
    among 100 classes in two views, one unit alone is 1e-6.
    """
    folder = ROOT / "data" / "downloads"
    if (folder / "cifar-100-python" / "meta").exists():
        data = load_dataset("cifar100", str(folder))
    else:
        data = load_dataset("digits")
    return dataclasses.replace(data, train=data.train.subset(np.flatnonzero(data.train.labels < SHOWN_CLASSES)))


def first_images(split, count: int):
    """The first `count` images as the product prepares them, float32 (n, 3, S, S), and labels, in numpy."""
    pixels, labels = next(split.stream([(np.arange(count), None)], IMAGE_SIZE))
    return pixels.numpy(), labels.numpy()


def timm_layout(arrays: dict) -> dict:
    """Weights or gradients of ours under timm's names: matrices (out, in), query, key and value in one."""
    found = {}
    for name, value in arrays.items():
        if value.ndim == 2:
            value = value.T
        found.setdefault(re.sub(r"\.(query|key|value)\.", ".qkv.", name), []).append(value)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def weights_of(model) -> dict:
    return timm_layout({name: value.numpy() for name, value in model.named_parameters()})


def gradients_of(model) -> dict:
    return timm_layout({name: value.grad.numpy() for name, value in model.named_parameters()})


@contextlib.contextmanager
def default_dtype(dtype: str):
    before = paddle.get_default_dtype()
    paddle.set_default_dtype(dtype)
    try:
        yield
    finally:
        paddle.set_default_dtype(before)


def load(path, dtype: str, masks: Masks):
    """The network of the weight file, training, with replayed masks."""
    model, _, _ = model_from_file(path, heads=NETWORK["heads"], dropout=DROPOUT)
    speed_up(replay_in_paddle(model, masks)).to(dtype=dtype)  # as `train` does on a CPU
    model.train()
    return model


def two_views(model, pixels):
    """Logits of both views."""
    return model.views(paddle.to_tensor(pixels))


def loss(logits_1, logits_2, labels, form: str):
    return rdrop_loss(logits_1, logits_2, paddle.to_tensor(labels), ALPHA, KL_SUM_OVER, form)


def metrics(model, labels) -> dict:
    """`evaluate` on the first test images with these labels."""
    split = dataclasses.replace(images().test.subset(np.arange(len(labels))), labels=labels)
    return evaluate(model, split, IMAGE_SIZE, batch_size=96).metrics()


@dataclass
class Run:
    """What a training run did; lists have one entry an update, `batches` one a micro-batch."""

    batches: list = field(default_factory=list)  # (images, labels)
    losses: list = field(default_factory=list)
    gradients: list = field(default_factory=list)  # before clipping, of the first updates
    weights: list = field(default_factory=list)  # after the update


def train(path, dtype: str, form: str, masks: Masks, out) -> Run:
    """A run of the product's `train` from the weight file `path`, under the replayed masks."""
    recipe = Recipe(
        "alignment",
        "short updates",
        dataset=images().name,
        validation_per_class=0,
        image_size=IMAGE_SIZE,
        model="alignment",
        pretrained=str(path),
        dropout=DROPOUT,
        alpha=ALPHA,
        kl_sum_over=KL_SUM_OVER,
        loss_form=form,
        num_steps=UPDATES,
        batch_size=MICRO_BATCH * MICRO_BATCHES,
        micro_batch_size=MICRO_BATCH,
        learning_rate=PEAK_RATE,
        warmup_steps=WARMUP,
        eval_every=0,
        save_every=UPDATES,
        precision="fp32",
    )
    run = Run()

    @dataclass(frozen=True)
    class ObservedSplit:
        split: object

        def __len__(self):
            return len(self.split)

        def __getattr__(self, name):
            return getattr(self.split, name)

        def stream(self, *arguments):
            for index, (pixels, labels) in enumerate(self.split.stream(*arguments)):
                run.batches.append((pixels.numpy().astype(dtype), labels.numpy()))
                masks.start(index // MICRO_BATCHES, index % MICRO_BATCHES)
                yield pixels.astype(dtype), labels

    def load_dataset_observed(*_, **__):
        return dataclasses.replace(images(), train=ObservedSplit(images().train))

    def build_replaying(config):
        with default_dtype("float32"):  # as the weight file
            return replay_in_paddle(models.build(config), masks)

    def load_pretrained_cast(model, *files):
        lines = load_pretrained(model, *files)
        model.to(dtype=dtype)
        return lines

    trained = []  # the network

    def add_gradients_observed(recipe, model, *arguments):
        trained[:] = [model]
        sums = add_gradients(recipe, model, *arguments)
        run.losses.append(sums.numpy()[0])
        if len(run.gradients) < GRADIENT_UPDATES:
            run.gradients.append(gradients_of(model))
        return sums

    def apply_observed(*arguments):
        apply(*arguments)
        run.weights.append(weights_of(*trained))

    add_gradients, apply = product.add_gradients, product.apply_gradients
    with (
        mock.patch.dict(models.MODELS, alignment=NETWORK),
        mock.patch.multiple(
            product,
            load_dataset=load_dataset_observed,
            build=build_replaying,
            load_pretrained=load_pretrained_cast,
            add_gradients=add_gradients_observed,
            apply_gradients=apply_observed,
        ),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        default_dtype(dtype),  # of what the optimizer makes: its rate and its velocities
    ):
        product.train(Job(recipe, "alignment", out))
    return run
