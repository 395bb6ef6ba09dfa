"""The runs on record under logs/ as one table, the groups that differ by the seed alone, and their comparisons.

    python -m reproduce.results [FOLDER]      every finished run below FOLDER (default: logs/), one line each

Reads run.json alone. Accuracies are shares of 1 and calibration errors too, NLL is in nats, times in seconds.
"""

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from scipy.special import stdtrit

from common.errors import UserError
from reproduce import ROOT
from reproduce.cli import Parser, parse, run_command

LOGS = ROOT / "logs"
CITED = ("evidence", "study")  # folders of logs/ whose runs the READMEs and figures show; the others are their user's
# Settings that do not change what a run means, as recipes.py marks them.
HARDWARE = ("micro_batch_size", "recompute", "fused", "resident", "eval_batch_size", "device", "workers", "data_dir",
            "save_every", "log_every")  # fmt: skip
_LATER = {"views_split_at": 0}  # defaults of settings that came after the first runs on record
# What makes an arm: one view, or two, what they share, and a strength.
_KL = ("num_views", "alpha", "kl_sum_over", "loss_form", "views_split_at")
_LONGER = ("num_steps", "warmup_steps", "eval_every")  # what a longer run of the same kind has more of
_CONFIDENCE = 0.95
ARM_WORDS = {
    "baseline": "baseline",
    "no KL": "two views without KL",
    "summed": "KL summed over {}",
    "averaged": "views averaged",
    "shared": "first {} blocks shared",
    "steps": "{:,} steps",
    "comma": ", ",
}


class Summary(NamedTuple):
    """A quantity over the seeds of a group; the interval is Student's t for the mean."""

    n: int
    mean: float
    half_width: float  # of the 95 % interval; NaN for n = 1
    low: float  # the smallest value, not the end of the interval
    high: float


def summary(values) -> Summary:
    """n, mean, half of the 95 % interval of the mean, minimum and maximum of independent `values`."""
    values = pd.Series(values, dtype=float)
    n = len(values)
    half = stdtrit(n - 1, (1 + _CONFIDENCE) / 2) * values.std(ddof=1) / math.sqrt(n) if n > 1 else math.nan
    return Summary(n, float(values.mean()), float(half), float(values.min()), float(values.max()))


# ---- runs


def find_runs(logs: Path = LOGS, below=("",)) -> pd.DataFrame:
    """One row for each finished and evaluated run in the folders `below` of `logs`, in order of name.

    Raises UserError for a run.json that is not a run's header. Runs that are still going or that --restart set aside
    are left out.
    """
    logs = Path(logs)
    if not logs.is_dir():
        raise UserError(f"{logs}: no such folder; give the folder that holds the runs")
    headers = sorted({path for folder in below for path in (logs / folder).rglob("run.json")})
    headers = [path for path in headers if ".old-" not in str(path.relative_to(logs))]
    rows = [row for row in (_row(path, logs) for path in headers) if row]
    _note_changes(rows)
    return pd.DataFrame(rows, columns=_COLUMNS)


def _note_changes(rows: list[dict]) -> None:
    """Set "changed" of each run: the settings that most runs of its recipe have otherwise."""
    for recipe in {row["recipe"] for row in rows}:
        same = sorted((row for row in rows if row["recipe"] == recipe), key=lambda row: row["started"])
        for row in same:
            row["changed"] = {}
        for name in {name for row in same for name in row["settings"]}:
            found = [(row, _in_proportion(name, row["settings"])) for row in same if name in row["settings"]]
            usual = Counter(value for _, value in found).most_common(1)[0][0]  # of equally many the earliest
            for row, value in found:
                if value != usual:
                    row["changed"][name] = row["settings"][name]


def _in_proportion(name: str, settings: dict):
    """A setting's value; warm-up and evaluations that keep their share of the steps are not changed."""
    return settings[name] / settings["num_steps"] if name in _LONGER[1:] else settings[name]


_COLUMNS = (
    "name", "path", "recipe", "changed", "settings", "dataset", "test_is", "model", "seed", "steps", "image_size",
    "num_views", "alpha", "kl_sum_over", "precision", "processor", "cores", "gpu", "processes", "threads", "commit",
    "dirty", "started", "command", "seconds", "selected_on", "best_step", "test_images",
    "accuracy", "nll", "ece", "accuracy_last", "nll_last", "ece_last",
)  # fmt: skip


