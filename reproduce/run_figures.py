"""Figures of our own runs: R-Drop against its baseline over seeds, calibration, confusion, the effect of alpha."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from reproduce.figure_style import BLACK, BLUE, GREY, ORANGE
from reproduce.predictions import read_predictions, reliability
from reproduce.results import Group, Pair
from reproduce.run_log import read_metrics
from reproduce.superclasses import NAMES, confusion

_LEAST_IMAGES = 20  # of a bin of confidence that is drawn: fewer say little about its accuracy
_ARMS = (BLUE, ORANGE)  # baseline, R-Drop


def draw_pair(pair: Pair):
    """Accuracy, cross-entropy, KL and learning rate of both arms: the mean over seeds and the range they span."""
    figure, panels = plt.subplots(2, 2, figsize=(11, 8))
    figure.suptitle(
        f"{pair.arm.recipe}: R-Drop against its baseline of as many updates, which makes half as many passes"
    )
    for group, colour in zip((pair.reference, pair.arm), _ARMS, strict=True):
        curves = _curves(group)
        label = f"{group.arm()}, {len(group.runs)} seeds"
        _band(panels[0, 0], 100 * curves["validation/accuracy"], colour, label)
        _band(panels[0, 1], curves["train/cross_entropy"], colour, label)
        if not group.one_view:
            _band(panels[1, 0], curves["train/kl"], colour, label)
        rate = curves["train/learning_rate"].mean(axis=1)
        panels[1, 1].plot(rate, color=colour, ls="-" if group.one_view else "--", label=label)
    titles = ("Validation accuracy", "Training cross-entropy", "Mean KL of the two views", "Learning rate")
    units = ("top-1 accuracy, %", "nats, mean over the views", "nats, mean of both directions", "learning rate")
    for axes, title, unit in zip(panels.ravel(), titles, units, strict=True):
        axes.set(title=title, xlabel="update", ylabel=unit)
    panels[0, 0].legend(loc="lower right", title="line: mean, band: lowest to highest")
    return figure


def _curves(group: Group) -> dict[str, pd.DataFrame]:
    """tag -> table of steps (rows) by seeds (columns), where all seeds have a value."""
    rows = [
        {"seed": seed, **row} for seed, path in zip(group.runs["seed"], group.runs["path"], strict=True)
        for row in read_metrics(path)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    tags = [name for name in table if "/" in name]
    return {tag: table.dropna(subset=tag).pivot_table(index="step", columns="seed", values=tag).dropna()
            for tag in tags}  # fmt: skip


def _band(axes, curves: pd.DataFrame, colour: str, label: str) -> None:
    axes.plot(curves.mean(axis=1), color=colour, label=label)
    axes.fill_between(curves.index, curves.min(axis=1), curves.max(axis=1), color=colour, alpha=0.2, lw=0)


def draw_reliability(groups: list[Group]):
    """Accuracy against confidence of each group, all its seeds together, and how the images spread over confidence."""
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(7.5, 8.4), sharex=True, height_ratios=(3, 1))
    upper.set_title(
        f"{groups[0].recipe}: is the confidence right?\nfull marks: bins of at least {_LEAST_IMAGES} images"
    )
    upper.plot([0, 1], [0, 1], "--", color=GREY, label="accuracy = confidence")
    colours = {True: _ARMS[0], False: _ARMS[1]}
    for group in groups:
        colour, seeds = colours[group.one_view], len(group.runs)
        found = [read_predictions(path) for path in group.runs["path"]]
        bins = reliability(np.concatenate([p.confidence for p in found]), np.concatenate([p.hits for p in found]))
        often = bins.count >= _LEAST_IMAGES
        label = f"{group.arm()}, {_seeds(seeds)}: error {100 * group.of('ece').mean:.2f} points"
        upper.plot(bins.confidence[often], bins.accuracy[often], "o-", color=colour, label=label)
        rare = ~often & (bins.count > 0)
        upper.plot(bins.confidence[rare], bins.accuracy[rare], "o", color=colour, mfc="none", alpha=0.6)
        edges = np.linspace(0, 1, len(bins.share) + 1)
        lower.stairs(100 * bins.share, edges, color=colour, lw=1.8)
    upper.set(ylabel="accuracy, share of 1", xlim=(0, 1), ylim=(-0.02, 1.02))
    lower.set(xlabel="confidence (probability of the predicted class)", ylabel="images, %")
    upper.legend(loc="best")
    return figure


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def draw_superclasses(group: Group):
    """Which of the 20 superclasses of CIFAR-100 are taken for which, over all seeds of the group."""
    found = [read_predictions(path) for path in group.runs["path"]]
    shares = 100 * confusion(np.concatenate([p.labels for p in found]), np.concatenate([p.classes for p in found]))
    figure, axes = plt.subplots(figsize=(11, 9.6))
    axes.grid(False)
    mesh = axes.pcolormesh(np.sqrt(shares), cmap="Blues", vmin=0, vmax=10)  # the root shows small shares too
    for row, column in np.argwhere(shares >= 1):
        share = shares[row, column]
        axes.text(column + 0.5, row + 0.5, f"{share:.0f}", ha="center", va="center", fontsize=10,
                  color="white" if share > 45 else BLACK)  # fmt: skip
    places = np.arange(len(NAMES)) + 0.5
    axes.set_xticks(places, NAMES, rotation=45, ha="right", rotation_mode="anchor", fontsize=11)
    axes.set_yticks(places, NAMES, fontsize=11)
    axes.invert_yaxis()
    axes.set(xlabel="superclass of the predicted class", ylabel="superclass of the image")
    right = np.diag(shares).mean()
    axes.set_title(f"{group.recipe}, {group.arm()}, {_seeds(len(group.runs))}: superclasses, % of each row\n"
                   f"the superclass is right for {right:.1f} % of the images, the class for "
                   f"{100 * group.of('accuracy').mean:.1f} %")  # fmt: skip
    bar = figure.colorbar(mesh, label="% of the row's images", shrink=0.6)
    bar.solids.set_edgecolor("face")
    bar.solids.set_rasterized(False)  # an image inside the SVG would be packed otherwise on another processor
    bar.set_ticks([math.sqrt(share) for share in (0, 5, 20, 50, 100)], labels=["0", "5", "20", "50", "100"])
    return figure


def draw_strength(arms: list[Group], baselines: list[Group]):
    """Test accuracy against the strength of the KL term: every seed a dot, the mean a diamond.

    Its 95 % interval is a bar from three seeds on; that of two is wider than any axis.
    """
    figure, axes = plt.subplots(figsize=(9.5, 5.6))
    recipe, steps = arms[0].recipe, arms[0].settings["num_steps"]
    axes.set_title(f"{recipe}, {steps:,} steps: effect of the strength of the KL term")
    for baseline in baselines:
        found = baseline.of("accuracy")
        name = f"{baseline.arm()}, {_seeds(found.n)}"
        axes.axhline(100 * found.mean, color=BLUE, lw=1.6, ls="-" if baseline is baselines[0] else ":", label=name)
        if found.n > 1:
            low, high = (100 * (found.mean + sign * found.half_width) for sign in (-1, 1))
            axes.axhspan(low, high, color=BLUE, alpha=0.12, lw=0)
    least = min(arm.strength for arm in arms if arm.strength > 0)
    for arm in arms:
        found = arm.of("accuracy")
        axes.plot([arm.strength] * found.n, 100 * arm.runs["accuracy"], "o", color=ORANGE, alpha=0.45, ms=6)
        axes.errorbar(arm.strength, 100 * found.mean, 100 * found.half_width if found.n > 2 else 0, fmt="D",
                      color=BLACK, capsize=5, ms=6)  # fmt: skip
    axes.plot([], [], "o", color=ORANGE, alpha=0.45, label="two views, one seed")
    axes.errorbar(
        [], [], [], fmt="D", color=BLACK, capsize=5, label="two views, mean (bar: 95 % interval, from 3 seeds on)"
    )
    axes.set_xscale("symlog", linthresh=least, linscale=0.5)
    axes.set_xticks([arm.strength for arm in arms], [f"{arm.strength:g}" for arm in arms])
    axes.minorticks_off()
    axes.set(xlabel="weight of the mean KL against the mean cross-entropy (alpha x kl_sum_over)",
             ylabel="test top-1 accuracy, %")  # fmt: skip
    axes.legend(loc="best")
    return figure
