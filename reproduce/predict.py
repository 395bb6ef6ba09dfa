"""What a network sees in pictures: the most probable classes of image files, with their probabilities.

    python -m reproduce.predict checkpoints/digits-seed42/best.pdparams photo.png folder/

A picture is resized as in the evaluation of the data set that the weights were trained on, so that the
probabilities are the same.
"""

import contextlib
import json
import sys
from pathlib import Path

import numpy as np
import paddle
from paddle.nn import functional as F

from common.errors import UserError
from data import CLASSES, FROM_FILES, dataset_files, load_dataset
from data.augment import SCALES
from data.folders import SUFFIXES, ImageFiles, read_image
from data.in_memory import InMemory
from data.tables import visible
from models.weights import Weights, model_from_file
from reproduce.cli import WEIGHTS_HELP, Parser, choose_device, parse, run_command, say

_TOP = 5


def evaluated_from_files(weights: Weights) -> bool:
    """Whether the evaluation of these weights reads image files: not CIFAR and digits, which are in memory."""
    return weights.metadata.get("recipe", {}).get("dataset", "imagenet") in FROM_FILES


def scale_of(weights: Weights) -> str:
    """What pixel values become for these weights; a name of data.augment.SCALES. Raises UserError for another."""
    scale = weights.metadata.get("recipe", {}).get("scale", "-1..1")
    if scale not in SCALES:
        raise UserError(f"{weights.path}: its metadata has scale {scale!r:.40}; get the file again")
    return scale


@paddle.no_grad()
def probabilities(model, path, from_files: bool, scale: str = "-1..1") -> np.ndarray:
    """float32 (num_classes,) for the picture at `path`. Raises UserError for a file that is no picture.

    `from_files` resizes in 8 bits, as Pillow does, else in float32. Small images that are enlarged for the network
    show the difference: probabilities of 20 CIFAR-100 images at 224 px moved by up to 0.014 (ViT-Ti/16).
    """
    unused_label = np.zeros(1, np.int64)
    if from_files:
        picture = ImageFiles([path], unused_label)
    else:
        picture = InMemory(np.asarray(read_image(path)).transpose(2, 0, 1)[None], unused_label)
    images, _ = next(picture.stream([([0], None)], model.config.image_size, scale=scale))  # (1, 3, S, S)
    return F.softmax(model(images).astype("float32"), axis=-1)[0].numpy()


def class_names(weights: Weights, num_classes: int, names_file=None) -> tuple[list[str] | None, str]:
    """The names in the order of the logits, and where they were found; (None, why not) when nobody knows them.

    Asked in this order: `names_file` (UTF-8, one name a line), the weight file, the data set it was trained on if
    that is on this disk. Nothing is downloaded.

    Raises:
        UserError: names that cannot be read, or more or fewer of them than `num_classes`.
    """
    dataset = weights.metadata.get("recipe", {}).get("dataset")
    if names_file is not None:
        names, origin = _read_names(names_file), str(names_file)
    elif "class_names" in weights.metadata:
        names, origin = weights.metadata["class_names"], str(weights.path)
    elif dataset in list(CLASSES) and all(Path(folder).is_dir() for folder in dataset_files(dataset)):
        names, origin = load_dataset(dataset).class_names, f"the data set {dataset}"
    elif dataset:
        return None, f"{dataset} is not on this disk"
    else:
        return None, "the weights do not say what they were trained on"
    if not isinstance(names, list) or len(names) != num_classes:
        count = f"{len(names)} names" if isinstance(names, list) else "no list"
        raise UserError(f"class names from {origin}: {count}, but {weights.path} has {num_classes} classes; "
                        f"give --class_names FILE with {num_classes} lines")  # fmt: skip
    return [str(name) for name in names], origin


def _read_names(path) -> list[str]:
    try:
        names = [line.strip() for line in Path(path).read_text("utf-8-sig").rstrip().splitlines()]
    except UnicodeDecodeError:
        raise UserError(f"--class_names {path}: not a UTF-8 text; write one class name a line") from None
    if "" in names:
        raise UserError(f"--class_names {path}: line {names.index('') + 1} is empty; write one class name a line")
    return names


