"""Weight files of random numbers."""

import dataclasses

import numpy as np

from models import build_model
from models.weights import save_weights


def write_weights(path, metadata: dict, image_size: int, seed=0, overflow=False):
    """A ViT-digits of random weights; `overflow` makes its logits infinite."""
    model = build_model("ViT-digits", 10, image_size)
    rng = np.random.default_rng(seed)
    for parameter in model.parameters():
        parameter.set_value(rng.normal(0, 0.2, parameter.shape).astype("float32"))
    if overflow:
        model.norm.bias.set_value(np.full(64, 1e30, np.float32))
        model.head.weight.set_value(np.full([64, 10], 1e30, np.float32))
    save_weights(path, model, {**metadata, "network": dataclasses.asdict(model.config)})
    return path