def _row(path: Path, logs: Path) -> dict | None:
    """A run as a row of the table, None for one that has not finished or was not evaluated."""
    try:
        header = json.loads(path.read_text())
        if not header["finished"] or "best" not in header["result"]:
            return None
        recipe, machine, result = header["recipe"], header["machine"], header["result"]
        best, last = result["best"]["test"], result["last"]["test"]
        return {
            "name": path.parent.relative_to(logs).as_posix(),
            "path": path.parent,
            "recipe": recipe["name"],
            "settings": settings_of(recipe),
            **{name: recipe[name] for name in ("dataset", "model", "seed", "image_size", "precision", *_KL[:3])},
            "test_is": result.get("test_is", "test"),  # tables of the user's own pictures have no test set
            "steps": recipe["num_steps"],
            **{name: machine[name] for name in ("processor", "cores", "gpu", "started", "command")},
            "processes": machine.get("processes", 1),  # runs before data parallel had one
            "threads": int(machine["settings"]["OMP_NUM_THREADS"].split(",")[0]),  # "4,2" is of nested loops
            "commit": machine["git_commit"],
            "dirty": machine["git_dirty"],
            "seconds": header["seconds"],
            "selected_on": result["best"]["selected_on"],
            "best_step": result["best"]["step"],
            "test_images": best["total"],
            **{name: best[name] for name in ("accuracy", "nll", "ece")},
            **{f"{name}_last": last[name] for name in ("accuracy", "nll", "ece")},
        }
    except (OSError, ValueError, KeyError, TypeError) as problem:
        detail = f"it has no {problem}" if isinstance(problem, KeyError) else str(problem).splitlines()[0]
        raise UserError(f"{path}: not the header of a run ({detail}); restore it, or move its folder away") from None


def settings_of(recipe: dict) -> dict:
    """What defines a run but for its seed. With one view the settings of the KL term mean nothing and are left out."""
    no_meaning = {"name", "summary", "seed", *HARDWARE, *(_KL[1:] if recipe["num_views"] == 1 else ())}
    settings = {name: value for name, value in {**_LATER, **recipe}.items() if name not in no_meaning}
    files = {name: Path(value).name for name, value in settings.items() if name.endswith("pretrained")}
    return settings | files  # the same file may lie elsewhere


# ---- groups


@dataclass(frozen=True, eq=False)
class Group:
    """Runs whose recipes differ by the seed alone."""

    recipe: str
    settings: dict
    runs: pd.DataFrame  # one a seed, in order of the seed
    repeated: tuple[str, ...]  # names of runs left out, because `runs` has one of their seed

    @property
    def one_view(self) -> bool:
        return self.settings["num_views"] == 1

    @property
    def strength(self) -> float:
        """Weight of the mean KL against the mean cross-entropy, the same in both forms of the loss; 0 for one view."""
        return 0.0 if self.one_view else self.settings["alpha"] * self.settings["kl_sum_over"]

    @property
    def blocks_shared(self) -> int:
        """How many blocks both views share; 0 in R-Drop, and with one view."""
        return 0 if self.one_view else self.settings.get("views_split_at", 0)

    @property
    def is_rdrop(self) -> bool:
        """Whether this is the R-Drop of the paper, at whatever strength."""
        return self.strength > 0 and not self.blocks_shared

    @property
    def changed(self) -> dict:
        """Settings besides those of the KL term that most runs of this recipe name have otherwise."""
        return {name: value for name, value in sorted(self.first("changed").items()) if name not in _KL}

    def arm(self, words: dict | None = None) -> str:
        """How the group treats the KL term, and `changed`, in a few words; `words` translates them."""
        words = words or ARM_WORDS
        if self.one_view:
            parts = [words["baseline"]]
        elif self.strength == 0:
            parts = [words["no KL"]]
        else:
            parts = ["R-Drop", f"alpha {self.settings['alpha']:g}"]
            if self.settings["kl_sum_over"] > 1:
                parts.append(words["summed"].format(self.settings["kl_sum_over"]))
            if self.settings["loss_form"] != "sum":
                parts.append(words["averaged"])
        if self.blocks_shared:
            parts.append(words["shared"].format(self.blocks_shared))
        for name, value in self.changed.items():
            parts.append(words["steps"].format(value) if name == "num_steps" else f"{name} {value}")
        return words["comma"].join(parts)

    def first(self, column: str):
        return self.runs[column].iloc[0]

    def of(self, column: str) -> Summary:
        return summary(self.runs[column])

    def rest(self, *without: str) -> dict:
        """The settings besides those of the KL term and those named."""
        return {name: value for name, value in self.settings.items() if name not in (*_KL, *without)}


