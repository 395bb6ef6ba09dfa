"""Measure time and memory of this project beside PyTorch and plain Paddle, in pairs within one run.

    python -m reproduce.bench                              all parts, 7 repetitions: about an hour on 2 cores
    python -m reproduce.bench --part step_ti16 input       two of them: some minutes
    python -m reproduce.bench --part step_b16 --repeat 1 --competitor pytorch     a look; writes nothing
    python -m reproduce.bench --part step_b16 --against ../before --competitor against
                                                           before and after: "against" runs the code of another clone

    step_b16     a training step of ViT-B/16, 224 px, 8 images: R-Drop and one view here, R-Drop in PyTorch (timm), and
                 here without models/fast_cpu.py, under our settings of the processor and under Paddle's own
    step_ti16    the same of ViT-Ti/16, 64 px, 64 images
    input        random crops of 32 px images at 384 px, one core: here, paddle.vision.transforms
    evaluation   ViT-Ti/16 at 224 px on images it only reads: here, PyTorch
    start        from the start of the program to its end after one step: here, PyTorch

Each competitor is measured beside ours: two processes that take turns, each with its own settings of the processor.
Which cores they may use is the caller's choice (taskset). Close other programs first: they slow both, and not alike.
PyTorch and timm come with `source setup_env.sh dev`.

Writes logs/bench/PART.json with every single measurement. Everything is computed on the CPU, in float32.
"""

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
from reproduce import PROCESSOR_SETTINGS, ROOT, train
from reproduce.cli import Parser, choose_device, parse, run_command, say
from reproduce.evaluate import evaluate
from reproduce.optim import make_optimizer
from reproduce.recipes import HEADLINE, RECIPES
from reproduce.run_log import machine

FOLDER = ROOT / "logs" / "bench"
CLASSES = 100
_WORKER = Path(__file__).with_name("bench_peers.py")
_NOT_PASSED_ON = {*PROCESSOR_SETTINGS, "MKL_DEBUG_CPU_TYPE"}  # each side settles them for itself
_PADDLES_OWN = {"OMP_NUM_THREADS": "1", "FLAGS_use_stride_kernel": "1", "MKL_DEBUG_CPU_TYPE": "0"}
_PAUSE = 0.4  # seconds before each repetition: OpenMP's threads spin for 0.2 after their work
_ENOUGH = 5  # repetitions that a table needs


# ---- Our side: the functions that training and evaluation call


class Step:
    """Called, it does `steps` training steps on one batch and gives the last loss."""

    def __init__(self, images, labels, *, recipe: str, changes: dict, classes: int, steps: int, fast: bool = True):
        paddle.set_device("cpu")
        self.recipe = dataclasses.replace(RECIPES[recipe], **changes)
        self.batch, self.steps, self.done = (paddle.to_tensor(images), paddle.to_tensor(labels)), steps, 0
        if fast:
            self.model = train.build_network(self.recipe, classes, fused=False)
        else:
            self.model = build(self.recipe.network(classes))
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
        self.model = train.build_network(recipe, classes, fused=False)

    def __call__(self) -> dict:
        return {"nll": float(np.mean(evaluate(self.model, self.split, self.image_size, self.batch_size).nll))}


# ---- The parts: who competes in each, and on what


@dataclass(frozen=True)
class Side:
    """What one process does."""

    name: str
    task: str  # "module:class", found by bench_peers.py
    options: dict
    images: dict | None = None  # of bench_peers.random_images
    environment: dict = field(default_factory=dict)  # settings of the processor that are not its program's own
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


def step_part(name: str, recipe_name: str, image_size: int, batch_size: int, steps: int, classes=CLASSES) -> Part:
    """One training step: forward, backward, clipping, SGD with momentum; `steps` of them at once."""
    recipe = RECIPES[recipe_name]
    # Both sum the KL over the batch, as the official code does, so that all compute the same loss.
    sizes = {"batch_size": batch_size, "micro_batch_size": batch_size, "kl_sum_over": batch_size}
    plain = {"num_views": 2, "precision": "fp32", "pretrained": "", "schedule": "constant", "warmup_steps": 0}
    changes = {"image_size": image_size, **sizes, **plain}
    ours = {"recipe": recipe_name, "changes": changes, "classes": classes, "steps": steps}
    one_view = {**ours, "changes": {**changes, "num_views": 1}}
    without_fast_layers = {**ours, "fast": False}
    network = {"image_size": image_size, "num_classes": classes, "dropout": recipe.dropout}
    settings = {"alpha": recipe.alpha, "learning_rate": recipe.learning_rate, "steps": steps}
    torch = {"network": {**MODELS[recipe.model], **network}, **settings}
    images = {"count": batch_size, "size": image_size, "classes": classes, "kind": "float32"}
    sides = [
        Side("ours", "reproduce.bench:Step", ours, images),
        Side("ours_baseline", "reproduce.bench:Step", one_view, images),
        Side("pytorch", "bench_peers:TorchStep", torch, images),
        Side("plain", "reproduce.bench:Step", without_fast_layers, images),
        Side("plain_untuned", "reproduce.bench:Step", without_fast_layers, images, _PADDLES_OWN),
    ]
    about = {"model": recipe.model, "recipe": recipe_name, "image_size": image_size, "batch_size": batch_size}
    return Part(name, {**about, "classes": classes}, sides, batch_size, steps)


