"""logs/ as tables: runs, arms of the studies, paired differences.

    python -m reproduce.results [FOLDER]      every finished run below FOLDER (default: logs/), one line each
    python -m reproduce.results logs/RUN      recall and precision of each class of a run, and the confusion matrix

All functions return pandas tables. Accuracies and calibration errors are shares of 1, NLL is in nats, times in seconds.
Intervals are Student's t at 95 %; a column `X_half` is half the width of the interval of the mean in column `X`.
"""

import json
import math
import re
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
from reproduce.run_log import read_metrics

LOGS = ROOT / "logs"
CITED = ("evidence", "study")  # folders of logs/ whose runs READMEs and docs show; all others are their user's own
MEASURES = ("accuracy", "nll", "ece", "accuracy_last", "nll_last", "ece_last")
COUNTS = ("test_images", "correct", "correct_last")
BINS = 15  # of confidence, as in evaluate.py
_SHOWN_CLASSES = 30  # that a confusion matrix fits on a screen
# Settings that do not define a run: what it is called, where it is computed, options of earlier commits. Those of two
# views have no meaning with one.
_LABELS = ("name", "summary", "seed")
_HARDWARE = ("micro_batch_size", "recompute", "eval_batch_size", "device", "workers", "data_dir")
_RECORDING = ("save_every", "log_every")
_GONE = ("fused", "resident")
_OF_TWO_VIEWS = ("alpha", "kl_sum_over", "loss_form", "views_split_at")


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
    headers = [path for path in headers if ".old-" not in str(path.relative_to(logs))]
    rows = [row for row in (_row(path, logs) for path in headers) if row]
    return pd.DataFrame(rows, columns=(*_COLUMNS, *COUNTS, *MEASURES))


_COLUMNS = ("name", "path", "recipe", "settings", "meaning", "seed", "steps", "rate", "seconds", "threads", "command")


