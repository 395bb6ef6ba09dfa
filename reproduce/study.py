"""A study: arms x seeds of a recipe, each run through train.py.

    bash run_train.sh --study digits                      10 seeds of six arms, one run after the other
    bash run_train.sh --study digits --jobs 2             two runs at a time, each on half of the cores: sooner done
    bash run_train.sh --study digits --list               its arms, and which runs are finished
    bash run_train.sh --study cifar100 --jobs 2 --data_dir DIR --pretrained FILE

Runs land in logs/study/ and checkpoints/study/; of several at a time each writes what it prints to
checkpoints/study/NAME.txt. What is finished is left out, what was stopped continues, so the same
command may be stopped and started at any time. Options that the study does not know go to every run. The number of
threads changes the order in which a matrix product adds up and so the last digits: repeat a study with the same --jobs.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError, near
from common.processes import end_with_parent
from reproduce import PROCESSOR_SETTINGS, ROOT
from reproduce.checkpoint import changed_settings
from reproduce.cli import Parser, parse, run_command, say
from reproduce.recipes import RECIPES, Recipe, add_options, get_recipe
from reproduce.stop import SIGNALS, Stopped


@dataclass(frozen=True)
class Study:
    """What is compared: changes of a recipe's settings by the name of the arm."""

    recipe: str
    arms: dict[str, dict]
    seeds: int


def _arms(recipe: str, strengths: dict[str, dict]) -> dict[str, dict]:
    """Baseline, the same with twice the steps (R-Drop's compute), two views without KL, R-Drop at some strengths."""
    twice = {name: 2 * getattr(RECIPES[recipe], name) for name in ("num_steps", "warmup_steps", "eval_every")}
    return {
        "baseline": {"num_views": 1},
        "baseline_twice": {"num_views": 1, **twice},
        "two_views": {"alpha": 0.0},
        **strengths,
    }


def _summed(times: int, **more) -> dict:
    """The official code's alpha with the KL summed over micro-batches of `times` images: that many times as strong."""
    return {"alpha": 0.3, "kl_sum_over": times, **more}


# the mean (the paper's text), the sum over 8 images (the Paddle port) and over 32 (the official code)
_SUMS = {f"rdrop_x{times}": _summed(times) for times in (1, 8, 32)}

# 102 epochs of 1,000 images, as the paper trains on 50,000. Rates and the strength of rdrop_best: logs/tuning, by
# the rule in docs/results.md.
_102 = {"num_steps": 1600, "warmup_steps": 80, "eval_every": 200, "learning_rate": 0.02}
_TWICE_102 = {"num_steps": 3200, "warmup_steps": 160, "eval_every": 400, "learning_rate": 0.01}
_ARMS_102 = {
    "baseline": {**_102, "num_views": 1},
    "baseline_twice": {**_TWICE_102, "num_views": 1},
    "baseline_128": {**_102, "num_views": 1, "batch_size": 128},
    "two_views": {**_102, "alpha": 0.0},
    "rdrop_0.3": {**_102, "alpha": 0.3},
    "rdrop_best": {**_102, "alpha": 0.1},
}

STUDIES = {
    "digits": Study("digits", _arms("digits", {f"rdrop_{a:g}": {"alpha": a} for a in (0.3, 1.0, 3.0)}), seeds=10),
    "cifar100": Study(
        "cifar100_vit_ti16",
        _arms("cifar100_vit_ti16", {
            **_SUMS,
            **{f"shared_{k}": _summed(1, views_split_at=k) for k in (6, 9, 11)},
        }),
        seeds=5,
    ),
    "cifar100_few": Study("cifar100_vit_ti16_few", _arms("cifar100_vit_ti16_few", _SUMS), seeds=5),
    "cifar100_102": Study("cifar100_vit_ti16_few", _ARMS_102, seeds=5),
}  # fmt: skip


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
    for arm in arms:
        if clash := sorted(study.arms[arm].keys() & changes.keys()):
            raise UserError(f"--{clash[0]}: the arm {arm} is defined by its own; leave it out, or choose other arms "
                            "with --arm (--list shows what each sets)")  # fmt: skip
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
        recipe, is_finished = record["recipe"], bool(record["finished"])
        changed = changed_settings(recipe, run.recipe.meaning())
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        raise UserError(f"{header}: is not the record of a run; remove its folder or mend it") from None
    if changed:
        raise UserError(f"{header.parent}: holds a run with other settings ({changed}); say --out FOLDER to keep this "
                        "study apart")  # fmt: skip
    return is_finished


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
    if options.jobs < 1:
        raise UserError(f"--jobs {options.jobs}: must be at least 1")
    out = Path(options.out)
    runs = runs_of(options.study, seeds, options.arm or list(study.arms), more)
    todo = [run for run in runs if not finished(run, out)]
    say("study", f"{options.study}: {len(options.arm or study.arms)} arms of {study.recipe} x {seeds} seeds, "
                 f"{len(runs) - len(todo)} of {len(runs)} runs finished")  # fmt: skip
    if options.list:
        for run in runs:
            print(f"{'to do   ' if run in todo else 'finished'}  {run.name}: {' '.join(run.arguments)}")
        return
    _run_all(todo, len(runs), options.jobs, out)


