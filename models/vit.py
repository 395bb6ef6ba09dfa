"""Vision Transformer (Dosovitskiy et al., 2010.11929) with dropout where the official R-Drop code has it.

Dropout (rate `dropout`) acts after the position embedding and twice in each MLP; attention weights and the
attention's output projection have rates of their own, 0 by default (dropreg/R-Drop, vit_src/models/configs.py).
Query, key and value are three layers: cutting them out of one joint product costs a copy of its gradient.
"""

from dataclasses import dataclass

import paddle
from paddle import nn
from paddle.distributed.fleet.utils import recompute
from paddle.nn import functional as F


@dataclass(frozen=True)
class ViTConfig:
    """Everything that defines the network. Widths count features, sizes count pixels."""

    num_classes: int
    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_width: int
    dropout: float = 0.1  # after the position embedding and twice in each MLP; 0 disables
    attention_dropout: float = 0.0  # of the attention weights
    projection_dropout: float = 0.0  # after the attention's output projection
    qkv_bias: bool = True
    layer_norm_epsilon: float = 1e-6

    @property
    def tokens(self) -> int:
        """Patches of an image and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1

    def flops_per_image(self) -> int:
        """Floating-point operations of the matrix products in one forward pass (a multiply-add counts as 2)."""
        t, d = self.tokens, self.width
        patches = (t - 1) * 3 * self.patch_size**2 * d
        attention = 4 * t * d * d + 2 * t * t * d  # query, key, value, projection; scores and weighted sum
        mlp = 2 * t * d * self.mlp_width
        return 2 * (patches + self.depth * (attention + mlp) + d * self.num_classes)


class Attention(nn.Layer):
    """Multi-head self-attention: (B, T, D) -> (B, T, D)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.heads, self.head_dim = config.heads, config.width // config.heads
        bias = None if config.qkv_bias else False
        self.query, self.key, self.value = (nn.Linear(config.width, config.width, bias_attr=bias) for _ in range(3))
        self.proj = nn.Linear(config.width, config.width)
        self.weights_dropout = nn.Dropout(config.attention_dropout)
        self.proj_dropout = nn.Dropout(config.projection_dropout)

    def split_heads(self, x):
        return x.reshape([0, 0, self.heads, self.head_dim]).transpose([0, 2, 1, 3])

    def forward(self, x):
        q = self.split_heads(self.query(x)) * self.head_dim**-0.5  # (B, heads, T, head_dim)
        k, v = self.split_heads(self.key(x)), self.split_heads(self.value(x))
        weights = F.softmax(paddle.matmul(q, k, transpose_y=True), axis=-1)  # (B, heads, T, T)
        x = paddle.matmul(self.weights_dropout(weights), v)
        x = x.transpose([0, 2, 1, 3]).flatten(2)  # (B, T, D)
        return self.proj_dropout(self.proj(x))


class Mlp(nn.Layer):
    """Two dense layers with an exact GELU between them: (B, T, D) -> (B, T, D)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.dropout1 = nn.Dropout(config.dropout)
        self.fc2 = nn.Linear(config.mlp_width, config.width)
        self.dropout2 = nn.Dropout(config.dropout)

    def forward(self, x):
        x = self.dropout1(F.gelu(self.fc1(x)))
        return self.dropout2(self.fc2(x))


class Block(nn.Layer):
    """Pre-norm transformer block: (B, T, D) -> (B, T, D)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, epsilon=config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, epsilon=config.layer_norm_epsilon)
        self.mlp = Mlp(config)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Layer):
    """Cut (B, 3, S, S) into patches and project each: -> (B, (S / patch)^2, D)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.proj = nn.Conv2D(3, config.width, config.patch_size, stride=config.patch_size)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose([0, 2, 1])


class ViT(nn.Layer):
    """(B, 3, S, S) images in [-1, 1] -> (B, num_classes) logits, read from the class token.

    The head starts at zero, so a fresh network predicts the uniform distribution: first loss ln(num_classes).
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        small = nn.initializer.TruncatedNormal(std=0.02)
        self.patch_embed = PatchEmbed(config)
        self.cls_token = self.create_parameter([1, 1, config.width], default_initializer=small)
        self.pos_embed = self.create_parameter([1, config.tokens, config.width], default_initializer=small)
        self.pos_dropout = nn.Dropout(config.dropout)
        self.blocks = nn.LayerList([Block(config) for _ in range(config.depth)])
        self.recompute = False  # in training: keep only each block's input, and compute the rest again when needed
        self.norm = nn.LayerNorm(config.width, epsilon=config.layer_norm_epsilon)
        zero = nn.initializer.Constant(0.0)
        self.head = nn.Linear(config.width, config.num_classes, weight_attr=zero, bias_attr=zero)

    def forward(self, images):
        x = self.patch_embed(images)  # (B, T - 1, D)
        x = paddle.concat([self.cls_token.expand([x.shape[0], -1, -1]), x], axis=1) + self.pos_embed
        x = self.pos_dropout(x)  # (B, T, D)
        for block in self.blocks:
            x = recompute(block, x) if self.recompute and self.training else block(x)  # the same dropout masks
        return self.head(self.norm(x[:, 0]))  # LayerNorm acts on each token alone: the class token suffices
