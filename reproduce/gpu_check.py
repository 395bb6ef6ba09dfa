"""Check a GPU before hours are spent on it: about two minutes, a table of what passed, a file to send in.

    bash run_train.sh --gpu_check                   on the GPUs that are visible
    python -m reproduce.gpu_check --device cpu      the same code with a small network; what needs a GPU is skipped

One micro-batch of the headline's network, ViT-B/16 at 384 px with fabricated weights, is computed in each precision and
compared; 20 updates of each are timed; processes and a killed run are tried with `digits`. No data are downloaded.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import numpy as np
import paddle

from common.atomic import atomic_write
from common.errors import UserError
from data.in_memory import InMemory
from models import build
from models.weights import read_weights
from reproduce import ROOT, plan, train
from reproduce.cli import Parser, choose_device, parse, run_command
from reproduce.optim import make_optimizer
from reproduce.rdrop import rdrop_loss
from reproduce.recipes import HEADLINE, SMALL, Recipe, get_recipe
from reproduce.run_log import machine

_IMAGES = 2  # of the comparison
_TIMED, _WARM_UP = 20, 3  # updates
_ALLOWED = {  # relative error of the loss, and of all gradients together (L2)
    "fp32 against float64": (1e-5, 1e-3),
    "bf16 against fp32": (2e-2, 1e-1),
    "fused against plain attention": (2e-2, 1e-1),
}
_DIGITS = ("--num_steps", "40", "--warmup_steps", "4", "--eval_every", "20", "--save_every", "5", "--precision", "fp32")


class Check(NamedTuple):
    """One row of the table; `passed` None = skipped."""

    name: str
    passed: bool | None
    found: str


def main() -> None:
    parser = Parser(
        prog="run_train.sh --gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto")
    parser.add_argument("--out", default=str(ROOT / "logs" / "gpu_check"), help="folder for the result")
    options = parse(parser)
    device = choose_device(options.device)
    gpu = plan.gpu_here() if device != "cpu" else None
    print(_versions(gpu), flush=True)
    checks = []
    for part in (compare_precisions, time_updates, several_processes, killed_and_continued):
        for check in part(gpu):
            state = {True: "passed", False: "FAILED", None: "skipped"}[check.passed]
            print(f"{state:8} {check.name}: {check.found}", flush=True)
            checks.append(check)
    path = _write(Path(options.out), gpu, checks)
    failed = [check.name for check in checks if check.passed is False]
    print(f"written  {path}; please attach it to an issue of this project, passed or failed")
    if failed:
        raise UserError(f"{len(failed)} of {len(checks)} checks failed ({', '.join(failed)}); see docs/cluster.md")


def _versions(gpu) -> str:
    text = f"python {sys.version.split()[0]}, paddlepaddle {paddle.__version__}, CUDA {paddle.version.cuda()}"
    if gpu is None:
        return f"{text}, no GPU in use"
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        cards = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().splitlines()
    except (OSError, subprocess.CalledProcessError):
        cards = [gpu.name]
    return "\n".join([text, *cards])


def _recipe(gpu, precision: str = "auto") -> Recipe:
    """The headline's on a GPU, a small one on a CPU; batches of one micro-batch."""
    recipe = get_recipe(HEADLINE if gpu is not None else SMALL, precision=precision, pretrained="")
    recipe = plan.resolve(recipe, recipe.network(100), gpu, 1)
    size = recipe.micro_batch_size
    steps = _TIMED + _WARM_UP
    return dataclasses.replace(recipe, batch_size=size, num_steps=steps, warmup_steps=1, workers=0)