def input_part(image_size: int = 384, batch_size: int = 64, batches: int = 2) -> Part:
    """CIFAR-like bytes to float32 batches: random crop, resize, scale. Each side has the same single core."""
    images = {"count": 512, "size": 32, "classes": CLASSES, "kind": "uint8"}
    sizes = {"image_size": image_size, "batch_size": batch_size}
    ours = {"recipe": HEADLINE, "changes": {**sizes, "micro_batch_size": batch_size}, "batches": batches}
    peer = {**sizes, "batches": batches}
    core = min(os.sched_getaffinity(0))
    sides = [
        Side("ours", "reproduce.bench:Input", ours, images, core=core),
        Side("paddle_vision", "bench_peers:PaddleVision", peer, images, core=core),
    ]
    return Part("input", {"from_size": 32, **peer}, sides, batch_size * batches)


def evaluation_part(model: str = "ViT-Ti_16", image_size: int = 224, count: int = 192, batch_size: int = 64) -> Part:
    """Every image once, from bytes to the top 5 classes, confidence and NLL."""
    images = {"count": count, "size": 32, "classes": CLASSES, "kind": "uint8"}
    about = {"model": model, "image_size": image_size}
    changes = {**about, "pretrained": ""}
    ours = {"recipe": HEADLINE, "changes": changes, "classes": CLASSES, "batch_size": batch_size}
    network = {**MODELS[model], "image_size": image_size, "num_classes": CLASSES}
    sides = [
        Side("ours", "reproduce.bench:Evaluation", ours, images),
        Side("pytorch", "bench_peers:TorchEvaluation", {"network": network, "batch_size": batch_size}, images),
    ]
    return Part("evaluation", {**about, "from_size": 32, "batch_size": batch_size}, sides, count)


def start_part() -> Part:
    """From the start of the program to its end after one training step; ours notes when that step was done, too."""
    recipe = RECIPES["digits"]
    torch = step_part("", "digits", recipe.image_size, recipe.batch_size, 1, classes=10).sides[2]
    sides = [
        Side("ours", "bench_peers:TrainStart", {"recipe": "digits"}),
        Side("pytorch", "bench_peers:TorchStart", specification(torch)),
    ]
    return Part("start", {"model": recipe.model, "batch_size": recipe.batch_size}, sides, 0)


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


def specification(side: Side) -> dict:
    """What bench_peers.py has to know of a side."""
    return {"task": side.task, "options": side.options, "images": side.images, "core": side.core}


# ---- Measuring


class Worker:
    """The process of a side, a context. Raises UserError when it ends by itself."""

    def __init__(self, side: Side):
        self.side = side
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        environment = {name: value for name, value in os.environ.items() if name not in _NOT_PASSED_ON}
        self._process = subprocess.Popen(
            [sys.executable, str(_WORKER), json.dumps(specification(side))],
            cwd=side.folder,
            env={**environment, **side.environment},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._process.communicate()  # closes its stdin, at which it ends
        self._errors.close()

    def go(self) -> dict:
        """One repetition: its seconds, what the task gives, peak memory and settings of the processor."""
        with contextlib.suppress(BrokenPipeError):  # it has ended: `_answer` says how
            print("go", file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._errors.seek(0)
        reason = self._errors.read().decode().strip().rpartition("\n")[2] or f"code {code}"
        if code == -signal.SIGKILL:
            reason = "killed, perhaps for want of memory; close other programs"
        if reason.startswith(("ImportError", "ModuleNotFoundError")):
            reason += "; `source setup_env.sh dev` installs what the peers need"
        raise UserError(f"{self.side.name}: its process ended: {reason}")


def measure_pair(part: Part, other: Side, repeat: int) -> tuple[list[dict], list[dict]]:
    """What `Worker.go` gave for ours and for the other side, turn by turn."""
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(side)) for side in (part.sides[0], other)]
        for worker in workers * 2:  # warms up; the optimizer's numbers are there from the second step on
            worker.go()
        answers = ([], [])
        for turn in range(repeat):
            for i in (0, 1) if turn % 2 == 0 else (1, 0):
                time.sleep(_PAUSE)
                answers[i].append(workers[i].go())
            own, others = (found[-1]["seconds"] for found in answers)
            say(part.name, f"turn {turn + 1} of {repeat}: ours {own:.3g} s, {other.name} {others:.3g} s")
    return answers


