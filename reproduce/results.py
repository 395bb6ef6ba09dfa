"""logs/ as tables: runs, arms of the studies, paired differences.

    python -m reproduce.results [FOLDER]      every finished run below FOLDER (default: logs/), one line each
    python -m reproduce.results logs/RUN      recall and precision of each class of a run, and the confusion matrix

All functions return pandas tables. Accuracies and calibration errors are shares of 1, NLL is in nats, times in seconds.
Intervals are Student's t at 95 %; a column `X_half` is half the width of the interval of the mean in column `X`.
"""

import math
import shlex
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from common.archives import check_members
from common.errors import UserError, printable
from reproduce import ROOT
from reproduce.cli import Parser, parse, run_command
from reproduce.run_log import read_header, read_metrics

LOGS = ROOT / "logs"
CITED = ("evidence", "study")  # folders of logs/ whose runs READMEs and docs show; all others are their user's own
MEASURES = ("accuracy", "nll", "ece", "accuracy_last", "nll_last", "ece_last")
COUNTS = ("test_images", "correct", "correct_last")
BINS = 15  # of confidence, as in evaluate.py
_SHOWN_CLASSES = 30  # that a confusion matrix fits on a screen
# Recorded settings in which runs of an arm may differ: names, where it is computed, options of earlier commits.
_FREE = {"name", "summary", "seed", "save_every", "log_every", "fused", "resident"}
_FREE |= {"micro_batch_size", "recompute", "eval_batch_size", "device", "workers", "data_dir"}


@dataclass(frozen=True)
class Study:
    """What is shown of logs/study/<name>-<arm>-seed<k>."""

    title: str
    recipe: str  # name of the recipe that every run of it has recorded
    rdrop: str  # the arm that stands for R-Drop where one is shown
    endpoint: str = "best"  # weights whose test top-1 is compared: "best" on held-out images, or "last"

    def measure(self, name: str) -> str:
        """The column of a measure that is compared: that of the endpoint's weights."""
        return f"{name}_last" if self.endpoint == "last" else name


STUDIES = {
    "cifar100_102": Study("CIFAR-100, 10 a class, 102 epochs", "cifar100_vit_ti16_few", "rdrop_0.3", "last"),
    "cifar100": Study("CIFAR-100, 50 a class, 5 epochs", "cifar100_vit_ti16", "rdrop_x1"),
    "cifar100_few": Study("CIFAR-100, 10 a class, 26 epochs", "cifar100_vit_ti16_few", "rdrop_x1"),
    "cifar100_fast": Study("CIFAR-100, ViT-B/16, 224 px, 10 epochs", "cifar100_vit_b16_fast", "rdrop_0.3"),
    "digits": Study("digits, 58 epochs", "digits", "rdrop_0.3"),
}
ARMS = {  # as in the names of runs -> label; in the order of the tables
    "baseline": "one view",
    "baseline_twice": "one view, twice the steps",
    "baseline_128": "one view, batches of 128",
    "two_views": "two views without KL",
    "rdrop_x1": "R-Drop 0.3",
    "rdrop_x8": "R-Drop 0.3 x 8",
    "rdrop_x32": "R-Drop 0.3 x 32",
    "rdrop_0.3": "R-Drop 0.3",
    "rdrop_0.1": "R-Drop 0.1",
    "rdrop_best": "R-Drop 0.1 (tuned)",
    "rdrop_1": "R-Drop 1",
    "rdrop_3": "R-Drop 3",
}


# ---- runs


def find_runs(logs: Path = LOGS, below=("",)) -> pd.DataFrame:
    """One row for each finished and evaluated run in the folders `below` of `logs`, in order of name.

    Runs that are still going, or that --restart set aside, are left out. Raises UserError for a run.json that is not
    the header of a run.
    """
    logs = Path(logs)
    if not logs.is_dir():
        raise UserError(f"{logs}: no such folder; give the folder that holds the runs")
    headers = sorted({path for folder in below for path in (logs / folder).rglob("run.json")})
    rows = [_row(path, logs) for path in headers if ".old-" not in str(path.relative_to(logs))]
    return pd.DataFrame([row for row in rows if row], columns=(*_COLUMNS, *COUNTS, *MEASURES))


_COLUMNS = ("name", "path", "recipe", "settings", "seed", "steps", "rate", "seconds", "threads", "command")


