"""Before and after a run: the recipe chosen from the command line, files fetched, what to do with the result."""

import argparse
import dataclasses
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import paddle

from common.errors import UserError
from data.download import fetch
from models import model_config
from models.pretrained import PRETRAINED_URLS
from reproduce import ROOT, checkpoint, plan, plot
from reproduce.command import Parser, choose_device, has_gpu, parse, say
from reproduce.evaluate import describe
from reproduce.recipes import HEADLINE, RECIPES, SMALL, Recipe, add_options, get_recipe

_NO_RUNS = ("evidence", "alignment", "pretrained", "exported")  # folders of logs/ and checkpoints/ that hold others
_SLOW_DAYS = 1 / 24  # from here on a run on a CPU is started with a warning


@dataclass
class Job:
    """One run as the command line asked for it; `result` is set when it had finished before."""

    recipe: Recipe
    run: str
    out: Path
    result: dict | None = None


def prepare(description: str) -> Job:
    """Read the command line, say what was chosen, fetch what is missing. Exits after --list and --dry_run."""
    options = parse(_parser(description))
    if options.list:
        _print_list()
        sys.exit(0)
    if int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) > 1:  # set by paddle.distributed.launch
        raise UserError("this version trains on one process; start it without paddle.distributed.launch")
    changes = {f.name: getattr(options, f.name) for f in dataclasses.fields(Recipe) if hasattr(options, f.name)}
    recipe = get_recipe(options.recipe or (HEADLINE if has_gpu() else SMALL), **changes)
    job = Job(recipe, options.run or run_name(recipe), Path(options.out))
    _check_run_name(job.run)
    why = "a GPU is present" if has_gpu() else f"PaddlePaddle sees no GPU; {HEADLINE} needs one"
    chosen = "" if options.recipe else f" (chosen because {why})"
    say("recipe", f"{recipe.name}{chosen}: {recipe.summary}")
    if changes:
        say("changed", ", ".join(f"{name} = {value}" for name, value in changes.items()))
    device = choose_device(recipe.device)
    _check_precision(recipe.precision, device)
    say("device", f"{device}, {recipe.precision}" + ("" if recipe.device != "auto" else " (auto)"))
    config = model_config(recipe.model, recipe.num_classes, recipe.image_size, **recipe.dropout_rates())
    planned = plan.make_plan(recipe, config)
    if options.dry_run:
        _print_plan(job, planned, device)
        sys.exit(0)
    say("run", f"{job.run}: logs/, checkpoints/ and images/ in {job.out}")
    if options.restart:
        _set_aside(job)
    job.result = _result_of_finished(job)
    if job.result is None:
        if device == "cpu":
            days, estimate = planned.estimate(plan.measured_flops_per_second())
            if days >= _SLOW_DAYS:
                say("warning", f"{estimate}; going on. --eval_every 0 leaves the evaluation out")
        if recipe.pretrained:
            _fetch_pretrained(Path(recipe.pretrained))
        check_writable(job.out)
    return job


def finish(job: Job) -> None:
    """Draw the curves and say where everything is."""
    picture = plot.draw_run(job.out / "logs" / job.run, job.out / "images" / f"{job.run}.png")
    best, last = job.result.get("best"), job.result["last"]
    weights = job.out / "checkpoints" / job.run / ("best.pdparams" if best else "last.pdparams")
    if best:
        say("best", f"step {best['step']:,} (chosen on {best['selected_on']}): test {describe(best['test'])}")
        say("last", f"step {last['step']:,}: test {describe(last['test'])}")
    else:
        say("last", f"step {last['step']:,}, not evaluated (--eval_every 0)")
    say(
        "evidence",
        f"{_shown(job.out / 'logs' / job.run)}/ (run.json, metrics.jsonl{', predictions.npz' if best else ''})",
    )
    say("curves", _shown(picture))
    say(
        "evaluate",
        f"bash run_eval.sh {_shown(weights)}" + (f" --data_dir {job.recipe.data_dir}" if job.recipe.data_dir else ""),
    )
    board = "" if job.out == ROOT else f" --logdir {job.out / 'logs'}"
    say("dashboard", f"bash run_board.sh{board}")


def run_name(recipe: Recipe) -> str:
    """Recipe, changed settings and seed, so that runs of different meaning have folders of their own."""
    standard = RECIPES[recipe.name].meaning()
    changed = [
        f"{name}_{value}"
        for name, value in recipe.meaning().items()
        if value != standard[name] and name not in ("seed", "pretrained")
    ]
    return "-".join([recipe.name, *changed, f"seed{recipe.seed}"]).replace("/", "_")


