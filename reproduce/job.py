"""Before and after a run: the recipe chosen from the command line, files fetched, what to do with the result.

With several processes the first one does what touches files, and the others wait for it.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import paddle

from common.errors import UserError
from common.lock import locked
from data import dataset_sizes
from data.download import fetch
from models import has_batch_norm
from models.weights import PRETRAINED_URLS
from reproduce import ROOT, checkpoint, distributed, plan
from reproduce.cli import Parser, choose_device, has_gpu, parse, say
from reproduce.evaluate import describe
from reproduce.recipes import HEADLINE, RECIPES, SMALL, Recipe, add_options, get_recipe

# folders of logs/ and checkpoints/ that hold others
_NO_RUNS = (
    "evidence",
    "study",
    "growth_stages",
    "alignment",
    "bench",
    "published",
    "reliability",
    "pretrained",
    "exported",
)
_LONGEST_NAME = 200  # of a run; file systems end at 255, and a lock has a longer one
_SLOW_DAYS = 1 / 24  # from here on a run on a CPU is started with a warning


@dataclass
class Job:
    """One run as the command line asked for it; `result` is set when it had finished before."""

    recipe: Recipe
    run: str
    out: Path
    result: dict | None = None


@contextlib.contextmanager
def prepare(description: str):
    """Read the command line, say what was chosen, fetch what is missing; gives the Job and keeps its run locked.

    Exits after --list and --dry_run.
    """
    options = parse(_parser(description))
    if options.list:
        _print_list()
        sys.exit(0)
    changes = {f.name: getattr(options, f.name) for f in dataclasses.fields(Recipe) if hasattr(options, f.name)}
    recipe = get_recipe(options.recipe or (HEADLINE if has_gpu() else SMALL), **changes)
    job = Job(recipe, options.run or run_name(recipe), Path(options.out))
    _check_run_name(job.run)
    if recipe.batch_size < distributed.size():
        raise UserError(f"--batch_size {recipe.batch_size}: smaller than the {distributed.size()} processes, of which "
                        "each needs an image; start fewer (NPROC, CUDA_VISIBLE_DEVICES) or enlarge it")  # fmt: skip
    why = "a GPU is present" if has_gpu() else f"PaddlePaddle sees no GPU; {HEADLINE} needs one"
    chosen = "" if options.recipe else f" (chosen because {why})"
    say("recipe", f"{recipe.name}{chosen}: {recipe.summary}")
    if changes:
        say("changed", ", ".join(f"{name} = {value}" for name, value in changes.items()))
    device = choose_device(recipe.device)
    _check_precision(recipe.precision, device)
    say("device", f"{device}, {recipe.precision}{distributed.described()}" + " (auto)" * (recipe.device == "auto"))
    sizes = dataset_sizes(recipe.dataset, recipe.data_dir, **recipe.split())
    recipe = job.recipe = plan.with_epochs(recipe, sizes)
    config = recipe.network(sizes.classes)
    _check_batch_norm(recipe, config)
    planned = plan.make_plan(recipe, config, sizes, distributed.size())
    if options.dry_run:
        if distributed.is_main():
            _print_plan(job, planned, device)
        sys.exit(0)
    say("run", f"{job.run}: logs/, checkpoints/ and images/ in {job.out}")
    distributed.start()
    with _locked(job):
        if distributed.is_main():
            if options.restart:
                _set_aside(job)
            if _result_of_finished(job) is None:
                _before_training(job, device, planned)
        distributed.wait()
        job.result = _result_of_finished(job)
        distributed.same_everywhere(job.result is None, f"{job.out}: the processes see different files there; give "
                                 "--out a folder that all nodes share")  # fmt: skip
        if job.result is not None:
            say("finished", "this run was trained before; its result stands below (--restart trains it again)")
        yield job


@contextlib.contextmanager
def _locked(job: Job):
    """Keep other starts of the same run away while this one works on it."""
    if not distributed.is_main():
        yield
        return

    def busy(holder):
        raise UserError(f"the run {job.run} is being trained already, by {holder}; wait for it, or choose another "
                        "--run NAME")  # fmt: skip

    check_writable(job.out)
    folder = job.out / "checkpoints" / job.run
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(f".{folder.name}.lock"), busy):
        yield


def _before_training(job: Job, device: str, planned: plan.Plan) -> None:
    if device == "cpu":
        days, estimate = planned.estimate(plan.measured_flops_per_second())
        if days >= _SLOW_DAYS:
            say("warning", f"{estimate}; going on. --eval_every 0 leaves the evaluation out")
    for pretrained in (job.recipe.pretrained, job.recipe.second_pretrained):
        if pretrained:
            _fetch_pretrained(Path(pretrained))


def finish(job: Job) -> None:
    """Draw the curves and say where everything is."""
    if not distributed.is_main():
        return
    from reproduce import curves  # here, as matplotlib costs the start of a run a second

    picture = curves.draw_run(job.out / "logs" / job.run, job.out / "images" / f"{job.run}.png")
    best, last = job.result.get("best"), job.result["last"]
    weights = job.out / "checkpoints" / job.run / ("best.pdparams" if best else "last.pdparams")
    if best:
        what = {"validation": "the validation images, as there are no test images,", "all": "all images, as none are "
                "held out,"}.get(job.result.get("test_is"), "test")  # fmt: skip
        say("best", f"step {best['step']:,} (chosen on {best['selected_on']}): {what} {describe(best['test'])}")
        for network in ("first", "second"):
            if f"test_{network}" in best:
                say(f"  {network}", describe(best[f"test_{network}"]))
        say("last", f"step {last['step']:,}: {what} {describe(last['test'])}")
    else:
        say("last", f"step {last['step']:,}, not evaluated (--eval_every 0)")
    say(
        "evidence",
        f"{_shown(job.out / 'logs' / job.run)}/ (run.json, metrics.jsonl{', predictions.npz' if best else ''})",
    )
    say("curves", _shown(picture))
    say(
        "evaluate",
        shlex.join(
            [
                "bash",
                "run_eval.sh",
                str(_shown(weights)),
                *(["--data_dir", job.recipe.data_dir] if job.recipe.data_dir else []),
            ]
        ),
    )
    board = "" if job.out == ROOT else f" --logdir {shlex.quote(str(job.out / 'logs'))}"
    say("dashboard", f"bash run_board.sh{board}")


def run_name(recipe: Recipe) -> str:
    """Recipe, changed settings and seed, so that runs of different meaning have folders of their own."""
    standard = RECIPES[recipe.name].meaning()
    changed = [
        f"{name}_{value}"
        for name, value in recipe.meaning().items()
        if value != standard[name] and name not in ("seed", "pretrained")
    ]
    name = "-".join([recipe.name, *changed, f"seed{recipe.seed}"]).replace("/", "_")
    if len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:12]
    return f"{recipe.name}-{len(changed)}_changed-{digest}-seed{recipe.seed}"


def _check_run_name(run: str) -> None:
    parts = Path(run).parts
    if not parts or Path(run).is_absolute() or ".." in parts or str(Path(run)) in _NO_RUNS:
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


def _check_batch_norm(recipe: Recipe, config) -> None:
    """Batch norm sees the images that are computed together, so these must be the batch on any hardware."""
    if not has_batch_norm(config):
        return
    if recipe.recompute:
        raise UserError("--recompute true: only ViTs can compute their blocks twice; batch norm would count them twice")
    if distributed.size() > 1:
        raise UserError(f"{recipe.name}: a network with batch norm is trained by one process here, as its statistics "
                        "are those of the whole batch; set NPROC=1 or CUDA_VISIBLE_DEVICES=0")  # fmt: skip
    if recipe.micro_batch_size < recipe.batch_size:
        raise UserError(f"--micro_batch_size {recipe.micro_batch_size}: a network with batch norm takes the statistics "
                        f"of the whole batch of {recipe.batch_size}; give both the same")  # fmt: skip


def check_writable(out: Path) -> None:
    """Raise UserError now rather than after hours if a run's folders cannot be written."""
    for name in ("logs", "checkpoints", "images"):
        folder = out / name
        probe = folder / ".writable"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink(missing_ok=True)  # another start may have the same moment
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
    try:
        header = json.loads(header_file.read_text())
        header["recipe"].items(), header["finished"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{header_file}: is damaged; remove it (the run then continues from its checkpoints)") from None
    checkpoint.check_same_meaning(header["recipe"], job.recipe.meaning(), header_file.parent)
    if not header["finished"]:
        return None
    if not weights.exists():
        raise UserError(f"{header_file.parent}: holds the record of a finished run whose weights are not here; say "
                        "--restart to set it aside and train again, or choose another --run NAME")  # fmt: skip
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
