"""From the command line to a job: the recipe, the device, what is chosen for it, files fetched, the run locked.

With several processes the first one does what touches files, and the others wait for it.
"""

import contextlib
import dataclasses
import math
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from common.system import locked
from data import Sizes, dataset_files, load_dataset
from data.download import fetch
from models import Config, count_parameters, has_batch_norm
from models.vit import ViTConfig
from models.weights import PRETRAINED_URLS
from reproduce import ROOT, checkpoint, distributed, plan
from reproduce.cli import Parser, choose_device, has_gpu, parse, say
from reproduce.evaluate import describe
from reproduce.recipes import HEADLINE, PRECISIONS, RECIPES, SETTINGS, SMALL, Recipe, add_options, get_recipe
from reproduce.run_log import read_header

_LONGEST_NAME = 200  # of a run; file systems end at 255, and a lock has a longer one


@dataclass
class Job:
    """One run as the command line asked for it; `result` is set when it had finished before."""

    recipe: Recipe  # with nothing left to `auto`
    run: str
    out: Path
    fused: bool = False  # attention in one kernel
    result: dict | None = None

    @property
    def logs(self) -> Path:
        return self.out / "logs" / self.run

    @property
    def saved(self) -> Path:
        return self.out / "checkpoints" / self.run


@contextlib.contextmanager
def prepare(description: str):
    """Read the command line, say what was chosen, fetch what is missing; gives the Job and keeps its run locked.

    Exits after --list, --dry_run and --fetch_only.
    """
    options = parse(_parser(description))
    if options.list:
        for recipe in RECIPES.values():
            print(f"{recipe.name:28} {recipe.summary}")
        sys.exit(0)
    recipe = _recipe(options)
    job = Job(recipe, options.run or run_name(recipe), Path(options.out))
    _check_run_name(job)
    if options.gpu and not options.dry_run:
        raise UserError(f"--gpu {options.gpu}: is for --dry_run; a run takes the GPU that is there")
    _settle(job, options)
    if options.fetch_only:
        _fetch_pretrained(recipe)
        load_dataset(recipe.dataset, recipe.data_dir, **recipe.split(), strict=recipe.strict, workers=recipe.workers)
    if options.fetch_only or options.dry_run:
        sys.exit(0)
    say("run", f"{job.run}: logs/, checkpoints/ and images/ in {job.out}")
    distributed.start()
    text = "the processes would compute in different precisions, as their GPUs differ; say --precision fp32"
    distributed.same_everywhere(PRECISIONS.index(job.recipe.precision), text)
    with contextlib.ExitStack() as held:
        if distributed.is_main():
            held.enter_context(_lock(job))
            if options.restart:
                _set_aside(job)
            if _result_of_finished(job) is None:
                _fetch_pretrained(job.recipe)
        distributed.wait()
        job.result = _result_of_finished(job)
        text = f"{job.out}: the processes see different files there; give --out a folder that all nodes share"
        distributed.same_everywhere(job.result is None, text)
        if job.result is not None:
            say("finished", "this run was trained before; its result stands below (--restart trains it again)")
        yield job


def _recipe(options) -> Recipe:
    changes = {field.name: getattr(options, field.name) for field in SETTINGS if hasattr(options, field.name)}
    recipe = get_recipe(options.recipe or (HEADLINE if has_gpu() or options.gpu else SMALL), **changes)
    if recipe.batch_size < distributed.size():
        text = f"--batch_size {recipe.batch_size}: smaller than the {distributed.size()} processes"
        raise UserError(f"{text}; start fewer (NPROC, CUDA_VISIBLE_DEVICES) or enlarge it")
    why = f"PaddlePaddle sees no GPU; {HEADLINE} needs one" if recipe.name == SMALL else "a GPU computes it"
    chosen = "" if options.recipe else f" (chosen because {why})"
    say("recipe", f"{recipe.name}{chosen}: {recipe.summary}")
    if changes:
        say("changed", ", ".join(f"{name} = {value}" for name, value in changes.items()))
    return recipe


