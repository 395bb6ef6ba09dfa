"""The learning rate, and what a GPU does with the gradients: its code, with the CPU's kernels."""

import math
from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from common.errors import UserError
from models import build
from reproduce import checkpoint, optim
from reproduce.optim import learning_rate
from reproduce.recipes import get_recipe


def test_update_k_has_the_rate_of_step_k():
    """What torch's LambdaLR gives when scheduler.step() runs before optimizer.step(), as in the official code."""
    rates = [learning_rate(step, 1e-2, 10_000, 500) for step in range(1, 10_001)]
    assert rates[0] == pytest.approx(1e-2 / 500)
    assert rates[249] == pytest.approx(5e-3)
    assert rates[499] == max(rates) == 1e-2
    assert rates[5249] == pytest.approx(5e-3)  # half way down the cosine
    assert rates[-1] == 0.0
    for step in (600, 3000, 9999):
        expected = 1e-2 * 0.5 * (1 + math.cos(math.pi * 0.5 * 2 * (step - 500) / 9500))
        assert rates[step - 1] == pytest.approx(expected)


def test_linear_constant_and_no_warm_up():
    assert learning_rate(1, 2.0, 11, 1, "linear") == 2.0
    assert learning_rate(6, 2.0, 11, 1, "linear") == pytest.approx(1.0)
    assert learning_rate(11, 2.0, 11, 1, "linear") == 0.0
    assert [learning_rate(s, 2.0, 9, 2, "constant") for s in (1, 2, 9)] == [1.0, 2.0, 2.0]
    assert learning_rate(1, 2.0, 10, 0) < 2.0
    assert learning_rate(1, 2.0, 1, 500) == 2.0 / 500  # a run shorter than its warm-up


def test_unknown_schedule():
    with pytest.raises(ValueError, match="'step'"):
        learning_rate(1, 1.0, 10, 0, "step")


def one_update(recipe, model, optimizer, scaler, size=1.0) -> float:
    """Gradients from random numbers, scaled, clipped and applied as in train.train_step; returns their norm."""
    rng = np.random.default_rng(0)
    for parameter in model.parameters():
        factors = paddle.to_tensor(size * rng.normal(size=parameter.shape).astype(np.float32))
        with paddle.amp.auto_cast(False, dtype="float16"):  # loss scaling goes by this
            loss = (parameter * factors).sum()
        scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    gradients = [parameter.grad for parameter in model.parameters()]
    norm = optim.global_norm(gradients).item()
    optim.clip(gradients, norm, recipe.max_grad_norm)
    optim.apply_gradients(optimizer, scaler)
    return norm


def weights(model) -> np.ndarray:
    return np.concatenate([parameter.numpy().ravel() for parameter in model.parameters()])


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """One kernel for all weights, and loss scaling, which Paddle switches off on a CPU."""
    monkeypatch.setattr(optim, "on_gpu", lambda: True)
    place = SimpleNamespace(is_gpu_place=lambda: True)
    tracer = SimpleNamespace(_expected_place=place)
    monkeypatch.setattr("paddle.amp.grad_scaler._dygraph_tracer", lambda: tracer)


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_one_kernel_for_all_weights_gives_the_same_update(name, as_on_a_gpu, monkeypatch):
    recipe, found = get_recipe("digits", optimizer=name, weight_decay=0.01), {}
    for on_gpu in (True, False):
        monkeypatch.setattr(optim, "on_gpu", lambda on_gpu=on_gpu: on_gpu)
        paddle.seed(0)
        model = build(recipe.network(10))
        optimizer = optim.make_optimizer(recipe, model)
        norms = [one_update(recipe, model, optimizer, optim.loss_scaler(recipe)) for _ in range(3)]
        found[on_gpu] = weights(model)
    assert norms[0] == pytest.approx(np.sqrt(len(found[True])), rel=0.01)
    np.testing.assert_allclose(found[True], found[False], atol=1e-6)


def test_an_update_that_overflows_is_skipped_and_the_scale_goes_into_the_checkpoint(as_on_a_gpu, tmp_path):
    recipe = get_recipe("digits", precision="fp16")
    model = build(recipe.network(10))
    optimizer, scaler = optim.make_optimizer(recipe, model), optim.loss_scaler(recipe)
    before, first_scale = weights(model), scaler.state_dict()["scale"]
    assert not math.isfinite(one_update(recipe, model, optimizer, scaler, size=np.inf))
    assert np.array_equal(weights(model), before)
    assert one_update(recipe, model, optimizer, scaler) < np.inf and not np.array_equal(weights(model), before)
    assert scaler.state_dict()["scale"] == first_scale / 2
    checkpoint.save(tmp_path, checkpoint.Progress(step=2), recipe.meaning(), model, optimizer, scaler)
    again = build(recipe.network(10))
    other, other_scaler = optim.make_optimizer(recipe, again), optim.loss_scaler(recipe)
    checkpoint.restore(checkpoint.load_latest(tmp_path), again, other, other_scaler)
    assert other_scaler.state_dict()["scale"] == first_scale / 2
    for each in ((model, optimizer, scaler), (again, other, other_scaler)):
        one_update(recipe, *each)
    assert np.array_equal(weights(model), weights(again))


def test_updates_that_all_overflow_end_the_run(tmp_path, as_on_a_gpu):
    """Else fp16 would go on to the end with the weights that it had."""
    self = SimpleNamespace(scaler=paddle.amp.GradScaler(), _skipped=0, saved=tmp_path)
    overflow, fine = ({"loss": 1.0, "gradient_norm": norm} for norm in (math.inf, 1.0))
    for step, found in enumerate([overflow] * 20 + [fine] + [overflow] * 20, 1):
        checkpoint.Run._check_finite(self, step, found)
    with pytest.raises(
        UserError, match=r"step 42: the gradient norm is inf; no checkpoint yet\. Lower --learning_rate"
    ):
        checkpoint.Run._check_finite(self, 42, overflow)
    self = SimpleNamespace(scaler=paddle.amp.GradScaler(enable=False), _skipped=0, saved=tmp_path)
    with pytest.raises(UserError, match="step 1: the gradient norm is inf"):
        checkpoint.Run._check_finite(self, 1, overflow)
