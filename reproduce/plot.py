"""Figures from logs/ into images/."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only, no screen needed

import matplotlib.pyplot as plt
import pandas as pd

from reproduce.run_log import read_metrics

# Okabe and Ito's colours, told apart by colour-blind readers too.
_BLUE, _ORANGE, _GREEN, _BLACK = "#0072B2", "#D55E00", "#009E73", "#000000"


def draw_run(logs: Path, picture: Path) -> Path:
    """Draw loss and its parts, accuracy and learning rate of the run in `logs`; returns `picture`."""
    table = pd.DataFrame(read_metrics(logs) or [{"step": 0}]).groupby("step").first()
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    figure.suptitle(logs.name)

    left.set_title("Training loss")
    _curve(left, table, "train/loss", "loss", _BLACK)
    _curve(left, table, "train/cross_entropy", "cross-entropy, mean of the views", _BLUE)
    if "train/kl" in table and table["train/kl"].max() > 0:
        _curve(left, table, "train/kl", "KL, mean of both directions", _ORANGE)
    left.set_ylabel("nats")

    middle.set_title("Accuracy")
    _curve(middle, 100 * table, "validation/accuracy", "validation (held-out training images)", _BLUE, marker=".")
    _curve(middle, 100 * table, "test/accuracy", "test", _ORANGE, marker="o")
    middle.set_ylabel("top-1 accuracy, %")

    right.set_title("Learning rate")
    _curve(right, table, "train/learning_rate", None, _GREEN)
    right.set_ylabel("learning rate")
    right.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))

    for axes in (left, middle, right):
        axes.set_xlabel("update")
        axes.grid(alpha=0.3)
    for axes in (left, middle):
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)
    plt.close(figure)
    return picture


def _curve(axes, table: pd.DataFrame, column: str, label: str | None, colour: str, **style) -> None:
    if column in table:
        axes.plot(table[column].dropna(), label=label, color=colour, **style)
