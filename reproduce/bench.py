"""Measure time and memory of this project beside PyTorch and plain Paddle, in pairs within one run.

    python -m reproduce.bench --out logs/bench              all parts, 7 repetitions: an hour on 2 cores
    python -m reproduce.bench --part step_ti16 --repeat 1   a look; writes nothing
    python -m reproduce.bench --against ../before           before and after: beside another clone alone

    step_b16     a training step of ViT-B/16, 224 px, 8 images: R-Drop and one view here, R-Drop in PyTorch (timm), and
                 here without models/fast_cpu.py
    step_ti16    the same of ViT-Ti/16, 64 px, 64 images
    evaluation   ViT-Ti/16 at 224 px on images it only reads: here, PyTorch

Each competitor is measured beside ours: they take turns, each in a process of its own, on the CPU, in float32. Close
other programs first: they slow both, and not alike. PyTorch and timm come with `source setup_env.sh dev`.

`--out FOLDER` writes FOLDER/PART.json with every single measurement.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import NamedTuple

import paddle

from common.errors import UserError
from common.system import atomic_write
from data.splits import InMemory
from models import MODELS, build
from reproduce import PROCESSOR_SETTINGS, ROOT, train
from reproduce.cli import Parser, choose_device, parse, run_command, say
from reproduce.evaluate import evaluate
from reproduce.optim import loss_scaler, make_optimizer
from reproduce.recipes import HEADLINE, RECIPES
from reproduce.run_log import machine

CLASSES = 100
_WORKER = ROOT / "tests" / "alignment" / "bench_side.py"


# ---- Our side: the functions that training and evaluation call


class Step:
    """Called, it does a training step on one batch and gives the loss."""

    def __init__(self, images, labels, *, recipe: str, changes: dict, classes: int, fast: bool = True):
        paddle.set_device("cpu")
        self.recipe = dataclasses.replace(RECIPES[recipe], **changes)
        self.batch, self.done = (paddle.to_tensor(images), paddle.to_tensor(labels)), 0
        if fast:
            self.model = train.build_network(self.recipe, classes, fused=False)
        else:
            self.model = build(self.recipe.network(classes))
        self.model.train()
        self.updated = self.model, make_optimizer(self.recipe, self.model), loss_scaler(self.recipe)

    def __call__(self) -> float:
        self.done += 1
        return train.train_step(self.recipe, *self.updated, self.done, iter([self.batch]))["loss"]


class Evaluation:
    """Called, it evaluates every image once and gives the mean NLL."""

    def __init__(self, images, labels, *, recipe: str, changes: dict, classes: int, batch_size: int):
        paddle.set_device("cpu")
        recipe = dataclasses.replace(RECIPES[recipe], **changes)
        self.model = train.build_network(recipe, classes, fused=False)
        self.how = InMemory(images, labels), recipe.image_size, batch_size

    def __call__(self) -> float:
        return evaluate(self.model, *self.how).metrics()["nll"]


# ---- The parts: who competes in each, and on what


class Side(NamedTuple):
    """What one process does."""

    name: str
    task: str  # "module:class", found by the worker
    options: dict
    folder: Path = ROOT  # the clone whose code it runs


class Part(NamedTuple):
    """What is measured: seconds of a step, or of a pass over all images."""

    name: str
    images: dict  # of the worker's random_images
    sides: list[Side]  # the first is ours
    at_once: int = 1  # calls of a task in a turn, the mean of whose seconds is one measurement


def step_part(name: str, recipe_name: str, image_size: int, batch_size: int, at_once: int, classes=CLASSES) -> Part:
    """One training step: forward, backward, clipping, SGD with momentum."""
    recipe = RECIPES[recipe_name]
    # Both sum the KL over the batch, as the official code does, so that all compute the same loss.
    changes = {"image_size": image_size, "batch_size": batch_size, "micro_batch_size": batch_size, "num_views": 2}
    changes |= {"kl_sum_over": batch_size, "precision": "fp32"}
    changes |= {"pretrained": "", "schedule": "constant", "warmup_steps": 0}
    ours = {"recipe": recipe_name, "changes": changes, "classes": classes}
    network = {**MODELS[recipe.model], "image_size": image_size, "num_classes": classes, "dropout": recipe.dropout}
    torch = {"network": network, "alpha": recipe.alpha, "learning_rate": recipe.learning_rate}
    sides = [
        Side("ours", "reproduce.bench:Step", ours),
        Side("ours_baseline", "reproduce.bench:Step", {**ours, "changes": {**changes, "num_views": 1}}),
        Side("pytorch", "bench_side:TorchStep", torch),
        Side("plain", "reproduce.bench:Step", {**ours, "fast": False}),
    ]
    images = {"count": batch_size, "size": image_size, "classes": classes, "kind": "float32"}
    return Part(name, images, sides, at_once)


def evaluation_part(model: str = "ViT-Ti_16", image_size: int = 224, count: int = 192, batch_size: int = 64) -> Part:
    """Every image once, from bytes to the top 5 classes, confidence and NLL."""
    changes = {"model": model, "image_size": image_size, "pretrained": ""}
    ours = {"recipe": HEADLINE, "changes": changes, "classes": CLASSES, "batch_size": batch_size}
    network = {**MODELS[model], "image_size": image_size, "num_classes": CLASSES}
    sides = [
        Side("ours", "reproduce.bench:Evaluation", ours),
        Side("pytorch", "bench_side:TorchEvaluation", {"network": network, "batch_size": batch_size}),
    ]
    return Part("evaluation", {"count": count, "size": 32, "classes": CLASSES, "kind": "uint8"}, sides)


PARTS = {
    "step_b16": step_part("step_b16", "cifar100_vit_b16_rdrop", 224, 8, at_once=1),
    "step_ti16": step_part("step_ti16", "cifar100_vit_ti16", 64, 64, at_once=5),
    "evaluation": evaluation_part(),
}


# ---- Measuring


def turn(part: Part, side: Side) -> dict:
    """Mean seconds of a call, the results of all calls, and the peak memory, of a side in a new process."""
    words = [sys.executable, str(_WORKER), json.dumps([side.task, part.images, side.options, part.at_once])]
    environment = {name: value for name, value in os.environ.items() if name not in PROCESSOR_SETTINGS}  # its own
    done = subprocess.run(words, cwd=side.folder, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        text = f"{side.name}: its process ended with code {done.returncode}"
        raise UserError(f"{text}; see above, or if -9, close programs that take memory")
    return json.loads(done.stdout)


def measure(part: Part, repeat: int) -> dict:
    """The record of a part, as its JSON file has it."""
    record = {"part": part.name, "machine": machine(), "repeat": repeat, "images": part.images}
    record["sides"] = {side.name: side.options for side in part.sides}
    ours, *others = part.sides
    all_of_ours, competitors = [], {}
    for other in others:
        found = (ours, []), (other, [])
        for number in range(repeat):
            for side, answers in found if number % 2 == 0 else reversed(found):
                answers.append(turn(part, side))
            own, theirs = (answers[-1]["seconds"] for _, answers in found)
            say(part.name, f"turn {number + 1} of {repeat}: ours {own:.3g} s, {other.name} {theirs:.3g} s")
        all_of_ours += found[0][1]
        competitors[other.name] = summary(part, found[1][1], found[0][1])
    return {**record, "competitors": {"ours": summary(part, all_of_ours, all_of_ours), **competitors}}


def summary(part: Part, answers: list[dict], beside: list[dict]) -> dict:
    """All about one side: its own seconds and ours of the same turn."""
    seconds, ours = ([answer["seconds"] for answer in side] for side in (answers, beside))
    return {
        **spread(seconds),
        "n": len(seconds),
        "ratio_to_ours": spread([own / other for own, other in zip(seconds, ours, strict=True)]),
        "memory_peak_bytes": max(answer["memory_peak_bytes"] for answer in answers),
        "images_per_second": part.images["count"] / median(seconds),
        "seconds": seconds,
        "ours_seconds": ours,
        "results": [answer["results"] for answer in answers],  # losses or NLL
    }


def spread(values: list[float]) -> dict:
    return {"median": median(values), "lowest": min(values), "highest": max(values)}


def main(argv=None) -> None:
    parser = Parser(prog="python -m reproduce.bench", description=__doc__)
    add = parser.add_argument
    add("--part", nargs="+", default=list(PARTS), choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    add("--repeat", type=int, default=7, help="repetitions of each (default 7)")
    add("--against", type=Path, metavar="FOLDER", help="another clone of this project, the only competitor then")
    add("--out", type=Path, help="folder for the results; without it nothing is written")
    options = parse(parser, argv)
    if options.repeat < 1:
        raise UserError(f"--repeat {options.repeat}: must be at least 1")
    if options.against and not (options.against / _WORKER.relative_to(ROOT)).exists():  # of a commit before 0b5e943
        raise UserError(f"--against {options.against}: no clone that can be measured; give one of 0b5e943 or later")
    choose_device("cpu")
    if options.out is None:
        say("note", "nothing will be written; --out FOLDER keeps the results")
    else:
        options.out.mkdir(parents=True, exist_ok=True)  # now, and not after an hour of measuring
    for name in options.part:
        part = PARTS[name]
        if options.against:
            ours = part.sides[0]
            part = part._replace(sides=[ours, ours._replace(name="against", folder=options.against.resolve())])
        record = measure(part, options.repeat)
        for name, found in record["competitors"].items():
            ratio = "{median:.3f} ({lowest:.3f} to {highest:.3f})".format(**found["ratio_to_ours"])
            memory = f"{found['memory_peak_bytes'] / 1e9:.2f} GB"
            say(name, f"{found['median']:.3f} s, {ratio} of ours, {memory}, n = {found['n']}")
        if options.out is not None:
            with atomic_write(options.out / f"{part.name}.json", "w") as file:
                file.write(json.dumps(record, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    run_command(main)
