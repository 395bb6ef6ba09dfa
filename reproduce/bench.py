"""Measure what this project costs, beside PyTorch and a plain Paddle program, pair by pair in one run.

    python -m reproduce.bench                              all parts, 7 repetitions: about an hour on 2 cores
    python -m reproduce.bench --part step_ti16 input       two of them: some minutes
    python -m reproduce.bench --part step_b16 --repeat 1 --competitor pytorch     a look; writes nothing
    python -m reproduce.bench --part step_b16 --against ../before --competitor against
                                                           before and after: "against" runs the code of another clone

    step_b16     a training step of ViT-B/16, 224 px, 8 images: R-Drop and one view here, R-Drop in PyTorch (timm), and
                 in a plain Paddle program as the public port has it, under Paddle's own settings and under ours
    step_ti16    the same of ViT-Ti/16, 64 px, 64 images
    input        random crops of 32 px images at 384 px, one core: here, paddle.vision.transforms, Pillow
    evaluation   ViT-Ti/16 at 224 px on images it only reads: here, PyTorch
    start        from the start of the program to its first step and to its end: here, PyTorch

Each competitor is measured beside ours: two processes that take turns, each with its own settings of the processor.
Which cores they may use is the caller's choice (taskset). Close other programs first: they slow both, and not alike.
PyTorch and timm come with `source setup_env.sh dev`; what is missing is left out.

Writes logs/bench/PART.json with every single measurement. Everything is computed on the CPU, in float32.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import median

import numpy as np
import paddle

from common.atomic import atomic_write
from common.errors import UserError, near
from data.in_memory import InMemory
from models import MODELS, build
from models.vit import ViTConfig
from reproduce import PROCESSOR_SETTINGS, ROOT, train
from reproduce.cli import Parser, choose_device, parse, run_command, say
from reproduce.evaluate import evaluate
from reproduce.optim import make_optimizer
from reproduce.recipes import HEADLINE, RECIPES
from reproduce.run_log import machine

FOLDER = ROOT / "logs" / "bench"
PRODUCT_SIZE = 2048  # of the matrix products that show what the processor can do; 0.1 s at 150 GFLOP/s
CLASSES = 100
_WORKER = Path(__file__).with_name("bench_peers.py")
_NOT_PASSED_ON = {*PROCESSOR_SETTINGS, "MKL_DEBUG_CPU_TYPE"}  # each side settles them for itself
_PAUSE = 0.4  # seconds before each repetition: OpenMP's threads spin for 0.2 after their work
_ENOUGH = 5  # repetitions that a table needs


# ---- Our side: the functions that training and evaluation call


class Step:
    """Called, it does `steps` training steps on one batch and gives the last loss."""

    def __init__(self, images, labels, *, recipe: str, changes: dict, classes: int, steps: int):
        paddle.set_device("cpu")
        self.recipe = dataclasses.replace(RECIPES[recipe], **changes)
        self.batch, self.steps, self.done = (paddle.to_tensor(images), paddle.to_tensor(labels)), steps, 0
        self.model = train.build_network(self.recipe, classes, fused=False)
        self.model.train()
        self.optimizer = make_optimizer(self.recipe, self.model)

    def __call__(self) -> dict:
        for _ in range(self.steps):
            self.done += 1
            found = train.train_step(self.recipe, self.model, self.optimizer, None, self.done, iter([self.batch]))
        return {"loss": found["loss"]}


class Input:
    """Called, it takes `batches` batches from the stream that training reads."""

    def __init__(self, images, labels, *, recipe: str, changes: dict, batches: int):
        paddle.set_device("cpu")
        recipe = dataclasses.replace(RECIPES[recipe], **changes)
        self.batches = batches
        self.stream = train.micro_batches(recipe, InMemory(images, labels), 1, recipe.micro_batch_size)

    def __call__(self) -> None:
        for _ in range(self.batches):
            next(self.stream)


class Evaluation:
    """Called, it evaluates every image once."""

    def __init__(self, images, labels, *, recipe: str, changes: dict, classes: int, batch_size: int):
        paddle.set_device("cpu")
        recipe = dataclasses.replace(RECIPES[recipe], **changes)
        self.split, self.batch_size, self.image_size = InMemory(images, labels), batch_size, recipe.image_size
        self.model = build(recipe.network(classes))

    def __call__(self) -> dict:
        return {"nll": float(np.mean(evaluate(self.model, self.split, self.image_size, self.batch_size).nll))}


# ---- The parts: who competes in each, and on what


@dataclass(frozen=True)
class Side:
    """What one process does."""

    name: str
    task: str  # "module:class", found by bench_peers.py
    options: dict
    our_settings: bool = True  # of the processor; otherwise those that the framework has by itself
    library: str = ""  # whose matrix product is measured beside it; "" = none
    images: dict | None = None  # of bench_peers.random_images
    core: int | None = None  # the only one it may use
    folder: Path = ROOT  # the clone whose code it runs


@dataclass(frozen=True)
class Part:
    """What is measured: seconds of a repetition (a step, a pass over all images, a start of a program)."""

    name: str
    about: dict  # for the record: sizes and settings
    sides: list[Side]  # the first is ours
    images: int  # of a repetition; 0 = does not apply
    repetitions: int = 1  # that a side does at once; the mean of their seconds is one measurement
    flops: dict[str, int] = field(default_factory=dict)  # of a repetition, by name of the side


def published_flops(config: ViTConfig) -> int:
    """Operations of a forward pass of one image, all tokens in all blocks; a multiply-add counts as 2.

    What every side is credited with, however it gets to the same result.
    """
    t, d = config.tokens, config.width
    block = 8 * t * d * d + 4 * t * t * d + 4 * t * d * config.mlp_width  # four projections, attention, MLP
    return 2 * (t - 1) * 3 * config.patch_size**2 * d + config.depth * block + 2 * d * config.num_classes


def step_part(name: str, recipe_name: str, image_size: int, batch_size: int, steps: int, classes=CLASSES) -> Part:
    """One training step: forward, backward, clipping, SGD with momentum; `steps` of them at once."""
    recipe = RECIPES[recipe_name]
    # All sum the KL over the batch, as the official code does, so that all compute the same loss.
    sizes = {"batch_size": batch_size, "micro_batch_size": batch_size, "kl_sum_over": batch_size}
    plain = {"num_views": 2, "precision": "fp32", "pretrained": "", "schedule": "constant", "warmup_steps": 0}
    changes = {"image_size": image_size, **sizes, **plain}
    network = {**MODELS[recipe.model], "image_size": image_size, "num_classes": classes}
    images = {"count": batch_size, "size": image_size, "classes": classes, "kind": "float32"}
    ours = {"recipe": recipe_name, "changes": changes, "classes": classes, "steps": steps}
    one_view = {**ours, "changes": {**changes, "num_views": 1}}
    settings = {"alpha": recipe.alpha, "learning_rate": recipe.learning_rate, "steps": steps}
    peer = {"network": {**network, "dropout": recipe.dropout}, **settings}
    sides = [
        Side("ours", "reproduce.bench:Step", ours, library="paddle", images=images),
        Side("ours_baseline", "reproduce.bench:Step", one_view, library="paddle", images=images),
        Side("pytorch", "bench_peers:TorchStep", peer, False, "torch", images),
        Side("port", "bench_port:Step", peer, False, "paddle", images),
        Side("port_tuned", "bench_port:Step", peer, True, "paddle", images),
    ]
    forward = published_flops(ViTConfig(**network))
    view = 3 * forward * batch_size  # a backward pass costs two forward passes
    flops = {name: 2 * view for name in (*(side.name for side in sides), "against")} | {"ours_baseline": view}
    about = {"model": recipe.model, "recipe": recipe_name, "image_size": image_size, "batch_size": batch_size}
    return Part(name, {**about, "classes": classes, "flops_per_image": forward}, sides, batch_size, steps, flops)


def input_part(image_size: int = 384, batch_size: int = 64, batches: int = 2) -> Part:
    """CIFAR-like bytes to float32 batches: random crop, resize, scale. Each side has the same single core."""
    images = {"count": 512, "size": 32, "classes": CLASSES, "kind": "uint8"}
    peer = {"image_size": image_size, "batch_size": batch_size}
    changes = {**peer, "micro_batch_size": batch_size}
    peer["batches"] = batches
    alike = {"images": images, "core": min(os.sched_getaffinity(0))}
    ours = {"recipe": HEADLINE, "changes": changes, "batches": batches}
    sides = [
        Side("ours", "reproduce.bench:Input", ours, **alike),
        Side("paddle_vision", "bench_peers:PaddleVision", peer, **alike),
        Side("pillow", "bench_peers:Pillow", peer, False, **alike),
    ]
    return Part("input", {"from_size": 32, **peer}, sides, batch_size * batches)


def evaluation_part(model: str = "ViT-Ti_16", image_size: int = 224, count: int = 192, batch_size: int = 64) -> Part:
    """Every image once, from bytes to the top 5 classes, confidence and NLL."""
    images = {"count": count, "size": 32, "classes": CLASSES, "kind": "uint8"}
    changes = {"model": model, "image_size": image_size}
    ours = {"recipe": HEADLINE, "changes": changes, "classes": CLASSES, "batch_size": batch_size}
    network = {**MODELS[model], "image_size": image_size, "num_classes": CLASSES}
    peer = {"network": network, "batch_size": batch_size}
    sides = [
        Side("ours", "reproduce.bench:Evaluation", ours, images=images),
        Side("pytorch", "bench_peers:TorchEvaluation", peer, False, images=images),
    ]
    return Part("evaluation", {**changes, "from_size": 32, "batch_size": batch_size}, sides, count)


def start_part() -> Part:
    """From the start of the program to its first training step, and to its end."""
    torch = step_part("", "digits", RECIPES["digits"].image_size, RECIPES["digits"].batch_size, 1, classes=10).sides[2]
    spec = {**dataclasses.asdict(torch), "folder": ""}
    sides = [
        Side("ours", "bench_peers:TrainStart", {"recipe": "digits"}, False),
        Side("pytorch", "bench_peers:TorchStart", spec, False),
    ]
    return Part("start", {"model": RECIPES["digits"].model, "batch_size": RECIPES["digits"].batch_size}, sides, 0)


PARTS = {
    "step_b16": lambda: step_part("step_b16", "cifar100_vit_b16_rdrop", 224, 8, steps=1),
    "step_ti16": lambda: step_part("step_ti16", "cifar100_vit_ti16", 64, 64, steps=5),
    "input": input_part,
    "evaluation": evaluation_part,
    "start": start_part,
}


def against(ours: Side, folder: Path) -> Side:
    """Our side of a part with the code of another clone. Raises UserError when that has none."""
    task = ours.task
    if (folder / "reproduce" / "bench_ours.py").exists():  # until 152fba1
        task = task.replace("reproduce.bench:", "reproduce.bench_ours:")
    elif not (folder / "reproduce" / "bench.py").exists():
        raise UserError(f"--against {folder}: no clone of this project; give the folder that git clone made")
    return dataclasses.replace(ours, name="against", task=task, folder=folder.resolve())


# ---- Measuring


class Missing(Exception):
    """A side cannot run for want of a package."""


class Worker:
    """The process of a side. Raises Missing, and UserError when it ends by itself."""

    def __init__(self, side: Side):
        self.side = side
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        spec = {**dataclasses.asdict(side), "folder": "", "product_size": PRODUCT_SIZE}
        environment = {name: value for name, value in os.environ.items() if name not in _NOT_PASSED_ON}
        self._process = subprocess.Popen(
            [sys.executable, str(_WORKER), json.dumps(spec)],
            cwd=side.folder,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        self.before = self._answer()

    def ask(self, command: str) -> dict:
        with contextlib.suppress(BrokenPipeError):  # it has ended: `_answer` says how
            print(command, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            raise UserError(f"{self.side.name}: {self._end()}")
        answer = json.loads(line)
        if "missing" in answer:
            self.close()
            raise Missing(answer["missing"])
        return answer

    def _end(self) -> str:
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return "its process was killed, perhaps for want of memory; close other programs"
        self._errors.seek(0)
        return f"its process ended: {self._errors.read().decode().strip().rpartition(chr(10))[2] or f'code {code}'}"

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()


def measure_pair(ours: Side, other: Side, repeat: int, tell) -> list[dict]:
    """What was measured of both, in turns: two dicts of "seconds", "more", "product" (FLOP/s) and memory, settings."""
    with contextlib.ExitStack() as stack:
        workers = []
        for side in (ours, other):
            workers.append(Worker(side))
            stack.callback(workers[-1].close)
        for worker in workers * 2:  # warms up; the optimizer's numbers are there from the second step on
            worker.ask("go")
        answers = [[], []]
        products = [0.0, 0.0]
        for turn in range(repeat):
            for i in (0, 1) if turn % 2 == 0 else (1, 0):
                time.sleep(_PAUSE)
                answers[i].append(workers[i].ask("go"))
            for i, worker in enumerate(workers):
                if worker.side.library:
                    time.sleep(_PAUSE)
                    products[i] = max(products[i], worker.ask("product")["flops_per_second"])
            own, others = (found[-1]["seconds"] for found in answers)
            tell(f"turn {turn + 1} of {repeat}: ours {own:.3g} s, {other.name} {others:.3g} s")
        return [_measured(*each) for each in zip(workers, answers, products, strict=True)]


def _measured(worker: Worker, answers: list[dict], product: float) -> dict:
    after = worker.ask("facts")
    return {
        "seconds": [answer.pop("seconds") for answer in answers],
        "more": answers,
        "product": product,
        "settings": after["settings"],
        "memory_before_bytes": worker.before["memory"]["now"],
        "memory_idle_bytes": after["memory"]["now"],
        "memory_peak_bytes": after["memory"]["peak"],
    }


def measure(part: Part, repeat: int, only=()) -> dict:
    """The record of a part, as its JSON file has it; `only` these sides beside ours, if any are named.

    Raises UserError when a side fails, or when one that `only` names cannot run.
    """
    record = {"part": part.name, "machine": machine(), **part.about, "repeat": repeat, "images": part.images}
    record["at_once"] = part.repetitions
    for name in ("torch", "timm"):  # versions of the packages that only peers use
        with contextlib.suppress(metadata.PackageNotFoundError):
            record["machine"]["packages"][name] = metadata.version(name)
    ours, *others = part.sides
    pairs, left_out = {}, {}
    for side in others:
        if only and side.name not in only:
            continue
        try:
            pairs[side.name] = measure_pair(ours, side, repeat, lambda text: say(part.name, text))
        except Missing as reason:
            remedy = "`source setup_env.sh dev` installs what the peers need"
            if side.name in only:
                raise UserError(f"{side.name}: {reason}; {remedy}") from None
            left_out[side.name] = str(reason)
            say(part.name, f"{side.name}: left out, {reason}; {remedy}")
    if not pairs:
        raise UserError(f"{part.name}: nothing to compare with here; `source setup_env.sh dev` installs the peers")
    peak = max(found["product"] for pair in pairs.values() for found in pair)
    record["peak"] = {"flops_per_second": peak, "product_size": PRODUCT_SIZE} if peak else None
    beside = [pair[0] for pair in pairs.values()]
    competitors = {"ours": _result(part, "ours", _joined(beside), _joined(beside)["seconds"], peak)}
    for name, (found_ours, found) in pairs.items():
        competitors[name] = _result(part, name, found, found_ours["seconds"], peak)
    return {**record, "left_out": left_out, "competitors": competitors}


def _joined(measurements: list[dict]) -> dict:
    """Ours of all pairs as one."""
    joined = {**measurements[0]}
    for name in ("seconds", "more"):
        joined[name] = [value for found in measurements for value in found[name]]
    for name in ("product", "memory_peak_bytes"):
        joined[name] = max(found[name] for found in measurements)
    return joined


def _result(part: Part, name: str, found: dict, ours_seconds: list[float], peak: float) -> dict:
    """All about one side; seconds are those of one repetition, its own and ours of the same turn."""
    seconds, ours = ([value / part.repetitions for value in values] for values in (found["seconds"], ours_seconds))
    result = {
        "seconds": seconds,
        "ours_seconds": ours,
        **spread(seconds),
        "n": len(seconds),
        "ratio_to_ours": spread([own / other for own, other in zip(seconds, ours, strict=True)]),
        **{key: found[key] for key in ("memory_before_bytes", "memory_idle_bytes", "memory_peak_bytes", "settings")},
    }
    if part.images:
        result["images_per_second"] = part.images / result["median"]
    if name in part.flops:
        speed = part.flops[name] / result["median"]
        result |= {"nominal_flops": part.flops[name], "flops_per_second": speed, "share_of_peak": speed / peak}
        result["product_flops_per_second"] = found["product"]
    return result | {key: [answer[key] for answer in found["more"]] for key in found["more"][0]}


def spread(values: list[float]) -> dict:
    return {"median": median(values), "lowest": min(values), "highest": max(values)}


# ---- The command


def show(record: dict) -> None:
    """A line for each side: seconds, and the ratio to ours, as median (lowest - highest)."""
    for name, found in record["competitors"].items():
        seconds, ratio = (_range(values) for values in (found, found["ratio_to_ours"]))
        memory = found["memory_peak_bytes"] / 1e9
        print(f"  {name:14} {seconds} s   x {ratio} of ours   {memory:.2f} GB   n = {found['n']}", flush=True)


def _range(values: dict) -> str:
    return f"{values['median']:.3f} ({values['lowest']:.3f} - {values['highest']:.3f})"


def _options(argv):
    kind = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="python -m reproduce.bench", description=__doc__, formatter_class=kind)
    add = parser.add_argument
    add("--part", nargs="+", default=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)}")
    add("--repeat", type=int, default=7, help=f"repetitions of each (default 7; a table needs {_ENOUGH})")
    add("--competitor", nargs="+", default=[], metavar="NAME", help="only these beside ours")
    add("--against", type=Path, metavar="FOLDER", help="measure the code of another clone of this project too")
    rule = f"nothing is written there when competitors are chosen or with fewer than {_ENOUGH} repetitions"
    add("--out", type=Path, help=f"folder for the results (default: logs/bench; {rule})")
    options = parse(parser, argv)
    if options.repeat < 1:
        raise UserError(f"--repeat {options.repeat}: must be at least 1")
    for name in options.part:
        if name not in PARTS:
            raise UserError(f"--part {name}: no such part; {near(name, PARTS)}")
    return options


def _parts(options) -> list[Part]:
    """The parts that were asked for, with the other clone in each."""
    parts = [PARTS[name]() for name in dict.fromkeys(options.part)]
    if options.against:
        for part in parts:
            part.sides.append(against(part.sides[0], options.against))
    known = {side.name for part in parts for side in part.sides}
    for name in options.competitor:
        if name not in known:
            raise UserError(f"--competitor {name}: not in {', '.join(options.part)}; {near(name, known)}")
    return parts


def main(argv=None) -> None:
    options = _options(argv)
    choose_device("cpu")
    parts = _parts(options)
    folder = options.out
    if folder is None and options.repeat >= _ENOUGH and not options.competitor:
        folder = FOLDER
    if folder:
        folder.mkdir(parents=True, exist_ok=True)  # now, and not after half an hour of measuring
    for part in parts:
        record = measure(part, options.repeat, options.competitor)
        show(record)
        if folder:
            path = folder / f"{part.name}.json"
            with atomic_write(path, "w") as file:
                file.write(json.dumps(record, indent=1, allow_nan=False) + "\n")
            say("written", str(path))
    if not folder:
        say("note", f"nothing written: a table has all competitors and {_ENOUGH} repetitions; see --out")


if __name__ == "__main__":
    run_command(main)
