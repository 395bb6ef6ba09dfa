"""A study: arms x seeds of a recipe, one run after the other, each through train.py.

    bash run_train.sh --study digits                      10 seeds of six arms: an hour or two on 2 cores
    bash run_train.sh --study digits --list               its arms, and which runs are finished
    bash run_train.sh --study cifar100 --seeds 5 --data_dir DIR --pretrained FILE

Runs land in logs/study/ and checkpoints/study/. What is finished is left out, what was stopped continues, so the same
command may be stopped and started at any time. Options that the study does not know go to every run.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError, near
from common.processes import end_with_parent
from reproduce import ROOT
from reproduce.checkpoint import check_same_meaning
from reproduce.command import Parser, parse, run_command, say
from reproduce.recipes import RECIPES, Recipe, add_options, get_recipe
from reproduce.stop import SIGNALS, Stopped


@dataclass(frozen=True)
class Study:
    """What is compared: changes of a recipe's settings by the name of the arm."""

    recipe: str
    arms: dict[str, dict]
    seeds: int


def _arms(recipe: str, strengths: tuple[float, ...]) -> dict[str, dict]:
    """Baseline, the same with twice the steps (R-Drop's compute), two views without KL, R-Drop at some strengths."""
    twice = {name: 2 * getattr(RECIPES[recipe], name) for name in ("num_steps", "warmup_steps", "eval_every")}
    return {
        "baseline": {"num_views": 1},
        "baseline_twice": {"num_views": 1, **twice},
        "two_views": {"alpha": 0.0},
        **{f"rdrop_{strength:g}": {"alpha": strength} for strength in strengths},
    }


STUDIES = {
    "digits": Study("digits", _arms("digits", (0.3, 1.0, 3.0)), seeds=10),
    "cifar100": Study("cifar100_vit_ti16", _arms("cifar100_vit_ti16", (0.3, 1.0, 3.0)), seeds=5),
}


@dataclass(frozen=True)
class Run:
    name: str
    recipe: Recipe
    arguments: list[str]


def runs_of(name: str, seeds: int, arms: list[str], more: list[str]) -> list[Run]:
    """Every run of the study, seed by seed, so that all arms are equally far when it is stopped."""
    study = STUDIES[name]
    parser = Parser()
    add_options(parser)
    changes = vars(parse(parser, more))
    found = []
    for seed in range(1, seeds + 1):
        for arm in arms:
            settings = {**study.arms[arm], "seed": seed, "run": f"study/{name}-{arm}-seed{seed}"}
            recipe = get_recipe(study.recipe, **{**study.arms[arm], "seed": seed, **changes})
            options = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
            found.append(Run(settings["run"], recipe, [study.recipe, *options, *more]))
    return found


def finished(run: Run, out: Path) -> bool:
    """Whether the record of the run says that it went to its end. Raises UserError for one with other settings."""
    header = out / "logs" / run.name / "run.json"
    try:
        record = json.loads(header.read_text())
        check_same_meaning(record["recipe"], run.recipe.meaning(), header.parent)
        return bool(record["finished"])
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError, OSError):
        raise UserError(f"{header}: is not the record of a run; remove its folder or mend it") from None


def main() -> None:
    options, more = _parser().parse_known_args()
    if options.study not in STUDIES:
        raise UserError(f"unknown study {options.study!r}: {near(options.study, STUDIES)}")
    study = STUDIES[options.study]
    if any(word.split("=")[0] in ("--run", "--seed", "--restart", "--dry_run") for word in more):
        raise UserError(
            "--run, --seed, --restart and --dry_run are not for studies; choose --seeds N, --arm NAME, --list"
        )
    seeds = study.seeds if options.seeds is None else options.seeds
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: must be at least 1")
    for arm in options.arm:
        if arm not in study.arms:
            raise UserError(f"--arm {arm}: {near(arm, study.arms)}")
    out = Path(options.out)
    runs = runs_of(options.study, seeds, options.arm or list(study.arms), more)
    todo = [run for run in runs if not finished(run, out)]
    say("study", f"{options.study}: {len(options.arm or study.arms)} arms of {study.recipe} x {seeds} seeds, "
                 f"{len(runs) - len(todo)} of {len(runs)} runs finished")  # fmt: skip
    if options.list:
        for run in runs:
            print(f"{'to do   ' if run in todo else 'finished'}  {run.name}: {' '.join(run.arguments)}")
        return
    _run_all(todo, len(runs), ["--out", options.out] if out != ROOT else [])  # a run's record repeats its command


def _run_all(todo: list[Run], total: int, more: list[str]) -> None:
    began = time.monotonic()
    for number, run in enumerate(todo):
        left = (time.monotonic() - began) / number * (len(todo) - number) if number else None
        say("run", f"{total - len(todo) + number + 1} of {total}, {run.name}"
                   + (f"; about {_hours(left)} left" if left is not None else ""))  # fmt: skip
        code = _train([*run.arguments, *more])
        if code > 128 and code - 128 in SIGNALS:
            raise Stopped(code - 128, f"in {run.name}")
        if code:
            raise UserError(f"{run.name} ended with exit code {code}, see above; the runs before it are finished")
    say("finished", f"all {total} runs; python -m reproduce.report writes their tables")


def _train(arguments: list[str]) -> int:
    """Train one run in a process of its own, to which signals are handed on; its exit code."""
    child = subprocess.Popen([sys.executable, "-m", "reproduce.launch", "reproduce.train", *arguments], cwd=ROOT,
                             start_new_session=True, preexec_fn=end_with_parent)  # fmt: skip
    handlers = {n: signal.signal(n, lambda number, frame: child.send_signal(number)) for n in SIGNALS}
    code = child.wait()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return 128 - code if code < 0 else code


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds > 5400 else f"{seconds / 60:.0f} minutes"


def _parser() -> Parser:
    parser = Parser(
        prog="run_train.sh --study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", help=", ".join(STUDIES))
    parser.add_argument("--seeds", type=int, help="seeds 1 to N of each arm; default: as the study is planned")
    parser.add_argument("--arm", action="append", default=[], help="this arm alone; may be given several times")
    parser.add_argument("--list", action="store_true", help="print the runs and which are finished")
    parser.add_argument("--out", default=str(ROOT), help="folder for logs/, checkpoints/, images/ (default: here)")
    return parser


if __name__ == "__main__":
    run_command(main)