def _row(path: Path, logs: Path) -> dict | None:
    """A run as a row of the table; None for one that has not finished or was not evaluated."""
    header = read_header(path.parent)
    if header is None:
        raise UserError(f"{path}: no such file; give the folder of a run")
    try:
        if not header["finished"] or "best" not in header["result"]:
            return None
        recipe, machine, result = header["recipe"], header["machine"], header["result"]
        best, last = result["best"]["test"], result["last"]["test"]
        for found in (best, last):
            if not math.isclose(found["accuracy"], found["correct"] / found["total"]):
                raise ValueError("its accuracy is not correct / total")
        return {
            "name": path.parent.relative_to(logs).as_posix(),
            "path": path.parent,
            "recipe": recipe["name"],
            "settings": dict(recipe),
            "class_names": [printable(str(name)) for name in header.get("class_names", [])],
            "seed": int(recipe["seed"]),
            "steps": int(recipe["num_steps"]),
            "rate": float(recipe["learning_rate"]),
            "seconds": float(header["seconds"]),
            "threads": int(machine["settings"]["OMP_NUM_THREADS"].split(",")[0]),  # "4,2" is of nested loops
            "command": shlex.split(machine["command"].strip()),
            "test_images": int(best["total"]),
            "correct": int(best["correct"]),
            "correct_last": int(last["correct"]),
            **{name: float(best[name]) for name in ("accuracy", "nll", "ece")},
            **{f"{name}_last": float(last[name]) for name in ("accuracy", "nll", "ece")},
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as problem:
        text = f"{path}: not the header of a run ({_detail(problem)})"
        raise UserError(f"{text}; restore it, or move its folder away") from None


def _detail(problem: Exception) -> str:
    """What is wrong, in a line."""
    text = printable(str(problem))[:120]
    return f"it has no {text}" if isinstance(problem, KeyError) else text or "it is damaged"


def study_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of STUDIES with columns study and arm, in the order of the tables, then by seed.

    Raises UserError for a run whose record does not fit its name, or whose settings are not those of its arm.
    """
    found = runs.join(
        runs["name"].astype(str).str.extract(r"^study/(?P<study>[^/-]+)-(?P<arm>[^/]+)-seed(?P<named>\d+)$")
    )
    found = found[found["study"].isin(STUDIES) & found["arm"].isin(ARMS)]
    for run in found.itertuples():
        if run.recipe != STUDIES[run.study].recipe or run.seed != int(run.named):
            text = f"logs/{run.name}: its name says recipe {STUDIES[run.study].recipe} and seed {run.named}"
            raise UserError(f"{text}, its run.json {run.recipe!r:.40} and {run.seed}; give the folder its own name")
    for _, arm in found.groupby(["study", "arm"]):
        _check_same(arm)
    places = {name: place for place, name in enumerate([*STUDIES, *ARMS])}

    def place(column: pd.Series) -> pd.Series:
        return column.map(lambda value: places.get(value, value))

    return found.sort_values(["study", "arm", "seed"], key=place, ignore_index=True)


def _check_same(arm: pd.DataFrame) -> None:
    """Raise UserError unless the runs of an arm differ by the seed alone. The same file may lie elsewhere."""
    first = arm.iloc[0]
    for name, settings in zip(arm["name"], arm["settings"], strict=True):
        for key in settings.keys() & first["settings"].keys() - _FREE:
            own, others = (Path(str(values[key])).name for values in (settings, first["settings"]))
            if own != others:
                text = f"logs/{name}: has {key} {own!r:.40} where {first['name']} has {others!r:.40}"
                raise UserError(f"{text}; runs of an arm differ by the seed alone")


# ---- arms and differences


def half_width(values) -> float:
    """Half the width of the 95 % t interval of the mean of independent `values`; NaN for one value."""
    if len(values) < 2:
        return math.nan
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def arms(runs: pd.DataFrame) -> pd.DataFrame:
    """One row an arm of `study_runs`: study, arm, n, mean of seconds and of each of MEASURES, and X_half of these."""
    groups = runs.groupby(["study", "arm"], sort=False)[["seconds", *MEASURES]]
    means, halves = groups.agg(np.average), groups.agg(half_width)
    return pd.concat([groups.size().rename("n"), means, halves.add_suffix("_half")], axis=1).reset_index()


def differences(runs: pd.DataFrame, against: str) -> pd.DataFrame:
    """Each other arm of `study_runs` minus the arm `against` of its study, seed by seed, as a table like `arms`.

    n is the number of seeds that both have; arms without a common seed are left out. With the same seed both arms see
    the same crops in the same order, hence the pairs.
    """
    pairs = runs.merge(runs[runs["arm"] == against], on=["study", "seed"], suffixes=("", "_against"))
    pairs = pairs[pairs["arm"] != against]
    return arms(pairs.assign(**{name: pairs[name] - pairs[f"{name}_against"] for name in MEASURES}))


def curves(runs: pd.DataFrame, tag: str) -> pd.DataFrame:
    """The mean over the seeds of a recorded value: columns study, arm, step, value; steps that every seed has."""
    tables = [pd.DataFrame(columns=("study", "arm", "step", "value"))]
    for (study, arm), own in runs.groupby(["study", "arm"], sort=False):
        seeds = [pd.Series({row["step"]: row[tag] for row in read_metrics(path) if tag in row}) for path in own["path"]]
        mean = pd.concat(seeds, axis=1).dropna().mean(axis=1).rename("value").rename_axis("step").reset_index()
        tables.append(mean.assign(study=study, arm=arm))
    return pd.concat(tables[1:] or tables, ignore_index=True)


def command(run) -> str:
    """The command that repeats a row of `find_runs` with a seed of one's own, `--seed N`.

    Only the names of its options come from the recorded command. Each must be a recorded setting, and the values are
    the recorded ones, quoted for the shell. Paths are left out, as they are the reader's own.
    """
    settings = run["settings"]
    paths = ("data_dir", "pretrained", "second_pretrained", "seed")
    named = [word[2:].split("=")[0] for word in run["command"] if word.startswith("--")]
    options = [f"--{name} {shlex.quote(str(settings[name]))}" for name in named if name in settings.keys() - {*paths}]
    return " ".join(["bash run_train.sh", shlex.quote(str(settings["name"])), *options, "--seed N"])


# ---- tuning


def tuning(logs: Path = LOGS) -> pd.DataFrame:
    """The runs that chose the learning rates, logs/tuning/[STUDY_][ARM_]rate_RATE, as rows of `find_runs`.

    Their accuracy and nll are those of the last weights on held-out training images. Further columns are study, arm and
    chosen: True for the highest accuracy of several rates of an arm, of equal ones for the lowest NLL.
    """
    runs = find_runs(logs, ("tuning",))
    parts = runs["name"].astype(str).str.extract(r"^tuning/(?:(few|102)_)?(?:(.+)_)?rate_([\d.]+)$")
    table = runs.assign(study="cifar100" + ("_" + parts[0]).fillna(""), arm=parts[1].fillna("baseline"))
    table = table[parts[2].notna()]
    for index, path in table["path"].items():
        last = {tag: value for row in read_metrics(path) for tag, value in row.items()}
        table.loc[index, ["accuracy", "nll"]] = last.get("validation/accuracy"), last.get("validation/nll")
    table = table.dropna(subset="accuracy")  # a run that held no image out has chosen no rate
    ranked = table.sort_values(["accuracy", "nll"], ascending=[False, True]).groupby(["study", "arm"])
    several = table.groupby(["study", "arm"])["rate"].transform("size") > 1
    table["chosen"] = table.index.isin(ranked.head(1).index) & several
    return table.sort_values(["study", "arm", "rate"], ignore_index=True)


# ---- predictions


def read_predictions(run: Path) -> pd.DataFrame:
    """What the best weights of a finished run say: one row a test image, in the order of the test set.

    Columns label, predicted, confidence (probability of the predicted class), nll (-log P(label), nats) and hit.
    Raises UserError when `run` is no such folder, or its predictions are missing, damaged or not those of its run.json.
    """
    row = _row(run / "run.json", run.parent)
    if row is None:
        raise UserError(f"{run}: this run has not finished, or was not evaluated; continue it with its own command")
    path = run / "predictions.npz"
    if not path.is_file():
        raise UserError(f"{path}: no such file; copy it from where the run was trained, or train it again")
    try:
        with zipfile.ZipFile(path) as archive:
            check_members(archive, path, most_growth=100)
        with np.load(path, allow_pickle=False) as file:
            columns = {"label": file["labels"], "predicted": file["top5"][:, 0]}
            found = pd.DataFrame(columns | {name: file[name].astype(float) for name in ("confidence", "nll")})
        classes = found[["label", "predicted"]]
        if not all(map(pd.api.types.is_integer_dtype, classes.dtypes)) or (classes < 0).any(axis=None):
            raise ValueError("its classes are not numbers from 0 on")
        if not (found["confidence"].between(0, 1.001) & found["nll"].between(-0.001, 1e9)).all():  # fp32 rounds
            raise ValueError("its confidences and NLL are not those of probabilities")
    except (OSError, ValueError, LookupError, TypeError, MemoryError, zipfile.BadZipFile, zlib.error) as problem:
        text = f"{path}: not readable as predictions ({_detail(problem)})"
        raise UserError(f"{text}; copy it again from the run") from None
    found["hit"] = found["label"] == found["predicted"]
    correct, total = int(found["hit"].sum()), len(found)
    if (correct, total) != (row["correct"], row["test_images"]):
        text = f"{path}: has {correct:,} of {total:,} images right, run.json says {row['correct']:,} of"
        raise UserError(f"{text} {row['test_images']:,}; the two are not of one run, copy both again")
    return found


def reliability(predictions: pd.DataFrame) -> pd.DataFrame:
    """Images in BINS equal bins of confidence (Guo et al., arXiv 1706.04599): count, and mean confidence and hit."""
    which = np.minimum((predictions["confidence"] * BINS).astype(int), BINS - 1)
    grouped = predictions.groupby(which)
    return pd.DataFrame(
        {"count": grouped.size(), "confidence": grouped["confidence"].mean(), "accuracy": grouped["hit"].mean()}
    )


def confusion(predictions: pd.DataFrame) -> pd.DataFrame:
    """Images by class (rows) and predicted class (columns)."""
    classes = sorted({*predictions["label"], *predictions["predicted"]})
    counts = pd.crosstab(predictions["label"], predictions["predicted"])
    return counts.reindex(index=classes, columns=classes, fill_value=0).rename_axis(index=None, columns=None)


def per_class(matrix: pd.DataFrame) -> pd.DataFrame:
    """Of each class: images, how many are right, recall and precision in %, and the class it is most taken for."""
    right = pd.Series(np.diag(matrix), matrix.index)
    wrong = matrix - np.diag(right)
    taken_for = [f"{row.idxmax()} ({row.max()})" if row.any() else "-" for _, row in wrong.iterrows()]
    return pd.DataFrame(
        {
            "images": matrix.sum(axis=1),
            "right": right,
            "recall, %": 100 * right / matrix.sum(axis=1),  # NaN for a class without images
            "precision, %": 100 * right / matrix.sum(axis=0),  # NaN for one that is never predicted
            "most taken for": taken_for,
        }
    ).rename_axis("class")


def describe_classes(run: Path) -> str:
    """`per_class` of a run as text, the worst class first, and the confusion matrix of at most 30 classes."""
    matrix = confusion(read_predictions(run))
    names = _row(run / "run.json", run.parent)["class_names"]
    if names and matrix.index.max() < len(names):
        matrix = matrix.rename(index=names.__getitem__, columns=names.__getitem__)
    text = per_class(matrix).sort_values("recall, %", kind="stable").to_string(float_format="{:.2f}".format)
    if len(matrix) <= _SHOWN_CLASSES:
        text += f"\n\nImages by class (rows) and predicted class (columns):\n\n{matrix.to_string()}"
    return text


def main(argv=None) -> None:
    about = (
        "Print the finished runs of a folder; or of one run recall and precision by class, and its confusion matrix."
    )
    parser = Parser(prog="python -m reproduce.results", description=about)
    parser.add_argument("folder", nargs="?", default=str(LOGS), help="folder of runs, or of one run (default logs/)")
    folder = Path(parse(parser, argv).folder)
    if (folder / "run.json").exists():
        print(describe_classes(folder))
        return
    runs = find_runs(folder)
    if runs.empty:
        raise UserError(f"{folder}: no finished run in it; train one with bash run_train.sh")
    shown = runs[["name", "recipe", "seed", *COUNTS, *MEASURES]]
    shown = shown.assign(name=shown["name"].map(printable), recipe=shown["recipe"].map(str).map(printable))
    print(shown.to_string(index=False, float_format="{:.4f}".format))


if __name__ == "__main__":
    run_command(main)
