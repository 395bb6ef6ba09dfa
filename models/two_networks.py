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
    """(B, 3, S, S) -> (B, classes): the logarithm of the mean of both networks' probabilities, one prediction.

    Training runs the two apart: `networks` has them by name.
    """

    def __init__(self, config: TwoNetworksConfig, first: nn.Layer, second: nn.Layer):
        super().__init__()
        self.config, self.first, self.second = config, first, second

    @property
    def networks(self) -> dict[str, nn.Layer]:
        return {"first": self.first, "second": self.second}

    def forward(self, images):
        return ((F.softmax(self.first(images), axis=-1) + F.softmax(self.second(images), axis=-1)) / 2).log()
