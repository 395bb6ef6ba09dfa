"""logs/ as tables: runs, arms of the studies, paired differences.

    python -m reproduce.results [FOLDER]      every finished run below FOLDER (default: logs/), one line each
    python -m reproduce.results logs/RUN      recall and precision of each class of a run, and the confusion matrix

All functions return pandas tables. Accuracies and calibration errors are shares of 1, NLL is in nats, times in seconds.
Intervals are Student's t at 95 %; a column `X_half` is half the width of the interval of the mean in column `X`.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from common.errors import UserError, printable
from reproduce import ROOT
from reproduce.cli import Parser, parse, run_command
from reproduce.run_log import read_header

LOGS = ROOT / "logs"
MEASURES = ["accuracy", "nll", "ece", "accuracy_last", "nll_last", "ece_last"]
_SHOWN = ["name", "recipe", "seed", "test_images", "correct", *MEASURES]
# Recorded settings in which runs of an arm may differ: names, where it is computed, options of earlier commits.
_FREE = {"name", "summary", "seed", "save_every", "log_every", "fused", "resident"}
_FREE |= {"micro_batch_size", "recompute", "eval_batch_size", "device", "workers", "data_dir"}


class Study(NamedTuple):
    """What is shown of logs/study/<name>-<arm>-seed<k>."""

    title: str
    recipe: str  # name of the recipe that every run of it has recorded
    endpoint: str = "best"  # weights whose test top-1 is compared: "best" on held-out images, or "last"

    def measure(self, name: str) -> str:
        """The column of a measure that is compared: that of the endpoint's weights."""
        return f"{name}_last" if self.endpoint == "last" else name

    def title_and_weights(self) -> str:
        return f"{self.title} ({self.endpoint} weights)"

    def title_and_n(self, counts) -> str:
        return f"{self.title} (n = {', '.join(map(str, sorted(set(counts))))})"


STUDIES = {
    "cifar100_102": Study("CIFAR-100, 10 a class, 102 epochs", "cifar100_vit_ti16_few", "last"),
    "cifar100": Study("CIFAR-100, 50 a class, 5 epochs", "cifar100_vit_ti16"),
    "cifar100_few": Study("CIFAR-100, 10 a class, 26 epochs", "cifar100_vit_ti16_few"),
    "cifar100_fast": Study("CIFAR-100, ViT-B/16, 224 px, 10 epochs", "cifar100_vit_b16_fast"),
    "digits": Study("digits, 58 epochs", "digits"),
}
# as in the names of runs -> label; in the order of the tables
ARMS = pd.read_csv(LOGS / "study" / "arms.csv", index_col="arm")["label"].to_dict()


def find_runs(folder: Path) -> pd.DataFrame:
    """One row for each finished and evaluated run below `folder` but those that --restart set aside, by name."""
    rows = [_row(path.parent, folder) for path in sorted(folder.rglob("run.json")) if ".old-" not in path.parent.name]
    return pd.DataFrame([row for row in rows if row], columns=[*_SHOWN, "path", "settings", "seconds"])


def _row(run: Path, logs: Path) -> dict | None:
    """A run as a row of the table; None for one that has not finished or was not evaluated."""
    header = read_header(run)
    if header is None:
        raise UserError(f"{run}: no run.json in it; give the folder of a run")
    try:
        if not header["finished"] or "best" not in header["result"]:
            return None
        recipe, best, last = header["recipe"], header["result"]["best"]["test"], header["result"]["last"]["test"]
        return {
            "name": printable(run.relative_to(logs).as_posix()),
            "path": run,
            "recipe": printable(str(recipe["name"])),
            "settings": recipe,
            "class_names": [printable(str(name)) for name in header.get("class_names", [])],
            "seed": int(recipe["seed"]),
            "seconds": float(header["seconds"]),
            "test_images": int(best["total"]),
            "correct": int(best["correct"]),
            "accuracy": best["correct"] / best["total"],
            "accuracy_last": last["correct"] / last["total"],
            **{name: float(best[name]) for name in ("nll", "ece")},
            **{f"{name}_last": float(last[name]) for name in ("nll", "ece")},
        }
    except (ValueError, LookupError, TypeError, ArithmeticError) as problem:
        text = f"{run / 'run.json'}: not the header of a run ({problem!r:.120})"
        raise UserError(f"{text}; restore it, or move its folder away") from None


def study_runs(logs: Path = LOGS) -> pd.DataFrame:
    """The runs of STUDIES in `logs`/study with columns study and arm, in the order of the tables, then by seed.

    Raises UserError for a run whose record does not fit its name, or whose settings are not those of its arm.
    """
    runs = find_runs(logs / "study")
    named = runs["name"].astype(str).str.extract(r"^(?P<study>[^/-]+)-(?P<arm>[^/]+)-seed(?P<named>\d+)$")
    found = runs.join(named).query("study in @STUDIES and arm in @ARMS")
    for run in found.itertuples():
        recipe = STUDIES[run.study].recipe
        if run.recipe != recipe or run.seed != int(run.named):
            text = f"{run.path}: its name says recipe {recipe} and seed {run.named}"
            raise UserError(f"{text}, its run.json {run.recipe!r:.40} and {run.seed}; give the folder its own name")
    for (study, arm), own in found.groupby(["study", "arm"]):
        for key in set().union(*own["settings"]) - _FREE:  # the same file may lie elsewhere: names alone
            values = sorted({Path(str(settings[key])).name for settings in own["settings"] if key in settings})
            if len(values) > 1:
                text = f"{logs / 'study'}/{study}-{arm}-seed*: differ in {key} ({', '.join(values):.200})"
                raise UserError(f"{text}; runs of an arm differ by the seed alone, move the others away")
    place = {name: number for number, name in enumerate([*STUDIES, *ARMS])}
    found = found.sort_values(["study", "arm", "seed"], key=lambda column: column.map(place).fillna(column))
    return found.reset_index(drop=True)


