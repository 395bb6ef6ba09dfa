"""Padding counts nowhere: not in the loss, not in a gradient, not in the accuracy of the example."""

import numpy as np
import paddle
import pytest
from conftest import assert_user_error

from common.errors import UserError
from reproduce import sequence_example
from reproduce.rdrop import rdrop_loss, views
from reproduce.sequence_example import MAX_TOKENS, PAD, VOCABULARY, Tagger, made_sequences, position_baseline


def sequences(seed, count):
    return made_sequences(np.random.default_rng(seed), count)


def loss_and_gradients(model, ids, tags, pad_mask, rubbish=None, **options):
    """The three scalars and the gradient of each parameter; `rubbish` stands where the padding's logits were."""
    model.clear_gradients()
    paddle.seed(7)  # the same dropout masks every time
    logits = views(model, ids, options.pop("num_views", 2))
    if rubbish is not None:
        cover = pad_mask.unsqueeze(-1)
        logits = [x if x is None else paddle.where(cover, paddle.full_like(x, rubbish), x) for x in logits]
    found = rdrop_loss(*logits, tags, pad_mask=pad_mask, **options)
    found.loss.backward()
    return [float(x) for x in found], [parameter.grad.numpy().copy() for parameter in model.parameters()]


def assert_same(found, expected):
    assert found[0] == expected[0]
    for gradient, other in zip(found[1], expected[1], strict=True):
        assert np.abs(other).max() > 0
        np.testing.assert_array_equal(gradient, other)


def test_tags_say_whether_a_token_stood_before_and_padding_is_at_the_end():
    lengths = set()
    for ids, tags, pad_mask in zip(*(x.numpy() for x in sequences(0, 200)), strict=True):
        length = int((~pad_mask).sum())
        lengths.add(length)
        assert not pad_mask[:length].any()
        assert (ids[length:] == PAD).all() and (tags[length:] == -1).all()
        assert list(tags[:length]) == [int(ids[i] in ids[:i]) for i in range(length)]
        assert ids[:length].min() >= 1 and ids.max() <= VOCABULARY
    assert lengths == set(range(4, MAX_TOKENS + 1))


@pytest.mark.parametrize("options", [{}, {"form": "mean", "kl_sum_over": 5}, {"num_views": 1}])
def test_what_stands_in_the_padding_changes_no_bit_of_loss_and_gradients(options):
    paddle.seed(0)
    model = Tagger()
    ids, tags, pad_mask = sequences(1, 20)
    options = {"alpha": 0.6, **options}
    expected = loss_and_gradients(model, ids, tags, pad_mask, **options)

    other_ids = paddle.where(pad_mask, paddle.randint_like(ids, 1, VOCABULARY + 1), ids)
    assert (other_ids != ids).any()
    assert_same(loss_and_gradients(model, other_ids, tags, pad_mask, **options), expected)
    for label in (0, 1, -100, 10**12):
        other_tags = paddle.where(pad_mask, paddle.full_like(tags, label), tags)
        assert_same(loss_and_gradients(model, ids, other_tags, pad_mask, **options), expected)
    for rubbish in (3.0, -1e30, np.inf, -np.inf, np.nan):
        assert_same(loss_and_gradients(model, ids, tags, pad_mask, rubbish, **options), expected)


@pytest.mark.parametrize("rubbish", [np.inf, -np.inf, np.nan])
def test_logits_of_padding_that_are_not_finite_have_gradient_zero(rubbish):
    _, tags, pad_mask = sequences(1, 20)
    pad, gradients = pad_mask.numpy(), {}
    for fill in (0.0, rubbish):
        rng = np.random.default_rng(2)
        pair = [rng.normal(size=(20, MAX_TOKENS, 2)) for _ in range(2)]
        for logits in pair:
            logits[pad] = fill
        pair = [paddle.to_tensor(logits, stop_gradient=False) for logits in pair]
        rdrop_loss(*pair, tags, alpha=0.6, pad_mask=pad_mask).loss.backward()
        gradients[fill] = [logits.grad.numpy() for logits in pair]
    for found, expected in zip(gradients[rubbish], gradients[0.0], strict=True):
        assert not found[pad].any()
        np.testing.assert_array_equal(found, expected)


@pytest.fixture
def two_taggers():
    """In float64 and without dropout, whose masks depend on the shape: the two views are two networks."""
    paddle.seed(0)
    paddle.set_default_dtype("float64")
    taggers = paddle.nn.LayerList([Tagger(), Tagger()])
    paddle.set_default_dtype("float32")
    for tagger in taggers:
        tagger.dropout.p = 0.0  # not eval(): Paddle's GRU has no backward pass there
    return taggers


