"""What the record files of a run tell about it: ranks, images behind an accuracy, scale of the loss, epochs, speed."""

import math
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from common.errors import UserError
from reproduce.rank_curves import RankCurves, rank_curves
from reproduce.visualdl_files import PublishedLog, Scalar, require

_LARGEST_UNIT = 200_000  # images; beyond, float32 cannot tell a multiple of 1/N from any other number
_LEAST_VALUES = 7  # that all values share a unit twice as large by chance: 2 ** -7
_SMOOTHED = 25  # steps: what the loss does more slowly is not its period
_CERTAIN = 10.0  # standard deviations; the best of thousands of periods of noise reaches 5


@dataclass(frozen=True)
class Settings:
    """What a log does not say about itself."""

    loss_tag: str = "train/loss"
    accuracy_tag: str = "test/accuracy"
    rate_tag: str = "train/learning_rate"
    classes: int = 100  # the first loss is compared with ln(classes)
    train_images: int = 50_000  # what an epoch reads once


@dataclass(frozen=True, eq=False)
class Audit:
    """One run, whose ranks may have written several files. None: the log cannot tell."""

    name: str
    files: tuple[PublishedLog, ...]
    copies: tuple[Path, ...]  # files left out, because all they hold is in `files`
    started: str  # UTC
    ranks: int
    updates: int  # the last step of the loss
    evaluations: int
    wall_hours: float
    updates_per_second: float | None  # the time of evaluations included
    images_per_value: int | None  # test images that each value of the accuracy was counted on
    test_images: int | None  # test images behind the mean over the ranks
    best_value_percent: float  # of any rank
    best_value_step: int  # the first that has it
    best_value_label: str  # the rank, as far as the log tells
    best_value_offset_points: float | None  # how much higher than the mean over the ranks that rank is on average
    last_values_percent: tuple[float, ...]  # of each rank, in the order of `accuracy.labels`
    best_mean_percent: float  # over the ranks; with one rank the same as its best value
    best_mean_step: int
    last_mean_percent: float
    last_mean_step: int
    first_loss: float  # mean over the ranks, median of the first 3 steps
    loss_factor: float  # first_loss / ln(classes)
    implied_accumulation: int | None  # the power of 2 that loss_factor is near
    warm_up: str  # in words, beginning with yes, no or cannot tell
    epoch_updates: int | None  # period of the loss
    epochs: float | None
    images_per_update: tuple[int, int] | None  # least and most
    accuracy: RankCurves  # shares, 0 to 1
    loss: RankCurves


def check(log: PublishedLog, settings: Settings) -> None:
    """Raise UserError unless the log holds loss and accuracy of one run, the accuracy a share or a percentage."""
    require(log, settings.loss_tag, "--loss_tag")
    values = require(log, settings.accuracy_tag, "--accuracy_tag").values
    if not ((values >= 0) & (values <= 100)).all():  # NaN is neither
        wrong = values[~((values >= 0) & (values <= 100))][0]
        raise UserError(f"{log.path}: {settings.accuracy_tag} has the value {wrong:g}, which is neither a share nor a "
                        "percentage; name the accuracy with --accuracy_tag TAG")  # fmt: skip


def audit(logs: list[PublishedLog], settings: Settings | None = None) -> list[Audit]:
    """Audit the runs in `logs`, in order of time. Raises UserError for a log that `check` refuses."""
    settings = settings or Settings()
    for log in logs:
        check(log, settings)
    kept, copies = _without_copies(logs)
    runs: list[list[PublishedLog]] = []
    for log in sorted(kept, key=lambda log: (log.unix_seconds[0], log.name)):
        run = next((run for run in runs if _same_run(run[0], log, settings)), None)
        run.append(log) if run else runs.append([log])
    return [_audit_run(sorted(run, key=lambda log: log.name), copies, settings) for run in runs]


def _without_copies(logs):
    """The logs that hold something of their own, and path -> copies for them."""
    kept, copies = [], {}
    for log in sorted(logs, key=lambda log: -sum(len(s.steps) for s in log.scalars.values())):  # stable
        content = log.content()
        first = next(iter(content))
        original = next((other for other, there in kept if first in there and content <= there), None)
        if original is None:
            kept.append((log, content))
        else:
            copies.setdefault(original.path, []).append(log.path)
    return [log for log, _ in kept], copies


