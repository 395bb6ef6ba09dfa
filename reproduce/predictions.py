"""predictions.npz of a run: what its best weights say about every test image."""

import json
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.errors import UserError

BINS = 15  # of confidence, as in evaluate.py


class Predictions(NamedTuple):
    """N test images in the order of the test set."""

    labels: np.ndarray  # int16 (N,)
    classes: np.ndarray  # int16 (N,): the most probable class
    confidence: np.ndarray  # float32 (N,): its probability
    nll: np.ndarray  # float32 (N,): -log P(label) in nats

    @property
    def hits(self) -> np.ndarray:
        """bool (N,): whether the most probable class is the label."""
        return self.classes == self.labels


def read_predictions(run: Path) -> Predictions:
    """The predictions in the folder of a finished run.

    Raises UserError when `run` is no such folder, the file is missing or damaged, or not of this run.json.
    """
    run = Path(run)
    try:
        header = json.loads((run / "run.json").read_text())
        counts = header["result"]["best"]["test"] if header["finished"] else None
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{run}: not the folder of an evaluated run (no run.json with a test result); give one such "
                        "as logs/evidence/digits") from None  # fmt: skip
    if counts is None:
        raise UserError(f"{run}: this run has not finished; continue it with the command in its run.json")
    path = run / "predictions.npz"
    if not path.exists():
        raise UserError(f"{path}: no such file; copy it from where the run was trained, or train it again")
    try:
        with np.load(path, allow_pickle=False) as file:
            found = Predictions(file["labels"], file["top5"][:, 0], file["confidence"], file["nll"])
        if len({len(column) for column in found}) != 1 or any(column.ndim != 1 for column in found):
            raise ValueError("its columns differ in length")
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile, zlib.error) as problem:
        detail = str(problem).strip("'\"").splitlines()[0]
        raise UserError(f"{path}: not readable as predictions ({detail}); copy it again from the run") from None
    if (int(found.hits.sum()), len(found.labels)) != (counts["correct"], counts["total"]):
        raise UserError(
            f"{path}: has {int(found.hits.sum()):,} of {len(found.labels):,} images right, run.json says "
            f"{counts['correct']:,} of {counts['total']:,}; the two are not of one run, copy both again"
        )
    return found


class Reliability(NamedTuple):
    """Images sorted into BINS equal bins of confidence; the columns are arrays (BINS,), NaN where a bin is empty."""

    share: np.ndarray  # of the images in the bin
    count: np.ndarray  # images in it
    confidence: np.ndarray  # their mean
    accuracy: np.ndarray


def reliability(confidence: np.ndarray, hits: np.ndarray) -> Reliability:
    """Accuracy against confidence, bin by bin (Guo et al., arXiv 1706.04599)."""
    which = np.minimum((confidence * BINS).astype(int), BINS - 1)
    count = np.bincount(which, minlength=BINS)
    with np.errstate(invalid="ignore"):
        mean = [
            np.bincount(which, weights=values.astype(float), minlength=BINS) / count for values in (confidence, hits)
        ]
    return Reliability(count / len(hits), count, *mean)
