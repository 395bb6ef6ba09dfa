"""Figures of the published logs, from logs/published/, and of what a summed KL term means."""

import math

import matplotlib.pyplot as plt
import numpy as np

from reproduce.figure_style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY
from reproduce.literature import BASELINE, TARGET
from reproduce.published_record import PublishedRecord

_RANKS = (SKY, GREEN, PURPLE, ORANGE)
_SHOWN = (90.0, 94.4)  # %, where the curves end up, and room for the legend below


def draw_accuracy(record: PublishedRecord):
    """Every accuracy of every rank that was published, the mean over the ranks, and the paper's figures."""
    figure, panels = plt.subplots(len(record.runs), 1, figsize=(9.5, 4.4 * len(record.runs)))
    figure.suptitle("Published logs of the Paddle port zbp-xxxp/R-Drop-Paddle: test accuracy on CIFAR-100")
    for axes, run in zip(np.atleast_1d(panels), record.runs, strict=True):
        _accuracy_panel(axes, run, record.accuracy[record.accuracy["run"] == run["name"]])
    panels[-1].set_xlabel("update")
    return figure


def _accuracy_panel(axes, run: dict, table) -> None:
    images, ranks = run["images_per_value"], run["ranks"]
    each = f"1 process, {images:,} images a value" if ranks == 1 else f"{ranks} ranks, {images:,} images a value each"
    axes.set_title(f"Run of {run['started'][:10]}: {each}", loc="left")
    if ranks > 1:
        unknown = table[~table["separated"]]
        axes.plot(unknown["step"], unknown["percent"], ".", color=GREY, alpha=0.55, ms=5,
                  label="values of ranks that the log cannot tell apart")  # fmt: skip
        known = table[table["separated"]]
        for colour, (rank, values) in zip(_RANKS, known.groupby("rank"), strict=False):
            axes.plot(values["step"], values["percent"], ".", color=colour, ms=6, label=_rank_name(rank, table))
    mean = table.groupby("step")["percent"].mean()
    label = "accuracy on all 10,000 images" if ranks == 1 else "mean over the ranks: all 10,000 images"
    axes.plot(mean, color=BLACK, label=label)
    best, step = run["best_mean_percent"], run["best_mean_step"]
    axes.plot(step, best, "o", color=BLACK, ms=7)
    box = {"boxstyle": "square,pad=0.1", "color": "white", "alpha": 0.8}
    axes.annotate(f"{best:.2f}", (step, best), xytext=(0, 9), textcoords="offset points", ha="center", weight="bold",
                  bbox=box)  # fmt: skip
    if ranks > 1:
        highest = run["best_value_percent"], run["best_value_step"]
        axes.annotate(f"{highest[0]:.2f} of one rank", highest[::-1], xytext=(0, 7), textcoords="offset points",
                      ha="center")  # fmt: skip
    for row, style in ((TARGET, "--"), (BASELINE, ":")):
        axes.axhline(
            float(row.paper), color=BLUE, linestyle=style, linewidth=1.6, label=f"paper, {row.model}: {row.paper}"
        )
    axes.set_ylim(*_SHOWN)
    axes.set_xlim(0, 1.03 * table["step"].max())
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_ylabel("top-1 accuracy, %")
    axes.legend(loc="lower right", ncols=2)


def _rank_name(rank: str, table) -> str:
    """What the log knows of a rank: the file that it alone wrote, or its place among those that share one."""
    if "#" not in rank:
        return f"the rank with a file of its own (...{rank[-3:]})"
    number, ranks = int(rank.rpartition("#")[2]), table["rank"].str.startswith(rank.partition(" #")[0]).sum()
    writers = ranks // table["step"].nunique()
    place = {1: "lowest", writers: "highest"}.get(number, f"number {number}")
    return f"{place} of {writers} ranks in one file, where it is apart"


def draw_loss(record: PublishedRecord):
    """The published losses, divided by the factor that the audit found, so that they begin at ln(100)."""
    figure, axes = plt.subplots(figsize=(9.5, 5.2))
    figure.suptitle("Published logs of the Paddle port: training loss, divided by its scale")
    for colour, run in zip((BLUE, ORANGE, GREEN, PURPLE), record.runs, strict=False):
        factor = run["implied_accumulation"] or 1
        curve = record.loss[record.loss["run"] == run["name"]]
        label = f"run of {run['started'][:10]}, logged loss / {factor} (begins at {run['first_loss']:.1f})"
        axes.plot([1, *curve["step"]], np.array([run["first_loss"], *curve["loss"]]) / factor, color=colour, lw=1.2,
                  label=label)  # fmt: skip
    axes.axhline(math.log(100), color=BLACK, linestyle="--", lw=1.4, label="ln(100), an untrained network")
    axes.set(xscale="log", yscale="log", xlabel="update (from the second point on means of 25)", ylabel="loss, nats")
    axes.set_xticks([1, 10, 100, 1000, 10000], ["1", "10", "100", "1,000", "10,000"])
    axes.set_yticks([0.25, 0.5, 1, 2, 4], ["0.25", "0.5", "1", "2", "4"])
    axes.minorticks_off()
    axes.legend()
    return figure


def draw_kl_weight():
    """What a sum over the micro-batch does to the strength of the KL term; from the formulas alone.

    With means CE and KL over images and views, every form is proportional to CE + weight * KL. A sum over n images is
    n times their mean, so there the weight is alpha * n.
    """
    figure, axes = plt.subplots(figsize=(9.5, 5.6))
    figure.suptitle("How strong the KL term is depends on the micro-batch where it is summed")
    n = 2.0 ** np.arange(0, 10)
    axes.plot(n, 0.6 * n, color=ORANGE, label="blog, summed, alpha 0.6: weight 0.6 n")
    axes.plot(n, 0.3 * n, color=BLUE, label="official code and Paddle port, summed, alpha 0.3: weight 0.3 n")
    axes.plot(n, np.full_like(n, 0.3), color=GREEN, label="paper's formula, a mean, alpha/2 = 0.3: weight 0.3")
    for count, weight, name, colour in (
        (8, 4.8, "blog, n = 8: 4.8", ORANGE),
        (32, 9.6, "official defaults, n = 512 // 16 = 32: 9.6", BLUE),
        (8, 2.4, "Paddle port, n = 128 // 16 = 8: 2.4", BLUE),
    ):
        axes.plot(count, weight, "o", color=colour, ms=9)
        above = weight == 4.8
        axes.annotate(name, (count, weight), xytext=(-10, 8) if above else (10, -14), textcoords="offset points",
                      ha="right" if above else "left")  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(n, [f"{count:.0f}" for count in n])
    axes.set_yticks([0.3, 1, 3, 10, 30, 100, 300], ["0.3", "1", "3", "10", "30", "100", "300"])
    axes.minorticks_off()
    axes.set(xlabel="micro-batch n, images", ylabel="weight of the mean KL against\nthe mean cross-entropy")
    axes.legend(loc="upper left")
    return figure