def compare_precisions(gpu):
    """Loss and gradients of one micro-batch: fp32 against float64 on the CPU, 16 bits against fp32, both attentions."""
    recipe = _recipe(gpu, "fp32")
    config = dataclasses.replace(recipe.network(100), dropout=0.0)
    rng = np.random.default_rng(0)
    pictures = rng.uniform(-1, 1, (2, _IMAGES, 3, config.image_size, config.image_size)).astype(np.float32)
    weights = {
        name: (0.02 * rng.normal(size=value.shape) + ("norm" in name and "weight" in name)).astype(np.float32)
        for name, value in build(config).state_dict().items()
    }

    def gradients(precision: str, fused: bool = False, place: str = paddle.get_device()):
        """(loss, all gradients in one float64 vector)."""
        here = paddle.get_device()
        paddle.set_device(place)
        model = build(config)
        model.set_state_dict({name: paddle.to_tensor(value) for name, value in weights.items()})
        dtype = "float64" if precision == "float64" else "float32"
        model.to(dtype=dtype)
        if fused:
            model.fuse_attention()
        with paddle.amp.auto_cast(precision in ("bf16", "fp16"), dtype=train.AMP_DTYPES.get(precision, "float16")):
            # dropout is off, as masks differ between devices: two pictures stand for the two views
            logits_a, logits_b = (model(paddle.to_tensor(each.astype(dtype))) for each in pictures)
        loss = rdrop_loss(logits_a, logits_b, paddle.arange(_IMAGES), recipe.alpha, recipe.kl_sum_over).loss
        loss.backward()
        flat = np.concatenate([p.grad.astype("float64").numpy().ravel() for p in model.parameters()])
        found = float(loss), flat
        paddle.set_device(here)
        return found

    exact = gradients("float64", place="cpu")
    plain = gradients("fp32")
    yield _compare("fp32 against float64", plain, exact)
    if gpu is None or not gpu.bf16:
        yield Check("bf16 against fp32", None, "needs a GPU that has it")
        return
    short = gradients("bf16")
    yield _compare("bf16 against fp32", short, plain)
    if not gpu.fused:
        yield Check("fused against plain attention", None, "needs compute capability 8.0")
        return
    yield _compare("fused against plain attention", gradients("bf16", fused=True), short)


def _compare(name: str, found, expected) -> Check:
    loss = abs(found[0] - expected[0]) / abs(expected[0])
    gradient = float(np.linalg.norm(found[1] - expected[1]) / np.linalg.norm(expected[1]))
    allowed_loss, allowed_gradient = _ALLOWED[name]
    passed = bool(loss <= allowed_loss and gradient <= allowed_gradient)  # not with a NaN
    text = f"relative error {loss:.1e} of the loss (allowed {allowed_loss:g}), {gradient:.1e} of the gradients"
    return Check(name, passed, f"{text} (allowed {allowed_gradient:g})")


def time_updates(gpu):
    """Updates in fp32 and in 16 bits: speed, share of the card's peak, memory against the estimate, hours."""
    for precision in ("fp32", "bf16"):
        if precision != "fp32" and (gpu is None or not gpu.bf16):
            yield Check(f"{_TIMED} updates in {precision}", None, "needs a GPU that has it")
            continue
        yield _timed(gpu, _recipe(gpu, precision))


def _timed(gpu, recipe: Recipe) -> Check:
    config = recipe.network(100)
    fused = gpu is not None and gpu.fused and recipe.precision != "fp32"
    rng = np.random.default_rng(1)
    images = InMemory(rng.integers(0, 256, (512, 3, 32, 32), np.uint8), rng.integers(0, 100, 512))
    if gpu is not None:
        paddle.device.cuda.empty_cache()
        paddle.device.cuda.reset_max_memory_reserved()
    model = train.build_network(recipe, 100, fused)
    model.train()
    ends, last = [], {}
    for step, found in train.updates(recipe, model, make_optimizer(recipe, model), None, images, 1):
        ends.append(time.perf_counter())
        last = found if step == recipe.num_steps else last
    seconds = (ends[-1] - ends[_WARM_UP - 1]) / _TIMED
    size = last["micro_batch_size"]
    text = f"{recipe.batch_size / seconds:.1f} images/s, micro-batch {size}"
    passed = bool(np.isfinite(last["loss"])) and size == recipe.micro_batch_size
    headline = get_recipe(HEADLINE)
    shared = config.flops_by_part()["patch embedding"]
    flops = 3 * (recipe.num_views * config.flops_per_image() - shared) * recipe.batch_size
    if gpu is not None:
        peak = gpu.peak_32 if recipe.precision == "fp32" else gpu.peak_16
        if peak:
            text += f", {flops / seconds / peak / 1e10:.0f} % of the peak"
        used = paddle.device.cuda.max_memory_reserved() / 2**30
        estimate = plan.memory_bytes(recipe, config, size, fused) / 2**30
        text += f", {used:.1f} GiB (estimate {estimate:.1f} of {gpu.gib:.0f})"
        hours = headline.num_steps * headline.batch_size / recipe.batch_size * seconds / 3600
        text += f", the headline takes {hours:.1f} hours of training on one such GPU"
    return Check(f"{_TIMED} updates in {recipe.precision}", passed, text)