def _row(path: Path, logs: Path) -> dict | None:
    """A run as a row of the table; None for one that has not finished or was not evaluated."""
    try:
        header = json.loads(path.read_text() if path.is_file() else "")
        if not header["finished"] or "best" not in header["result"]:
            return None
        recipe, machine, result = header["recipe"], header["machine"], header["result"]
        best, last = result["best"]["test"], result["last"]["test"]
        for found in (best, last):
            if found["total"] != best["total"] or abs(found["accuracy"] - found["correct"] / found["total"]) > 1e-9:
                raise ValueError("its counts of images do not fit each other")
        return {
            "name": path.parent.relative_to(logs).as_posix(),
            "path": path.parent,
            "recipe": recipe["name"],
            "settings": recipe,
            "meaning": _meaning(recipe),
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
        raise UserError(
            f"{path}: not the header of a run ({_detail(problem)}); restore it, or move its folder away"
        ) from None


def _detail(problem: Exception) -> str:
    """What is wrong, in a line."""
    text = printable(str(problem))[:120]
    return f"it has no {text}" if isinstance(problem, KeyError) else text or "it is damaged"


def _meaning(recipe: dict) -> dict:
    """The recorded settings that define a run, but for its seed. The same file may lie elsewhere."""
    left_out = {*_LABELS, *_HARDWARE, *_RECORDING, *_GONE, *(_OF_TWO_VIEWS if recipe["num_views"] == 1 else ())}
    found = {name: value for name, value in recipe.items() if name not in left_out}
    return found | {name: Path(value).name for name, value in found.items() if name.endswith("pretrained")}


def study_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of STUDIES with columns study and arm, in the order of the tables, then by seed.

    Raises UserError for a run whose record does not fit its name, or whose settings are not those of its arm.
    """
    found = runs.assign(study="", arm="")
    for index, name in runs["name"].items():
        match = re.fullmatch(r"study/([^/-]+)-([^/]+)-seed(\d+)", name)
        study = STUDIES.get(match[1]) if match else None
        if study is None or match[2] not in ARMS:
            continue
        run = runs.loc[index]
        if run["recipe"] != study.recipe or run["seed"] != int(match[3]):
            raise UserError(
                f"logs/{name}: its name says recipe {study.recipe} and seed {match[3]}, its run.json "
                f"{run['recipe']!r:.40} and {run['seed']}; give the folder its own name"
            )
        found.loc[index, ["study", "arm"]] = match[1], match[2]
    found = found[found["study"] != ""]
    for _, arm in found.groupby(["study", "arm"]):
        _check_same(arm)
    order = [(list(STUDIES).index(run.study), list(ARMS).index(run.arm), run.seed) for run in found.itertuples()]
    return found.assign(order=order).sort_values("order").drop(columns="order").reset_index(drop=True)


def _check_same(arm: pd.DataFrame) -> None:
    """Raise UserError unless the runs of an arm differ by the seed alone."""
    first = arm.iloc[0]
    for run in arm.to_dict("records"):
        for name, value in first["meaning"].items():
            own = run["meaning"].get(name, value)  # a run from before there was such a setting had its default
            if own != value:
                raise UserError(
                    f"logs/{run['name']}: has {name} {own!r:.40} where {first['name']} has {value!r:.40}; runs of an "
                    "arm differ by the seed alone"
                )


# ---- arms and differences


def half_width(values) -> float:
    """Half the width of the 95 % t interval of the mean of independent `values`; NaN for one value."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return math.nan
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def arms(runs: pd.DataFrame) -> pd.DataFrame:
    """One row an arm of `study_runs`: study, arm, label, n, seconds (mean), each of MEASURES and its half width."""
    rows = []
    for (study, arm), own in runs.groupby(["study", "arm"], sort=False):
        row = {"study": study, "arm": arm, "label": ARMS[arm], "n": len(own)}
        row["seconds"] = own["seconds"].mean()
        rows.append(row | means(own))
    return pd.DataFrame(rows, columns=("study", "arm", "label", "n", "seconds", *with_halves()))


def differences(runs: pd.DataFrame, against: str) -> pd.DataFrame:
    """Each other arm of `study_runs` minus the arm `against` of its study, seed by seed.

    Columns study, arm, n (seeds that both have), each of MEASURES and its half width. Arms without a common seed are
    left out. With the same seed both arms see the same crops in the same order, hence the pairs.
    """
    rows = []
    for study, all_arms in runs.groupby("study", sort=False):
        tables = {arm: own.set_index("seed")[list(MEASURES)] for arm, own in all_arms.groupby("arm", sort=False)}
        reference = tables.pop(against, None)
        for arm, table in tables.items():
            pairs = table.sub(reference).dropna() if reference is not None else table[:0]
            if len(pairs):
                rows.append({"study": study, "arm": arm, "n": len(pairs)} | means(pairs))
    return pd.DataFrame(rows, columns=("study", "arm", "n", *with_halves()))


def with_halves() -> list[str]:
    """The columns of `means`."""
    return [name for measure in MEASURES for name in (measure, f"{measure}_half")]


def means(values: pd.DataFrame) -> dict:
    """Mean and half width of each of MEASURES; NaN where there are no values."""
    found = {}
    for measure in MEASURES:
        found[measure] = values[measure].mean()
        found[f"{measure}_half"] = half_width(values[measure])
    return found


def curves(runs: pd.DataFrame, tag: str) -> pd.DataFrame:
    """The mean over the seeds of a recorded value: columns study, arm, step, value; steps that every seed has."""
    tables = []
    for (study, arm), own in runs.groupby(["study", "arm"], sort=False):
        seeds = [pd.Series({row["step"]: row[tag] for row in read_metrics(path) if tag in row}) for path in own["path"]]
        mean = pd.concat(seeds, axis=1).dropna().mean(axis=1).rename("value").rename_axis("step").reset_index()
        tables.append(mean.assign(study=study, arm=arm))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=("step", "value", "study", "arm"))


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
    """The runs that chose the learning rates, logs/tuning/[STUDY_][ARM_]rate_RATE.

    Columns folder, study, arm, recipe, steps, rate, and accuracy and nll of the last weights on held-out training
    images; chosen is True for the highest accuracy of several rates of an arm, of equal ones for the
    lowest NLL.
    """
    rows = []
    for run in find_runs(logs, ("tuning",)).to_dict("records"):
        match = re.fullmatch(r"tuning/(?:(few|102)_)?(?:(.+)_)?rate_[\d.]+", run["name"])
        records = [row for row in read_metrics(run["path"]) if "validation/accuracy" in row]
        if not match or not records:
            continue
        rows.append(
            {
                "folder": run["name"],
                "study": {"few": "cifar100_few", "102": "cifar100_102", None: "cifar100"}[match[1]],
                "arm": match[2] or "baseline",
                "steps": run["steps"],
                "rate": run["rate"],
                "accuracy": records[-1]["validation/accuracy"],
                "nll": records[-1]["validation/nll"],
            }
        )
    table = pd.DataFrame(rows, columns=("folder", "study", "arm", "steps", "rate", "accuracy", "nll"))
    ranked = table.sort_values(["accuracy", "nll"], ascending=[False, True])
    best = ranked.groupby(["study", "arm"]).head(1).index
    several = table.groupby(["study", "arm"])["rate"].transform("size") > 1
    table["chosen"] = table.index.isin(best) & several
    return table.sort_values(["study", "arm", "rate"], ignore_index=True)


