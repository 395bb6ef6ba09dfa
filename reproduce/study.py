"""A study: arms x seeds of a recipe, each run through train.py.

    bash run_train.sh --study digits                      10 seeds of six arms, one run after the other
    bash run_train.sh --study digits --jobs 2             two runs at a time, each on half of the cores: sooner done
    bash run_train.sh --study digits --list               its runs, which are finished, hours on a GPU
    bash run_train.sh --study cifar100_fast --jobs 4      four GPUs, a run on each
    bash run_train.sh --study cifar100_102 --jobs 2 --data_dir DIR --pretrained FILE

Runs land in logs/study/ and checkpoints/study/; with --jobs above 1, their output in checkpoints/study/NAME.txt.
Finished runs are left out, also those that come with this project (--out FOLDER repeats them elsewhere), and stopped
ones continue. Other options go to every run. The number of threads, and so --jobs, changes the last digits.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import paddle

from common.errors import UserError, near
from common.system import end_with_parent
from models.vit import ViTConfig
from reproduce import PROCESSOR_SETTINGS, ROOT, plan
from reproduce.checkpoint import changed_settings
from reproduce.cli import SIGNALS, Parser, Stopped, StopRequest, has_gpu, parse, run_command, say
from reproduce.recipes import RECIPES, Recipe, add_options, get_recipe
from reproduce.run_log import read_header

_FOR_A_CPU = 1e17  # FLOPs up to which a study may be run without a GPU


class Study(NamedTuple):
    """What is compared: changes of a recipe's settings by the name of the arm."""

    recipe: str
    arms: dict[str, dict]
    seeds: int


def _study(recipe: str, seeds: int, rdrop: dict[str, dict], twice_rate=None, more_images: int = 0, **shared) -> Study:
    """One view; one view for twice the steps (R-Drop's compute); two views without KL; R-Drop at some strengths.

    `shared` are settings of all arms, `twice_rate` the peak rate of the second where it has one of its own.
    `more_images`: the batch size of a last arm, which spends the compute of two views on as many different images.
    """
    planned = {**asdict(RECIPES[recipe]), **shared}
    twice = {name: 2 * planned[name] for name in ("num_steps", "warmup_steps", "eval_every")}
    if twice_rate is not None:
        twice["learning_rate"] = twice_rate
    arms = {
        "baseline": {**shared, "num_views": 1},
        "baseline_twice": {"num_views": 1, **shared, **twice},
        "two_views": {**shared, "alpha": 0.0},
        **{name: {**shared, **changes} for name, changes in rdrop.items()},
    }
    if more_images:
        arms[f"baseline_{more_images}"] = {**arms["baseline"], "batch_size": more_images}
    return Study(recipe, arms, seeds)


# alpha 0.3; the KL a mean (the paper's text), summed over 8 images (the Paddle port), over 32 (the official code)
_SUMS = {f"rdrop_x{n}": {"alpha": 0.3, "kl_sum_over": n} for n in (1, 8, 32)}

STUDIES = {
    "digits": _study("digits", 10, {f"rdrop_{a:g}": {"alpha": a} for a in (0.3, 1.0, 3.0)}),
    "cifar100": _study("cifar100_vit_ti16", 5, _SUMS),
    "cifar100_few": _study("cifar100_vit_ti16_few", 5, _SUMS),
    "cifar100_102": _study(  # rates and the strength of rdrop_best: logs/tuning, by the rule in docs/results.md
        "cifar100_vit_ti16_few",
        5,
        {"rdrop_0.3": {"alpha": 0.3}, "rdrop_best": {"alpha": 0.1}},
        twice_rate=0.01,
        more_images=128,
        num_steps=1600,
        warmup_steps=80,
        eval_every=200,
        learning_rate=0.02,
    ),
    "cifar100_fast": _study(
        "cifar100_vit_b16_fast", 5, {f"rdrop_{a:g}": {"alpha": a} for a in (0.3, 0.1)}, more_images=128
    ),
}


class StudyRun(NamedTuple):
    name: str
    recipe: Recipe
    arguments: list[str]


