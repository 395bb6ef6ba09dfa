"""Check a GPU before hours are spent on it: about two minutes, a table of what passed, a file to send in.

    bash run_train.sh --gpu_check                   on the GPUs that are visible
    python -m reproduce.gpu_check --device cpu      the same code with a small network; what needs a GPU is skipped

One micro-batch of the headline's network, ViT-B/16 at 384 px with fabricated weights, is computed in each precision and
compared; 20 updates of each are timed; processes and a killed run are tried with `digits`. No data are downloaded.
"""

import dataclasses
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import paddle

from common.errors import UserError, printable
from common.system import atomic_write
from data.splits import InMemory
from models import build
from models.vit import compute_by
from models.weights import read_weights
from reproduce import ROOT, plan, train
from reproduce.cli import Parser, choose_device, parse, run_command
from reproduce.optim import loss_scaler, make_optimizer
from reproduce.rdrop import rdrop_loss
from reproduce.recipes import HEADLINE, SMALL, Recipe, get_recipe
from reproduce.run_log import machine

_IMAGES = 2  # of the comparison
_TIMED, _WARM_UP = 20, 3  # updates
_ALLOWED_32, _ALLOWED_16 = (1e-5, 1e-3), (2e-2, 1e-1)  # relative error of the loss, and of all gradients together (L2)
_CLOSE = 1e-3  # of weights after a run, where sums may come in any order
_NO_HALF = "needs a GPU of compute capability 7.0"
_DIGITS = f"{SMALL} --num_steps 24 --warmup_steps 4 --eval_every 0 --batch_size 16 --save_every 4 --precision fp32"
_CARDS = "nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader"

Check = namedtuple("Check", ("name", "passed", "found"))  # a row of the table; passed None = skipped


def main() -> None:
    parser = Parser(prog="run_train.sh --gpu_check", description=__doc__)
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu", help="cpu tries the code, not the card")
    parser.add_argument("--out", type=Path, default=ROOT / "logs" / "gpu_check", help="folder for the result")
    options = parse(parser)
    device = choose_device(options.device)
    gpu = plan.gpu_here() if device != "cpu" else None
    versions = [f"python {sys.version.split()[0]}, paddlepaddle {paddle.__version__}, CUDA {paddle.version.cuda()}"]
    versions += ["no GPU in use"] if gpu is None else subprocess.getoutput(_CARDS).splitlines()
    print(*versions, sep="\n", flush=True)
    checks = []
    for check in all_checks(gpu, device):
        state = {True: "passed", False: "FAILED", None: "skipped"}[check.passed]
        print(f"{state:8} {check.name}: {check.found}", flush=True)
        checks.append(check)
    card = "cpu" if gpu is None else re.sub(r"\W", "_", gpu.name)
    path = options.out / time.strftime(f"{card}-%Y%m%d-%H%M%S.json", time.gmtime())
    record = {"versions": versions, "gpu": gpu and dataclasses.asdict(gpu), "machine": machine()}
    record["checks"] = [check._asdict() for check in checks]
    with atomic_write(path, "w") as file:
        json.dump(record, file, indent=1)
    print(f"written  {path}; please attach it to an issue of this project, passed or failed")
    if failed := [check.name for check in checks if check.passed is False]:
        raise UserError(f"{len(failed)} of {len(checks)} checks failed ({', '.join(failed)}); see docs/cluster.md")


def all_checks(gpu, device: str):
    """What each part finds; an error that ends a part is a check that has failed, so that the record is written."""
    for part in (compare_precisions, time_updates, several_processes, killed_and_continued):
        paddle.set_device(device)  # which a part that failed may have left
        paddle.device.cuda.empty_cache()  # other processes may need the memory next
        try:
            yield from part(gpu)
        except Exception as error:
            text = printable(str(error).strip().rpartition("\n")[2])
            yield Check(part.__name__.replace("_", " "), False, f"{type(error).__name__}: {text}")


