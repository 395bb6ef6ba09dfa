"""R-Drop on sequences with padding: a tagger learns, and what stands in the padding changes nothing."""

import numpy as np
import paddle
import pytest
from paddle import nn

from reproduce.rdrop import rdrop_loss

VOCABULARY, LENGTH, WIDTH = 8, 12, 64  # token 0 is padding


def made_sequences(seed: int, count: int):
    """ids, tags and pad_mask, each (count, LENGTH); a tag is 1 where the token stood before, -1 in the padding."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, VOCABULARY + 1, (count, LENGTH))
    tags = np.tril(ids[:, :, None] == ids[:, None, :], k=-1).any(axis=2).astype(np.int64)
    pad_mask = np.arange(LENGTH) >= rng.integers(4, LENGTH + 1, (count, 1))
    ids[pad_mask], tags[pad_mask] = 0, -1
    return paddle.to_tensor(ids), paddle.to_tensor(tags), paddle.to_tensor(pad_mask)


class Tagger(nn.Layer):
    """ids (B, T) -> logits (B, T, 2). The GRU reads forward, so no token sees the padding behind it."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY + 1, WIDTH)
        self.gru = nn.GRU(WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, ids):
        return self.head(self.dropout(self.gru(self.dropout(self.embedding(ids)))[0]))


def share_right(guess, tags, pad_mask) -> float:
    """Accuracy over the real tokens."""
    return float((guess == tags)[~pad_mask].mean())


def test_a_tagger_learns_what_the_position_does_not_tell():
    train, (test_ids, test_tags, test_pad) = made_sequences(8, 200), made_sequences(9, 300)
    test_tags, test_pad = test_tags.numpy(), test_pad.numpy()
    _, tags, pad_mask = (x.numpy() for x in train)
    by_position = np.ma.masked_array(tags, pad_mask).mean(axis=0).filled(0) > 0.5
    paddle.seed(0)
    rng, model = np.random.default_rng(0), Tagger()
    optimizer = paddle.optimizer.Adam(3e-3, parameters=model.parameters())
    for _ in range(160):
        chosen = paddle.to_tensor(rng.choice(200, 50, replace=False))
        ids, tags, pad_mask = (x[chosen] for x in train)
        logits = model(paddle.concat([ids, ids])).chunk(2)  # two views
        rdrop_loss(*logits, tags, alpha=1.0, form="mean", pad_mask=pad_mask).loss.backward()
        optimizer.step()
        optimizer.clear_grad()
    model.eval()
    found = share_right(model(test_ids).argmax(axis=-1).numpy(), test_tags, test_pad)
    assert found > share_right(by_position, test_tags, test_pad) + 0.08


@pytest.mark.parametrize("two_views", [True, False])
def test_what_stands_in_the_padding_changes_no_bit_of_loss_and_gradients(two_views):
    paddle.seed(0)
    model = Tagger()
    ids, tags, pad_mask = made_sequences(1, 20)

    def loss_and_gradients(ids, tags, rubbish):
        model.clear_gradients()
        paddle.seed(7)  # the same dropout masks every time
        logits = model(paddle.concat([ids, ids])).chunk(2) if two_views else (model(ids), None)
        cover = pad_mask.unsqueeze(-1)
        logits = [x if x is None else paddle.where(cover, paddle.full_like(x, rubbish), x) for x in logits]
        found = rdrop_loss(*logits, tags, alpha=0.6, pad_mask=pad_mask)
        found.loss.backward()
        return [float(x) for x in found], [parameter.grad.numpy().copy() for parameter in model.parameters()]

    loss, gradients = loss_and_gradients(ids, tags, 0.0)
    assert all(gradient.any() for gradient in gradients)
    other_ids = paddle.where(pad_mask, paddle.randint_like(ids, 1, VOCABULARY + 1), ids)
    for label, rubbish in ((0, 3.0), (-100, -1e30), (10**12, np.inf), (1, -np.inf), (-1, np.nan)):
        other_tags = paddle.where(pad_mask, paddle.full_like(tags, label), tags)
        found, other_gradients = loss_and_gradients(other_ids, other_tags, rubbish)
        assert found == loss
        for gradient, other in zip(gradients, other_gradients, strict=True):
            np.testing.assert_array_equal(gradient, other)