def runs_of(name: str, seeds: int, arms: list[str], more: list[str]) -> list[StudyRun]:
    """Every run of the study, seed by seed, so that all arms are equally far when it is stopped."""
    study, parser = STUDIES[name], Parser()
    add_options(parser)
    changes = vars(parse(parser, more))
    found = []
    for seed in range(1, seeds + 1):
        for arm in arms:
            if clash := sorted(study.arms[arm].keys() & changes.keys()):
                text = f"--{clash[0]}: the arm {arm} is defined by its own"
                raise UserError(f"{text}; leave it out, or choose other arms with --arm (--list shows what each sets)")
            settings = {**study.arms[arm], "seed": seed, "run": f"study/{name}-{arm}-seed{seed}"}
            recipe = get_recipe(study.recipe, **{**study.arms[arm], "seed": seed, **changes})
            options = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
            found.append(StudyRun(settings["run"], recipe, [study.recipe, *options, *more]))
    return found


def finished(run: StudyRun, out: Path) -> bool:
    """Whether the record of the run says that it went to its end. Raises UserError for one with other settings."""
    folder = out / "logs" / run.name
    header, wanted = read_header(folder), plan.with_sizes(run.recipe)[0].meaning()  # epochs as steps
    if header is None:
        return False
    if wanted["precision"] == "auto":  # settled by the machine that it ran on
        del wanted["precision"]
    if changed := changed_settings(_with_file_name(header["recipe"]), _with_file_name(wanted)):
        text = f"{folder}: holds a run with other settings ({changed})"
        raise UserError(f"{text}; say --out FOLDER to keep this study apart")
    return header["finished"]


def _with_file_name(settings: dict) -> dict:
    """The settings without the folder of the weight file: who repeats a study has the same file elsewhere."""
    return {**settings, "pretrained": Path(str(settings.get("pretrained", ""))).name}


def main() -> None:
    options, more = _options()
    study, out = STUDIES[options.study], Path(options.out)
    seeds, arms = options.seeds or study.seeds, options.arm or list(study.arms)
    runs = runs_of(options.study, seeds, arms, more)
    todo = [run for run in runs if not finished(run, out)]
    text = f"{options.study}: {len(arms)} arms of {study.recipe} x {seeds} seeds"
    say("study", f"{text}, {len(runs) - len(todo)} of {len(runs)} runs finished")
    if todo:
        say("time", _estimate(todo))
    if options.list:
        for run in runs:
            print(f"{'to do   ' if run in todo else 'finished'}  {run.name}: {' '.join(run.arguments)}")
        return
    Runner(todo, len(runs), options.jobs, out).run()


def _options():
    """What the command line says of the study, and the words for every run."""
    parser = Parser(prog="run_train.sh --study", description=__doc__)
    parser.add_argument("study", help=", ".join(STUDIES))
    parser.add_argument("--seeds", type=int, help="seeds 1 to N of each arm; default: as the study is planned")
    parser.add_argument("--arm", action="append", default=[], help="this arm alone; may be given several times")
    text = "runs at a time, each on its share of the CPU cores or a GPU (default 1)"
    parser.add_argument("--jobs", type=int, default=1, help=text)
    parser.add_argument("--list", action="store_true", help="print the runs and which are finished")
    parser.add_argument("--out", default=str(ROOT), help="folder for logs/, checkpoints/, images/ (default: here)")
    options, more = parser.parse_known_args()
    if options.study not in STUDIES:
        raise UserError(f"unknown study {options.study!r}: {near(options.study, STUDIES)}")
    if any(word.split("=")[0] in ("--run", "--seed", "--restart", "--dry_run") for word in more):
        raise UserError("--run, --seed, --restart and --dry_run are not for studies; choose --seeds N, --arm, --list")
    for name in ("seeds", "jobs"):
        number = getattr(options, name)
        if number is not None and number < 1:
            raise UserError(f"--{name} {number}: must be at least 1")
    for arm in options.arm:
        if arm not in STUDIES[options.study].arms:
            raise UserError(f"--arm {arm}: {near(arm, STUDIES[options.study].arms)}")
    if (gpus := _gpus()) and options.jobs > len(gpus):
        raise UserError(f"--jobs {options.jobs}: there are {len(gpus)} visible GPUs, and each run takes one")
    return options, more