def several_processes(gpu):
    """A run of two processes (or one on each GPU) ends as that of one: gradients are exchanged."""
    count = paddle.device.cuda.device_count() if gpu is not None else 2
    name = f"{max(count, 2)} processes as one"
    if count < 2:
        yield Check(name, None, "needs a second GPU")
        return
    with tempfile.TemporaryDirectory() as folder:
        # without dropout, whose masks belong to the process
        arrays = [_digits(gpu, Path(folder) / str(n), n, "--dropout", "0") for n in (1, count)]
        error = max(np.abs(arrays[0][key] - arrays[1][key]).max() for key in arrays[0])
    yield Check(name, bool(error < 1e-3), f"weights differ by {error:.1e} at most (allowed 1e-3)")


def killed_and_continued(gpu):
    """A run that is killed and started again ends with the weights of one that was not."""
    with tempfile.TemporaryDirectory() as folder:
        whole = _digits(gpu, Path(folder) / "whole", 1)
        process = _start(gpu, Path(folder) / "killed", 1)
        saved = Path(folder) / "killed" / "checkpoints" / "run"
        while process.poll() is None and not list(saved.glob("step_*.pdstate")):
            time.sleep(0.01)
        process.kill()
        process.communicate()
        again = _digits(gpu, Path(folder) / "killed", 1)
    same = all(np.array_equal(whole[name], again[name]) for name in whole)
    error = max(np.abs(whole[name] - again[name]).max() for name in whole)
    on_gpu = gpu is not None  # where sums may come in any order
    text = "the same to the bit" if same else f"weights differ by {error:.1e} at most"
    yield Check("a killed run continues", same or (on_gpu and bool(error < 1e-3)), text)


def _start(gpu, out: Path, processes: int, *more: str) -> subprocess.Popen:
    device = "cpu" if gpu is None else "gpu"
    words = ["-m", "reproduce.launch", "reproduce.train", SMALL, *_DIGITS, "--run", "run", "--out", str(out)]
    return subprocess.Popen(
        [sys.executable, *words, "--device", device, *more],
        cwd=ROOT,
        env={**os.environ, "NPROC": str(processes)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _digits(gpu, out: Path, processes: int, *more: str) -> dict[str, np.ndarray]:
    """The last weights of a short run of digits. Raises UserError with its last words when it fails."""
    process = _start(gpu, out, processes, *more)
    output, _ = process.communicate()
    if process.returncode:
        raise UserError(f"a run of digits with {processes} process(es) failed: {output.strip()[-2000:]}")
    return read_weights(out / "checkpoints" / "run" / "last.pdparams").arrays


def _write(folder: Path, gpu, checks: list[Check]) -> Path:
    now = datetime.now(timezone.utc)
    card = "cpu" if gpu is None else "".join(c if c.isalnum() else "_" for c in gpu.name)
    path = folder / f"{card}-{now:%Y%m%d-%H%M%S}.json"
    content = {"gpu": None if gpu is None else dataclasses.asdict(gpu), "machine": machine()}
    with atomic_write(path, "w") as file:
        json.dump({**content, "checks": [check._asdict() for check in checks]}, file, indent=1)
    return path


if __name__ == "__main__":
    run_command(main)
