import math

import numpy as np
import paddle
import pytest
from paddle.nn import functional as F

from reproduce.rdrop import rdrop_loss


def tensor(x, dtype="float64"):
    return paddle.to_tensor(np.asarray(x), dtype=dtype, stop_gradient=False)


def random_views(shape=(8, 5), seed=0):
    rng = np.random.default_rng(seed)
    return (
        tensor(rng.normal(size=shape)),
        tensor(rng.normal(size=shape)),
        paddle.to_tensor(rng.integers(0, shape[-1], shape[:-1])),
    )


def test_a_hand_computed_example():
    """P = (3/4, 1/4), Q = (1/2, 1/2), label 0."""
    p, q = tensor([[math.log(3), 0.0]]), tensor([[0.0, 0.0]])
    cross_entropy = -math.log(3 / 4) - math.log(1 / 2)
    kl_pq = 3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2)
    kl_qp = 1 / 2 * math.log(2 / 3) + 1 / 2 * math.log(2)
    found = rdrop_loss(p, q, paddle.to_tensor([0]), alpha=0.3)
    assert float(found.loss) == pytest.approx(cross_entropy + 0.3 * (kl_pq + kl_qp), abs=1e-12)
    assert float(found.cross_entropy) == pytest.approx(cross_entropy / 2, abs=1e-12)
    assert float(found.kl) == pytest.approx((kl_pq + kl_qp) / 2, abs=1e-12)


def official(logits_a, logits_b, labels, alpha):
    """As dropreg/R-Drop does it: means of the cross-entropies, sums of the KLs over the batch."""
    kl_a = F.kl_div(F.log_softmax(logits_a, -1), F.softmax(logits_b, -1), reduction="none").sum()
    kl_b = F.kl_div(F.log_softmax(logits_b, -1), F.softmax(logits_a, -1), reduction="none").sum()
    return F.cross_entropy(logits_a, labels) + F.cross_entropy(logits_b, labels) + alpha * (kl_a + kl_b)


def test_the_official_form_is_the_sum_with_kl_sum_over_the_micro_batch():
    a, b, labels = random_views((32, 100))
    found = rdrop_loss(a, b, labels, alpha=0.3, kl_sum_over=32).loss
    assert float(found) == pytest.approx(float(official(a, b, labels, 0.3)), rel=1e-12)


def test_the_ports_form_is_half_of_the_official_one():
    a, b, labels = random_views((8, 10))
    found = rdrop_loss(a, b, labels, alpha=0.3, kl_sum_over=8, form="mean").loss
    assert float(found) == pytest.approx(float(official(a, b, labels, 0.3)) / 2, rel=1e-12)


def test_symmetry_and_zero_for_equal_views():
    a, b, labels = random_views()
    assert float(rdrop_loss(a, b, labels, 0.7).loss) == pytest.approx(float(rdrop_loss(b, a, labels, 0.7).loss))
    same = rdrop_loss(a, a, labels, alpha=100.0)
    assert float(same.kl) == 0.0
    assert float(same.loss) == pytest.approx(2 * float(F.cross_entropy(a, labels)), rel=1e-12)


def test_one_view_is_plain_cross_entropy():
    a, _, labels = random_views()
    for form in ("sum", "mean"):
        found = rdrop_loss(a, None, labels, alpha=0.3, form=form)
        assert float(found.loss) == pytest.approx(float(F.cross_entropy(a, labels)), rel=1e-12)
        assert float(found.kl) == 0.0


@pytest.mark.parametrize("form", ["sum", "mean"])
def test_gradient_equals_finite_differences(form):
    a, b, labels = random_views((3, 4))
    rdrop_loss(a, b, labels, alpha=0.6, kl_sum_over=5, form=form).loss.backward()
    step = 1e-6
    for which, moved in ((0, a), (1, b)):
        for index in np.ndindex(3, 4):
            values = []
            for sign in (1, -1):
                pair = [a.numpy().copy(), b.numpy().copy()]
                pair[which][index] += sign * step
                found = rdrop_loss(*map(tensor, pair), labels, alpha=0.6, kl_sum_over=5, form=form)
                values.append(float(found.loss))
            slope = (values[0] - values[1]) / (2 * step)
            assert moved.grad.numpy()[index] == pytest.approx(slope, abs=1e-8)


