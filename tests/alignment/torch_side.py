"""The official algorithm in PyTorch, independent of this project: nothing of it is imported here.

The network is timm's VisionTransformer. Loss, optimizer, clipping and schedule follow dropreg/R-Drop, vit_src
(models/modeling.py, utils/scheduler.py, train.py); `port_loss` follows zbp-xxxp/R-Drop-Paddle.
"""

import math
import warnings
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from .timm_alone import VisionTransformer


def build_vit(*, image_size, patch_size, width, depth, heads, mlp_width, num_classes, dropout=0.1):
    """timm's ViT with dropout where the official code has it: after the position embedding and twice in each MLP."""
    model = VisionTransformer(
        img_size=image_size,
        patch_size=patch_size,
        num_classes=num_classes,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=mlp_width / width,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        pos_drop_rate=dropout,
        proj_drop_rate=dropout,
    )
    for block in model.blocks:
        block.attn.proj_drop = nn.Identity()  # timm's proj_drop_rate means the MLP's two dropouts and this one
    return model


class Loss(NamedTuple):
    """Scalars: what is minimised, CE1 + CE2 (means), KL12 + KL21 (sums over the micro-batch)."""

    total: torch.Tensor
    cross_entropies: torch.Tensor
    kls: torch.Tensor


def two_views(model, images):
    """Two forward passes, each with dropout of its own: two (n, classes)."""
    return model(images), model(images)


def _parts(logits_1, logits_2, labels):
    cross_entropies = F.cross_entropy(logits_1, labels) + F.cross_entropy(logits_2, labels)
    forth = F.kl_div(F.log_softmax(logits_1, -1), F.softmax(logits_2, -1), reduction="none").sum()
    back = F.kl_div(F.log_softmax(logits_2, -1), F.softmax(logits_1, -1), reduction="none").sum()
    return cross_entropies, forth + back


def official_loss(logits_1, logits_2, labels, alpha) -> Loss:
    """CE1 + CE2 + alpha (KL12 + KL21), KL summed over classes and over the micro-batch."""
    cross_entropies, kls = _parts(logits_1, logits_2, labels)
    return Loss(cross_entropies + alpha * kls, cross_entropies, kls)


def port_loss(logits_1, logits_2, labels, alpha) -> Loss:
    """The Paddle port's mean of the views: (CE1 + CE2) / 2 + alpha (KL12 + KL21) / 2, KL summed as above."""
    cross_entropies, kls = _parts(logits_1, logits_2, labels)
    return Loss(0.5 * cross_entropies + alpha * 0.5 * kls, cross_entropies, kls)


def make_optimizer(model, peak_rate, num_steps, warmup_steps, momentum=0.9):
    """SGD with momentum, and the scheduler: linear warm-up, then half a cosine to 0 at `num_steps`."""

    def factor(step):
        if step < warmup_steps:
            return step / max(1, warmup_steps)
        progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))

    optimizer = torch.optim.SGD(model.parameters(), lr=peak_rate, momentum=momentum)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def accumulate(model, micro_batches, count, loss, alpha) -> float:
    """Add up the gradients of an update's `count` micro-batches of (images, labels); returns their mean loss."""
    total = 0.0
    for images, labels in micro_batches:
        found = loss(*two_views(model, images), labels, alpha).total / count
        found.backward()
        total += found.item()
    return total


def apply(model, optimizer, scheduler, max_norm) -> float:
    """Clip, advance the schedule, update, clear; returns the gradients' global norm before clipping.

    The schedule advances before the update, as in the official code: update k, from 1, has the rate of step k.
    """
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")  # the order is meant
        scheduler.step()
    optimizer.step()
    optimizer.zero_grad()
    return norm.item()
