"""The networks of the blog: Res2Net (Gao et al., 1904.01169), SE-ResNet and SE-ResNeXt (Hu et al., 1709.01507).

All three are ResNet-D (He et al., 1812.01187) with 50 layers, around blocks of their own. Layers have PaddleClas's
names (`conv1_1`, `bb_0_0.conv0._conv`, `out`, ...), so that its pretrained files fit. PaddleClas also gives each
parameter a global name, which is left out here: with them, one process cannot hold two networks.
"""

import math
from dataclasses import dataclass
from functools import partial

import paddle
from paddle import nn
from paddle.nn import functional as F

STAGES = ((3, 256), (4, 512), (6, 1024), (3, 2048))  # blocks of each stage, channels behind it
HEAD = ("out.weight", "out.bias")  # what belongs to the classes of a file


@dataclass(frozen=True)
class CNNConfig:
    """Everything that defines the network; it takes images of any size, `image_size` is what it is trained on."""

    network: str  # one of NETWORKS
    num_classes: int
    image_size: int
    dropout: float = 0.0  # before the head; 0 disables


class ConvBN(nn.Layer):
    """Convolution without bias, batch norm and, unless `relu` is off, ReLU: (B, in, H, W) -> (B, out, H', W').

    H' = ceil(H / stride) for the odd kernels used here.
    """

    def __init__(self, in_channels: int, channels: int, kernel: int, stride=1, groups=1, relu=True):
        super().__init__()
        self._conv = nn.Conv2D(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias_attr=False)
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
    """relu(x + residual(x)), x projected where the channels change; subclasses define `residual`.

    (B, in_channels, H, W) -> (B, channels, ceil(H / stride), ceil(W / stride)). Stages and blocks count from 0.
    """

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.short = nn.Identity() if in_channels == channels else Projection(in_channels, channels, stride)

    def forward(self, x):
        return F.relu(self.short(x) + self.residual(x))


class Res2NetBlock(ResidualBlock):
    """Bottleneck whose 3x3 convolution is a ladder: each group of channels also gets the result of the one before.

    Other than in the authors' code, the first block of the first stage keeps its ladder: PaddleClas cuts it only where
    a block halves.
    """

    def __init__(self, stage: int, index: int, in_channels: int, channels: int, stride: int):
        super().__init__(in_channels, channels, stride)
        self.stride, width = stride, 26 << stage  # channels of each of the four groups
        self.conv0 = ConvBN(in_channels, 4 * width, 1)
        name = f"res{stage + 2}{'abcdef'[index]}_branch2b"
        self.branches = [  # a plain list, so that they are named by add_sublayer alone
            self.add_sublayer(f"{name}_{number}", ConvBN(width, width, 3, stride=stride)) for number in (1, 2, 3)
        ]  # the fourth group has no convolution
        self.conv2 = ConvBN(4 * width, channels, 1, relu=False)

    def residual(self, x):
        pieces = paddle.split(self.conv0(x), 4, axis=1)  # each (B, width, H, W)
        found = []
        for number, branch in enumerate(self.branches):  # no strict zip: Paddle's export cannot translate it
            # Where the block halves, the ladder is cut: what comes out is smaller than the next piece.
            climbs = number > 0 and self.stride == 1
            found.append(branch(pieces[number] + found[-1] if climbs else pieces[number]))
        last = pieces[-1]
        if self.stride > 1:
            last = F.avg_pool2d(last, 3, stride=self.stride, padding=1)  # at the edge, of the pixels inside alone
        return self.conv2(paddle.concat([*found, last], axis=1))


class SqueezeExcitation(nn.Layer):
    """Multiply each channel by a factor in (0, 1) that depends on the means of all: (B, C, H, W) -> the same."""

    def __init__(self, channels: int):
        super().__init__()
        self.squeeze = dense(channels, channels // 16)
        self.excitation = dense(channels // 16, channels)

    def forward(self, x):
        factors = F.sigmoid(self.excitation(F.relu(self.squeeze(x.mean([2, 3])))))  # (B, C)
        return x * factors.unsqueeze([2, 3])


class SEBlock(ResidualBlock):
    """Bottleneck with a 3x3 convolution in `groups` and a squeeze-and-excitation before the sum.

    `group_width` is the channels of one group in the first stage; it doubles with each stage.
    """

    def __init__(self, stage, index, in_channels, channels, stride, *, groups: int, group_width: int):
        super().__init__(in_channels, channels, stride)
        width = groups * group_width << stage
        self.conv0 = ConvBN(in_channels, width, 1)
        self.conv1 = ConvBN(width, width, 3, stride=stride, groups=groups)
        self.conv2 = ConvBN(width, channels, 1, relu=False)
        self.scale = SqueezeExcitation(channels)

    def residual(self, x):
        return self.scale(self.conv2(self.conv1(self.conv0(x))))


NETWORKS = {  # name -> (block, channels that the first stage sees)
    "Res2Net50_vd_26w_4s": (Res2NetBlock, 64),
    "SE_ResNet50_vd": (partial(SEBlock, groups=1, group_width=64), 64),
    "SE_ResNeXt50_vd_32x4d": (partial(SEBlock, groups=32, group_width=4), 128),  # its stem is that of SENet-154
}


class ResNet(nn.Layer):
    """(B, 3, H, W) images of any size -> (B, num_classes) logits.

    Three 3x3 convolutions and a max pool, four stages of blocks, the mean over all positions, dropout, a dense head.
    """

    def __init__(self, config: CNNConfig):
        super().__init__()
        self.config = config
        make_block, in_channels = NETWORKS[config.network]
        self.conv1_1 = ConvBN(3, in_channels // 2, 3, stride=2)
        self.conv1_2 = ConvBN(in_channels // 2, in_channels // 2, 3)
        self.conv1_3 = ConvBN(in_channels // 2, in_channels, 3)
        self.blocks = []  # a plain list, so that blocks are named by add_sublayer alone
        for stage, (depth, channels) in enumerate(STAGES):
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                block = make_block(stage, index, in_channels, channels, stride)
                self.blocks.append(self.add_sublayer(f"bb_{stage}_{index}", block))
                in_channels = channels
        self.dropout = nn.Dropout(config.dropout)
        self.out = dense(in_channels, config.num_classes)

    def forward(self, images):
        x = self.conv1_3(self.conv1_2(self.conv1_1(images)))  # (B, in_channels, H / 2, W / 2)
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        for block in self.blocks:
            x = block(x)
        return self.out(self.dropout(x.mean([2, 3])))  # x: (B, 2048, H / 32, W / 32)

    def views(self, images):
        """Two views of `images`: two (B, num_classes). Only the dropout before the head makes them differ."""
        logits_a, logits_b = self(paddle.concat([images, images])).chunk(2)
        return logits_a, logits_b

    def parts(self) -> dict[str, nn.Layer]:
        return {"": self}


def dense(inputs: int, outputs: int) -> nn.Linear:
    """A dense layer that starts uniform in ±1/sqrt(inputs), its bias at 0, as in PaddleClas."""
    bound = 1 / math.sqrt(inputs)
    return nn.Linear(inputs, outputs, weight_attr=nn.initializer.Uniform(-bound, bound))
