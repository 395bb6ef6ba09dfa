"""A run's picture: loss and its parts, accuracy, learning rate. All the drawing that training needs."""

from pathlib import Path

from matplotlib.figure import Figure

from reproduce.run_log import read_metrics

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"  # Okabe and Ito: told apart by all eyes
GOLD, BLACK, GREY = "#E69F00", "#000000", "#888888"


def draw_run(logs: Path, picture: Path, tested_on: str = "test") -> Path:
    """Draw the records of a run into `picture`, a PNG; the legend says that the test accuracy is of `tested_on`."""
    rows = read_metrics(logs)
    figure = Figure(figsize=(13, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    figure.suptitle(logs.name, parse_math=False)

    left.set(title="Training loss", ylabel="nats")
    _curve(left, rows, "train/loss", "loss", BLACK)
    _curve(left, rows, "train/cross_entropy", "cross-entropy, mean of the views", BLUE)
    if any(row.get("train/kl", 0) > 0 for row in rows):
        _curve(left, rows, "train/kl", "KL, mean of both directions", ORANGE)

    middle.set(title="Accuracy", ylabel="top-1 accuracy, %")
    _curve(middle, rows, "validation/accuracy", "validation (held-out training images)", BLUE, unit=0.01, marker=".")
    _curve(middle, rows, "test/accuracy", tested_on, ORANGE, unit=0.01, marker="o")

    right.set(title="Learning rate", ylabel="learning rate")
    _curve(right, rows, "train/learning_rate", None, GREEN)
    right.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))

    for axes in (left, middle, right):
        axes.set_xlabel("update")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)
    return picture


def _curve(axes, rows: list[dict], tag: str, label: str | None, colour: str, unit: float = 1.0, **style) -> None:
    """Plot the recorded values of `tag`, divided by `unit`, where there are any."""
    points = [(row["step"], row[tag] / unit) for row in rows if tag in row]
    if len(points) == 1:  # a line through one point shows nothing
        style.setdefault("marker", ".")
    if points:
        axes.plot(*zip(*points, strict=True), label=label, color=colour, **style)
