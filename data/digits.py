"""1,797 real handwritten digits of 8 x 8 pixels, which lie beside this file.

digits.csv.gz is scikit-learn's file, a copy of the test set of "Optical Recognition of Handwritten Digits" (E. Alpaydin
and C. Kaynak, UCI Machine Learning Repository, 1998, doi 10.24432/C50P49, CC BY 4.0). A line has 64 pixels and the
label.
"""

from pathlib import Path

import numpy as np

from data.splits import InMemory

_TEST_PER_CLASS = 50  # 500 test images; the source has a training set too, this file does not


def load():
    """Return (train, test, class_names); images uint8 (N, 3, 8, 8), the split fixed for ever."""
    table = np.loadtxt(Path(__file__).with_name("digits.csv.gz"), delimiter=",")
    ink, labels = table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
    gray = np.rint(ink * (255 / 16)).astype(np.uint8)  # the source counts ink from 0 to 16
    images = np.repeat(gray[:, None], 3, axis=1)
    order = np.random.default_rng(0).permutation(len(labels))
    test = np.concatenate([order[labels[order] == digit][:_TEST_PER_CLASS] for digit in range(10)])
    train = np.setdiff1d(order, test)
    whole = InMemory(images, labels)
    return whole.subset(train), whole.subset(np.sort(test)), [str(digit) for digit in range(10)]