def say_classes(names: list[str] | None, origin: str, num_classes: int) -> None:
    if names:
        say("classes", f"{num_classes}, names from {origin}")
    else:
        say("classes", f"{num_classes}, names not known ({origin}): shown as 'class 0' and so on; "
                       "give them with --class_names FILE, one name a line")  # fmt: skip


def find_pictures(arguments) -> tuple[list[Path], list[str]]:
    """The image files meant by `arguments` (files, and folders for all image files in them), and what is amiss."""
    found, problems = [], []
    for path in map(Path, arguments):
        inside = [path]
        if path.is_dir():
            inside = sorted(p for p in visible(path) if p.suffix.lower() in SUFFIXES and p.is_file())
            if not inside:
                suffixes = ", ".join(sorted(SUFFIXES))
                problems.append(f"{path}: no image files ({suffixes}) in this folder; name one that holds some")
        elif not path.exists():
            inside = []
            problems.append(f"{path}: no such file or folder; check the path")
        found += inside
    return found, problems


def _parser() -> Parser:
    parser = Parser(
        prog="python -m reproduce.predict",
        description="Print the most probable classes of each picture.",
        epilog="Example: python -m reproduce.predict checkpoints/digits-seed42/best.pdparams seven.png scans/ "
        "prints five lines for seven.png and for each image file in scans/. A picture that cannot be read is named, "
        "the others are still done, and the exit code is 2.",
    )  # fmt: skip
    parser.add_argument("weights", help=WEIGHTS_HELP)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image file, or folder: every image file in it")
    parser.add_argument("--top", type=int, help=f"classes shown for each picture (default {_TOP})")
    parser.add_argument("--class_names", metavar="FILE",
                        help="text file with the name of class 0 in its first line and so on; default: from the "
                        "weights, or from the data set they were trained on")  # fmt: skip
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto")
    parser.add_argument("--json", action="store_true", help="print nothing but one JSON object a line and picture; "
                        "all else goes to stderr")  # fmt: skip
    return parser


def main(argv=None) -> None:
    options = parse(_parser(), argv)
    with contextlib.redirect_stdout(sys.stderr if options.json else sys.stdout):
        device = choose_device(options.device)
        model, weights, report = model_from_file(options.weights)
        size, num_classes = model.config.image_size, model.config.num_classes
        top = min(_TOP, num_classes) if options.top is None else options.top
        if not 1 <= top <= num_classes:
            raise UserError(f"--top {top}: must be from 1 to {num_classes}, the classes of {weights.path}")
        names, origin = class_names(weights, num_classes, options.class_names)
        paths, problems = find_pictures(options.images)
        say("weights", f"{weights.path}: {report}")
        say("device", f"{device}, fp32")
        say_classes(names, origin, num_classes)
        from_files, scale = evaluated_from_files(weights), scale_of(weights)
        way = "8-bit, as for image files" if from_files else "float32, as for images in memory"
        say("images", f"{len(paths):,}, each resized whole to {size} x {size} px ({way})")
    for problem in problems:
        _complain(problem)
    failed = len(problems)
    for path in paths:
        try:
            found = probabilities(model, path, from_files, scale)
        except UserError as reason:
            _complain(reason)
            failed += 1
            continue
        if not np.isfinite(found).all():
            raise UserError(f"{weights.path}: gives logits that are not finite for {path}; these weights are no use")
        best = np.argsort(-found, kind="stable")[:top]
        _print_json(path, found, best, names) if options.json else _print_text(path, found, best, names)
    if failed:
        raise UserError(f"{failed} of the pictures or folders could not be used, each named above")


def _complain(problem) -> None:
    sys.stdout.flush()  # so that the line stands where it belongs when both streams end in one file
    print(f"error: {problem}", file=sys.stderr, flush=True)


def _print_text(path, found, best, names) -> None:
    print(path)
    for i in best:
        print(f"  {100 * found[i]:6.2f} %  {names[i] if names else f'class {i}'}", flush=True)


def _print_json(path, found, best, names) -> None:
    top = [{"class": int(i), "name": names and names[i], "probability": float(found[i])} for i in best]
    print(json.dumps({"image": str(path), "top": top}), flush=True)


if __name__ == "__main__":
    run_command(main)
