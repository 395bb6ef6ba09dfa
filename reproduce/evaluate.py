"""Exact accuracy of a network on a split. Training and `run_eval.sh` both call `evaluate`.

    bash run_eval.sh                                             the digits weights in checkpoints/
    bash run_eval.sh checkpoints/digits-seed42/best.pdparams     your own, or a downloaded file

prints top-1, top-5, mean negative log-likelihood and calibration error over every image of the split, once each.
Image size, classes and network come from the weights; data set and split from the run that made them.
"""

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import paddle
from tqdm import tqdm

from common.errors import UserError
from common.pixels import SCALES
from common.system import atomic_write
from data import CLASSES, FROM_FILES, DataSet, load_dataset
from data.prepared import preparation, resize_option
from models.fast_cpu import speed_up
from models.vit import ACTIVATIONS, POOLINGS
from models.weights import Weights, assumptions, model_from_file
from reproduce import ROOT, distributed
from reproduce.cli import WEIGHTS_HELP, Parser, choose_device, parse, run_command, say
from reproduce.rdrop import log_softmax
from reproduce.recipes import CHOICE, SETTINGS, switch, what_is_wrong


class Evaluation(NamedTuple):
    """Per-image results in the order of the split; N images."""

    labels: np.ndarray  # (N,) int16
    top5: np.ndarray  # (N, 5) int16, most probable class first (fewer columns for fewer classes)
    confidence: np.ndarray  # (N,) float32, probability of the first of them
    nll: np.ndarray  # (N,) float32, -log P(label) in nats

    def metrics(self) -> dict:
        """Accuracies and calibration error as fractions of 1, nll in nats, and the exact counts."""
        hits = self.top5 == self.labels[:, None]
        correct, total = int(hits[:, 0].sum()), len(self.labels)
        accuracies = {"accuracy": correct / total}
        if hits.shape[1] == 5:  # with fewer classes it says nothing
            accuracies["top5_accuracy"] = int(hits.any(axis=1).sum()) / total
        return {
            **accuracies,
            "nll": float(self.nll.mean(dtype=np.float64)),
            "ece": expected_calibration_error(self.confidence, hits[:, 0]),
            "correct": correct,
            "total": total,
        }

    def save(self, path) -> None:
        with atomic_write(path) as file:
            np.savez_compressed(file, **self._asdict())


def expected_calibration_error(confidence, hit, bins: int = 15) -> float:
    """Mean over images of |accuracy - confidence| of their bin of confidence; equal bins (Guo et al., 1706.04599)."""
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.bincount(which, weights=hit.astype(np.float64) - confidence.astype(np.float64), minlength=bins)
    return float(np.abs(gap).sum() / len(hit))


@paddle.no_grad()
def evaluate(
    model, split, image_size: int, batch_size: int, workers: int = 0, title: str = "", scale: str = "-1..1"
) -> Evaluation:
    """Run `model` without dropout on every image of `split` exactly once, resized to `image_size` pixels a side.

    Several processes take a contiguous piece each; every one of them gets the result of all N images, in order.
    `title` names the progress bar, "" shows none; `scale` is that of training, a name of common.pixels.SCALES.
    Raises UserError for an empty split or a logit that is not a number.
    """
    if len(split) == 0:
        raise UserError("this split holds no image, so there is nothing to evaluate; choose another --split")
    was_training = model.training
    model.eval()
    mine = distributed.share(len(split))
    rows = np.zeros((len(split), 8))  # of each image, see _per_image
    starts = range(mine.start, mine.stop, batch_size)
    requests = ((np.arange(start, min(start + batch_size, mine.stop)), None) for start in starts)
    stream = split.stream(requests, image_size, workers=workers, scale=scale)
    shown = title and distributed.is_main()
    stream = tqdm(stream, desc=title, total=len(starts), unit="batch", disable=not shown, leave=False)
    for start, (images, labels) in zip(starts, stream, strict=True):
        rows[start : start + len(labels)] = _per_image(model(images), labels)
    if was_training:
        model.train()
    distributed.wait()  # the pieces may take different times
    rows = distributed.summed(paddle.to_tensor(rows)).numpy()  # each one is zero in all processes but one
    labels, *top5 = rows[:, :6].T.astype(np.int16, order="C")
    confidence, nll = rows[:, 6:].T.astype(np.float32, order="C")
    if bad := int((~np.isfinite(nll)).sum()):
        raise UserError(f"the network gives logits that are not finite for {bad} images; these weights are no use")
    return Evaluation(labels, np.stack([column for column in top5 if (column >= 0).all()], axis=1), confidence, nll)


