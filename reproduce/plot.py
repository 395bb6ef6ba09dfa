"""Figures from logs/: `python -m reproduce.plot` draws images/figures/*.png, with `--images FOLDER` elsewhere."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from reproduce import ROOT, results
from reproduce.cli import Parser, parse, run_command, say
from reproduce.curves import BLACK, BLUE, GOLD, GREEN, GREY, ORANGE, PURPLE
from reproduce.results import ARMS, STUDIES
from reproduce.run_log import read_metrics

FIGURES = ROOT / "images" / "figures"
# The colour of an arm in every figure; R-Drop at the strength of the paper's text is orange.
COLOURS = {"baseline": GREY, "baseline_twice": BLACK, "baseline_128": GREEN, "two_views": BLUE}
COLOURS |= dict.fromkeys(("rdrop_0.3", "rdrop_x1"), ORANGE)
COLOURS |= dict.fromkeys(("rdrop_best", "rdrop_0.1", "rdrop_x8", "rdrop_1"), PURPLE)
COLOURS |= dict.fromkeys(("rdrop_x32", "rdrop_3"), GOLD)


def panels(names) -> tuple[Figure, dict]:
    """A figure with a panel for each name, at most two side by side, and name -> axes."""
    columns, rows = min(2, len(names)), -(-len(names) // 2)
    figure = Figure(figsize=(5 * columns, 3.2 * rows), layout="constrained")
    return figure, {name: figure.add_subplot(rows, columns, place) for place, name in enumerate(names, 1)}


def draw_kl_question(runs: pd.DataFrame) -> Figure:
    """Top-1 of every arm minus that of two views without KL, with 95 % intervals and the single pairs of seeds."""
    found = results.differences(runs, "two_views")
    figure, axes = panels(found["study"].unique())
    for name, own in found.groupby("study", sort=False):
        study, panel, top1 = STUDIES[name], axes[name], STUDIES[name].measure("accuracy")
        seeds = runs[runs["study"] == name].pivot(index="seed", columns="arm", values=top1)
        for height, (arm, mean, half) in enumerate(zip(own["arm"], own[top1], own[f"{top1}_half"], strict=True)):
            pairs = 100 * (seeds[arm] - seeds["two_views"]).dropna()
            panel.plot(pairs, [height] * len(pairs), "|", color=GREY, markersize=10)
            panel.errorbar(100 * mean, height, xerr=100 * half, fmt="o", color=COLOURS[arm], capsize=4)
        panel.axvline(0, color=BLUE)
        panel.set_yticks(range(len(own)), [ARMS[arm] for arm in own["arm"]])
        panel.set_title(study.title_and_n(own["n"]), fontsize="medium")
        panel.set(xlabel="test top-1 minus two views, points", ylim=(len(own) - 0.5, -0.5))
        panel.grid(axis="x", alpha=0.3)
    return figure


def draw_curves(runs: pd.DataFrame, tag: str, label: str, scale: float = 1, bottom: float | None = None) -> Figure:
    """A recorded value over the updates, one line an arm: the mean over its seeds, at the steps that all have."""
    figure, axes = panels(runs["study"].unique())
    for (study, arm), own in runs.groupby(["study", "arm"], sort=False):
        records = [{row["step"]: row[tag] for row in read_metrics(path) if tag in row} for path in own["path"]]
        mean = pd.concat(map(pd.Series, records), axis=1).dropna().mean(axis=1)
        axes[study].plot(mean.index, scale * mean, color=COLOURS[arm], label=ARMS[arm])
    for study, panel in axes.items():
        panel.set(title=STUDIES[study].title, xlabel="update", ylabel=label)
        panel.set_ylim(bottom=bottom, top=min(100, panel.get_ylim()[1]))
        panel.grid(alpha=0.3)
        panel.legend(frameon=False, fontsize=8)
    return figure


def figures(logs: Path) -> dict[str, Figure]:
    """The figures that `logs` has the data for, by the names of their files."""
    runs = results.study_runs(logs)
    of_two_views = runs[~runs["arm"].str.startswith("baseline")]  # those without the KL term have it recorded too
    found = {
        "kl_question": draw_kl_question(runs),
        "accuracy": draw_curves(runs, "validation/accuracy", "validation top-1, %", scale=100),
        "kl": draw_curves(of_two_views, "train/kl", "KL of the two views, nats", bottom=0),
    }
    return {name: figure for name, figure in found.items() if figure.axes}


def main(argv=None) -> None:
    parser = Parser(prog="python -m reproduce.plot", description="Draw the figures of README and docs from logs/.")
    parser.add_argument("--images", default=str(FIGURES), help="folder for the figures")
    images = Path(parse(parser, argv).images)
    images.mkdir(parents=True, exist_ok=True)
    for name, figure in figures(results.LOGS).items():
        figure.savefig(images / f"{name}.png", dpi=110)
        say("drawn", str(images / f"{name}.png"))


if __name__ == "__main__":
    run_command(main)
