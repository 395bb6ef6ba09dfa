"""This project's own side in `reproduce.bench`: the functions that training and evaluation call."""

import dataclasses

import numpy as np
import paddle

from data.in_memory import InMemory
from data.sampling import dropout_seed, network_seed
from models import build
from models.fast_cpu import speed_up
from reproduce.evaluate import evaluate
from reproduce.recipes import RECIPES
from reproduce.train import accumulate_gradients, apply_gradients, augmentation, make_optimizer, requests

paddle.set_device("cpu")


class Step:
    """Training steps on one batch; called, it does `steps` of them and gives the last loss."""

    def __init__(self, images, labels, *, recipe: str, changes: dict, classes: int, steps: int):
        self.recipe = dataclasses.replace(RECIPES[recipe], **changes)
        self.batch, self.steps, self.done = (paddle.to_tensor(images), paddle.to_tensor(labels)), steps, 0
        paddle.seed(network_seed(self.recipe.seed))
        self.model = build(self.recipe.network(classes))
        speed_up(self.model).train()  # as train() does
        self.optimizer = make_optimizer(self.recipe, self.model)

    def __call__(self) -> dict:
        for _ in range(self.steps):
            self.done += 1
            paddle.seed(dropout_seed(self.recipe.seed, self.done, 0))
            parts = accumulate_gradients(self.recipe, self.model, None, iter([self.batch]))
            apply_gradients(self.recipe, self.model, self.optimizer, None)
        return {"loss": parts["loss"]}


class Input:
    """Called, it takes `batches` batches from the stream that training reads."""

    def __init__(self, images, labels, *, recipe: str, changes: dict, batches: int):
        recipe = dataclasses.replace(RECIPES[recipe], **changes)
        self.batches = batches
        self.stream = InMemory(images, labels).stream(
            requests(recipe, len(labels), 1), recipe.image_size, augmentation(recipe), scale=recipe.scale
        )

    def __call__(self) -> None:
        for _ in range(self.batches):
            next(self.stream)


class Evaluation:
    """Called, it evaluates every image once."""

    def __init__(self, images, labels, *, recipe: str, changes: dict, classes: int, batch_size: int):
        recipe = dataclasses.replace(RECIPES[recipe], **changes)
        self.split, self.batch_size, self.image_size = InMemory(images, labels), batch_size, recipe.image_size
        self.model = build(recipe.network(classes))

    def __call__(self) -> dict:
        found = evaluate(self.model, self.split, self.image_size, self.batch_size)
        return {"nll": float(np.mean(found.nll))}
