"""The convolutional networks by name, and what a step through one costs."""

from dataclasses import dataclass

import paddle
from paddle import nn

from models.res2net import Res2Net50_vd_26w_4s
from models.se_resnet import SE_ResNet50_vd, SE_ResNeXt50_vd_32x4d

NETWORKS = {
    "Res2Net50_vd_26w_4s": Res2Net50_vd_26w_4s,
    "SE_ResNet50_vd": SE_ResNet50_vd,
    "SE_ResNeXt50_vd_32x4d": SE_ResNeXt50_vd_32x4d,
}
HEAD = ("out.weight", "out.bias")  # what belongs to the classes of a file


@dataclass(frozen=True)
class CNNConfig:
    """Everything that defines the network; it takes images of any size, `image_size` is what it is trained on."""

    network: str
    num_classes: int
    image_size: int
    dropout: float = 0.0  # before the head


def build(config: CNNConfig) -> nn.Layer:
    """A freshly initialised network."""
    model = NETWORKS[config.network](class_num=config.num_classes, dropout=config.dropout)
    model.config = config
    return model


@paddle.no_grad()
def measure(config: CNNConfig) -> tuple[int, int, int]:
    """(parameters, operations of one image's forward pass, numbers it keeps for the backward pass), by running it.

    Operations are those of convolutions and dense layers; a multiply-add counts as 2.
    """
    model, operations, kept = build(config), 0, 0

    def count(layer, inputs, output):
        nonlocal operations, kept
        kept += inputs[0].size
        if isinstance(layer, nn.Conv2D | nn.Linear):
            per_output = layer.weight.size // (layer.weight.shape[0 if isinstance(layer, nn.Conv2D) else 1])
            operations += 2 * per_output * output.size

    for layer in model.sublayers():
        if not layer.sublayers():
            layer.register_forward_post_hook(count)
    model.eval()
    model(paddle.zeros([1, 3, config.image_size, config.image_size]))
    trained = (p for p in model.parameters() if not p.stop_gradient)  # without the running statistics
    return sum(p.size for p in trained), operations, kept