def _estimate(todo: list[StudyRun]) -> str:
    """How long the matrix products of these runs take: on the GPU here, or on an A100 where they need a GPU."""
    training = evaluation = 0
    for run in todo:
        recipe, config, sizes = plan.with_sizes(run.recipe)
        if not isinstance(config, ViTConfig):
            return "estimated for ViTs only"
        updates, evaluations = plan.flops_of_run(recipe, config, sizes)
        training += updates
        evaluation += evaluations
    gpu = plan.gpu_here() if has_gpu() else None
    if gpu is None and training > _FOR_A_CPU:
        gpu = plan.gpu_named("A100 40GB")
    return plan.time_needed(training, evaluation, plan.resolve(recipe, config, gpu, 1).precision, gpu)


def _gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES would call each GPU."""
    if not has_gpu():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return named.split(",") if named else [str(n) for n in range(paddle.device.cuda.device_count())]


class Runner:
    """Run `todo`, `jobs` of them at a time. One that fails, or a signal, ends the others too: they save and stop."""

    def __init__(self, todo: list[StudyRun], total: int, jobs: int, out: Path):
        self.total, self.jobs, self.out = total, jobs, out
        self.waiting = deque(todo)
        self.places = list(range(jobs))  # that are free; a place is a GPU where there are some
        self.running: dict[subprocess.Popen, tuple[StudyRun, int]] = {}  # and its place
        self.failed: list[tuple[StudyRun, int]] = []  # and its exit code, as shells give it

    def run(self) -> None:
        """To the end of all runs, or of those under way when one fails or a signal comes."""
        with StopRequest() as stop:
            try:
                while (self.waiting or self.running) and not (self.failed or stop.signal):
                    while self.waiting and self.places and not stop.signal:
                        self._start(self.waiting.popleft())
                    time.sleep(0.1)
                    self._collect()
            finally:  # also when a process cannot be started, or nobody reads what is printed
                for child in self.running:
                    child.send_signal(stop.signal or signal.SIGTERM)
                for child in self.running:
                    child.wait()
                self._collect()
        if self.failed:
            self._report()
        if self.waiting:
            raise Stopped(stop.signal, f"before {self.waiting[0].name}")
        say("finished", f"all {self.total} runs; python -m reproduce.report writes their tables")

    def _start(self, run: StudyRun) -> None:
        """Train one run in a process of its own. Of several at a time each has its share of the machine, and a file."""
        say("run", f"{self.total - len(self.waiting)} of {self.total}, {run.name}")
        words = [sys.executable, "-m", "reproduce.launch", "reproduce.train", *run.arguments]
        if self.out != ROOT:  # a run's record repeats its command
            words += ["--out", str(self.out)]
        place = self.places.pop(0)
        threads = int(PROCESSOR_SETTINGS["OMP_NUM_THREADS"].split(",")[0]) // self.jobs
        environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, threads))}
        if self.jobs > 1 and (gpus := _gpus()):
            environment["CUDA_VISIBLE_DEVICES"] = gpus[place]
        output = self._output(run)
        output.parent.mkdir(parents=True, exist_ok=True)
        with open(output, "a") if self.jobs > 1 else contextlib.nullcontext() as file:  # None: the terminal
            options = {"env": environment, "stdout": file, "stderr": file, "cwd": ROOT, "start_new_session": True}
            child = subprocess.Popen(words, **options, preexec_fn=partial(end_with_parent, os.getpid()))
        self.running[child] = run, place

    def _collect(self) -> None:
        for child in [child for child in self.running if child.poll() is not None]:
            run, place = self.running.pop(child)
            self.places.append(place)
            if code := child.returncode:
                self.failed.append((run, 128 - code if code < 0 else code))

    def _output(self, run: StudyRun) -> Path:
        return self.out / "checkpoints" / f"{run.name}.txt"

    def _report(self) -> None:
        """Raise what says which of the runs failed and how; of several that one which was not stopped by a signal."""
        run, code = min(self.failed, key=lambda end: end[1] - 128 in SIGNALS)
        if code - 128 in SIGNALS:
            raise Stopped(code - 128, f"in {run.name}")
        where = "above"
        if self.jobs > 1:
            where = self._output(run)
            print(*where.read_text(errors="replace").splitlines()[-10:], sep="\n", file=sys.stderr)
        raise UserError(f"{run.name} ended with exit code {code}, see {where}; the same command goes on")


if __name__ == "__main__":
    run_command(main)
