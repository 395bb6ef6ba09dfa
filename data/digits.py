"""Scikit-learn's handwritten digits: 1,797 real 8 x 8 images that come with the package, no download."""

import numpy as np

from data.in_memory import InMemory

_TEST_PER_CLASS = 50  # 500 test images; the UCI source has a test split of its own, this package does not


def load():
    """Return (train, test, class_names); images uint8 (N, 3, 8, 8), the split fixed for ever."""
    from sklearn.datasets import load_digits  # here, as it costs every other run 0.6 s and 100 MB

    bunch = load_digits()
    gray = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # the source counts ink from 0 to 16
    images = np.repeat(gray[:, None], 3, axis=1)
    labels = bunch.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    test = np.concatenate([order[labels[order] == digit][:_TEST_PER_CLASS] for digit in range(10)])
    train = np.setdiff1d(order, test)
    whole = InMemory(images, labels)
    return whole.subset(train), whole.subset(np.sort(test)), [str(digit) for digit in range(10)]
