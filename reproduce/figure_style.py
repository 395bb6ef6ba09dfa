"""How figures look and how they are written: light, colour-blind safe, the same bytes for the same data."""

import io
from contextlib import contextmanager
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only, no screen needed

import matplotlib.pyplot as plt

from common.atomic import atomic_write

# Okabe and Ito's colours, told apart by colour-blind readers too.
BLUE, ORANGE, GREEN, BLACK = "#0072B2", "#D55E00", "#009E73", "#000000"
SKY, PURPLE, GREY = "#56B4E9", "#CC79A7", "#8A8A8A"

_STYLE = {
    "font.size": 12,
    "axes.titlesize": 13,
    "figure.titlesize": 14,
    "legend.fontsize": 10.5,
    "legend.frameon": True,
    "legend.framealpha": 0.9,
    "legend.edgecolor": "none",
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.8,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "r-drop",  # ids in the SVG come from it instead of from chance
    "svg.fonttype": "path",  # the same letters on every machine
}


@contextmanager
def style():
    """The look of the figures, whatever the user's own settings are."""
    with matplotlib.style.context(["default", _STYLE]):
        yield
        plt.close("all")


def save(figure, folder: Path, name: str, dpi: int = 110) -> None:
    """Write NAME.png and NAME.svg without date, and the version of nothing but the libraries that draw them."""
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        content = io.BytesIO()
        figure.savefig(content, format=kind, dpi=dpi, metadata=metadata)
        with atomic_write(Path(folder) / f"{name}.{kind}") as file:
            file.write(content.getvalue())
