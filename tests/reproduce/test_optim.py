import math

import pytest

from reproduce.optim import learning_rate


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
