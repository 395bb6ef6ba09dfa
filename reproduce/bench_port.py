"""A plain ViT + R-Drop in Paddle, as the public Paddle port has it: a peer of `reproduce.bench`.

Written anew after zbp-xxxp/R-Drop-Paddle: one joint product for query, key and value, nn.Dropout, all tokens in all
blocks, two forward passes, the framework's own optimizer and clipping. Three things differ, so that it does the same
work as the others: query, key and value have a bias, the attention's output projection has no dropout, and the loss is
the official sum. Nothing of this project is imported, not even its processor settings.
"""

import paddle
from paddle import nn
from paddle.nn import functional as F

paddle.set_device("cpu")


class Attention(nn.Layer):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        _, tokens, width = x.shape
        qkv = self.qkv(x).reshape([-1, tokens, 3, self.heads, width // self.heads]).transpose([2, 0, 3, 1, 4])
        q, k, v = qkv[0], qkv[1], qkv[2]  # (B, heads, T, head_dim) each
        weights = F.softmax(q.matmul(k.transpose([0, 1, 3, 2])) * self.scale, axis=-1)
        return self.proj(weights.matmul(v).transpose([0, 2, 1, 3]).reshape([-1, tokens, width]))


class Block(nn.Layer):
    def __init__(self, width: int, heads: int, mlp_width: int, dropout: float):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, epsilon=1e-6) for _ in range(2))
        self.attn = Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(mlp_width, width),
            nn.Dropout(dropout),
        )

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PortViT(nn.Layer):
    """(B, 3, S, S) images -> (B, num_classes) logits."""

    def __init__(self, *, image_size, patch_size, width, depth, heads, mlp_width, num_classes, dropout=0.1):
        super().__init__()
        small, zero = nn.initializer.TruncatedNormal(std=0.02), nn.initializer.Constant(0.0)
        tokens = (image_size // patch_size) ** 2 + 1
        self.patch_embed = nn.Conv2D(3, width, patch_size, stride=patch_size)
        self.cls_token = self.create_parameter([1, 1, width], default_initializer=small)
        self.pos_embed = self.create_parameter([1, tokens, width], default_initializer=small)
        self.pos_dropout = nn.Dropout(dropout)
        self.blocks = nn.LayerList([Block(width, heads, mlp_width, dropout) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, epsilon=1e-6)
        self.head = nn.Linear(width, num_classes, weight_attr=zero, bias_attr=zero)

    def forward(self, images):
        x = self.patch_embed(images).flatten(2).transpose([0, 2, 1])
        x = paddle.concat([self.cls_token.expand([x.shape[0], -1, -1]), x], axis=1) + self.pos_embed
        x = self.pos_dropout(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class Step:
    """Training steps on one batch; called, it does `steps` of them and gives the last loss."""

    def __init__(self, images, labels, *, network: dict, alpha: float, learning_rate: float, steps: int):
        self.images, self.labels = paddle.to_tensor(images), paddle.to_tensor(labels)
        self.alpha, self.steps = alpha, steps
        paddle.seed(0)
        self.model = PortViT(**network)
        self.model.train()
        self.cross_entropy = nn.CrossEntropyLoss()
        self.optimizer = paddle.optimizer.Momentum(
            learning_rate, 0.9, parameters=self.model.parameters(), grad_clip=nn.ClipGradByGlobalNorm(1.0)
        )

    def __call__(self) -> dict:
        for _ in range(self.steps):
            loss = self._loss(self.model(self.images), self.model(self.images))
            loss.backward()
            self.optimizer.step()
            self.optimizer.clear_grad()
        return {"loss": float(loss)}

    def _loss(self, logits_1, logits_2):
        """CE1 + CE2 + alpha (KL12 + KL21), KL summed over the batch."""
        cross_entropies = self.cross_entropy(logits_1, self.labels) + self.cross_entropy(logits_2, self.labels)
        return cross_entropies + self.alpha * (_kl(logits_1, logits_2) + _kl(logits_2, logits_1))


def _kl(logits_1, logits_2):
    """The sum of KL(P1 || P2), written out: Paddle 3.3's kl_div gives its target no gradient, as PyTorch's does."""
    log_p, log_q = F.log_softmax(logits_1, axis=-1), F.log_softmax(logits_2, axis=-1)
    return (log_p.exp() * (log_p - log_q)).sum()