def measure(part: Part, repeat: int) -> dict:
    """The record of a part, as its JSON file has it. Raises UserError when a side fails."""
    record = {"part": part.name, "machine": machine(), **part.about, "repeat": repeat, "images": part.images}
    record["at_once"] = part.repetitions
    for name in ("torch", "timm"):  # versions of the packages that only peers use
        with contextlib.suppress(metadata.PackageNotFoundError):
            record["machine"]["packages"][name] = metadata.version(name)
    pairs = {side.name: measure_pair(part, side, repeat) for side in part.sides[1:]}
    ours = [answer for beside, _ in pairs.values() for answer in beside]
    competitors = {"ours": summary(part, ours, ours)}
    for name, (beside, answers) in pairs.items():
        competitors[name] = summary(part, answers, beside)
    return {**record, "competitors": competitors}


def summary(part: Part, answers: list[dict], beside: list[dict]) -> dict:
    """All about one side; seconds are those of one repetition, its own and ours of the same turn."""
    found = {name: [answer[name] for answer in answers] for name in answers[0]}
    seconds, ours = ([answer["seconds"] / part.repetitions for answer in side] for side in (answers, beside))
    found |= {"seconds": seconds, "ours_seconds": ours, **spread(seconds), "n": len(seconds)}
    found["ratio_to_ours"] = spread([own / other for own, other in zip(seconds, ours, strict=True)])
    found["memory_peak_bytes"] = max(found["memory_peak_bytes"])
    found["settings"] = answers[0]["settings"]
    if part.images:
        found["images_per_second"] = part.images / found["median"]
    return found


def spread(values: list[float]) -> dict:
    return {"median": median(values), "lowest": min(values), "highest": max(values)}


# ---- The command


def show(record: dict) -> None:
    """A line for each side: seconds, and the ratio to ours, as median (lowest - highest)."""

    def text(values: dict) -> str:
        return f"{values['median']:.3f} ({values['lowest']:.3f} - {values['highest']:.3f})"

    for name, found in record["competitors"].items():
        ratio, memory = text(found["ratio_to_ours"]), found["memory_peak_bytes"] / 1e9
        print(f"  {name:14} {text(found)} s   x {ratio} of ours   {memory:.2f} GB   n = {found['n']}", flush=True)


def _options(argv):
    parser = Parser(prog="python -m reproduce.bench", description=__doc__)
    add = parser.add_argument
    add("--part", nargs="+", default=list(PARTS), choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    add("--repeat", type=int, default=7, help=f"repetitions of each (default 7; a table needs {_ENOUGH})")
    add("--competitor", nargs="+", default=[], metavar="NAME", help="only these beside ours")
    add("--against", type=Path, metavar="FOLDER", help="measure the code of another clone of this project too")
    rule = f"nothing is written there when competitors are chosen or with fewer than {_ENOUGH} repetitions"
    add("--out", type=Path, help=f"folder for the results (default: logs/bench; {rule})")
    options = parse(parser, argv)
    if options.repeat < 1:
        raise UserError(f"--repeat {options.repeat}: must be at least 1")
    if options.out is None and options.repeat >= _ENOUGH and not options.competitor:
        options.out = FOLDER
    return options


def parts_of(options) -> list[Part]:
    """The parts that were asked for, with the other clone and with the chosen competitors alone."""
    parts = []
    for part in [PARTS[name]() for name in dict.fromkeys(options.part)]:
        ours, *others = part.sides
        if options.against:
            others.append(against(ours, options.against))
        known = [side.name for side in others]
        for name in options.competitor:
            if name not in known:
                raise UserError(f"--competitor {name}: not in {part.name}; {near(name, known)}")
        chosen = [side for side in others if side.name in (options.competitor or known)]
        parts.append(dataclasses.replace(part, sides=[ours, *chosen]))
    return parts


def main(argv=None) -> None:
    options = _options(argv)
    choose_device("cpu")
    parts = parts_of(options)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)  # now, and not after half an hour of measuring
    for part in parts:
        record = measure(part, options.repeat)
        show(record)
        if options.out:
            path = options.out / f"{part.name}.json"
            with atomic_write(path, "w") as file:
                file.write(json.dumps(record, indent=1, allow_nan=False) + "\n")
            say("written", str(path))
    if not options.out:
        say("note", f"nothing written: a table has all competitors and {_ENOUGH} repetitions; see --out")


if __name__ == "__main__":
    run_command(main)
