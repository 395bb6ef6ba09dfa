"""logs/ as tables: runs, arms of the studies, paired differences.

    python -m reproduce.results [FOLDER]      every finished run below FOLDER (default: logs/), one line each

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

from common.errors import UserError
from reproduce import ROOT
from reproduce.cli import Parser, parse, run_command
from reproduce.run_log import read_metrics

LOGS = ROOT / "logs"
CITED = ("evidence", "study")  # folders of logs/ whose runs READMEs and docs show; all others are their user's own
MEASURES = ("accuracy", "nll", "ece", "accuracy_last", "nll_last", "ece_last")
COUNTS = ("test_images", "correct", "correct_last")
BINS = 15  # of confidence, as in evaluate.py
# Settings that do not define a run: what it is called, where it is computed, options of earlier commits. Those of two
# views have no meaning with one.
_LABELS = ("name", "summary", "seed")
_HARDWARE = (
    "micro_batch_size",
    "recompute",
    "eval_batch_size",
    "device",
    "workers",
    "data_dir",
    "save_every",
    "log_every",
)
_GONE = ("fused", "resident")
_OF_TWO_VIEWS = ("alpha", "kl_sum_over", "loss_form", "views_split_at")


@dataclass(frozen=True)
class Study:
    """What is shown of logs/study/<name>-<arm>-seed<k>."""

    title: str
    recipe: str  # name of the recipe that every run of it has recorded
    arms: dict[str, str]  # arm, as in the names of the runs -> its label; in the order of the tables
    rdrop: str  # the arm that stands for R-Drop where one is shown
    endpoint: str = "best"  # weights whose test top-1 is compared: "best" on held-out images, or "last"

    def measure(self, name: str) -> str:
        """The column of a measure that is compared: that of the endpoint's weights."""
        return f"{name}_last" if self.endpoint == "last" else name


ONE_VIEW = {"baseline": "one view", "baseline_twice": "one view, twice the steps"}
TWO_VIEWS = {"two_views": "two views without KL"}
_SUMS = {"rdrop_x1": "R-Drop 0.3", "rdrop_x8": "R-Drop 0.3 x 8", "rdrop_x32": "R-Drop 0.3 x 32"}
STUDIES = {
    "cifar100_102": Study(
        "CIFAR-100, 10 a class, 102 epochs",
        "cifar100_vit_ti16_few",
        ONE_VIEW
        | {"baseline_128": "one view, batches of 128"}
        | TWO_VIEWS
        | {"rdrop_0.3": "R-Drop 0.3", "rdrop_best": "R-Drop 0.1 (tuned)"},
        "rdrop_0.3",
        "last",
    ),
    "cifar100": Study("CIFAR-100, 50 a class, 5 epochs", "cifar100_vit_ti16", ONE_VIEW | TWO_VIEWS | _SUMS, "rdrop_x1"),
    "cifar100_few": Study(
        "CIFAR-100, 10 a class, 26 epochs", "cifar100_vit_ti16_few", ONE_VIEW | TWO_VIEWS | _SUMS, "rdrop_x1"
    ),
    "digits": Study(
        "digits, 58 epochs",
        "digits",
        ONE_VIEW | TWO_VIEWS | {"rdrop_0.3": "R-Drop 0.3", "rdrop_1": "R-Drop 1", "rdrop_3": "R-Drop 3"},
        "rdrop_0.3",
    ),
}


def printable(text: str) -> str:
    """Text from a file for a screen or a page: control characters and line breaks are shown, not obeyed."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


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
    return pd.DataFrame(rows, columns=_COLUMNS)


_COLUMNS = ("name", "path", "recipe", "settings", "seed", "seconds", "threads", "command", *COUNTS, *MEASURES)


def _row(path: Path, logs: Path) -> dict | None:
    """A run as a row of the table; None for one that has not finished or was not evaluated."""
    try:
        header = json.loads(path.read_text())
        if not header["finished"] or "best" not in header["result"]:
            return None
        recipe, machine, result = header["recipe"], header["machine"], header["result"]
        best, last = result["best"]["test"], result["last"]["test"]
        if best["total"] != last["total"]:
            raise ValueError("best and last weights were not tested on the same number of images")
        return {
            "name": path.parent.relative_to(logs).as_posix(),
            "path": path.parent,
            "recipe": recipe["name"],
            "settings": recipe,
            "seed": int(recipe["seed"]),
            "seconds": float(header["seconds"]),
            "threads": int(machine["settings"]["OMP_NUM_THREADS"].split(",")[0]),  # "4,2" is of nested loops
            "command": machine["command"],
            "test_images": int(best["total"]),
            "correct": int(best["correct"]),
            "correct_last": int(last["correct"]),
            **{name: float((last if name.endswith("_last") else best)[name.split("_")[0]]) for name in MEASURES},
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        detail = f"it has no {problem}" if isinstance(problem, KeyError) else (str(problem).splitlines() or ["odd"])[0]
        raise UserError(f"{path}: not the header of a run ({detail}); restore it, or move its folder away") from None


def meaning(recipe: dict) -> dict:
    """The recorded settings that define a run, but for its seed."""
    left_out = {*_LABELS, *_HARDWARE, *_GONE, *(_OF_TWO_VIEWS if recipe["num_views"] == 1 else ())}
    found = {name: value for name, value in recipe.items() if name not in left_out}
    files = {name: Path(value).name for name, value in found.items() if name.endswith("pretrained")}
    return found | files  # the same file may lie elsewhere


def study_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of STUDIES with columns study and arm, in the order of the tables, then by seed.

    Raises UserError for a run whose record does not fit its name, or whose settings are not those of its arm.
    """
    found = runs.assign(study="", arm="")
    for index, name in runs["name"].items():
        match = re.fullmatch(r"study/([^/-]+)-([^/]+)-seed(\d+)", name)
        study = STUDIES.get(match[1]) if match else None
        if study is None or match[2] not in study.arms:
            continue
        run = runs.loc[index]
        if run["recipe"] != study.recipe or run["seed"] != int(match[3]):
            raise UserError(
                f"logs/{name}: its name says recipe {study.recipe} and seed {match[3]}, its run.json "
                f"{run['recipe']} and {run['seed']}; give the folder its own name"
            )
        found.loc[index, ["study", "arm"]] = match[1], match[2]
    found = found[found["study"] != ""]
    for _, arm in found.groupby(["study", "arm"]):
        _check_same(arm)
    places = {(name, arm): place for place, (name, arm) in enumerate((s, a) for s in STUDIES for a in STUDIES[s].arms)}
    order = [places[row.study, row.arm] for row in found.itertuples()]
    return found.assign(order=order).sort_values(["order", "seed"]).drop(columns="order").reset_index(drop=True)