def of_two(models, ids, tags, pad_mask):
    models.clear_gradients()
    found = rdrop_loss(*views(list(models), ids), tags, alpha=0.6, pad_mask=pad_mask)
    found.loss.backward()
    return [float(x) for x in found], [parameter.grad.numpy().copy() for parameter in models.parameters()]


def test_a_padded_sequence_equals_the_same_one_without_padding(two_taggers):
    ids, tags, pad_mask = sequences(3, 30)
    length = int((~pad_mask).sum(axis=1).min())
    row = int((~pad_mask).sum(axis=1).argmin())
    padded = of_two(two_taggers, ids[row : row + 1], tags[row : row + 1], pad_mask[row : row + 1])
    bare = of_two(two_taggers, ids[row : row + 1, :length], tags[row : row + 1, :length], None)
    assert length < MAX_TOKENS and padded[0][2] > 0
    np.testing.assert_allclose(padded[0], bare[0], rtol=1e-12)
    for found, expected in zip(padded[1], bare[1], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-14)


def test_a_batch_is_the_mean_over_its_real_tokens(two_taggers):
    ids, tags, pad_mask = sequences(4, 6)
    lengths = (~pad_mask).sum(axis=1).numpy()
    assert len(set(lengths)) > 1
    alone = [of_two(two_taggers, ids[i : i + 1, :n], tags[i : i + 1, :n], None) for i, n in enumerate(lengths)]
    scalars, gradients = of_two(two_taggers, ids, tags, pad_mask)
    np.testing.assert_allclose(scalars, np.average([one[0] for one in alone], axis=0, weights=lengths), rtol=1e-12)
    for k, gradient in enumerate(gradients):
        expected = np.average([one[1][k] for one in alone], axis=0, weights=lengths)
        np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-14)


def test_accuracy_counts_real_tokens_only():
    def always_1(ids):
        return paddle.stack([paddle.zeros(ids.shape), paddle.ones(ids.shape)], axis=-1)

    always_1.eval = always_1.train = lambda: None
    ids, tags, pad_mask = sequences(5, 50)
    real = tags.numpy()[~pad_mask.numpy()]
    for label in (-1, 1):  # what stands in the padding does not matter
        marked = paddle.where(pad_mask, paddle.full_like(tags, label), tags)
        assert sequence_example.accuracy(always_1, ids, marked, pad_mask) == pytest.approx(real.mean(), rel=1e-6)


def test_the_baseline_is_the_most_frequent_tag_of_each_position():
    train, test = sequences(6, 100), sequences(7, 100)
    (_, tags, pad), (_, test_tags, test_pad) = ([x.numpy() for x in split] for split in (train, test))
    right = 0
    for t in range(MAX_TOKENS):
        seen = list(tags[~pad[:, t], t])
        right += (test_tags[~test_pad[:, t], t] == max((0, 1), key=seen.count)).sum()
    assert position_baseline(train, test) == pytest.approx(right / (~test_pad).sum(), rel=1e-12)


@pytest.mark.parametrize("num_views", [1, 2])
def test_it_learns_what_the_position_does_not_tell(num_views, capsys):
    train, test = sequences(8, 200), sequences(9, 300)
    found = sequence_example.train_tagger(train, test, num_views, alpha=1.0, steps=160, seed=0)
    assert found > position_baseline(train, test) + 0.08
    assert len(capsys.readouterr().out.splitlines()) == 10


def test_the_command_prints_both_trainings_and_the_baseline_of_its_docstring(command):
    done = command("reproduce.sequence_example", "--steps", 3)
    assert done.returncode == 0, done.stderr
    assert "without R-Drop\n  step     1" in done.stdout and "alpha 1\n  step     1" in done.stdout
    baseline = next(line for line in done.stdout.splitlines() if line.startswith("baseline")).split()[1]
    assert f"{baseline} %" in sequence_example.__doc__


def test_the_same_seed_gives_the_same_lines(capsys):
    texts = []
    for seed in (3, 3, 4):
        sequence_example.main(["--steps", "2", "--seed", str(seed)])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_a_bad_value_is_one_line(command):
    assert_user_error(command("reproduce.sequence_example", "--steps", 0), "--steps 0", "at least 1")


@pytest.mark.parametrize(
    "arguments, fragments",
    [
        (["--steps", "many"], ["--steps", "'many'"]),
        (["--alpha", "-1"], ["--alpha -1.0", "at least 0"]),
        (["--alpha", "nan"], ["--alpha nan"]),
        (["--alpha", "1e40", "--steps", "1"], ["--alpha 1e+40", "step 1", "smaller"]),
        (["--seed", "-1"], ["--seed -1"]),
        (["--sed", "1"], ["did you mean", "--seed"]),
    ],
)
def test_bad_values(arguments, fragments):
    with pytest.raises(UserError) as error:
        sequence_example.main(arguments)
    for fragment in fragments:
        assert fragment in str(error.value)
