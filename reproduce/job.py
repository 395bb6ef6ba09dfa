"""From the command line to a job: the recipe, the device, what is chosen for it, files fetched, the run locked.

With several processes the first one does what touches files, and the others wait for it.
"""

import contextlib
import dataclasses
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from common.lock import locked
from data import dataset_sizes, load_dataset
from data.download import fetch
from models import has_batch_norm
from models.weights import PRETRAINED_URLS, read_weights
from reproduce import ROOT, checkpoint, distributed, plan
from reproduce.cli import Parser, choose_device, has_gpu, parse, say
from reproduce.evaluate import describe
from reproduce.recipes import HEADLINE, PRECISIONS, RECIPES, SMALL, Recipe, add_options, get_recipe
from reproduce.run_log import read_header

# folders of logs/ and checkpoints/ that hold others
_NO_RUNS = ("evidence", "study", "tuning", "growth_stages", "alignment", "bench", "published", "reliability")
_NO_RUNS += ("gpu_check", "pretrained", "exported")
_LONGEST_NAME = 200  # of a run; file systems end at 255, and a lock has a longer one
_LARGE_FLOPS = 1e14  # from here on it is worth a moment to measure how fast this CPU is


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
    _check_run_name(job.run)
    if options.gpu and not options.dry_run:
        raise UserError(f"--gpu {options.gpu}: is for --dry_run; a run takes the GPU that is there")
    device = choose_device("cpu" if options.gpu else recipe.device)
    planned = _settle(job, device, options.gpu, elsewhere=options.dry_run or options.fetch_only)
    if options.fetch_only:
        _fetch(job.recipe)
    elif options.dry_run:
        _print_plan(job, planned)
    if options.fetch_only or options.dry_run:
        sys.exit(0)
    say("run", f"{job.run}: logs/, checkpoints/ and images/ in {job.out}")
    distributed.start()
    distributed.same_everywhere(
        PRECISIONS.index(job.recipe.precision),
        "the processes would compute in different precisions, as their GPUs differ; say --precision fp32",
    )
    with _locked(job):
        if distributed.is_main():
            if options.restart:
                _set_aside(job)
            if _result_of_finished(job) is None:
                _fetch_pretrained(job.recipe)
        distributed.wait()
        job.result = _result_of_finished(job)
        distributed.same_everywhere(
            job.result is None,
            f"{job.out}: the processes see different files there; give --out a folder that all nodes share",
        )
        if job.result is not None:
            say("finished", "this run was trained before; its result stands below (--restart trains it again)")
        yield job


def _recipe(options) -> Recipe:
    changes = {f.name: getattr(options, f.name) for f in dataclasses.fields(Recipe) if hasattr(options, f.name)}
    recipe = get_recipe(options.recipe or (HEADLINE if has_gpu() or options.gpu else SMALL), **changes)
    if recipe.batch_size < distributed.size():
        text = f"--batch_size {recipe.batch_size}: smaller than the {distributed.size()} processes"
        raise UserError(f"{text}; start fewer (NPROC, CUDA_VISIBLE_DEVICES) or enlarge it")
    chosen = ""
    if not options.recipe:
        why = "a GPU is present" if has_gpu() else f"PaddlePaddle sees no GPU; {HEADLINE} needs one"
        chosen = f" (chosen because {why})"
    say("recipe", f"{recipe.name}{chosen}: {recipe.summary}")
    if changes:
        say("changed", ", ".join(f"{name} = {value}" for name, value in changes.items()))
    return recipe


def _settle(job: Job, device: str, gpu_text: str, elsewhere: bool) -> plan.Plan:
    """Choose precision, micro-batch and attention for this machine, or for the GPU that --gpu names; say them.

    `elsewhere`: the run will not be computed here, so this machine need not be able to.
    """
    wished, gpu = job.recipe, None
    if gpu_text:
        gpu, device = plan.gpu_named(gpu_text), f"as on {gpu_text}"
    elif device != "cpu":
        gpu = plan.gpu_here()
    sizes = dataset_sizes(wished.dataset, wished.data_dir, **wished.split())
    recipe = plan.with_epochs(wished, sizes)
    config = recipe.network(sizes.classes)
    if recipe.precision == "auto":
        recipe = dataclasses.replace(recipe, precision=_precision_on_record(job))
    recipe = job.recipe = plan.resolve(recipe, config, gpu, distributed.size())
    if not elsewhere:
        _check_precision(recipe.precision, gpu)
    if has_batch_norm(config):
        _check_batch_norm(recipe)
    job.fused = recipe.precision != "fp32" and gpu is not None and gpu.fused and not has_batch_norm(config)
    planned = plan.make_plan(recipe, config, sizes, distributed.size(), job.fused)
    auto = [name for name in ("device", "precision", "micro_batch_size") if getattr(wished, name) in ("auto", 0)]
    text = f"{device}, {recipe.precision}, micro-batches of {recipe.micro_batch_size}"
    if job.fused:
        text += ", fused attention"
    if auto:
        text += f" (auto: {', '.join(auto)})"
    say("device", text + distributed.described())
    need = planned.memory_bytes / 2**30
    if gpu is not None:
        say("memory", f"about {need:.1f} of {gpu.gib:.0f} GiB a GPU (estimate)")
        if need > gpu.gib:
            say("warning", f"that is more than {gpu.name} has; lower --micro_batch_size or --eval_batch_size")
    elif elsewhere:
        say("memory", f"about {need:.2g} GiB a process (estimate: weights, gradients, optimizer, activations)")
    work = [planned.flops_training, planned.flops_evaluation]
    if gpu is not None or elsewhere or sum(work) > _LARGE_FLOPS:
        shared = 1 if gpu is None else planned.processes
        say("time", plan.time_needed(*(flops / shared for flops in work), recipe.precision, gpu))
    return planned


