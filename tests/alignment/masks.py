"""The same dropout masks on both sides: every Dropout of a network is replaced by one that replays given masks."""

import zlib
from collections import Counter

import numpy as np
import paddle
import torch


class Masks:
    """Masks as a pure function of (update, micro-batch, place, view); a side says where it is and draws.

    The first draw at a place belongs to the first view, the second to the second. `places` counts the draws.
    """

    def __init__(self):
        self.places = Counter()  # (update, micro-batch, place) -> views drawn
        self.now = (0, 0)

    def start(self, update: int, micro_batch: int) -> None:
        self.now = (update, micro_batch)

    def draw(self, place: str, shape, rate: float) -> np.ndarray:
        """bool `shape`: what is kept."""
        view = self.places[(*self.now, place)]
        self.places[(*self.now, place)] += 1
        return np.random.default_rng([*self.now, view, zlib.crc32(place.encode())]).random(shape) >= rate


class _TorchReplay(torch.nn.Module):
    def __init__(self, masks, place, rate):
        super().__init__()
        self.masks, self.place, self.rate = masks, place, rate

    def forward(self, x):
        if not self.training:
            return x
        keep = torch.from_numpy(self.masks.draw(self.place, tuple(x.shape), self.rate))
        return x * keep / (1 - self.rate)


class _PaddleReplay(paddle.nn.Layer):
    """Takes [x; x], both views at once, (2 B, T, D) or of the first tokens alone; masks are drawn for all `tokens`."""

    def __init__(self, masks, place, rate, tokens):
        super().__init__()
        self.masks, self.place, self.rate, self.tokens = masks, place, rate, tokens

    def forward(self, x):
        if not self.training:
            return x
        half = (x.shape[0] // 2, self.tokens, x.shape[2])
        keep = np.concatenate([self.masks.draw(self.place, half, self.rate) for _ in range(2)])[:, : x.shape[1]]
        return x * paddle.to_tensor(keep).astype(x.dtype) / (1 - self.rate)


def replay_in_torch(model, masks: Masks):
    """Replace every nn.Dropout with a rate above 0 in `model`."""
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Dropout) and module.p > 0:
            model.set_submodule(name, _TorchReplay(masks, name, module.p))
    return model


def replay_in_paddle(model, masks: Masks):
    """The same for a network of this project. timm says `drop` where this project says `dropout`."""
    for name, layer in list(model.named_sublayers()):
        if isinstance(layer, paddle.nn.Dropout) and layer.p > 0:
            assert layer.mode == "upscale_in_train", f"{name}: {layer.mode}"
            *path, last = name.split(".")
            parent = model
            for part in path:
                parent = getattr(parent, part)
            setattr(parent, last, _PaddleReplay(masks, name.replace("dropout", "drop"), layer.p, model.config.tokens))
    return model