# ---- predictions


def read_predictions(run: Path) -> pd.DataFrame:
    """What the best weights of a finished run say: one row a test image, in the order of the test set.

    Columns label, predicted, confidence (probability of the predicted class), nll (-log P(label), nats) and hit.
    Raises UserError when `run` is no such folder, or its predictions are missing, damaged or not those of its run.json.
    """
    run = Path(run)
    if not (run / "run.json").exists():
        raise UserError(f"{run}: not the folder of a run (no run.json); give one such as logs/evidence/digits")
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
            columns = (file["labels"], file["top5"][:, 0], file["confidence"].astype(float), file["nll"].astype(float))
        found = pd.DataFrame(dict(zip(("label", "predicted", "confidence", "nll"), columns, strict=True)))
        classes = found[["label", "predicted"]]
        if not all(map(pd.api.types.is_integer_dtype, classes.dtypes)) or (classes < 0).any(axis=None):
            raise ValueError("its classes are not numbers from 0 on")
        if not (found["confidence"].between(0, 1.001) & found["nll"].between(-0.001, 1e9)).all():  # fp32 rounds
            raise ValueError("its confidences and NLL are not those of probabilities")
    except (OSError, ValueError, LookupError, TypeError, MemoryError, zipfile.BadZipFile, zlib.error) as problem:
        raise UserError(
            f"{path}: not readable as predictions ({_detail(problem)}); copy it again from the run"
        ) from None
    found["hit"] = found["label"] == found["predicted"]
    correct, total = int(found["hit"].sum()), len(found)
    if (correct, total) != (row["correct"], row["test_images"]):
        raise UserError(
            f"{path}: has {correct:,} of {total:,} images right, run.json says {row['correct']:,} of "
            f"{row['test_images']:,}; the two are not of one run, copy both again"
        )
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
    return counts.reindex(index=classes, columns=classes, fill_value=0)


def per_class(matrix: pd.DataFrame) -> pd.DataFrame:
    """Of each class: images, how many are right, recall and precision in %, and the class it is most taken for."""
    counts, right = matrix.to_numpy(), np.diag(matrix)
    wrong = counts - np.diag(right)
    taken_for = [f"{matrix.columns[row.argmax()]} ({row.max()})" if row.any() else "-" for row in wrong]
    with np.errstate(invalid="ignore"):  # a class without images has no recall, one never predicted no precision
        recall, precision = 100 * right / counts.sum(axis=1), 100 * right / counts.sum(axis=0)
    columns = {"images": counts.sum(axis=1), "right": right, "recall, %": recall, "precision, %": precision}
    return pd.DataFrame({**columns, "most taken for": taken_for}, index=matrix.index.rename("class"))


def describe_classes(run: Path) -> str:
    """`per_class` of a run as text, the worst class first, and the confusion matrix of at most 30 classes."""
    matrix = confusion(read_predictions(run))
    names = _row(Path(run) / "run.json", Path(run).parent)["class_names"]
    if names and matrix.index.max() < len(names):
        matrix = matrix.rename(index=names.__getitem__, columns=names.__getitem__)
    classes = per_class(matrix).sort_values("recall, %", kind="stable")
    parts = [classes.to_string(float_format="{:.2f}".format)]
    if len(matrix) <= _SHOWN_CLASSES:
        parts.append("Images by class (rows) and predicted class (columns):")
        parts.append(matrix.rename_axis(index=None, columns=None).to_string())
    return "\n\n".join(parts)


def main(argv=None) -> None:
    about = (
        "Print the finished runs of a folder; or of one run recall and precision by class, and the confusion matrix."
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