def evaluate_parts(model, *arguments, **options) -> dict[str, Evaluation]:
    """`evaluate` of each part of the model by name; the whole is called ""."""
    return {name: evaluate(network, *arguments, **options) for name, network in model.parts().items()}


def scores(found: dict[str, Evaluation], split: str) -> dict:
    """What is recorded of an evaluation: "test/accuracy", and "test/first_accuracy" of the first of two networks."""
    row = {}
    for network, evaluation in found.items():
        metrics, prefix = evaluation.metrics(), f"{network}_" if network else ""
        row |= {f"{split}/{prefix}{name}": metrics[name] for name in ("accuracy", "nll")}
    return row


def metrics_of(found: dict[str, Evaluation], split: str) -> dict:
    """Everything about an evaluation, for run.json: "test", and "test_first" of the first of two networks."""
    return {f"{split}_{name}" if name else split: evaluation.metrics() for name, evaluation in found.items()}


def _per_image(logits, labels) -> np.ndarray:
    """(n, 8) float64: label, top 5 classes (-1 where there are fewer), confidence, NLL."""
    log_p = log_softmax(logits.astype("float32"))
    top_log_p, top = paddle.topk(log_p, k=min(5, log_p.shape[-1]), axis=-1)
    nll = -paddle.take_along_axis(log_p, labels.unsqueeze(-1), axis=-1).squeeze(-1)
    rows = np.full((len(labels), 8), -1.0)
    rows[:, 0] = labels.numpy()
    rows[:, 1 : 1 + top.shape[1]] = top.numpy()
    rows[:, 6] = top_log_p[:, 0].exp().numpy()
    rows[:, 7] = nll.numpy()
    return rows


def describe(metrics: dict) -> str:
    """One line for people; every digit of the accuracy, which is a count over a count."""
    text = f"top-1 {100 * metrics['accuracy']:.2f} % ({metrics['correct']}/{metrics['total']})"
    if "top5_accuracy" in metrics:
        text += f"  top-5 {100 * metrics['top5_accuracy']:.2f} %"
    return f"{text}  NLL {metrics['nll']:.6f}  ECE {metrics['ece']:.6f}"


def _parser() -> Parser:
    parser = Parser(prog="run_eval.sh", description=__doc__)
    released = ROOT / "checkpoints" / "digits.pdparams"  # see checkpoints/README.md
    text = f"{WEIGHTS_HELP}; default: the digits weights that this project releases"
    parser.add_argument("weights", nargs="?", default=str(released), help=text)
    parser.add_argument("--dataset", choices=sorted(CLASSES), help="default: the one the weights were trained on")
    parser.add_argument("--data_dir", default="", help="folder with the data; default data/downloads")
    parser.add_argument("--split", choices=("test", "validation", "train"), default="test")
    parser.add_argument("--batch_size", type=int, help="images at once; default as in training, or 100")
    parser.add_argument("--image_size", type=int, help="pixels; default: what the weights are made for")
    add_weight_options(parser)
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto")
    parser.add_argument("--workers", type=int, default=4, help="processes that decode image files (default 4)")
    parser.add_argument("--strict", type=switch, default=False, help="true: stop at a picture that cannot be read")
    parser.add_argument("--output", help="write labels, top-5, confidence and NLL of every image to this .npz")
    return parser


def add_weight_options(parser: Parser) -> None:
    """What can be said of a weight file that does not say it itself; `chosen_of` gives it to `model_from_file`."""
    default = "default: what the file or a config beside it says, else"
    parser.add_argument("--heads", type=int, help=f"of attention; {default} of 64 features each (80 for width 1280)")
    parser.add_argument("--layer_norm_epsilon", type=float, help=f"{default} 1e-6; the Paddle port of R-Drop has 1e-5")
    parser.add_argument("--pooling", choices=POOLINGS, help=f"what the head reads; {default} token")
    parser.add_argument("--activation", choices=ACTIVATIONS, help=f"of the MLPs; {default} gelu")
    parser.add_argument("--scale", choices=SCALES, help=f"of pixel values, --scale=NAME; {default} -1..1")
    resize = "of pictures: 'whole', or pixels of the shorter side before a centre crop"
    parser.add_argument("--resize", type=resize_option, metavar="SIZE", help=f"{resize}; {default} see docs/weights.md")
    parser.add_argument("--entry", metavar="NAME", help="the network in a training checkpoint that holds several")