def _settle(job: Job, options) -> None:
    """Choose precision, micro-batch and attention for this machine, or for the GPU that --gpu names; say them."""
    wished, gpu = job.recipe, None
    device = choose_device("cpu" if options.gpu else wished.device)
    if options.gpu:
        gpu, device = plan.gpu_named(options.gpu), f"as on {options.gpu}"
    elif device != "cpu":
        gpu = plan.gpu_here()
    recipe, config, sizes = plan.with_sizes(wished)
    if recipe.precision == "auto" and not options.restart and (header := read_header(job.logs)):  # is kept
        recipe = dataclasses.replace(recipe, precision=header["recipe"].get("precision", "auto"))
    recipe = job.recipe = plan.resolve(recipe, config, gpu, distributed.size())
    elsewhere = options.dry_run or options.fetch_only  # then this machine need not be able to compute the run
    if not elsewhere:
        _check_precision(recipe.precision, gpu)
    if has_batch_norm(config):
        _check_batch_norm(recipe)
    job.fused = recipe.precision != "fp32" and gpu is not None and gpu.fused and not has_batch_norm(config)
    text = f"{device}, {recipe.precision}, micro-batches of {recipe.micro_batch_size}"
    if job.fused:
        text += ", fused attention"
    if auto := [name for name in ("device", "precision", "micro_batch_size") if getattr(wished, name) in ("auto", 0)]:
        text += f" (auto: {', '.join(auto)})"
    say("device", text + distributed.described())
    if recipe.warmup_steps >= recipe.num_steps:
        say("note", f"the warm-up of {recipe.warmup_steps} steps does not end before step {recipe.num_steps}, the last")
    if isinstance(config, ViTConfig) and (gpu is not None or elsewhere):  # other networks are not counted
        _say_estimates(job, config, sizes, gpu)
    if elsewhere:
        _describe(recipe, config, sizes)


def _say_estimates(job: Job, config: ViTConfig, sizes: Sizes, gpu: plan.Gpu | None) -> None:
    recipe, processes = job.recipe, distributed.size()
    at_once = min(recipe.micro_batch_size, math.ceil(recipe.batch_size / processes))
    gib = plan.memory_bytes(recipe, config, at_once, job.fused) / 2**30
    where = "GiB a process" if gpu is None else f"of {gpu.gib:.0f} GiB a GPU"
    say("memory", f"about {gib:.3g} {where} (estimate)")
    if gpu is not None and gib > gpu.gib:
        say("warning", f"that is more than {gpu.name} has; lower --micro_batch_size")
    training, evaluation = plan.flops_of_run(recipe, config, sizes)
    say("work", f"{training:.3e} FLOPs in training, {evaluation:.3e} in evaluation (matrix products)")
    say("time", plan.time_needed(training, evaluation, recipe.precision, gpu, processes))


def _describe(recipe: Recipe, config: Config, sizes: Sizes) -> None:
    networks = f"{recipe.model} and {recipe.second_model}" if recipe.second_model else recipe.model
    say("network", f"{networks}, {count_parameters(config):,} parameters, {recipe.image_size} px")
    steps, epochs = f"{recipe.num_steps:,} steps", recipe.num_steps * recipe.batch_size / sizes.train
    say("samples", f"{sizes.train:,} training images ({recipe.dataset}), {steps} = {epochs:.1f} epochs")
    files = dataset_files(recipe.dataset, recipe.data_dir)
    if recipe.data_dir:  # a folder of the user's: nothing is downloaded into it
        files = dict.fromkeys(files, "")
    for path, address in (files | _pretrained_files(recipe)).items():
        state = f"missing; will be fetched from {address}" if address else "missing; put it there"
        say("file", f"{_shown(path)}: {'there' if path.exists() else state}")
    say("settings", ", ".join(f"{name} = {value}" for name, value in recipe.meaning().items()))


def _lock(job: Job):
    """Keeps other starts of the same run away while this one works on it."""

    def busy(holder):
        text = f"the run {job.run} is being trained already, by {holder}"
        raise UserError(f"{text}; wait for it, or choose another --run NAME")

    for folder in (job.logs.parent, job.saved.parent):  # what cannot be written fails now and not after hours
        folder.mkdir(parents=True, exist_ok=True)
    return locked(job.saved.with_name(f".{job.saved.name}.lock"), busy)


def finish(job: Job) -> None:
    """Print the result, say where everything is, draw the curves."""
    if not distributed.is_main():
        return
    best, last = job.result.get("best"), job.result["last"]
    names = {"validation": "the validation images (there are no test images)", "all": "all images (none held out)"}
    what = names.get(job.result.get("test_is"), "test")
    if best:
        say("best", f"step {best['step']:,} (chosen on {best['selected_on']}): {what} {describe(best['test'])}")
        for network in ("first", "second"):
            if f"test_{network}" in best:
                say(f"  {network}", describe(best[f"test_{network}"]))
        say("last", f"step {last['step']:,}: {what} {describe(last['test'])}")
    else:
        say("last", f"step {last['step']:,}, not evaluated (--eval_every 0)")
    say("evidence", f"{_shown(job.logs)}/ (run.json, metrics.jsonl{', predictions.npz' if best else ''})")
    weights = job.saved / ("best.pdparams" if best else "last.pdparams")
    if weights.exists():  # else the record alone was kept
        data_dir = ["--data_dir", job.recipe.data_dir] if job.recipe.data_dir else []
        say("evaluate", shlex.join(["bash", "run_eval.sh", str(_shown(weights)), *data_dir]))
    from reproduce import curves  # here, as matplotlib costs the start of a run a second

    picture = job.out / "images" / f"{job.run}.png"
    try:
        say("curves", str(_shown(curves.draw_run(job.logs, picture, what))))
    except Exception as error:  # a picture ends no run
        say("note", f"{picture} could not be drawn ({error})")