def _precision_on_record(job: Job) -> str:
    """That of the run of the same name, where there is one: what was chosen once is kept; else "auto"."""
    header = read_header(job.logs)
    return header["recipe"].get("precision", "auto") if header else "auto"


@contextlib.contextmanager
def _locked(job: Job):
    """Keep other starts of the same run away while this one works on it."""
    if not distributed.is_main():
        yield
        return

    def busy(holder):
        text = f"the run {job.run} is being trained already, by {holder}"
        raise UserError(f"{text}; wait for it, or choose another --run NAME")

    for folder in (job.logs.parent, job.saved.parent):  # what cannot be written fails now and not after hours
        folder.mkdir(parents=True, exist_ok=True)
    with locked(job.saved.with_name(f".{job.saved.name}.lock"), busy):
        yield


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
    weights = _shown(job.saved / ("best.pdparams" if best else "last.pdparams"))
    data_dir = ["--data_dir", job.recipe.data_dir] if job.recipe.data_dir else []
    say("evaluate", shlex.join(["bash", "run_eval.sh", str(weights), *data_dir]))
    board = "" if job.out == ROOT else f" --logdir {shlex.quote(str(job.out / 'logs'))}"
    say("dashboard", f"bash run_board.sh{board}")
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


def _check_run_name(run: str) -> None:
    path = Path(run)
    if not path.parts or path.is_absolute() or ".." in path.parts or str(path) in _NO_RUNS:
        known = ", ".join(_NO_RUNS)
        raise UserError(f"--run {run}: must be a name, or a path below logs/ without '..', and not one of {known}")
    if len(path.name) > _LONGEST_NAME:
        raise UserError(f"--run {run}: is too long for a folder's name; choose a shorter one with --run NAME")


def _check_precision(precision: str, gpu: plan.Gpu | None) -> None:
    if precision != "fp32" and gpu is None:
        raise UserError(f"--precision {precision}: a CPU has no such matrix product in Paddle; use fp32 or a GPU")
    if precision != "fp32" and not getattr(gpu, precision):
        raise UserError(f"--precision {precision}: {gpu.name} cannot compute in it; leave it to auto, or say fp32")


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


def _print_plan(job: Job, planned: plan.Plan) -> None:
    recipe = job.recipe
    for what, text in plan.describe(recipe, planned):
        say(what, text)
    for path, address in plan.needed_files(recipe).items():
        state = "there"
        if not path.exists():
            state = f"missing; will be fetched from {address}" if address else "missing; put it there"
        say("file", f"{_shown(path)}: {state}")
    say("settings", ", ".join(f"{name} = {value}" for name, value in recipe.meaning().items()))


def _fetch(recipe: Recipe) -> None:
    """Data and weights onto this machine's disk, for nodes that have no internet."""
    _fetch_pretrained(recipe)
    load_dataset(recipe.dataset, recipe.data_dir, **recipe.split(), strict=recipe.strict, workers=recipe.workers)
    for path in plan.needed_files(recipe):
        say("file", f"{_shown(path)}: there")


def _fetch_pretrained(recipe: Recipe) -> None:
    for path in (Path(text) for text in (recipe.pretrained, recipe.second_pretrained) if text):
        if path.exists():
            continue
        url = PRETRAINED_URLS.get(path.name)
        if url is None or path.resolve().parent != ROOT / "checkpoints" / "pretrained":  # elsewhere it is a slip
            raise UserError(f"{path}: no such file; give an existing one with --pretrained FILE ('' = random weights)")
        fetch(url, path)


def _result_of_finished(job: Job) -> dict | None:
    """The result of a run of the same name and meaning that went to its end, None otherwise."""
    header = read_header(job.logs)
    if header is None:
        return None
    checkpoint.check_same_meaning(header["recipe"], job.recipe.meaning(), job.logs)
    if not header["finished"]:
        return None
    try:  # its weights have to be there, and whole
        for name in ("last", "best") if header["result"].get("best") else ("last",):
            read_weights(job.saved / f"{name}.pdparams")
    except UserError as problem:
        text = f"{job.logs}: holds the record of a finished run whose weights cannot be read ({problem})"
        raise UserError(f"{text}; say --restart to set it aside, or choose another --run NAME") from None
    return header["result"]


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
