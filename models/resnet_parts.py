"""What Res2Net and SE-ResNet share: ResNet-D (He et al., 1812.01187) around residual blocks of one's own.

Layers have PaddleClas's names (`conv1_1`, `bb_0_0.conv0._conv`, `out`, ...), so that its pretrained files fit. It also
gives each parameter a global name, which is left out here: with them, one process cannot hold two networks.
"""

import math
from collections.abc import Callable

from paddle import nn
from paddle.nn import functional as F

from common.errors import UserError

DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 12, 48, 3)}  # blocks of each stage
WIDTHS = (256, 512, 1024, 2048)  # channels behind each stage


class ConvBN(nn.Layer):
    """Convolution without bias, batch norm and, unless `relu` is off, ReLU: (B, in, H, W) -> (B, out, H', W').

    H' = ceil(H / stride) for the odd kernels used here.
    """

    def __init__(self, in_channels: int, channels: int, kernel: int, stride=1, groups=1, relu=True):
        super().__init__()
        self._conv = nn.Conv2D(
            in_channels, channels, kernel, stride=stride, padding=kernel // 2, groups=groups, bias_attr=False
        )
        # Paddle's momentum is the share of the old value that stays. On a CPU its running variance takes up the
        # biased variance of the batch, where PyTorch's takes up the unbiased one.
        self._batch_norm = nn.BatchNorm2D(channels, momentum=0.9, epsilon=1e-5)
        self.relu = relu

    def forward(self, x):
        x = self._batch_norm(self._conv(x))
        return F.relu(x) if self.relu else x


class Projection(ConvBN):
    """The shortcut where channels change. Stride 2 is a mean over 2x2 before the convolution: it sees every pixel."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__(in_channels, channels, 1, relu=False)
        self.stride = stride

    def forward(self, x):
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride, ceil_mode=True)  # at an odd edge the mean is over what is there
        return super().forward(x)


class ResidualBlock(nn.Layer):
    """relu(x + residual(x)), x projected where the channels change; subclasses define `residual`."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.short = nn.Identity() if in_channels == channels else Projection(in_channels, channels, stride)

    def forward(self, x):
        return F.relu(self.short(x) + self.residual(x))


class ResNetD(nn.Layer):
    """(B, 3, H, W) images of any size -> (B, num_classes) logits.

    Three 3x3 convolutions and a max pool, four stages of blocks, the mean over all positions, dropout, a dense head.

    Args:
        layers: 50, 101, 152 or 200, see DEPTHS.
        stem_channels: channels that the first stage sees.
        make_block: (stage, index, in_channels, channels, stride) -> ResidualBlock; both count from 0.
        dropout: rate before the head; 0 disables. The only source of two different views of one image.
    """

    def __init__(self, num_classes: int, layers: int, stem_channels: int, make_block: Callable, dropout: float):
        super().__init__()
        if layers not in DEPTHS:
            raise UserError(f"layers {layers}: must be one of {', '.join(map(str, DEPTHS))}")
        self.num_classes = num_classes
        self.conv1_1 = ConvBN(3, stem_channels // 2, 3, stride=2)
        self.conv1_2 = ConvBN(stem_channels // 2, stem_channels // 2, 3)
        self.conv1_3 = ConvBN(stem_channels // 2, stem_channels, 3)
        self.blocks = []  # a plain list, so that blocks are named by add_sublayer alone
        in_channels = stem_channels
        for stage, (depth, channels) in enumerate(zip(DEPTHS[layers], WIDTHS, strict=True)):
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                block = make_block(stage, index, in_channels, channels, stride)
                self.blocks.append(self.add_sublayer(f"bb_{stage}_{index}", block))
                in_channels = channels
        self.dropout = nn.Dropout(dropout)
        self.out = dense(in_channels, num_classes)

    def forward(self, images):
        x = self.conv1_3(self.conv1_2(self.conv1_1(images)))  # (B, stem_channels, H / 2, W / 2)
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        for block in self.blocks:
            x = block(x)
        return self.out(self.dropout(x.mean([2, 3])))  # x: (B, 2048, H / 32, W / 32)


def dense(inputs: int, outputs: int) -> nn.Linear:
    """A dense layer that starts uniform in ±1/sqrt(inputs), its bias at 0, as in PaddleClas."""
    bound = 1 / math.sqrt(inputs)
    return nn.Linear(inputs, outputs, weight_attr=nn.initializer.Uniform(-bound, bound))


def class_count(class_num: int | None, class_dim: int | None) -> int:
    """Number of classes from PaddleClas's new name for it and its old one; 1000, ImageNet's, where neither is given.

    Raises UserError where both are.
    """
    if class_num is not None and class_dim is not None:
        raise UserError(f"class_num {class_num} and class_dim {class_dim} mean the same: give one of them")
    return next((number for number in (class_num, class_dim) if number is not None), 1000)