def chosen_of(options) -> dict:
    """What the options of `add_weight_options`, and --image_size, say."""
    names = ("heads", "layer_norm_epsilon", "pooling", "activation", "scale", "resize", "entry", "image_size")
    return {name: value for name, value in vars(options).items() if name in names and value is not None}


def main(argv=None) -> None:
    options = parse(_parser(), argv)
    if options.workers < 0 or (options.batch_size is not None and options.batch_size < 1):
        raise UserError("--batch_size must be at least 1, and --workers at least 0")
    if options.output and Path(options.output).is_dir():  # said now and not after the evaluation
        raise UserError(f"--output {options.output}: is a folder; give the path of a file")
    device = choose_device(options.device)
    distributed.start()
    model, weights, report = model_from_file(options.weights, **chosen_of(options))
    config = model.config
    data, batch_size = _data_of(options, weights)
    _check_classes(weights, config.num_classes, data)
    split, prepared = getattr(data, options.split), "resized whole"
    if data.name in FROM_FILES:
        prepared = preparation(weights.pictures, data.name, config.image_size)
        split = prepared.split(split)
    elif options.resize is None and "resize" in weights.pictures:
        weights.assumed["resize"] = "whole"
    elif options.resize and options.resize.keep_ratio:
        raise UserError(f"--resize: the images of {data.name} are small and resized whole; leave it out")
    for note in data.notes:
        say("note", note)
    say_weights(weights, report)
    say("network", ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(config).items()))
    say("device", f"{device}, fp32{distributed.described()}")
    say("images", f"{data.name}, {options.split} split, {len(split):,} images, {batch_size} at once, each {prepared}")
    how = config.image_size, batch_size, options.workers, options.split, weights.pictures["scale"]
    found = evaluate_parts(speed_up(model), split, *how)
    metrics = {name: evaluation.metrics() for name, evaluation in found.items()}
    for name, values in metrics.items():
        say(name or "result", describe(values))
    if distributed.is_main():
        if options.output:
            found[""].save(options.output)
            say("written", options.output)
        what = {"weights": str(weights.path), "dataset": data.name, "split": options.split}
        print(json.dumps({**what, **metrics.pop(""), **metrics}))


def say_weights(weights: Weights, report: str) -> None:
    """What was read and assumed, in lines that every command prints."""
    say("weights", f"{weights.path}: {report}")
    if weights.assumed:
        say("assumed", assumptions(weights.assumed))


def _data_of(options, weights: Weights) -> tuple[DataSet, int]:
    """The data set asked for, chosen as in training where the weights come from it, and how many images at once."""
    recipe = weights.metadata.get("recipe", {})
    for field in SETTINGS:  # the recipe comes from outside, so what is used of it is checked
        name = field.name
        used = name in recipe and name in (*CHOICE, "dataset", "eval_batch_size")
        if used and (wrong := what_is_wrong(field, recipe[name])):
            raise UserError(f"{weights.path}: its metadata has {name} {recipe[name]!r:.40}: {wrong}")
    trained_on = recipe.get("dataset")
    name, choice = options.dataset or trained_on, {}
    if name is None:
        raise UserError(f"{weights.path}: does not say which data set it is for; say --dataset NAME")
    if name == trained_on:
        choice = {key: value for key, value in recipe.items() if key in CHOICE}
    elif options.split != "test":
        raise UserError(f"--split {options.split}: {weights.path} does not say which images its training held out")
    data = load_dataset(name, options.data_dir, **choice, strict=options.strict, workers=options.workers)
    return data, options.batch_size or recipe.get("eval_batch_size", 100)


def _check_classes(weights: Weights, num_classes: int, data: DataSet) -> None:
    """Raise UserError where the classes are known to be others than those of `data`, or in another order."""
    names = data.class_names
    if len(names) != num_classes:
        text = f"{weights.path}: its head has {num_classes} classes, {data.name} has {len(names)}"
        raise UserError(f"{text}; these weights are for another data set, or pretrained and not yet fine-tuned")
    theirs = weights.pictures.get("class_names", names)
    another_order = sorted(theirs) == sorted(names) and theirs != names
    if another_order or weights.metadata.get("class_names", names) != names:
        text = f"{weights.path}: its classes are others than those of {data.name}, or in another order"
        raise UserError(f"{text}; evaluate it on the data set that it was trained on")
    if theirs != names:  # a config of others may spell the same names otherwise
        weights.assumed["class_order"] = "that of the data set"


if __name__ == "__main__":
    run_command(main)
