"""The layers of models/fast_cpu.py beside Paddle's own: `plain` networks and layers beside those of `speed_up`."""

import copy
import weakref
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.nn import functional as F

from models import build_model, fast_cpu
from models.fast_cpu import FastDropout, FastMlp, speed_up
from models.vit import Mlp, compute_by


def fast(layer):
    """A copy of the layer as `speed_up` makes it."""
    layer = copy.deepcopy(layer)
    for each in layer.sublayers(include_self=True):
        each.__class__ = fast_cpu._FAST.get(type(each), type(each))
    return layer


def mlp(width, hidden_width, rate=0.0, activation="gelu"):
    return Mlp(SimpleNamespace(width=width, mlp_width=hidden_width, dropout=rate, activation=activation))


def numbers(*shape, seed=0, dtype="float32"):
    tensor = paddle.to_tensor(np.random.default_rng(seed).normal(size=shape).astype(dtype))
    tensor.stop_gradient = False
    return tensor


def both(layer, x):
    """(output, gradients) of x and of the parameters, once as the project computes them and once as Paddle does."""
    for each in (fast(layer), layer):
        y = each(x)
        weights = paddle.to_tensor(np.random.default_rng(1).normal(size=y.shape).astype(str(y.numpy().dtype)))
        yield [y.numpy()] + [g.numpy() for g in paddle.grad((y * weights).sum(), [x, *each.parameters()])]


def assert_same(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, np.abs(b).max()))


@pytest.mark.parametrize("reader", [nn.Linear(24, 48), mlp(24, 48)])
def test_what_a_layer_norm_gives_is_not_kept_but_computed_again(reader):
    norm, x = nn.LayerNorm(24, epsilon=1e-6), numbers(3, 5, 24)
    both_of_them = nn.Sequential(norm, reader)
    assert_same(*both(both_of_them, x), 1e-6)
    y = fast(norm)(x)
    assert np.array_equal(y.again().numpy(), y.numpy())
    given, z = weakref.ref(y), fast(reader)(y)
    del y
    assert given() is None and not z.stop_gradient
    norm.register_forward_post_hook(lambda layer, inputs, output: output.scale_(2.0))
    assert_same(*both(both_of_them, x), 1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-13)])
@pytest.mark.parametrize("shape", [(3, 5, 24), (700, 96), (2, 24)])  # 700 rows: more than one piece
def test_layers_equal_paddles(shape, dtype, tolerance):
    width = shape[-1]
    for layer in (nn.Linear(width, 2 * width), nn.LayerNorm(width, epsilon=1e-6), mlp(width, 2 * width)):
        layer.to(dtype=dtype)
        for i, parameter in enumerate(layer.parameters()):
            parameter.set_value(numbers(*parameter.shape, seed=i + 5, dtype=dtype))
        assert type(fast(layer)) is not type(layer)
        assert_same(*both(layer, numbers(*shape, dtype=dtype)), tolerance)


def test_other_activations_stay_what_they_are():
    layer, x = mlp(8, 16, activation="relu"), numbers(5, 8)
    np.testing.assert_allclose(fast(layer)(x).numpy(), layer(x).numpy(), rtol=1e-5, atol=1e-6)


def test_gelu_far_from_zero_is_finite_and_exact():
    layer = mlp(6, 6)
    for linear in (layer.fc1, layer.fc2):
        linear.weight.set_value(paddle.eye(6))
    x = paddle.to_tensor([[-100.0, -12.0, -0.0, 0.0, 12.0, 100.0]], stop_gradient=False)
    assert_same(*both(layer, x), 1e-7)


@pytest.mark.parametrize("frozen", ["fc1.weight", "fc2.bias", "norm1", "patch_embed", "blocks.0"])
def test_weights_may_be_frozen(frozen):
    """The others get the gradients that they get when nothing is frozen."""
    model = speed_up(random_model())
    found = []
    for freeze in (False, True):
        for name, parameter in model.named_parameters():
            parameter.stop_gradient = freeze and frozen in name
        paddle.seed(2)
        F.cross_entropy(model(numbers(8, 3, 8, 8).detach()), paddle.arange(8)).backward()
        found.append({name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None})
        model.clear_gradients(set_to_zero=False)
    whole, part = found
    assert len(part) < len(whole) and not any(frozen in name for name in part)
    for name, gradient in part.items():
        np.testing.assert_array_equal(gradient, whole[name])


def random_model(**options):
    model = build_model("ViT-digits", 10, 8, **options)
    for i, parameter in enumerate(model.parameters()):
        parameter.set_value(parameter + 0.1 * numbers(*parameter.shape, seed=i))
    return model


