"""Two runs on the same test images, compared image by image. `python -m reproduce.report --compare RUN_A RUN_B`"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import bdtr

from common.errors import UserError
from reproduce.predictions import Predictions, read_predictions
from reproduce.results import LOGS
from reproduce.run_log import read_metrics

RESAMPLES = 10_000
_SEED = 0
_SPEED = "train/images_per_second"


class Difference(NamedTuple):
    """A minus B, a mean over the test images; low and high are the ends of the bootstrap's 95 % interval."""

    value: float
    low: float
    high: float


class Comparison(NamedTuple):
    images: int
    accuracies: tuple[float, float]  # of A and of B
    accuracy: Difference
    nll: Difference  # nats
    only_a: int  # images that A alone has right
    only_b: int
    mcnemar_p: float  # exact, two-sided
    records: str  # whether B repeats A, or where they part


def find_run(name: str) -> Path:
    """The folder of a run given by its path or by its name under logs/."""
    for path in (Path(name), LOGS / name):
        if (path / "run.json").exists():
            return path
    raise UserError(f"{name}: not a run; give a folder with run.json, or its name under logs/ (python -m "
                    "reproduce.results lists them)")  # fmt: skip


def compare(a: Path, b: Path) -> Comparison:
    """Compare the best weights of two runs.

    The bootstrap draws test images with replacement, the same for A and B, so it says how much the difference owes to
    these images. Neither it nor McNemar's test knows what another seed would have given.

    Raises UserError for folders without predictions, and for runs that were not tested on the same images.
    """
    one, other = read_predictions(a), read_predictions(b)
    sets = [json.loads((path / "run.json").read_text())["recipe"]["dataset"] for path in (a, b)]
    if sets[0] != sets[1] or len(one.labels) != len(other.labels):
        raise UserError(f"{a} was tested on {len(one.labels):,} images of {sets[0]}, {b} on {len(other.labels):,} of "
                        f"{sets[1]}; compare runs with the same test set")  # fmt: skip
    if (one.labels != other.labels).any():
        raise UserError(f"{a} and {b} have other labels from image {int((one.labels != other.labels).argmax())} on, so "
                        "their test sets differ; compare runs with the same one")  # fmt: skip
    gains = np.stack(
        [one.hits.astype(np.float64) - other.hits, one.nll.astype(np.float64) - other.nll], axis=1
    )  # (N, 2)
    only_a, only_b = int((one.hits & ~other.hits).sum()), int((other.hits & ~one.hits).sum())
    accuracy, nll = bootstrap(gains)
    return Comparison(
        len(gains), (float(one.hits.mean()), float(other.hits.mean())), accuracy, nll, only_a, only_b,
        mcnemar(only_a, only_b), _records(a, b, one, other),
    )  # fmt: skip


def _records(a: Path, b: Path, one: Predictions, other: Predictions) -> str:
    """Whether all that both runs recorded, but their speed, and all predictions are the same, or where they part."""
    mine, theirs = ({(row["step"], name): value for row in read_metrics(run) for name, value in row.items()
                     if name not in ("step", _SPEED)} for run in (a, b))  # fmt: skip
    common = [key for key in mine if key in theirs]
    for step, name in common:
        if mine[step, name] != theirs[step, name]:
            return f"A and B part at step {step:,} in {name}"
    for name, values, others in zip(one._fields, one, other, strict=True):
        if not np.array_equal(values, others):
            return f"A and B part in the predictions ({name})"
    alone = sorted({name for _, name in mine.keys() ^ theirs.keys()})
    extra = f"; not compared, as one of them alone has it: {', '.join(alone)}" if alone else ""
    return f"A and B are the same to the last digit in {len(common):,} recorded values and all predictions{extra}"


def bootstrap(values: np.ndarray, resamples: int = RESAMPLES) -> list[Difference]:
    """Mean and percentile interval of each column of `values` (N, K), whose rows are drawn with replacement."""
    rng, count = np.random.default_rng(_SEED), len(values)
    means = np.empty((resamples, values.shape[1]))
    for row in range(resamples):
        # how often each image was drawn; a product with these is the sum over the draws
        draws = np.bincount(rng.integers(0, count, count, dtype=np.int32), minlength=count)
        means[row] = draws @ values / count
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return [Difference(*map(float, column)) for column in zip(values.mean(axis=0), low, high, strict=True)]


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact p that the images which one run alone has right are as often A's as B's."""
    return min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def describe(comparison: Comparison, a: str, b: str) -> list[tuple[str, str]]:
    """(what, text) lines for people."""
    accuracy, nll = comparison.accuracy, comparison.nll
    signs = (accuracy.low > 0 or accuracy.high < 0, comparison.mcnemar_p < 0.05)
    reading = {(True, True): "differ in accuracy", (False, False): "cannot be told apart in accuracy"}
    return [
        ("A", f"{a}: {100 * comparison.accuracies[0]:.2f} %"),
        ("B", f"{b}: {100 * comparison.accuracies[1]:.2f} %"),
        ("images", f"{comparison.images:,}, the same in both; A alone has {comparison.only_a:,} right, B alone "
                   f"{comparison.only_b:,}"),
        ("top-1, A-B", f"{100 * accuracy.value:+.2f} points, 95 % interval {100 * accuracy.low:+.2f} to "
                       f"{100 * accuracy.high:+.2f} ({RESAMPLES:,} bootstrap samples of the images)"),
        ("McNemar", f"p = {comparison.mcnemar_p:.{2 if comparison.mcnemar_p >= 0.1 else 1}g} (exact, two-sided)"),
        ("NLL, A-B", f"{nll.value:+.4f} nats, 95 % interval {nll.low:+.4f} to {nll.high:+.4f}"),
        ("records", comparison.records),
        ("reading", f"on these images the two {reading.get(signs, 'are on the border of differing in accuracy')}; what "
                    "other seeds would give, two runs cannot say"),
    ]  # fmt: skip
