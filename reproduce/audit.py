"""What a published VisualDL log says: the accuracy on the whole test set, and how many images a value was counted on.

    python -m reproduce.audit LOG [LOG...]     the record files (vdlrecords.*) of one run

Several processes may have written the files, each its own share of the test set; then only the mean over the processes
is an accuracy on the whole of it. Printed accuracies are percentages: best_value is that of one process, on
images_per_value images of its own; best and last are means over the processes, which together counted test_images.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from visualdl import LogReader

from common.errors import UserError
from common.system import require_file
from reproduce.cli import Parser, parse, run_command

ACCURACY = "test/accuracy"  # the scalar that the published R-Drop logs have
_LARGEST_UNIT = 200_000  # images; beyond, float32 cannot tell a multiple of 1/N from any other number
_LEAST_VALUES = 7  # that so many different values share a unit twice as large by chance: 2 ** -7


def read_accuracies(path) -> pd.DataFrame:
    """The shares or percentages of ACCURACY in one record file: columns step and share (of 1), in file order."""
    require_file(path)
    try:
        records = LogReader(file_path=str(path)).get_data("scalar", ACCURACY)
    except Exception:  # for a file that is none VisualDL raises almost anything
        records = []
    if not records:
        raise UserError(f"{path}: no VisualDL record file with a scalar {ACCURACY}, or damaged; get it again")
    table = pd.DataFrame([(record.id, record.value) for record in records], columns=("step", "share"))
    if not table["share"].between(0, 100).all():
        raise UserError(f"{path}: {ACCURACY} has values that are neither shares nor percentages; get the file again")
    if (table["step"].diff() < 0).any():
        raise UserError(f"{path}: its steps go back, as in several runs; give files of one run each")
    return table.assign(share=table["share"] / (100 if table["share"].max() > 1 else 1))


def audit(paths) -> tuple[dict, pd.DataFrame]:
    """What the record files of one run say, as a row of logs/published/runs.csv, and its accuracies in % by step.

    The latter are the mean, lowest and highest of the processes, at the steps that all of them recorded.
    """
    accuracy = pd.concat(map(read_accuracies, paths))
    if len({Path(path).read_bytes() for path in paths}) < len(paths):
        raise UserError(f"{', '.join(map(str, paths))}: two of these files are the same; give each once")
    images = images_per_value(accuracy["share"])
    grouped = accuracy.groupby("step")["share"]
    processes = int(grouped.size().mode().max())
    steps = grouped.agg(["mean", "min", "max"])[grouped.size() == processes]
    steps = (100 * steps).round(4).set_axis(["mean", "lowest", "highest"], axis=1)  # without the rounding of float32
    shared = (steps["highest"] > steps["lowest"]).any()  # each process counted images of its own
    row = {
        "processes": processes,
        "evaluations": len(steps),
        "images_per_value": images,
        "test_images": images and images * (processes if shared else 1),
        "best_value": steps["highest"].max(),
        "best_value_step": steps["highest"].idxmax(),
        "best": steps["mean"].max(),
        "best_step": steps["mean"].idxmax(),
        "last": steps["mean"].iloc[-1],
        "last_step": steps.index[-1],
    }
    return row, steps


def images_per_value(shares) -> int | None:
    """The smallest N such that every share is a multiple of 1/N within the rounding of float32.

    None when there is no such N, or when fewer than _LEAST_VALUES different shares could have it by chance.
    """
    shares = np.unique([share for share in shares if 0 < share < 1])
    if len(shares) < _LEAST_VALUES:
        return None
    candidates = np.arange(1, _LARGEST_UNIT + 1)
    for share in shares:
        counts = share * candidates
        candidates = candidates[np.abs(counts - np.rint(counts)) <= counts * np.finfo(np.float32).eps]
    return int(candidates[0]) if len(candidates) else None


def main(argv=None) -> None:
    parser = Parser(prog="python -m reproduce.audit", description=__doc__)
    parser.add_argument("logs", nargs="+", metavar="LOG", help="VisualDL record file; all are of one run")
    row, _ = audit(parse(parser, argv).logs)
    print("files taken for one run, the values of a step for those of its processes")
    for name, value in row.items():
        print(f"{name:17}{'cannot tell' if value is None else value}")


if __name__ == "__main__":
    run_command(main)