def _recipe(gpu, precision: str) -> Recipe:
    """The headline's on a GPU, a small one on a CPU; batches of one micro-batch."""
    recipe = get_recipe(HEADLINE if gpu is not None else SMALL, precision=precision, pretrained="")
    recipe = plan.resolve(recipe, recipe.network(100), gpu, 1)
    changes = {"batch_size": recipe.micro_batch_size, "num_steps": _TIMED + _WARM_UP, "warmup_steps": 1}
    return dataclasses.replace(recipe, **changes, workers=0)


def _half(gpu) -> str:
    """The precision in 16 bits that this GPU trains best in, "" for none."""
    if gpu is None or not gpu.fp16:
        return ""
    return "bf16" if gpu.bf16 else "fp16"


# ---- numbers


def compare_precisions(gpu):
    """Loss and gradients of one micro-batch: fp32 against float64 on the CPU, 16 bits against fp32, both attentions."""
    device, half = paddle.get_device(), _half(gpu)
    exact = loss_and_gradients(gpu, "float64", "cpu")
    plain = loss_and_gradients(gpu, "fp32", device)
    yield compared("fp32 against float64", plain, exact, _ALLOWED_32)
    if not half:
        yield Check("16 bits against fp32", None, _NO_HALF)
        return
    found = loss_and_gradients(gpu, half, device)
    yield compared(f"{half} against fp32", found, plain, _ALLOWED_16)
    if not gpu.fused:
        yield Check("fused against plain attention", None, "needs compute capability 8.0")
        return
    fused = loss_and_gradients(gpu, half, device, fused=True)
    yield compared("fused against plain attention", fused, found, _ALLOWED_16)


def loss_and_gradients(gpu, precision: str, device: str, fused: bool = False) -> tuple[float, np.ndarray]:
    """(loss, all gradients in one float64 vector) of fabricated weights and pictures, the same in every call.

    Dropout is off, as masks differ between devices: two pictures stand for the two views.
    """
    recipe = _recipe(gpu, "fp32")
    config = dataclasses.replace(recipe.network(100), dropout=0.0)
    dtype = "float64" if precision == "float64" else "float32"
    paddle.set_device(device)
    model = build(config)
    rng = np.random.default_rng(0)
    for name, value in model.state_dict().items():
        one = "norm" in name and "weight" in name
        value.set_value((0.02 * rng.normal(size=value.shape) + one).astype(np.float32))
    model.to(dtype=dtype)
    compute_by(model, recompute=False, fused=fused)
    pictures = rng.uniform(-1, 1, (2, _IMAGES, 3, config.image_size, config.image_size)).astype(np.float32)
    with paddle.amp.auto_cast(precision in ("bf16", "fp16"), dtype=train.AMP_DTYPES.get(precision, "float16")):
        logits_a, logits_b = (model(paddle.to_tensor(each.astype(dtype))) for each in pictures)
    loss = rdrop_loss(logits_a, logits_b, paddle.arange(_IMAGES), recipe.alpha, recipe.kl_sum_over).loss
    scale = 1024.0 if precision == "fp16" else 1.0  # else the small ones underflow
    (scale * loss).backward()
    gradients = np.concatenate([p.grad.astype("float64").numpy().ravel() for p in model.parameters()])
    return float(loss), gradients / scale


def compared(name: str, found, expected, allowed: tuple[float, float]) -> Check:
    loss = abs(found[0] - expected[0]) / abs(expected[0])
    gradient = float(np.linalg.norm(found[1] - expected[1]) / np.linalg.norm(expected[1]))
    passed = bool(loss <= allowed[0] and gradient <= allowed[1])  # not with a NaN
    text = f"relative error {loss:.1e} of the loss, {gradient:.1e} of the gradients"
    return Check(name, passed, f"{text} (allowed {allowed[0]:g}, {allowed[1]:g})")


# ---- speed and memory


def time_updates(gpu):
    """Updates in fp32 and in 16 bits: speed, share of the card's peak, memory against the estimate, hours."""
    for precision in ("fp32", _half(gpu)):
        yield timed(gpu, precision) if precision else Check(f"{_TIMED} updates in 16 bits", None, _NO_HALF)


