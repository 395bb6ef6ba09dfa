"""The R-Drop loss: cross-entropy of two views of the same images, and the KL that keeps their predictions together."""

from typing import NamedTuple

import paddle

FORMS = ("sum", "mean")


class RDropLoss(NamedTuple):
    """Scalars of one batch: what is minimised, and its two parts as plain means in nats."""

    loss: paddle.Tensor
    cross_entropy: paddle.Tensor  # mean over samples and views
    kl: paddle.Tensor  # mean over samples of [KL(P1||P2) + KL(P2||P1)] / 2; 0 for one view


def rdrop_loss(logits_a, logits_b, labels, alpha, kl_sum_over=1, form="sum", pad_mask=None) -> RDropLoss:
    """The R-Drop loss of two views of a batch; the only place where it is defined.

    With CE = -log P(y) and KL(P||Q) = sum_c P(c) [log P(c) - log Q(c)], and means over the batch,

        form "sum":   loss = mean(CE1 + CE2) + alpha * kl_sum_over * mean(KL12 + KL21)
        form "mean":  half of that

    What `alpha` multiplies elsewhere:

        paper (2106.14448):         CE1 + CE2 + (alpha/2) [KL12 + KL21] a sample, alpha 0.6
                                    = form "sum", alpha 0.3, kl_sum_over 1
        official vit_src:           CE is a mean, alpha [KL12 + KL21] summed over the n images of a micro-batch,
                                    alpha 0.3, n = 512 // 16 = form "sum", alpha 0.3, kl_sum_over 32
        blog and the Paddle port:   (CE1 + CE2)/2 + alpha [KL12 + KL21]/2 summed over the micro-batch
                                    = form "mean" with the same alpha; the blog's 0.6 is twice the official
                                    strength, the port's 0.3 equals it for equal n

    `kl_sum_over` stands for the n of a code that sums the KL over its micro-batch, so that the strength is a
    setting and no side effect of memory size.

    Args:
        logits_a, logits_b: (B, classes), or (B, T, classes) for sequence tasks; `logits_b` None means one view,
            plain cross-entropy. 16-bit logits are taken to float32 first.
        labels: int64 (B,) or (B, T).
        pad_mask: bool, shape of `labels`, True where a position is padding: it counts neither in the loss nor in
            the means. A batch of padding only has loss 0.

    Returns:
        RDropLoss of scalars.
    """
    if form not in FORMS:
        raise ValueError(f"form {form!r}: one of {FORMS}")
    log_p, cross_entropy = _view(logits_a, labels, pad_mask)
    if logits_b is None:
        return RDropLoss(cross_entropy, cross_entropy, paddle.zeros_like(cross_entropy))
    log_q, second = _view(logits_b, labels, pad_mask)
    cross_entropy = (cross_entropy + second) / 2
    # KL12 + KL21 in one sum whose terms are all >= 0; (P - Q) is exactly 0 where both have underflowed.
    kl_both_ways = ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(axis=-1)
    kl = _masked_mean(kl_both_ways, pad_mask) / 2
    loss = cross_entropy + alpha * kl_sum_over * kl
    return RDropLoss(2 * loss if form == "sum" else loss, cross_entropy, kl)


def log_softmax(logits):
    """x - log sum exp x over the last axis, exactly: Paddle's own cuts at -64 on a CPU."""
    return logits - paddle.logsumexp(logits, axis=-1, keepdim=True)


def _view(logits, labels, pad_mask):
    """log P of every class, and the mean of -log P(y)."""
    if logits.dtype in (paddle.float16, paddle.bfloat16):
        logits = logits.astype("float32")
    if pad_mask is not None:  # padding may hold any label, and inf or nan, whose gradient would be 0 * nan = nan
        logits = paddle.where(pad_mask.unsqueeze(-1), paddle.zeros_like(logits), logits)
        labels = paddle.where(pad_mask, paddle.zeros_like(labels), labels)
    log_p = log_softmax(logits)
    log_p_of_label = paddle.take_along_axis(log_p, labels.unsqueeze(-1), axis=-1).squeeze(-1)
    return log_p, _masked_mean(-log_p_of_label, pad_mask)


def _masked_mean(x, pad_mask):
    if pad_mask is None:
        return x.mean()
    real = (~pad_mask).astype(x.dtype)
    return (x * real).sum() / real.sum().clip(min=1.0)