def _same_run(one: PublishedLog, other: PublishedLog, settings: Settings) -> bool:
    """Whether two files are of ranks that kept pace: the same steps at the same times, as an all-reduce forces them."""
    for tag in (settings.accuracy_tag, settings.loss_tag):
        steps, _, times = one.scalars[tag].by_step()
        other_steps, _, other_times = other.scalars[tag].by_step()
        common, rows, other_rows = np.intersect1d(steps, other_steps, return_indices=True)
        if len(common) < 0.9 * max(len(steps), len(other_steps)):
            return False
    times, other_times = times[rows].mean(axis=1), other_times[other_rows].mean(axis=1)
    half_a_step = np.median(np.diff(times)) / 2 if len(times) > 1 else 0
    tolerance = max(2 * one.clock_seconds, 2 * other.clock_seconds, half_a_step)
    return bool((np.abs(times - other_times) <= tolerance).mean() >= 0.99)


def _audit_run(files: list[PublishedLog], copies: dict, settings: Settings) -> Audit:
    names = [log.name for log in files]
    if len(set(names)) < len(names):  # files of several folders
        names = [str(log.path) for log in files]
    losses = {name: log.scalars[settings.loss_tag] for name, log in zip(names, files, strict=True)}
    shares, images = _as_shares(
        {name: log.scalars[settings.accuracy_tag] for name, log in zip(names, files, strict=True)}
    )
    accuracy = rank_curves(shares)
    loss = rank_curves(losses, order_is_fixed=accuracy.order_is_fixed)
    ranks = accuracy.values.shape[1]
    each_its_own = ranks > 1 and np.ptp(accuracy.values, axis=1).any()
    means = np.round(100 * accuracy.means, 9)  # so that equal counts are equal
    best = int(means.argmax())

    first_loss = float(np.median(loss.means[:3]))
    factor = first_loss / math.log(settings.classes)
    period = loss_period(loss)
    rates = [log.scalars[settings.rate_tag] for log in files if settings.rate_tag in log.scalars]
    begin, end = min(log.unix_seconds[0] for log in files), max(log.unix_seconds[1] for log in files)
    training_seconds = np.ptp(np.concatenate([scalar.unix_seconds for scalar in losses.values()]))
    return Audit(
        name=" + ".join(names),
        files=tuple(files),
        copies=tuple(copy for log in files for copy in copies.get(log.path, [])),
        started=f"{datetime.fromtimestamp(begin, timezone.utc):%Y-%m-%d %H:%M}",
        ranks=ranks,
        updates=int(loss.steps[-1]),
        evaluations=len(accuracy.steps),
        wall_hours=(end - begin) / 3600,
        updates_per_second=float(np.ptp(loss.steps) / training_seconds) if training_seconds > 0 else None,
        images_per_value=images,
        test_images=images and images * (ranks if each_its_own else 1),
        **_best_value(shares, accuracy),
        last_values_percent=tuple((100 * accuracy.values[-1]).tolist()),
        best_mean_percent=float(means[best]),
        best_mean_step=int(accuracy.steps[best]),
        last_mean_percent=float(means[-1]),
        last_mean_step=int(accuracy.steps[-1]),
        first_loss=first_loss,
        loss_factor=factor,
        implied_accumulation=_near_power_of_two(factor),
        warm_up=_warm_up_of_rates(rates[0]) if rates else _warm_up_of_losses(loss, first_loss),
        epoch_updates=period,
        epochs=period and float(loss.steps[-1] / period),
        images_per_update=period and _images_per_update(settings.train_images, period),
        accuracy=accuracy,
        loss=loss,
    )


def _as_shares(scalars: dict) -> tuple[dict, int | None]:
    """The accuracies as shares, free of the rounding of float32 where whole images are behind them, and how many."""
    values = np.concatenate([scalar.values for scalar in scalars.values()])
    percent = 100 if values.max() > 1 else 1
    images = images_per_value(values / percent)

    def share(values):
        return np.rint(values / percent * images) / images if images else values / percent

    return {name: replace(scalar, values=share(scalar.values)) for name, scalar in scalars.items()}, images


def _best_value(shares: dict, accuracy: RankCurves) -> dict:
    """The largest single value, and whose it is, as fields of an Audit."""
    name, scalar = max(shares.items(), key=lambda item: item[1].values.max())
    place = int(scalar.values.argmax())
    step = int(scalar.steps[place])
    label, offset = name if scalar.writers == 1 else f"{name}, rank not known", None
    for row in np.flatnonzero(accuracy.steps == step):  # none, if a rank's value is missing there
        column = int(accuracy.values[row].argmax())
        if accuracy.separated[row, column] and len(accuracy.labels) > 1:
            label, known = accuracy.labels[column], accuracy.separated[:, column]
            offset = float(100 * (accuracy.values[:, column] - accuracy.means)[known].mean())
    return {
        "best_value_percent": float(100 * scalar.values[place]),
        "best_value_step": step,
        "best_value_label": label,
        "best_value_offset_points": offset,
    }