def timed(gpu, precision: str) -> Check:
    recipe = _recipe(gpu, precision)
    config = recipe.network(100)
    fused = gpu is not None and gpu.fused and precision != "fp32"
    rng = np.random.default_rng(1)
    images = InMemory(rng.integers(0, 256, (512, 3, 32, 32), np.uint8), rng.integers(0, 100, 512))
    if gpu is not None:
        paddle.device.cuda.empty_cache()
        paddle.device.cuda.reset_max_memory_reserved()
    model = train.build_network(recipe, 100, fused)
    model.train()
    updates = train.updates(recipe, model, make_optimizer(recipe, model), loss_scaler(recipe), images, 1)
    found = [update for _, update in updates]
    seconds = float(np.mean([update["seconds"] for update in found[_WARM_UP:]]))
    size = found[-1]["micro_batch_size"]  # smaller than asked for where memory ran out
    text = f"{recipe.batch_size / seconds:.1f} images/s, micro-batch {size}"
    if gpu is not None:
        peak = gpu.peak_32 if precision == "fp32" else gpu.peak_16
        if peak:
            text += f", {plan.flops_per_step(recipe, config) / seconds / peak / 1e10:.0f} % of the peak"
        used = paddle.device.cuda.max_memory_reserved() / 2**30
        estimate = plan.memory_bytes(recipe, config, recipe.batch_size, fused) / 2**30
        headline = get_recipe(HEADLINE)
        hours = headline.num_steps * headline.batch_size / recipe.batch_size * seconds / 3600
        text += f", {used:.1f} GiB (estimate {estimate:.1f} of {gpu.gib:.0f})"
        text += f", the headline takes {hours:.1f} hours of training on one such GPU"
    passed = bool(np.isfinite(found[-1]["loss"])) and size == recipe.micro_batch_size
    return Check(f"{_TIMED} updates in {precision}", passed, text)


# ---- whole runs


def several_processes(gpu):
    """A run of two processes (or one on each GPU) ends as that of one: gradients are exchanged."""
    count = paddle.device.cuda.device_count() if gpu is not None else 2
    name = f"{max(count, 2)} processes as one"
    if count < 2:
        yield Check(name, None, "needs a second GPU")
        return
    # without dropout, whose masks belong to the process
    alone, together = (weights_of_run("--dropout", "0", processes=number) for number in (1, count))
    yield same_weights(name, alone, together, _CLOSE)


def killed_and_continued(gpu):
    """A run that is killed and started again ends with the weights of one that was not."""
    whole, continued = (weights_of_run(kill_first=killed) for killed in (False, True))
    yield same_weights("a killed run continues", whole, continued, 0 if gpu is None else _CLOSE)


def same_weights(name: str, one: dict[str, np.ndarray], other: dict[str, np.ndarray], allowed: float) -> Check:
    error = float(np.max([np.abs(value - other[key]).max() for key, value in one.items()]))
    return Check(name, error <= allowed, f"weights differ by {error:.1e} at most (allowed {allowed:g})")


def weights_of_run(*more: str, processes: int = 1, kill_first: bool = False) -> dict[str, np.ndarray]:
    """The last weights of a short run of digits. Raises UserError with its last words when it fails."""
    device = paddle.get_device().split(":")[0]
    with tempfile.TemporaryDirectory() as folder:
        options = [*_DIGITS.split(), "--device", device, "--run", "run", "--out", folder, *more]
        command = ["env", f"NPROC={processes}", sys.executable, "-m", "reproduce.launch", "reproduce.train", *options]
        saved = Path(folder, "checkpoints", "run")
        if kill_first:
            kill_when_saved(command, saved)
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise UserError(f"a run of digits with {processes} process(es) failed: {done.stdout.strip()[-2000:]}")
        return read_weights(saved / "last.pdparams").arrays


def kill_when_saved(command: list[str], saved: Path) -> None:
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(saved.glob("step_*.pdstate")):
        time.sleep(0.01)
    process.kill()
    if process.wait() >= 0:
        raise UserError("the run had ended before it could be killed")


if __name__ == "__main__":
    run_command(main)