def _run_all(todo: list[Run], total: int, jobs: int, out: Path) -> None:
    """Run `todo`, `jobs` of them at a time. One that fails, or a signal, ends the others too: they save and stop."""
    waiting, running, failed = deque(todo), {}, []
    asked, told = [], 0  # signals, and how many of them the runs have been told: each is told once
    before = {number: signal.signal(number, lambda number, frame: asked.append(number)) for number in SIGNALS}
    began = time.monotonic()
    try:
        while running or (waiting and not failed and not asked):
            while waiting and len(running) < jobs and not failed and not asked:
                run = waiting.popleft()
                say("run", f"{total - len(waiting)} of {total}, {run.name}"
                           + _time_left(began, len(todo) - len(waiting) - 1 - len(running), running, todo))  # fmt: skip
                running[_start(run, jobs, out)] = run
            time.sleep(0.1)
            for number in asked[told:]:
                _tell(running, number)
                told += 1
            for child in [child for child in running if child.poll() is not None]:
                run = running.pop(child)
                if child.returncode and not failed and not asked:
                    _tell(running, signal.SIGTERM)
                if child.returncode:
                    failed.append((run, child.returncode))
    finally:  # also when a process cannot be started, or nobody reads what is printed
        _tell(running, signal.SIGTERM)
        for child in running:
            child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    if failed:
        _report(failed, jobs, out)
    if waiting:
        raise Stopped(asked[0], f"before {waiting[0].name}")
    say("finished", f"all {total} runs; python -m reproduce.report writes their tables")


def _tell(running, number: int) -> None:
    for child in running:
        child.send_signal(number)


def _time_left(began: float, ended: int, running, todo: list[Run]) -> str:
    if not ended:
        return ""
    done = ended + len(running) / 2  # half of those under way, on average
    return f"; about {_hours((time.monotonic() - began) / done * (len(todo) - done))} left"


def _start(run: Run, jobs: int, out: Path) -> subprocess.Popen:
    """Train one run in a process of its own. Of several at a time each has its share of the cores, and a file."""
    arguments = [*run.arguments, *(["--out", str(out)] if out != ROOT else [])]  # a run's record repeats its command
    words = [sys.executable, "-m", "reproduce.launch", "reproduce.train", *arguments]
    options = {"cwd": ROOT, "start_new_session": True, "preexec_fn": end_with_parent}
    if jobs == 1:
        return subprocess.Popen(words, **options)
    threads = max(1, int(PROCESSOR_SETTINGS["OMP_NUM_THREADS"].split(",")[0]) // jobs)
    output = _output(run, out)
    output.parent.mkdir(parents=True, exist_ok=True)
    with open(output, "a") as file:
        return subprocess.Popen(
            words, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, stdout=file, stderr=file, **options
        )


def _output(run: Run, out: Path) -> Path:
    return out / "checkpoints" / f"{run.name}.txt"


def _report(failed: list[tuple[Run, int]], jobs: int, out: Path) -> None:
    """Raise what says which of the runs failed and how; of several that one which was not stopped by a signal."""
    ends = [(run, 128 - code if code < 0 else code) for run, code in failed]
    run, code = min(ends, key=lambda end: end[1] - 128 in SIGNALS)
    if code - 128 in SIGNALS:
        raise Stopped(code - 128, f"in {run.name}")
    where = "above"
    if jobs > 1:
        where = str(_output(run, out))
        print("\n".join(_output(run, out).read_text(errors="replace").splitlines()[-10:]), file=sys.stderr)
    raise UserError(
        f"{run.name} ended with exit code {code}, see {where}; finished runs stay, the same command goes on"
    )


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds > 5400 else f"{seconds / 60:.0f} minutes"


def _parser() -> Parser:
    parser = Parser(
        prog="run_train.sh --study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", help=", ".join(STUDIES))
    parser.add_argument("--seeds", type=int, help="seeds 1 to N of each arm; default: as the study is planned")
    parser.add_argument("--arm", action="append", default=[], help="this arm alone; may be given several times")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time, each on its share of the CPU cores (default 1)"
    )
    parser.add_argument("--list", action="store_true", help="print the runs and which are finished")
    parser.add_argument("--out", default=str(ROOT), help="folder for logs/, checkpoints/, images/ (default: here)")
    return parser


if __name__ == "__main__":
    run_command(main)
