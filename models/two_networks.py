"""Two different networks that are trained side by side, each on what the other says of the same images."""

from dataclasses import dataclass

from paddle import nn
from paddle.nn import functional as F


@dataclass(frozen=True)
class TwoNetworksConfig:
    """The configurations of both; classes and image size are the same."""

    first: object
    second: object

    @property
    def num_classes(self) -> int:
        return self.first.num_classes

    @property
    def image_size(self) -> int:
        return self.first.image_size


class TwoNetworks(nn.Layer):
    """(B, 3, S, S) -> (B, classes): the logarithm of the mean of both networks' probabilities, one prediction."""

    def __init__(self, config: TwoNetworksConfig, first: nn.Layer, second: nn.Layer):
        super().__init__()
        self.config, self.first, self.second = config, first, second

    def forward(self, images):
        return ((F.softmax(self.first(images), axis=-1) + F.softmax(self.second(images), axis=-1)) / 2).log()

    def views(self, images):
        """The two views of `images` in training: the logits of each network, two (B, classes)."""
        return self.first(images), self.second(images)

    def parts(self) -> dict[str, nn.Layer]:
        """What is evaluated, by name: both together and each alone."""
        return {"": self, "first": self.first, "second": self.second}

    def use_recompute(self) -> None:
        """As `ViT.use_recompute`; only for two ViTs."""
        self.first.use_recompute()
        self.second.use_recompute()

    def fuse_attention(self) -> None:
        """As `ViT.fuse_attention`; only for two ViTs."""
        self.first.fuse_attention()
        self.second.fuse_attention()
