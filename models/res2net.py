"""Res2Net (Gao et al., 1904.01169) in the ResNet-D form of PaddleClas, whose `Res2Net50_vd_26w_4s` file fits it."""

import paddle
from paddle.nn import functional as F

from models.resnet_parts import ConvBN, ResidualBlock, ResNetD, class_count


class Res2NetBlock(ResidualBlock):
    """Bottleneck whose 3x3 convolution is a ladder: each of `scales` groups of channels also gets the one before.

    (B, in_channels, H, W) -> (B, channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, name: str, in_channels: int, channels: int, stride: int, width: int, scales: int):
        super().__init__(in_channels, channels, stride)
        self.stride, self.scales = stride, scales
        self.conv0 = ConvBN(in_channels, width * scales, 1)
        self.branches = [
            self.add_sublayer(f"{name}_branch2b_{number}", ConvBN(width, width, 3, stride=stride))
            for number in range(1, scales)  # the last group has no convolution
        ]
        self.conv2 = ConvBN(width * scales, channels, 1, relu=False)

    def residual(self, x):
        pieces = paddle.split(self.conv0(x), self.scales, axis=1)  # each (B, width, H, W)
        found = []
        for number, branch in enumerate(self.branches):  # no strict zip: Paddle's export cannot translate it
            # Where the block halves, the ladder is cut: what comes out is smaller than the next piece.
            climbs = number > 0 and self.stride == 1
            found.append(branch(pieces[number] + found[-1] if climbs else pieces[number]))
        last = pieces[-1]
        if self.stride > 1:
            last = F.avg_pool2d(last, 3, stride=self.stride, padding=1)  # at the edge, of the pixels inside alone
        return self.conv2(paddle.concat([*found, last], axis=1))


class Res2Net(ResNetD):
    """(B, 3, H, W) -> (B, num_classes).

    Args:
        layers: 50, 101, 152 or 200.
        width: channels of one group in the first stage; doubles with each stage.
        scales: groups of channels in a block, 2 or more.
        dropout: rate before the head; 0 disables.

    Other than in the authors' code, the first block of the first stage keeps its ladder: PaddleClas cuts it only where
    a block halves.
    """

    def __init__(self, num_classes: int, layers=50, width=26, scales=4, dropout=0.0):
        def block(stage, index, in_channels, channels, stride):
            name = _block_name(layers, stage, index)
            return Res2NetBlock(name, in_channels, channels, stride, width * 2**stage, scales)

        super().__init__(num_classes, layers, 64, block, dropout)


def _block_name(layers: int, stage: int, index: int) -> str:
    """PaddleClas's: res2a, res2b, ...; the long third stage of the deep networks has res4a, res4b1, res4b2, ..."""
    if layers > 50 and stage == 2 and index > 0:
        return f"res4b{index}"
    return f"res{stage + 2}{chr(ord('a') + index)}"


def Res2Net50_vd_26w_4s(*, class_num=None, class_dim=None, dropout=0.0) -> Res2Net:
    """25.7 million parameters with 1000 classes; `class_num` and `class_dim` are two names of one argument."""
    return Res2Net(class_count(class_num, class_dim), layers=50, width=26, scales=4, dropout=dropout)