def half_width(values: pd.Series) -> float:
    """Half the width of the 95 % t interval of the mean of `values`; NaN for fewer than three: it would say nothing."""
    return stats.t.ppf(0.975, len(values) - 1) * values.sem() if len(values) > 2 else float("nan")


def arms(runs: pd.DataFrame) -> pd.DataFrame:
    """One row an arm of `study_runs`: study, arm, n, mean of seconds and of each of MEASURES, and X_half of these."""
    groups = runs.groupby(["study", "arm"], sort=False)[["seconds", *MEASURES]]
    means, halves = groups.agg(np.average), groups.agg(half_width)
    return pd.concat([groups.size().rename("n"), means, halves.add_suffix("_half")], axis=1).reset_index()


def differences(runs: pd.DataFrame, against: str) -> pd.DataFrame:
    """Each other arm of `study_runs` minus the arm `against` of its study, as a table like `arms`; n pairs of seeds.

    With the same seed both arms see the same crops in the same order, hence the pairs.
    """
    pairs = runs.merge(runs[runs["arm"] == against], on=["study", "seed"], suffixes=("", "_against"))
    pairs = pairs[pairs["arm"] != against]
    return arms(pairs.assign(**{name: pairs[name] - pairs[f"{name}_against"] for name in MEASURES}))


def read_predictions(run: Path) -> pd.DataFrame:
    """What the best weights of a finished run say: one row a test image, in the order of the test set.

    Columns label, predicted, confidence (probability of the predicted class) and nll (-log P(label), nats).
    """
    row = _row(run, run.parent)
    if row is None:
        raise UserError(f"{run}: this run has not finished, or was not evaluated; continue it with its own command")
    path = run / "predictions.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            found = pd.DataFrame({"label": file["labels"], "predicted": file["top5"][:, 0]})
            found = found.assign(confidence=file["confidence"].astype(float), nll=file["nll"].astype(float))
    except Exception:  # a damaged zip raises almost anything
        raise UserError(f"{path}: missing or damaged; copy it from where the run was trained") from None
    correct, total = int((found["label"] == found["predicted"]).sum()), len(found)
    if (correct, total) != (row["correct"], row["test_images"]):
        text = f"{path}: has {correct:,} of {total:,} images right, run.json says {row['correct']:,} of"
        raise UserError(f"{text} {row['test_images']:,}; the two are not of one run, copy both again")
    return found


def by_class(predictions: pd.DataFrame, names: dict[int, str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What becomes of the images of each class, and how many there are by class (rows) and predicted one (columns)."""
    classes = sorted({*predictions["label"], *predictions["predicted"]})
    matrix = pd.crosstab(predictions["label"], predictions["predicted"])
    matrix = matrix.reindex(index=classes, columns=classes, fill_value=0).rename(index=names, columns=names)
    matrix = matrix.rename_axis(index=None, columns=None)
    table = pd.DataFrame({"images": matrix.sum(axis=1), "right": np.diag(matrix)}).rename_axis("class")
    table["recall, %"] = 100 * table["right"] / table["images"]  # NaN for a class without images
    table["precision, %"] = 100 * table["right"] / matrix.sum(axis=0)  # NaN for one that is never predicted
    wrong = matrix - np.diag(table["right"])
    table["most taken for"] = [f"{row.idxmax()} ({row.max()})" if row.any() else "-" for _, row in wrong.iterrows()]
    return table, matrix


def main(argv=None) -> None:
    parser = Parser(prog="python -m reproduce.results", description=__doc__)
    parser.add_argument("folder", nargs="?", default=str(LOGS), help="folder of runs, or of one run (default logs/)")
    folder = Path(parse(parser, argv).folder)
    if not (folder / "run.json").exists():
        runs = find_runs(folder)
        if runs.empty:
            raise UserError(f"{folder}: no finished run in it; train one with bash run_train.sh")
        print(runs[_SHOWN].to_string(index=False, float_format="{:.4f}".format))
        return
    predictions = read_predictions(folder)
    table, matrix = by_class(predictions, dict(enumerate(_row(folder, folder.parent)["class_names"])))
    print(table.sort_values("recall, %", kind="stable").to_string(float_format="{:.2f}".format))
    if len(matrix) <= 30:  # fits on a screen
        print(f"\nImages by class (rows) and predicted class (columns):\n\n{matrix.to_string()}")


if __name__ == "__main__":
    run_command(main)