class Other(nn.Dropout):
    """A dropout that is none of fast_cpu's, with the same masks and gradients."""

    def forward(self, x):
        return fast_cpu._Dropout.apply(x, self.p)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_within_the_hidden_layer_is_dropout_after_it(rate):
    """The same masks, and the same outputs and gradients to the bit."""
    layer, x, results = fast(mlp(24, 96, rate)), numbers(700, 24), []
    parameters = layer.fc1.parameters()
    for dropout in (layer.dropout1, Other(rate)):
        layer.dropout1 = dropout
        paddle.seed(3)
        y = layer.hidden(x)
        results.append([y.numpy(), *(g.numpy() for g in paddle.grad((y**3).sum(), [x, *parameters]))])
    assert 0.9 < (results[0][0] == 0).mean() / rate < 1.1
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_hooks_of_the_hidden_layer_are_called():
    layer, x, seen = fast(mlp(24, 96, 0.5)), numbers(10, 24), []
    paddle.seed(3)
    expected = layer.hidden(x).numpy()
    layer.fc1.register_forward_post_hook(lambda _, inputs, output: seen.append(output.shape))
    layer.dropout1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    paddle.seed(3)
    np.testing.assert_allclose(layer.hidden(x).numpy(), expected, rtol=0, atol=1e-6)
    assert seen == [[10, 96], [10, 96]]


def test_the_hidden_layer_drops_nothing_where_its_dropout_is_off():
    layer, x = fast(mlp(24, 96, 0.5)), numbers(10, 24)
    layer.dropout1.eval()
    assert not (layer.hidden(x).numpy() == 0).any()


def test_a_whole_network_equals_the_plain_one():
    """Loss and every gradient, without dropout; the bias of the keys has the gradient 0 but for rounding."""
    model = random_model(dropout=0.0)
    images, labels = numbers(16, 3, 8, 8).detach(), paddle.arange(16) % 10
    names, results = list(model.state_dict()), []
    for _ in range(2):
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        results.append([loss.numpy(), *(p.grad.numpy() for p in model.parameters())])
        model.clear_gradients()
        assert speed_up(model) is model and list(model.state_dict()) == names
    assert isinstance(model.blocks[0].mlp, FastMlp) and isinstance(model.pos_dropout, FastDropout)
    assert_same(results[1], results[0], 1e-6)


def test_evaluation_gives_the_logits_of_the_plain_network():
    model = random_model()
    model.eval()
    images = numbers(2, 3, 8, 8)
    expected = model(images).numpy()
    speed_up(model)
    with paddle.no_grad():
        without_gradients = model(images).numpy()
    for found in (without_gradients, model(images).numpy()):
        np.testing.assert_array_equal(found, expected)


def test_both_of_two_networks_become_fast_and_convolutional_ones_stay():
    model = speed_up(build_model("ViT-digits", 10, 8, second="SE_ResNet50_vd"))
    assert isinstance(model.first.blocks[3].mlp.dropout2, FastDropout)
    assert type(model.second.out) is nn.Linear and type(model.second.dropout) is nn.Dropout


def test_the_masks_under_recompute_are_the_same_again():
    model = speed_up(random_model(dropout=0.3))
    images, found = numbers(5, 3, 8, 8).detach(), []
    for again in (False, True):
        if again:
            compute_by(model, recompute=True, fused=False)
        paddle.seed(1)
        (model(images) ** 2).mean().backward()
        found.append([p.grad.numpy() for p in model.parameters()])
        model.clear_gradients()
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_right_share_and_the_mean(rate):
    paddle.seed(3)
    layer, count = FastDropout(rate), 1_000_000
    y = layer(paddle.ones([count // 100, 100])).numpy()
    kept = y != 0
    rounded = round(rate * 2**16) / 2**16
    np.testing.assert_allclose(y[kept], np.float32(1 / (1 - rounded)), rtol=1e-7)
    deviation = (rate * (1 - rate)) ** 0.5
    assert abs(kept.mean() - (1 - rate)) < 4 * deviation / count**0.5
    for axis in (0, 1):  # no row or column is special, neighbours do not go together
        share = kept.mean(axis=axis)
        assert abs(share - (1 - rate)).max() < 6 * deviation / kept.shape[axis] ** 0.5
    flat = (kept.reshape(-1) - kept.mean()) / deviation
    for lag in (1, 2, 3, 4, 8, 100):
        assert abs((flat[lag:] * flat[:-lag]).mean()) < 5 / count**0.5, lag


def test_dropout_draws_anew_each_time_and_follows_paddles_seed():
    layer, x = FastDropout(0.5), paddle.ones([64, 64])
    paddle.seed(7)
    first, second = layer(x).numpy(), layer(x).numpy()
    paddle.seed(7)
    np.testing.assert_array_equal(layer(x).numpy(), first)
    assert abs(((first > 0) == (second > 0)).mean() - 0.5) < 0.05


def test_the_gradient_of_dropout_has_the_mask_of_its_forward_pass():
    layer, x = FastDropout(0.3), numbers(50, 70)
    y = layer(x)
    (gradient,) = paddle.grad(y.sum(), [x])
    np.testing.assert_array_equal(gradient.numpy() == 0, y.numpy() == 0)
    np.testing.assert_allclose((gradient * x).numpy(), y.numpy(), rtol=1e-6)


def test_a_rate_next_to_1_keeps_a_few():
    paddle.seed(0)
    y = FastDropout(0.9999999)(paddle.ones([1000, 1000])).numpy()
    assert set(np.unique(y)) == {0.0, 2.0**16} and 2 < (y > 0).sum() < 40


def test_dropout_is_off_in_evaluation_and_at_rate_0():
    x = numbers(4, 4)
    evaluated = FastDropout(0.5)
    evaluated.eval()
    for layer in (evaluated, FastDropout(0.0)):
        np.testing.assert_array_equal(layer(x).numpy(), x.numpy())
