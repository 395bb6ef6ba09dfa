"""Vision Transformer (Dosovitskiy et al., 2010.11929) with dropout where the official R-Drop code has it.

Dropout (rate `dropout`) acts after the position embedding and twice in each MLP. Attention weights and the attention's
output projection have rates of their own, 0 by default (dropreg/R-Drop, vit_src/models/configs.py).

Two things differ from the textbook and change no result. Query, key and value are three layers: cutting them out of one
product costs a copy of its gradient. The head reads the class token alone, so the last block computes that token alone.

In shapes, B is images, D the width, T the tokens of an image; t is T, or 1 in the last block.
"""

from dataclasses import dataclass

import paddle
from paddle import nn
from paddle.distributed.fleet.utils import recompute
from paddle.nn import functional as F

ACTIVATIONS = {
    "gelu": F.gelu,  # the exact one
    "relu": F.relu,
    "quick_gelu": lambda x: x * F.sigmoid(1.702 * x),  # OpenAI's
}
POOLINGS = ("token", "avg")


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
    pooling: str = "token"  # what the head reads: the class token, or "avg", the mean of the others
    activation: str = "gelu"  # of the MLPs: a name of ACTIVATIONS

    @property
    def tokens(self) -> int:
        """Patches of an image and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


class Attention(nn.Layer):
    """Multi-head attention of the tokens `x` (B, t, D) to the tokens `context` (B, T, D): -> (B, t, D)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.heads, self.head_dim = config.heads, config.width // config.heads
        bias = None if config.qkv_bias else False
        self.query = nn.Linear(config.width, config.width, bias_attr=bias)
        self.key = nn.Linear(config.width, config.width, bias_attr=bias)
        self.value = nn.Linear(config.width, config.width, bias_attr=bias)
        self.proj = nn.Linear(config.width, config.width)
        self.weights_dropout = nn.Dropout(config.attention_dropout)
        self.proj_dropout = nn.Dropout(config.projection_dropout)
        self.fused = False  # in one kernel, which GPUs have

    def forward(self, x, context):
        q, k, v = self.query(x), self.key(context), self.value(context)  # (B, t, D), (B, T, D), (B, T, D)
        q, k, v = (each.reshape([0, 0, self.heads, self.head_dim]) for each in (q, k, v))
        if self.fused and q.dtype != paddle.float32:  # evaluation, in float32, is the same on every device
            rate = self.weights_dropout.p
            x = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, training=self.training)
        else:
            x = self.attention(q, k, v)  # (B, t, heads, head_dim)
        return self.proj_dropout(self.proj(x.flatten(2)))

    def attention(self, q, k, v):  # by itself: Paddle's export cannot translate it inside the `if`
        q = q * self.head_dim**-0.5
        q, k, v = (each.transpose([0, 2, 1, 3]) for each in (q, k, v))  # (B, heads, tokens, head_dim)
        weights = F.softmax(paddle.matmul(q, k, transpose_y=True), axis=-1)  # (B, heads, t, T)
        return paddle.matmul(self.weights_dropout(weights), v).transpose([0, 2, 1, 3])


class Mlp(nn.Layer):
    """Two dense layers with GELU, or another activation, between them: (B, t, D) -> (B, t, D)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.dropout1 = nn.Dropout(config.dropout)
        self.fc2 = nn.Linear(config.mlp_width, config.width)
        self.dropout2 = nn.Dropout(config.dropout)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x):
        x = self.dropout1(self.activation(self.fc1(x)))  # (B, t, mlp_width)
        return self.dropout2(self.fc2(x))


class Block(nn.Layer):
    """Pre-norm transformer block: (B, T, D) -> (B, T, D), or (B, 1, D) where it computes the first token alone."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, epsilon=config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, epsilon=config.layer_norm_epsilon)
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
    """(B, 3, S, S) images in [-1, 1] -> (B, num_classes) logits, read from the class token (see `ViTConfig.pooling`).

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
        self.norm = nn.LayerNorm(config.width, epsilon=config.layer_norm_epsilon)
        zero = nn.initializer.Constant(0.0)
        self.head = nn.Linear(config.width, config.num_classes, weight_attr=zero, bias_attr=zero)
        self.recompute = False

    def forward(self, images):
        return self._classify(self._embed(images))

    def views(self, images):
        """Two views of `images` (B, 3, S, S) under dropout masks of their own: two (B, num_classes).

        What comes before the first dropout is the same for both and computed once.
        """
        x = self._embed(images)
        logits_a, logits_b = self._classify(paddle.concat([x, x])).chunk(2)
        return logits_a, logits_b

    def parts(self) -> dict[str, nn.Layer]:
        return {"": self}

    def _embed(self, images):
        x = self.patch_embed(images)  # (B, T - 1, D)
        class_token = self.cls_token.expand([x.shape[0], -1, -1])
        return paddle.concat([class_token, x], axis=1) + self.pos_embed  # (B, T, D)

    def _classify(self, x):
        x = self.pos_dropout(x)
        for number, block in enumerate(self.blocks):  # without start=1, which an export cannot translate
            last = number == len(self.blocks) - 1 and self.config.pooling == "token"
            if self.recompute and self.training:
                x = recompute(block, x, last)  # draws the same dropout masks again
            else:
                x = block(x, last)
        if self.config.pooling == "avg":
            return self.head(self.norm(x)[:, 1:].mean(1))
        return self.head(self.norm(x[:, 0]))  # LayerNorm acts on each token alone: the class token suffices


def compute_by(model, recompute: bool, fused: bool) -> None:
    """Choose how every ViT in `model` computes; the results are the same up to rounding.

    `recompute`: training keeps only each block's input, and computes the rest again when it is needed. `fused`: what is
    not float32 gets its attention from PaddlePaddle's `scaled_dot_product_attention`.
    """
    for layer in model.sublayers(include_self=True):
        if isinstance(layer, ViT):
            layer.recompute = recompute
        if isinstance(layer, Attention):
            layer.fused = fused
