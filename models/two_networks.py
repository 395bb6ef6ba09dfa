"""Two networks side by side, whose predictions are the two views of R-Drop, as in the blog."""

import dataclasses

from paddle import nn
from paddle.nn import functional as F


@dataclasses.dataclass(frozen=True)
class TwoNetworksConfig:
    """The configurations of two networks that are trained side by side; classes and image size are the same."""

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
