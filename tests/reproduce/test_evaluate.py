import numpy as np
import paddle
import pytest

from common.errors import UserError
from data.splits import InMemory
from reproduce.cli import parse
from reproduce.evaluate import Evaluation, _parser, describe, evaluate, expected_calibration_error


class Fixed(paddle.nn.Layer):
    """A network whose logits are given: the first pixel of an image says which row to return."""

    def __init__(self, logits):
        super().__init__()
        self.logits = paddle.to_tensor(logits, dtype="float32")
        self.dropout = paddle.nn.Dropout(0.9)  # would destroy the result if evaluation left it on

    def forward(self, images):
        rows = ((images[:, 0, 0, 0] + 1) * 127.5).round().astype("int64")
        return self.dropout(self.logits[rows])


def split_of(labels):
    n = len(labels)
    images = np.broadcast_to(np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1), (n, 3, 4, 4)).copy()
    return InMemory(images, np.asarray(labels))


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_every_image_counts_exactly_once_for_any_batch_size(batch_size):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(25, 12)), rng.integers(0, 12, 25)
    model = Fixed(logits)
    found = evaluate(model, split_of(labels), 4, batch_size)
    assert model.training  # as it was
    order = np.argsort(-logits, axis=1)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_array_equal(found.top5, order[:, :5])
    np.testing.assert_allclose(found.nll, -log_p[np.arange(25), labels], rtol=1e-5)
    np.testing.assert_allclose(found.confidence, np.exp(log_p).max(axis=1), rtol=1e-5)
    metrics = found.metrics()
    assert metrics["accuracy"] == (order[:, 0] == labels).sum() / 25
    assert metrics["top5_accuracy"] == (order[:, :5] == labels[:, None]).any(axis=1).sum() / 25
    assert metrics["total"] == 25


def test_calibration_error_by_hand():
    # bins of 1/15: two images at 0.9 (one right), one at 0.5 (right)
    confidence, hit = np.array([0.9, 0.9, 0.5], np.float32), np.array([True, False, True])
    assert expected_calibration_error(confidence, hit) == pytest.approx((2 * abs(0.5 - 0.9) + abs(1 - 0.5)) / 3)
    assert expected_calibration_error(np.ones(4, np.float32), np.ones(4, bool)) == 0.0


def test_predictions_file_holds_everything_the_metrics_need(tmp_path):
    rng = np.random.default_rng(1)
    found = evaluate(Fixed(rng.normal(size=(9, 4))), split_of(rng.integers(0, 4, 9)), 4, 4)
    assert found.top5.shape == (9, 4)  # only four classes: no "top-5"
    assert "top5_accuracy" not in found.metrics() and "top-5" not in describe(found.metrics())
    found.save(tmp_path / "p.npz")
    with np.load(tmp_path / "p.npz") as file:
        assert Evaluation(**file).metrics() == found.metrics()


def test_empty_splits_and_logits_that_are_not_finite():
    with pytest.raises(UserError, match="holds no image"):
        evaluate(Fixed(np.zeros((1, 3))), split_of([]), 4, 4)
    with pytest.raises(UserError, match="not finite for 1 images"):
        evaluate(Fixed([[0.0, 1.0], [np.nan, 0.0]]), split_of([0, 1]), 4, 4)


def test_the_nll_of_one_image_is_not_cut():
    found = evaluate(Fixed([[65.0, 0.0], [1e4, -1e4]]), split_of([1, 1]), 4, 4)
    np.testing.assert_allclose(found.nll, [65.0, 2e4])


def test_strict_is_spelt_as_in_training():
    assert [parse(_parser(), words).strict for words in ([], ["--strict", "true"], ["--strict=off"])] == [0, 1, 0]
    with pytest.raises(UserError, match="--strict: invalid switch value: 'digits'"):
        parse(_parser(), ["--strict", "digits"])