def images_per_value(shares: np.ndarray) -> int | None:
    """The smallest N such that every share is a multiple of 1/N within the rounding of float32.

    None when there is no such N, or when fewer than _LEAST_VALUES different shares could have it by chance.
    """
    shares = np.unique(shares[(shares > 0) & (shares < 1)])
    if len(shares) < _LEAST_VALUES:
        return None
    candidates = np.arange(1, _LARGEST_UNIT + 1)
    for share in shares:
        counts = share * candidates
        candidates = candidates[np.abs(counts - np.rint(counts)) <= counts * np.finfo(np.float32).eps]
    return int(candidates[0]) if len(candidates) else None


def loss_period(loss: RankCurves) -> int | None:
    """Updates after which the loss repeats, as it does when every epoch has the same order; None: not detectable.

    The logarithm of the mean over the ranks is freed from its slow part and scaled to one variance. If it repeats
    after P steps, its autocorrelations at P, 2P, 3P, ... are all above 0, and their sum is largest for the
    smallest such P. In white noise each has variance 1/T.
    """
    count = len(loss.steps)
    every_step = count >= 4 * _SMOOTHED and (np.diff(loss.steps) == 1).all()  # else it repeats after several epochs
    if not every_step or not (np.isfinite(loss.values) & (loss.values > 0)).all():
        return None
    signal = np.log(loss.values).mean(axis=1)
    signal = signal - _moving_mean(signal, _SMOOTHED)
    signal = np.clip(signal / np.sqrt(_moving_mean(signal**2, 16 * _SMOOTHED + 1) + 1e-12), -4, 4)
    signal -= signal.mean()
    spectrum = np.abs(np.fft.rfft(signal, 2 * count)) ** 2  # padded, so that the end does not meet the beginning
    products = np.fft.irfft(spectrum)[:count]
    correlations = products / max(products[0], 1e-12) * count / np.sqrt(count - np.arange(count))  # noise: variance 1
    best, period = 0.0, 0
    for lag in range(5, count // 3 + 1):
        repeats = correlations[lag : 2 * count // 3 : lag]
        score = repeats.sum() / math.sqrt(len(repeats))
        if score > best:
            best, period = score, lag
    return period if best >= _CERTAIN else None


def _moving_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Centred mean over an odd `width`, at the ends over what is there."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    low, high = np.maximum(at - width // 2, 0), np.minimum(at + width // 2 + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _images_per_update(train_images: int, epoch_updates: int) -> tuple[int, int]:
    """The batch sizes that read `train_images` in `epoch_updates` batches, the last one cut short or left out."""
    return train_images // (epoch_updates + 1) + 1, -(-train_images // (epoch_updates - 1)) - 1


def _near_power_of_two(factor: float) -> int | None:
    """The power of 2 within 15 % of `factor`, or None; an untrained head starts a little above ln(classes)."""
    if not math.isfinite(factor) or factor < 0.85:
        return None
    nearest = 2 ** round(math.log2(factor))
    return nearest if abs(factor / nearest - 1) <= 0.15 else None


def _warm_up_of_rates(rates: Scalar) -> str:
    top = int(rates.values.argmax())
    first, highest = rates.values[0], rates.values[top]
    if top == 0:
        return f"no: the logged rate is highest, {highest:g}, at its first step {rates.steps[0]:,}"
    begin, end = rates.steps[[0, top]]
    return f"yes: the logged rate rises from {first:g} at step {begin:,} to {highest:g} at step {end:,}"


def _warm_up_of_losses(loss: RankCurves, first_loss: float) -> str:
    """Infer the warm-up from how the loss begins to fall.

    A loss that falls by a constant share of itself an update has done 59 % of its halving after half of the time; where
    that share grows linearly from 0, it has done 32 %: 2 (1 - 2 ** -0.5) and 2 (1 - 2 ** -0.25).
    """
    unknown = "cannot tell: the learning rate is not logged, and the loss "
    smooth = _moving_mean(loss.means, 9)
    halved = np.flatnonzero(smooth <= first_loss / 2)
    if not len(halved) or halved[0] < 16:
        return unknown + ("halves within 16 records" if len(halved) else "never halves")
    updates = int(loss.steps[halved[0]])
    fallen = 2 * (1 - np.interp(updates / 2, loss.steps, smooth) / first_loss)
    measured = (f"halves in {updates:,} updates and has done {100 * fallen:.0f} % of that after half of them (a "
                "constant rate: 59 %, a linear warm-up: 32 %)")  # fmt: skip
    if fallen >= 0.53:
        return f"no (inferred): the loss {measured}"
    if fallen <= 0.38:
        return f"yes (inferred): the loss {measured}"
    return unknown + measured
