"""SE-ResNet and SE-ResNeXt (Hu et al., 1709.01507) in the ResNet-D form of PaddleClas, whose files fit them."""

from paddle.nn import Layer
from paddle.nn import functional as F

from models.resnet_parts import ConvBN, ResidualBlock, ResNetD, class_count, dense


class SqueezeExcitation(Layer):
    """Multiply each channel by a factor in (0, 1) that depends on the means of all: (B, C, H, W) -> the same."""

    def __init__(self, channels: int, reduction=16):
        super().__init__()
        self.squeeze = dense(channels, channels // reduction)
        self.excitation = dense(channels // reduction, channels)

    def forward(self, x):
        factors = F.sigmoid(self.excitation(F.relu(self.squeeze(x.mean([2, 3])))))  # (B, C)
        return x * factors.unsqueeze([2, 3])


class SEBlock(ResidualBlock):
    """Bottleneck with a grouped 3x3 convolution and a squeeze-and-excitation before the sum.

    (B, in_channels, H, W) -> (B, channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_channels: int, channels: int, stride: int, width: int, groups: int):
        super().__init__(in_channels, channels, stride)
        self.conv0 = ConvBN(in_channels, width, 1)
        self.conv1 = ConvBN(width, width, 3, stride=stride, groups=groups)
        self.conv2 = ConvBN(width, channels, 1, relu=False)
        self.scale = SqueezeExcitation(channels)

    def residual(self, x):
        return self.scale(self.conv2(self.conv1(self.conv0(x))))


class SEResNet(ResNetD):
    """(B, 3, H, W) -> (B, num_classes).

    Args:
        layers: 50, 101, 152 or 200.
        groups: of each 3x3 convolution; 1 is a ResNet, more a ResNeXt.
        group_width: channels of one group in the first stage; doubles with each stage.
        stem_channels: channels that the first stage sees.
        dropout: rate before the head; 0 disables.
    """

    def __init__(self, num_classes: int, layers=50, groups=1, group_width=64, stem_channels=64, dropout=0.0):
        def block(stage, index, in_channels, channels, stride):
            return SEBlock(in_channels, channels, stride, groups * group_width * 2**stage, groups)

        super().__init__(num_classes, layers, stem_channels, block, dropout)


def SE_ResNet50_vd(*, class_num=None, class_dim=None, dropout=0.0) -> SEResNet:
    """28.1 million parameters with 1000 classes; `class_num` and `class_dim` are two names of one argument."""
    return SEResNet(class_count(class_num, class_dim), dropout=dropout)


def SE_ResNeXt50_vd_32x4d(*, class_num=None, class_dim=None, dropout=0.0) -> SEResNet:
    """27.7 million parameters with 1000 classes; its stem is twice as wide as the others', as that of SENet-154."""
    classes = class_count(class_num, class_dim)
    return SEResNet(classes, groups=32, group_width=4, stem_channels=128, dropout=dropout)
