"""Vision Transformer (Dosovitskiy et al., 2010.11929) with dropout where the official R-Drop code has it.

Dropout (rate `dropout`) acts after the position embedding and twice in each MLP; attention weights and the
attention's output projection have rates of their own, 0 by default (dropreg/R-Drop, vit_src/models/configs.py).
Query, key and value are three layers: cutting them out of one joint product costs a copy of its gradient. The head
reads the class token alone, so the last block computes that token alone, from the keys and values of all.
"""

from dataclasses import dataclass

import paddle
from paddle import nn
from paddle.distributed.fleet.utils import recompute
from paddle.nn import functional as F

from models.fast_cpu import Dropout, LayerNorm, Linear, hidden


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

    def flops_by_part(self) -> dict[str, int]:
        """Floating-point operations of the matrix products of one forward pass (a multiply-add counts as 2)."""
        d, others = self.width, self.depth - 1
        rows = others * self.tokens + 1  # of all blocks; the last one computes the class token alone
        return {
            "patch embedding": 2 * (self.tokens - 1) * 3 * self.patch_size**2 * d,
            "key, value": 4 * self.depth * self.tokens * d * d,
            "query, projection": 4 * rows * d * d,
            "scores, weighted sum": 4 * rows * self.tokens * d,
            "MLP": 4 * rows * d * self.mlp_width,
            "head": 2 * d * self.num_classes,
        }

    def flops_per_image(self) -> int:
        """The sum of `flops_by_part`."""
        return sum(self.flops_by_part().values())

    def flops_before(self, block: int) -> int:
        """What of `flops_per_image` comes before that block, counted from 0; the last block is its smallest.

        Views share it. Before block 0 that is the patch embedding: the first dropout comes after it.
        """
        t, d = self.tokens, self.width
        whole_block = 8 * t * d * d + 4 * t * t * d + 4 * t * d * self.mlp_width
        return self.flops_by_part()["patch embedding"] + block * whole_block


class Attention(nn.Layer):
    """Multi-head attention of the tokens `x` (B, t, D) to the tokens `context` (B, T, D): -> (B, t, D)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.heads, self.head_dim = config.heads, config.width // config.heads
        bias = None if config.qkv_bias else False
        self.query, self.key, self.value = (Linear(config.width, config.width, bias_attr=bias) for _ in range(3))
        self.proj = Linear(config.width, config.width)
        self.weights_dropout = Dropout(config.attention_dropout)
        self.proj_dropout = Dropout(config.projection_dropout)
        self.fused = False  # in one kernel, which GPUs have

    def forward(self, x, context):
        q, k, v = (y.reshape([0, 0, self.heads, self.head_dim])
                   for y in (self.query(x), self.key(context), self.value(context)))  # fmt: skip
        x = self.fused_attention(q, k, v) if self.fused else self.attention(q, k, v)  # (B, t, heads, head_dim)
        return self.proj_dropout(self.proj(x.flatten(2)))

    def attention(self, q, k, v):
        q, k, v = (y.transpose([0, 2, 1, 3]) for y in (q * self.head_dim**-0.5, k, v))  # (B, heads, tokens, head_dim)
        weights = F.softmax(paddle.matmul(q, k, transpose_y=True), axis=-1)  # (B, heads, t, T)
        return paddle.matmul(self.weights_dropout(weights), v).transpose([0, 2, 1, 3])

    def fused_attention(self, q, k, v):
        rate = self.weights_dropout.p
        return F.scaled_dot_product_attention(q, k, v, dropout_p=rate, training=self.training)


class Mlp(nn.Layer):
    """Two dense layers with an exact GELU between them: (B, T, D) -> (B, T, D)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.fc1 = Linear(config.width, config.mlp_width)
        self.dropout1 = Dropout(config.dropout)
        self.fc2 = Linear(config.mlp_width, config.width)
        self.dropout2 = Dropout(config.dropout)

    def forward(self, x):
        return self.dropout2(self.fc2(hidden(self.fc1, self.dropout1, x)))


class Block(nn.Layer):
    """Pre-norm transformer block: (B, T, D) -> (B, T, D), or (B, 1, D), the first token alone."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.norm1 = LayerNorm(config.width, epsilon=config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.norm2 = LayerNorm(config.width, epsilon=config.layer_norm_epsilon)
        self.mlp = Mlp(config)

    def forward(self, x, first_only: bool = False):
        context = y = self.norm1(x)
        if first_only:
            x, y = x[:, :1], y[:, :1]
        x = x + self.attn(y, context)
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

    With `num_views` the batch passes that many times, each time under dropout masks of its own: -> (num_views * B,
    num_classes), first all of the first view. What comes before the first dropout is computed once.

    Two attributes may be set for training, which change no parameter:
        recompute: keep only each block's input, and compute the rest again when it is needed.
        views_split_at: with k > 0 the views share all that comes before block k, counted from 0, and its masks,
            computed once. It is not the R-Drop of the paper.
    """

    takes_views = True  # what reproduce.rdrop.views looks for

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        small = nn.initializer.TruncatedNormal(std=0.02)
        self.patch_embed = PatchEmbed(config)
        self.cls_token = self.create_parameter([1, 1, config.width], default_initializer=small)
        self.pos_embed = self.create_parameter([1, config.tokens, config.width], default_initializer=small)
        self.pos_dropout = Dropout(config.dropout)
        self.blocks = nn.LayerList([Block(config) for _ in range(config.depth)])
        self.norm = LayerNorm(config.width, epsilon=config.layer_norm_epsilon)
        zero = nn.initializer.Constant(0.0)
        self.head = Linear(config.width, config.num_classes, weight_attr=zero, bias_attr=zero)
        self.recompute, self.views_split_at = False, 0

    def fuse_attention(self) -> None:
        """Compute attention by PaddlePaddle's `scaled_dot_product_attention` from now on."""
        for block in self.blocks:
            block.attn.fused = True

    def forward(self, images, num_views: int = 1):
        def part(x):
            return paddle.concat([x] * num_views) if num_views > 1 else x

        x = self.patch_embed(images)  # (B, T - 1, D)
        x = paddle.concat([self.cls_token.expand([x.shape[0], -1, -1]), x], axis=1) + self.pos_embed
        x = self.pos_dropout(x if self.views_split_at else part(x))  # (num_views * B, T, D)
        for number, block in enumerate(self.blocks):
            if number == self.views_split_at > 0:
                x = part(x)
            last = number == len(self.blocks) - 1
            # recompute draws the same dropout masks again
            x = recompute(block, x, last) if self.recompute and self.training else block(x, last)
        return self.head(self.norm(x[:, 0]))  # LayerNorm acts on each token alone: the class token suffices
