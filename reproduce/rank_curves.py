"""Which value of a log belongs to which rank, when several processes wrote one file.

Nothing in a record names its writer. What can tell the ranks of one file apart, strongest first:

1. equal values: every rank logged the same, so there is nothing to separate;
2. clocks: machines whose clocks differ stamp each step in the same order, whoever comes first;
3. values: ranks that always count the same part of the test set differ by the difficulty of that part;
4. order: where 2 or 3 name the writers and each always stands at the same place of its step.

The period of the loss does not help: it links the same place of two epochs, never two places of one.

For 2 and 3 the values of a step are sorted, and two neighbours count as apart where the gap between them is at least
_APART times its own standard deviation over _WINDOW steps: then fewer than one step in 1,000 has them swapped. Ranks
that differ only by chance reach a ratio of 1 to 1.5, and pass in fewer than one window in 1,000.
"""

from dataclasses import dataclass

import numpy as np

from reproduce.visualdl_files import Scalar

_WINDOW = 15  # steps over which a gap is compared with its fluctuation
_APART = 3.0
_LEAST_SHARE = 0.05  # of the steps: what is apart in fewer of them may be chance
_FIXED_SHARE = 0.95  # of the steps: a rank that stands at one place so often has its place


@dataclass(frozen=True, eq=False)
class RankCurves:
    """The values of one scalar of one run, a column a rank as far as the log tells."""

    tag: str
    steps: np.ndarray  # int64 (T,): where every rank has a value
    values: np.ndarray  # float64 (T, ranks); where not separated, the values of one file in ascending order
    separated: np.ndarray  # bool (T, ranks): the value is known to be of that column's rank
    labels: tuple[str, ...]  # of the columns: the file, and a number when several ranks wrote it
    evidence: tuple[str, ...]  # a sentence a file: what tells its ranks apart, or why nothing does
    order_is_fixed: bool  # in every file each rank always stands at the same place of its step

    @property
    def means(self) -> np.ndarray:
        """float64 (T,): the mean over the ranks, which needs no separation."""
        return self.values.mean(axis=1)


def rank_curves(scalars: dict[str, Scalar], order_is_fixed: bool = False) -> RankCurves:
    """Separate the ranks of one run.

    Args:
        scalars: the same scalar in each file of the run, under the names of the files.
        order_is_fixed: another scalar of the run showed that each rank has its place within a step.
    """
    files = {name: _separate(scalar, order_is_fixed) for name, scalar in scalars.items()}
    common = None
    for steps, *_ in files.values():
        common = steps if common is None else np.intersect1d(common, steps)
    columns, separated, labels = [], [], []
    for name, (steps, values, apart, _, _) in files.items():
        rows = np.isin(steps, common)
        columns.append(values[rows])
        separated.append(apart[rows])
        ranks = values.shape[1]
        labels += [name] if ranks == 1 else [f"{name} #{rank}" for rank in range(1, ranks + 1)]
    return RankCurves(
        next(iter(scalars.values())).tag,
        common,
        np.hstack(columns),
        np.hstack(separated),
        tuple(labels),
        tuple(f"{name}: {sentence}" for name, (*_, sentence, _) in files.items()),
        all(fixed for *_, fixed in files.values()),
    )


def _separate(scalar: Scalar, order_is_fixed: bool):
    """steps (T,), values (T, writers), separated (T, writers), a sentence, and whether the places are fixed."""
    steps, values, times = scalar.by_step()
    ranks = values.shape[1]
    everywhere = np.ones(values.shape, bool)
    if ranks == 1:
        return steps, values, everywhere, "one writer", True
    if not np.ptp(values, axis=1).any():
        return steps, values, everywhere, f"all {ranks} writers logged the same values", False
    if order_is_fixed:
        sentence = f"{ranks} writers, told apart by their place within a step, which never changes (inferred)"
        return steps, values, everywhere, sentence, True
    if len(steps) < _WINDOW:
        sentence = f"{ranks} writers; {len(steps)} steps are too few to tell them apart ({_WINDOW} are needed)"
        return steps, np.sort(values, axis=1), ~everywhere, sentence, False

    by_clock = np.argsort(times, axis=1, kind="stable")
    # Stamps that only rise within a step are the order of arrival, however regular, and name nobody.
    go_back = (np.diff(times, axis=1) < 0).any(axis=1).mean() >= _LEAST_SHARE
    if go_back and _apart(np.take_along_axis(times, by_clock, axis=1)).all():
        values = np.take_along_axis(values, by_clock, axis=1)
        fixed, _ = _place(by_clock, everywhere)
        return steps, values, everywhere, f"{ranks} writers, told apart by their clocks", fixed

    by_value = np.argsort(values, axis=1, kind="stable")
    in_order = np.take_along_axis(values, by_value, axis=1)
    apart = _apart(in_order)
    clocks = "their time stamps do not differ steadily"
    if not apart.any():
        sentence = (f"{ranks} writers that cannot be told apart: {clocks}, their values change from step to step as "
                    "much as they differ, and all have the same steps")  # fmt: skip
        return steps, in_order, apart, sentence, False
    fixed, place = _place(by_value, apart)
    if fixed:
        sentence = f"{ranks} writers, told apart by values that differ steadily and a fixed place within a step"
        return steps, values, everywhere, sentence, True
    known = ", ".join(f"#{rank + 1} at {count:,}" for rank, count in enumerate(apart.sum(axis=0)))
    sentence = (f"{ranks} writers, #1 the lowest, told apart where their values differ steadily, {known} of "
                f"{len(steps):,} steps, and nowhere else: {clocks}, and their place within a step changes "
                f"({place})")  # fmt: skip
    return steps, in_order, apart, sentence, False


def _apart(in_order: np.ndarray) -> np.ndarray:
    """bool (T, ranks): where a column of the sorted (T, ranks) is apart from both its neighbours; T >= _WINDOW."""
    gaps = np.diff(in_order, axis=1)
    windows = np.lib.stride_tricks.sliding_window_view(gaps, _WINDOW, axis=0)  # (T - W + 1, ranks - 1, W)
    middle = np.clip(np.arange(len(gaps)) - _WINDOW // 2, 0, len(windows) - 1)
    mean, spread = windows.mean(axis=-1)[middle], windows.std(axis=-1, ddof=1)[middle]
    held = (mean > 0) & (mean >= _APART * spread)
    held &= held.mean(axis=0) >= _LEAST_SHARE
    sides = np.pad(held, ((0, 0), (1, 1)), constant_values=True)  # nobody is below the lowest or above the highest
    return sides[:, :-1] & sides[:, 1:]


def _place(order: np.ndarray, apart: np.ndarray) -> tuple[bool, str]:
    """Whether the ranks that are apart keep their places within a step, and how often the clearest one does.

    `order` (T, ranks) is the place in the file of the lowest value, of the next one, and so on.
    """
    known = apart.sum(axis=0)
    often = [np.bincount(order[apart[:, rank], rank], minlength=1).max() for rank in range(len(known))]
    keep = (known >= _WINDOW) & (often >= _FIXED_SHARE * known)
    clearest = int(known.argmax())
    all_known = keep.sum() >= len(known) - 1 and not ((known >= _WINDOW) & ~keep).any()  # the last one is left over
    return bool(all_known), f"#{clearest + 1} keeps one in {often[clearest]:,} of {known[clearest]:,}"