def test_padding_has_no_influence_on_loss_or_gradient():
    a, b, labels = random_views((2, 6, 5))
    pad = np.zeros((2, 6), bool)
    pad[0, 4:], pad[1, 1:] = True, True
    keep = paddle.to_tensor(np.flatnonzero(~pad))
    short = [x.detach().reshape([12, 5])[keep] for x in (a, b)]
    expected = rdrop_loss(*short, labels.reshape([12])[keep], alpha=0.6)

    arrays = [x.numpy().copy() for x in (a, b)]
    for array, rubbish in zip(arrays, (np.inf, np.nan), strict=True):
        array[pad] = rubbish
    marked = np.where(pad, -1, labels.numpy())  # padding often carries an invalid label
    a, b = map(tensor, arrays)
    found = rdrop_loss(a, b, paddle.to_tensor(marked), alpha=0.6, pad_mask=paddle.to_tensor(pad))
    for name in found._fields:
        assert float(getattr(found, name)) == pytest.approx(float(getattr(expected, name)), rel=1e-12)


def test_gradient_of_padding_is_zero_and_of_the_rest_unchanged():
    a, b, labels = random_views((2, 6, 5))
    pad = np.zeros((2, 6), bool)
    pad[:, 3:] = True
    rdrop_loss(a, b, labels, alpha=0.6, pad_mask=paddle.to_tensor(pad)).loss.backward()
    assert not a.grad.numpy()[pad].any() and not b.grad.numpy()[pad].any()
    short_a, short_b = (tensor(x.numpy()[:, :3]) for x in (a, b))
    rdrop_loss(short_a, short_b, labels[:, :3], alpha=0.6).loss.backward()
    np.testing.assert_allclose(a.grad.numpy()[:, :3], short_a.grad.numpy(), atol=1e-15)
    np.testing.assert_allclose(b.grad.numpy()[:, :3], short_b.grad.numpy(), atol=1e-15)


def test_a_batch_of_padding_only_has_loss_zero():
    a, b, labels = random_views((2, 3, 5))
    found = rdrop_loss(a, b, labels, alpha=0.6, pad_mask=paddle.ones([2, 3], "bool"))
    assert float(found.loss) == 0.0


def test_unknown_form():
    a, b, labels = random_views()
    with pytest.raises(ValueError, match="form 'total'"):
        rdrop_loss(a, b, labels, 0.3, form="total")


@pytest.mark.parametrize("size", [1.0, 30.0, 100.0, 1e3, 1e4])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_probability_is_cut_however_small(size, dtype):
    """Against NumPy in float64; Paddle's log_softmax gives -64 for anything below it on a CPU."""
    rng = np.random.default_rng(0)
    a, b = (rng.uniform(-size, size, (6, 9)).astype(dtype).astype("float64") for _ in range(2))
    labels = rng.integers(0, 9, 6)
    log_p, log_q = (
        x - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True)) - x.max(1, keepdims=True) for x in (a, b)
    )
    rows = np.arange(6)
    views = tensor(a, dtype), tensor(b, dtype)
    found = rdrop_loss(*views, paddle.to_tensor(labels), alpha=0.3)
    tolerance = {"float32": 1e-5, "float64": 1e-12}[dtype]
    cross_entropy = -(log_p[rows, labels] + log_q[rows, labels]).mean() / 2
    assert float(found.cross_entropy) == pytest.approx(cross_entropy, rel=tolerance)
    kl = ((np.exp(log_p) - np.exp(log_q)) * (log_p - log_q)).sum(1).mean() / 2
    assert float(found.kl) == pytest.approx(kl, rel=tolerance)
    found.loss.backward()
    assert all(np.isfinite(view.grad.numpy()).all() for view in views)


def test_logits_of_a_thousand_give_the_loss_that_they_have():
    found = rdrop_loss(tensor([[1000.0, -1000.0]]), tensor([[-1000.0, 1000.0]]), paddle.to_tensor([0]), alpha=1.0)
    assert float(found.cross_entropy) == 1000 and float(found.kl) == 2000
    logits = tensor([[1e4, -1e4, 0.0]])
    rdrop_loss(logits, logits * 1.0, paddle.to_tensor([1]), alpha=1.0).loss.backward()
    np.testing.assert_allclose(logits.grad.numpy(), [[2, -2, 0]], atol=1e-12)