def run_name(recipe: Recipe) -> str:
    """Recipe, changed settings and seed, so that runs of different meaning have folders of their own."""
    standard = RECIPES[recipe.name].meaning()
    changed = [
        f"{name}_{value}"
        for name, value in recipe.meaning().items()
        if value != standard[name] and name not in ("seed", "pretrained")
    ]
    return "-".join([recipe.name, *changed, f"seed{recipe.seed}"]).replace("/", "_")


def _check_run_name(job: Job) -> None:
    path = Path(job.run)
    if not path.parts or path.is_absolute() or ".." in path.parts or len(path.name) > _LONGEST_NAME:
        raise UserError(f"--run {job.run}: give at most {_LONGEST_NAME} letters, or a path below logs/ without '..'")
    is_run = (job.logs / "run.json").exists() or any(job.saved.glob("step_*.pdstate"))
    if outer := [name for name in path.parents if (job.out / "logs" / name / "run.json").exists()]:
        raise UserError(f"--run {job.run}: {outer[0]} is a run itself; choose another name")
    for folder in (job.logs, job.saved):
        inside = list(folder.glob("[!.]*"))
        if folder.is_file() or any(each.is_dir() for each in inside) or (inside and not is_run):
            raise UserError(f"--run {job.run}: {folder} holds something else than one run; choose another name")


def _check_precision(precision: str, gpu: plan.Gpu | None) -> None:
    if precision != "fp32" and not getattr(gpu, precision, False):
        name = "a CPU" if gpu is None else gpu.name
        raise UserError(f"--precision {precision}: {name} cannot compute in it; leave it to auto, or say fp32")


def _check_batch_norm(recipe: Recipe) -> None:
    """Batch norm sees the images that are computed together, so these must be the batch on any hardware."""
    if recipe.recompute:
        raise UserError("--recompute true: only ViTs can compute their blocks twice; batch norm would count them twice")
    if distributed.size() > 1:
        text = f"{recipe.name}: a network with batch norm is trained by one process"
        raise UserError(f"{text}; set NPROC=1 or CUDA_VISIBLE_DEVICES=0")
    if recipe.micro_batch_size < recipe.batch_size:
        text = f"--micro_batch_size {recipe.micro_batch_size}: batch norm takes the statistics of the whole batch"
        raise UserError(f"{text} of {recipe.batch_size}; give both the same")


def _parser(description: str) -> Parser:
    parser = Parser(prog="run_train.sh", description=description)
    parser.add_argument("recipe", nargs="?", help="a name that --list prints; without one the headline or digits")
    parser.add_argument("--list", action="store_true", help="print the recipes")
    parser.add_argument("--dry_run", action="store_true", help="print everything about the run without running it")
    parser.add_argument("--gpu", default="", help='with --dry_run: another GPU, such as "A100 40GB", or its GiB')
    parser.add_argument("--fetch_only", action="store_true", help="fetch data and weights, then end (no GPU needed)")
    parser.add_argument("--run", help="name of the run; default: recipe, changed settings and seed")
    parser.add_argument("--restart", action="store_true", help="set a run of that name aside and start over")
    parser.add_argument("--out", default=str(ROOT), help="folder for logs/, checkpoints/, images/ (default: here)")
    add_options(parser.add_argument_group("single settings of the recipe (defaults: --dry_run prints them)"))
    return parser


def _pretrained_files(recipe: Recipe) -> dict[Path, str]:
    """The weight files that the run starts from, each with the address it is fetched from ("" = it must be there)."""
    paths = [Path(text) for text in (recipe.pretrained, recipe.second_pretrained) if text]
    own = ROOT / "checkpoints" / "pretrained"  # elsewhere a known name is a slip
    return {path: PRETRAINED_URLS.get(path.name, "") if path.resolve().parent == own else "" for path in paths}


def _fetch_pretrained(recipe: Recipe) -> None:
    for path, address in _pretrained_files(recipe).items():
        if path.exists():
            continue
        if not address:
            raise UserError(f"{path}: no such file; give an existing one with --pretrained FILE ('' = random weights)")
        fetch(address, path)


def _result_of_finished(job: Job) -> dict | None:
    """The result of a run of the same name and meaning that went to its end, None otherwise."""
    header = read_header(job.logs)
    if header is None:
        return None
    checkpoint.check_same_meaning(header["recipe"], job.recipe.meaning(), job.logs)
    return header["result"] if header["finished"] else None


def _set_aside(job: Job) -> None:
    for kind, folder in (("logs", job.logs), ("checkpoints", job.saved)):
        if folder.exists():
            number = 1
            while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
                number += 1
            folder.rename(aside)
            say("restart", f"the earlier {kind} are now in {_shown(aside)}")


def _shown(path: Path) -> Path:
    """A path as the user would type it from the project's root."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
