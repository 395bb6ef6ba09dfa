"""Figures from logs/ into images/.

    python -m reproduce.plot      all figures of the READMEs and of the report, into images/figures/ (PNG and SVG)

Training calls `draw_run` for the curves of one run. Everything is drawn from logs/ alone.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from reproduce import ROOT
from reproduce.cli import Parser, parse, run_command, say
from reproduce.cost_figure import arms_of_cost, draw_cost, training_minutes
from reproduce.figure_style import BLACK, BLUE, GREEN, ORANGE, save, style
from reproduce.growth_figure import draw_growth, growth_runs
from reproduce.published_figures import draw_accuracy, draw_kl_weight, draw_loss
from reproduce.published_record import read_record
from reproduce.results import CITED, LOGS, Group, find_groups, find_pairs, find_runs, main_pair
from reproduce.run_figures import draw_pair, draw_reliability, draw_strength, draw_superclasses
from reproduce.run_log import read_metrics

FIGURES = ROOT / "images" / "figures"


@dataclass(frozen=True)
class Drawing:
    """A figure that the logs have the data for."""

    kind: str
    name: str  # of its files, without their ending
    draw: Callable
    about: dict = field(default_factory=dict)  # what its caption names: recipe and the like


def drawings(logs: Path = LOGS) -> tuple[list[Drawing], list[str]]:
    """The figures that `logs` has the data for, in the order of the report, and why others cannot be drawn."""
    record = read_record(logs / "published")
    groups = find_groups(find_runs(logs, CITED))
    pairs = find_pairs(groups)
    found = [
        Drawing("published_accuracy", "published_accuracy", lambda: draw_accuracy(record)),
        Drawing("published_loss", "published_loss", lambda: draw_loss(record)),
        Drawing("kl_weight", "kl_weight", draw_kl_weight),
    ]
    missing = []
    growth = growth_runs(logs / "growth_stages")
    if growth:
        found.append(Drawing("growth", "growth_stages", lambda: draw_growth(growth)))
    for recipe in sorted({group.recipe for group in groups if not group.one_view}):
        pair = main_pair(pairs, recipe)
        arms = [group for group in groups if group.recipe == recipe and not group.one_view]
        shown = [pair.reference, pair.arm] if pair else [max(arms, key=lambda group: (len(group.runs), group.strength))]
        about = {"recipe": recipe}
        if pair and min(len(group.runs) for group in shown) >= 2:
            found.append(Drawing("pair", f"{recipe}_arms", lambda pair=pair: draw_pair(pair), about))
        else:
            missing.append(f"{recipe}: R-Drop against baseline needs two seeds of each")
        strengths = _strengths(groups, recipe)
        if strengths:
            baselines = [pair.reference for pair in pairs if pair.arm is strengths[0]]
            found.append(
                Drawing("strength", f"{recipe}_alpha", lambda a=strengths, b=baselines: draw_strength(a, b), about)
            )
        else:
            missing.append(f"{recipe}: the effect of alpha needs runs that differ in it")
        minutes = training_minutes(arms_of_cost(groups, recipe), _measured_step(logs))
        if any(group.blocks_shared for group in minutes):
            found.append(Drawing("cost", f"{recipe}_cost", lambda minutes=minutes: draw_cost(minutes), about))
        if not all((path / "predictions.npz").exists() for group in shown for path in group.runs["path"]):
            missing.append(f"{recipe}: calibration and confusion need the predictions.npz of each run")
            continue
        found.append(
            Drawing("reliability", f"{recipe}_reliability", lambda shown=shown: draw_reliability(shown), about)
        )
        if shown[-1].first("dataset") == "cifar100":
            found.append(Drawing("superclasses", f"{recipe}_superclasses", lambda group=shown[-1]:
                                 draw_superclasses(group), about))  # fmt: skip
    return found, missing


def _measured_step(logs: Path) -> dict:
    """The record of the step that the studies take, as bench.py measured it; one without competitors if it did not."""
    path = logs / "bench" / "step_ti16.json"
    return json.loads(path.read_text()) if path.exists() else {"competitors": {}}


def _strengths(groups: list[Group], recipe: str) -> list[Group]:
    """The two-view groups of `recipe` that differ in the strength of the KL term alone: the largest such set, or []."""
    families: dict[str, list[Group]] = {}
    for group in groups:
        if group.recipe == recipe and not group.one_view and not group.blocks_shared:
            same = {**group.rest(), "loss_form": group.settings["loss_form"]}
            families.setdefault(json.dumps(same, sort_keys=True), []).append(group)
    largest = max(families.values(), key=len, default=[])
    return largest if len({group.strength for group in largest}) > 1 else []


def draw_run(logs: Path, picture: Path) -> Path:
    """Draw loss and its parts, accuracy and learning rate of the run in `logs`; returns `picture`."""
    table = pd.DataFrame(read_metrics(logs) or [{"step": 0}]).groupby("step").first()
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    figure.suptitle(logs.name)

    left.set_title("Training loss")
    _curve(left, table, "train/loss", "loss", BLACK)
    _curve(left, table, "train/cross_entropy", "cross-entropy, mean of the views", BLUE)
    if "train/kl" in table and table["train/kl"].max() > 0:
        _curve(left, table, "train/kl", "KL, mean of both directions", ORANGE)
    left.set_ylabel("nats")

    middle.set_title("Accuracy")
    _curve(middle, 100 * table, "validation/accuracy", "validation (held-out training images)", BLUE, marker=".")
    _curve(middle, 100 * table, "test/accuracy", "test", ORANGE, marker="o")
    middle.set_ylabel("top-1 accuracy, %")

    right.set_title("Learning rate")
    _curve(right, table, "train/learning_rate", None, GREEN)
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


def main(argv=None) -> None:
    parser = Parser(prog="python -m reproduce.plot", description="Draw all figures from logs/.")
    parser.add_argument("--logs", default=str(LOGS), help="folder with published/, evidence/ and study/")
    parser.add_argument("--images", default=str(FIGURES), help="folder for the figures")
    options = parse(parser, argv)
    found, missing = drawings(Path(options.logs))
    images = Path(options.images)
    for drawing in found:
        with style():
            save(drawing.draw(), images, drawing.name)
        shown = images.relative_to(ROOT) if images.is_relative_to(ROOT) else images
        say("drawn", f"{shown / drawing.name}.png and .svg")
    for reason in missing:
        say("not drawn", reason)


if __name__ == "__main__":
    run_command(main)