def _check_run_name(run: str) -> None:
    parts = Path(run).parts
    if not parts or Path(run).is_absolute() or ".." in parts or run in _NO_RUNS:
        raise UserError(f"--run {run}: must be a name, or a path below logs/ without '..', and not one of "
                        f"{', '.join(_NO_RUNS)}")  # fmt: skip


def _check_precision(precision: str, device: str) -> None:
    if precision != "fp32" and device == "cpu":
        raise UserError(f"--precision {precision}: Paddle's CPU build has no {precision} matrix product; "
                        "use --precision fp32 or a GPU")  # fmt: skip
    supported = {"bf16": paddle.amp.is_bfloat16_supported, "fp16": paddle.amp.is_float16_supported}
    if precision in supported and not supported[precision]():
        raise UserError(f"--precision {precision}: this GPU cannot compute in it, and Paddle would take fp32 "
                        "without a word; use --precision fp32")  # fmt: skip


def check_writable(out: Path) -> None:
    """Raise UserError now rather than after hours if a run's folders cannot be written."""
    for name in ("logs", "checkpoints", "images"):
        folder = out / name
        probe = folder / ".writable"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror}); mend it or give --out FOLDER") from None


def _parser(description: str) -> Parser:
    parser = Parser(
        prog="run_train.sh", description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("recipe", nargs="?", help="a name that --list prints; without one the headline or digits")
    parser.add_argument("--list", action="store_true", help="print the recipes")
    parser.add_argument("--dry_run", action="store_true", help="print everything about the run without running it")
    parser.add_argument("--run", help="name of the run; default: recipe, changed settings and seed")
    parser.add_argument("--restart", action="store_true", help="set a run of that name aside and start over")
    parser.add_argument("--out", default=str(ROOT), help="folder for logs/, checkpoints/, images/ (default: here)")
    add_options(parser.add_argument_group("single settings of the recipe (defaults: --dry_run prints them)"))
    return parser


def _print_list() -> None:
    for recipe in RECIPES.values():
        print(f"{recipe.name:28} {recipe.summary}")


def _print_plan(job: Job, planned: plan.Plan, device: str) -> None:
    recipe = job.recipe
    for line in plan.describe(recipe, planned):
        print(line)
    if device == "cpu":
        say("time", planned.estimate(plan.measured_flops_per_second())[1])
    for path, address in plan.needed_files(recipe).items():
        missing = f"missing; will be fetched from {address}" if address else "missing; put it there"
        say("file", f"{_shown(path)}: {'there' if path.exists() else missing}")
    say("settings", ", ".join(f"{name} = {value}" for name, value in recipe.meaning().items()))


def _fetch_pretrained(path: Path) -> None:
    if path.exists():
        return
    url = PRETRAINED_URLS.get(path.name)
    if url is None or path.resolve().parent != ROOT / "checkpoints" / "pretrained":  # elsewhere it is a slip
        raise UserError(f"{path}: no such file; give an existing one with --pretrained FILE ('' = random weights)")
    fetch(url, path)


def _result_of_finished(job: Job) -> dict | None:
    """The result of a run of the same name and meaning that went to its end, None otherwise."""
    header_file = job.out / "logs" / job.run / "run.json"
    weights = job.out / "checkpoints" / job.run / "last.pdparams"
    if not header_file.exists():
        return None
    header = json.loads(header_file.read_text())
    checkpoint.check_same_meaning(header["recipe"], job.recipe.meaning(), header_file.parent)
    if not header["finished"]:
        return None
    if not weights.exists():
        raise UserError(f"{header_file.parent}: holds the record of a finished run whose weights are not here; say "
                        "--restart to set it aside and train again, or choose another --run NAME")  # fmt: skip
    say("finished", "this run was trained before; its result stands below (--restart trains it again)")
    return header["result"]


def _set_aside(job: Job) -> None:
    for kind in ("logs", "checkpoints"):
        folder = job.out / kind / job.run
        if folder.exists():
            number = 1
            while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
                number += 1
            folder.rename(aside)
            say("restart", f"the earlier {kind} are now in {_shown(aside)}")


def _shown(path: Path) -> Path:
    """A path as the user would type it from the project's root."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
