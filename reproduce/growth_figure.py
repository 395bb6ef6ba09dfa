"""The growth-stage example in one figure: validation after each epoch, two networks together against the others."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from reproduce.figure_style import BLACK, BLUE, GREY, ORANGE
from reproduce.run_log import read_metrics

_ARMS = {  # run -> title
    "growth_stages": "two networks, alpha 0.6",
    "growth_stages_independent": "two networks, alpha 0",
    "growth_stages_single": "Res2Net50 with dropout,\ntwo views, alpha 0.6",
    "growth_stages_vit": "ViT-Ti/16 from ImageNet,\ntwo views, alpha 0.6",
}
_LINES = {  # beginning of the tag -> label, colour, line
    "first_": ("Res2Net50", BLUE, "--"),
    "second_": ("SE-ResNet50", ORANGE, "--"),
    "": ("both together (mean probability)", BLACK, "-"),
}


def growth_runs(folder: Path) -> dict[str, Path]:
    """The runs of the example that are on record below `folder`, by recipe."""
    return {name: folder / name for name in _ARMS if (folder / name / "run.json").exists()}


def draw_growth(runs: dict[str, Path]):
    """A panel a run: top-1 on the validation images, of each network and of both together, after each epoch."""
    figure, panels = plt.subplots(1, len(runs), figsize=(3.4 * len(runs), 4.6), sharey=True, squeeze=False)
    images = 0
    for axes, (name, folder) in zip(panels[0], runs.items(), strict=True):
        table = pd.DataFrame(read_metrics(folder))
        table = table[table["validation/accuracy"].notna()]
        epochs = range(1, len(table) + 1)
        for start, (label, colour, line) in _LINES.items():
            if f"validation/{start}accuracy" in table:
                alone = "validation/first_accuracy" not in table
                axes.plot(epochs, 100 * table[f"validation/{start}accuracy"], line, color=GREY if alone else colour,
                          marker="o", label="the network, where there is one" if alone else label)  # fmt: skip
        axes.set_title(_ARMS[name])
        axes.set_xlabel("epoch")
        axes.set_xticks(list(epochs))
        axes.set_xlim(0.7, len(table) + 0.3)
        axes.set_ylim(0, 103)
        images = json.loads((folder / "run.json").read_text())["result"]["last"]["test"]["total"]
    panels[0][0].set_ylabel("top-1 accuracy, %")
    lines = {label: line for axes in panels[0] for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=2)
    figure.suptitle(
        f"Growth stages: accuracy on {images} validation images, one seed (one image is {100 / images:.3g} %)"
    )
    return figure