def _order(group: Group) -> tuple:
    return group.recipe, not group.one_view, group.blocks_shared, group.strength, str(group.settings)


def find_groups(runs: pd.DataFrame) -> list[Group]:
    """The groups of `runs`, in order of recipe name, number of views and strength of the KL term, shared blocks last.

    A seed counts once: of two runs with the same recipe and seed the one that started first is taken.
    """
    found: dict[tuple, list[int]] = {}
    for index, run in runs.iterrows():
        found.setdefault((run["recipe"], json.dumps(run["settings"], sort_keys=True)), []).append(index)
    groups = []
    for (recipe, _), rows in found.items():
        ordered = runs.loc[rows].sort_values(["seed", "started", "name"])
        again = ordered["seed"].duplicated()
        groups.append(Group(recipe, runs.at[rows[0], "settings"], ordered[~again], tuple(ordered["name"][again])))
    return sorted(groups, key=lambda group: _order(group))


# ---- arms against others

# What an arm with two views is compared with: a baseline of as many steps; one of as much compute (twice the steps;
# not where the views share blocks); the same two views without KL; and, where the views share blocks, R-Drop itself.
AGAINST = ("steps", "compute", "no KL", "whole")


@dataclass(frozen=True, eq=False)
class Pair:
    """An arm with two views and what it is compared with, of the same data, network and optimiser."""

    reference: Group
    arm: Group
    against: str  # one of AGAINST

    @property
    def seeds(self) -> list[int]:
        """Those that both have: with the same seed both see the same crops in the same order."""
        return sorted(set(self.reference.runs["seed"]) & set(self.arm.runs["seed"]))

    def difference(self, column: str) -> Summary:
        """The arm minus its reference, seed by seed."""
        one, other = (group.runs.set_index("seed")[column] for group in (self.arm, self.reference))
        return summary([one[seed] - other[seed] for seed in self.seeds])


def find_pairs(groups: list[Group]) -> list[Pair]:
    """Every arm with two views beside every group that it can be compared with and shares a seed with."""
    pairs = []
    for arm in (group for group in groups if not group.one_view):
        for other in groups:
            against = _against(arm, other)
            if against and (pair := Pair(other, arm, against)).seeds:
                pairs.append(pair)
    return sorted(pairs, key=lambda pair: AGAINST.index(pair.against))


def _against(arm: Group, other: Group) -> str:
    """One of AGAINST, or "" where the two differ in something else."""
    same = arm.rest() == other.rest()
    if other.one_view:
        if same:
            return "steps"
        twice = other.settings["num_steps"] == 2 * arm.settings["num_steps"] and not arm.blocks_shared
        return "compute" if twice and arm.rest(*_LONGER) == other.rest(*_LONGER) else ""
    if not same or other.blocks_shared or arm.settings["loss_form"] != other.settings["loss_form"]:
        return ""
    if arm.blocks_shared:
        return "whole" if arm.strength == other.strength else ""
    return "no KL" if arm.strength > 0 == other.strength else ""


def main_pair(pairs: list[Pair], recipe: str) -> Pair | None:
    """R-Drop and baseline of equal steps that stand for `recipe` in figures: most seeds, then started first."""
    fitting = [p for p in pairs if p.arm.recipe == recipe and p.against == "steps" and p.arm.is_rdrop]
    return min(fitting, key=lambda p: (-len(p.arm.runs), p.arm.runs["started"].min()), default=None)


def main(argv=None) -> None:
    parser = Parser(prog="python -m reproduce.results", description="Print the finished runs of a folder.")
    parser.add_argument("folder", nargs="?", default=str(LOGS), help="folder with runs, at any depth (default logs/)")
    runs = find_runs(Path(parse(parser, argv).folder))
    if runs.empty:
        raise UserError(f"{parse(parser, argv).folder}: no finished run in it; train one with bash run_train.sh")
    shown = ["name", "steps", "image_size", "num_views", "alpha", "kl_sum_over", "seed", "accuracy", "nll", "ece"]
    print(runs[shown].to_string(index=False, float_format=lambda value: f"{value:.4f}"))
    for group in find_groups(runs):
        n, mean, half, low, high = group.of("accuracy")
        interval = f" ± {100 * half:.2f} (95 % interval), {100 * low:.2f} to {100 * high:.2f}" if n > 1 else ""
        seeds = ", ".join(map(str, group.runs["seed"]))
        print(f"{group.recipe}, {group.arm()}: {100 * mean:.2f} %{interval}, n = {n} (seeds {seeds})")


if __name__ == "__main__":
    run_command(main)