def _check_same(arm: pd.DataFrame) -> None:
    """Raise UserError unless the runs of an arm differ by the seed alone."""
    first = meaning(arm["settings"].iloc[0])
    for run in arm.itertuples():
        own = meaning(run.settings)
        for name in first.keys() & own.keys():
            if own[name] != first[name]:
                raise UserError(
                    f"logs/{run.name}: has {name} {own[name]} where {arm['name'].iloc[0]} has "
                    f"{first[name]}; runs of an arm differ by the seed alone"
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
        row = {"study": study, "arm": arm, "label": STUDIES[study].arms[arm], "n": len(own)}
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
    try:
        words = shlex.split(run["command"])
    except ValueError:
        words = []
    named = [word[2:].split("=")[0] for word in words if word.startswith("--")]
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
        settings = run["settings"]
        rows.append(
            {
                "folder": run["name"],
                "study": {"few": "cifar100_few", "102": "cifar100_102", None: "cifar100"}[match[1]],
                "arm": match[2] or "baseline",
                "steps": settings["num_steps"],
                "rate": settings["learning_rate"],
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
    try:
        header = json.loads((run / "run.json").read_text())
        counts = header["result"]["best"]["test"] if header["finished"] else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            f"{run}: not the folder of an evaluated run (no run.json with a test result); give one such "
            "as logs/evidence/digits"
        ) from None
    if counts is None:
        raise UserError(f"{run}: this run has not finished; continue it with the command in its run.json")
    path = run / "predictions.npz"
    if not path.exists():
        raise UserError(f"{path}: no such file; copy it from where the run was trained, or train it again")
    try:
        with np.load(path, allow_pickle=False) as file:
            found = pd.DataFrame(
                {
                    "label": file["labels"],
                    "predicted": file["top5"][:, 0],
                    "confidence": file["confidence"].astype(float),
                    "nll": file["nll"],
                }
            )
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile, zlib.error) as problem:
        detail = (str(problem).strip("'\"").splitlines() or ["damaged"])[0]
        raise UserError(f"{path}: not readable as predictions ({detail}); copy it again from the run") from None
    found["hit"] = found["label"] == found["predicted"]
    correct, total = int(found["hit"].sum()), len(found)
    if (correct, total) != (counts["correct"], counts["total"]):
        raise UserError(
            f"{path}: has {correct:,} of {total:,} images right, run.json says {counts['correct']:,} of "
            f"{counts['total']:,}; the two are not of one run, copy both again"
        )
    return found


def reliability(predictions: pd.DataFrame) -> pd.DataFrame:
    """Images in BINS equal bins of confidence (Guo et al., arXiv 1706.04599): count, and mean confidence and hit."""
    which = np.minimum((predictions["confidence"] * BINS).astype(int), BINS - 1)
    grouped = predictions.groupby(which)
    return pd.DataFrame(
        {"count": grouped.size(), "confidence": grouped["confidence"].mean(), "accuracy": grouped["hit"].mean()}
    )


def main(argv=None) -> None:
    parser = Parser(prog="python -m reproduce.results", description="Print the finished runs of a folder.")
    parser.add_argument("folder", nargs="?", default=str(LOGS), help="folder with runs, at any depth (default logs/)")
    folder = Path(parse(parser, argv).folder)
    runs = find_runs(folder)
    if runs.empty:
        raise UserError(f"{folder}: no finished run in it; train one with bash run_train.sh")
    shown = runs[["name", "recipe", "seed", *COUNTS, *MEASURES]]
    print(shown.to_string(index=False, float_format=lambda value: f"{value:.4f}"))


if __name__ == "__main__":
    run_command(main)
