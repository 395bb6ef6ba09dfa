"""Predict the most probable classes of image files, with their probabilities.

    python -m reproduce.predict checkpoints/digits-seed42/best.pdparams photo.png folder/

A picture is prepared as for the data set that the weights were trained on. For weights from elsewhere a config beside
the file says how, or what is usual for ImageNet is taken. What no source says is printed as "assumed".

A picture that cannot be read is named, the others are still done, and the exit code is 2.
"""

import contextlib
import json
import sys
from pathlib import Path

import numpy as np
import paddle

from common.errors import UserError, printable
from data.prepared import preparation
from data.splits import SUFFIXES
from data.tables import is_picture, visible
from models.fast_cpu import speed_up
from models.weights import Weights, model_from_file
from reproduce.cli import WEIGHTS_HELP, Parser, choose_device, parse, run_command, say
from reproduce.evaluate import add_weight_options, chosen_of, say_weights


@paddle.no_grad()
def main(argv=None) -> None:
    parser = Parser(prog="python -m reproduce.predict", description=__doc__)
    add_options(parser)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image file, or folder: every image file in it")
    parser.add_argument("--top", type=int, default=5, help="classes shown of each picture (default 5, or all)")
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto")
    parser.add_argument("--json", action="store_true", help="one JSON object a line and picture; all else to stderr")
    options = parse(parser, argv)
    if options.top < 1:
        raise UserError(f"--top {options.top}: must be at least 1")
    with contextlib.redirect_stdout(sys.stderr if options.json else sys.stdout):
        device = choose_device(options.device)
        model, weights, prepare, names = open_weights(options)
        paths = find_pictures(options.images)
        say("device", f"{device}, fp32")
        say("images", f"{len(paths):,}, each {prepare}")
    speed_up(model)
    unreadable = 0
    for path in paths:
        try:
            pixels = prepare.decoded(path)
        except UserError as reason:
            sys.stdout.flush()  # so that the line stands where it belongs when both streams end in one file
            print(f"error: {reason}", file=sys.stderr, flush=True)
            unreadable += 1
            continue
        logits = model(prepare.images(pixels[None])).astype("float32")  # (1, num_classes)
        found = paddle.nn.functional.softmax(logits, axis=-1)[0].numpy()
        if not np.isfinite(found).all():
            raise UserError(f"{weights.path}: gives logits that are not finite for {path}; these weights are no use")
        show(path, found, np.argsort(-found, kind="stable")[: options.top], names, options.json)
    if unreadable:
        raise UserError(f"{unreadable} of {len(paths)} pictures could not be read, each named above")


def find_pictures(arguments) -> list[Path]:
    """The image files named, and those in the folders named. Raises UserError for a folder without any."""
    found = []
    for path in map(Path, arguments):
        inside = [file for file in visible(path) if is_picture(file)] if path.is_dir() else [path]
        if not inside:
            raise UserError(f"{path}: no image files ({', '.join(sorted(SUFFIXES))}) in this folder; name another")
        found += inside
    return found


def show(path, found, best, names, as_json: bool) -> None:
    """The classes `best` of a picture, as lines or as one JSON object."""
    if as_json:
        top = [{"class": int(i), "name": names and names[i], "probability": float(found[i])} for i in best]
        print(json.dumps({"image": str(path), "top": top}), flush=True)
        return
    print(printable(str(path)))
    for i in best:
        print(f"  {100 * found[i]:6.2f} %  {names[i] if names else f'class {i}'}", flush=True)


# ---- what predict and export share


def add_options(parser: Parser) -> None:
    """The weight file, and what of it can be said by options."""
    parser.add_argument("weights", help=WEIGHTS_HELP)
    names = "text file with the name of class 0 in its first line and so on; default: from the weights, or a config"
    parser.add_argument("--class_names", metavar="FILE", help=f"{names} beside them")
    add_weight_options(parser)


def open_weights(options) -> tuple:
    """(model, Weights, Preparation, class names or None) as the options of `add_options` say; prints all of it."""
    model, weights, report = model_from_file(options.weights, **chosen_of(options))
    config = model.config
    dataset = weights.metadata.get("recipe", {}).get("dataset", "imagenet")
    prepare = preparation(weights.pictures, dataset, config.image_size)
    names, known = class_names(weights, config.num_classes, options.class_names)
    weights.assumed.pop("class_order", None)  # the line "classes" says more
    say_weights(weights, report)
    say("classes", f"{config.num_classes}, {known}")
    return model, weights, prepare, names


def class_names(weights: Weights, num_classes: int, names_file: str | None) -> tuple[list[str] | None, str]:
    """The names in the order of the logits, None where they are not known, and where they come from.

    What is not UTF-8 or not printable is written as escapes. Raises UserError for more or fewer than `num_classes`.
    """
    if names_file is not None:
        lines = Path(names_file).read_text("utf-8-sig", errors="backslashreplace").splitlines()
        names, origin = [line.strip() for line in lines if line.strip()], f"--class_names {names_file}"
    elif "class_names" in weights.metadata:
        names, origin = weights.metadata["class_names"], weights.path
    elif "class_names" in weights.pictures:
        names, origin = weights.pictures["class_names"], f"the config beside {weights.path}"
    else:
        return None, "names not known; give them with --class_names FILE, one name a line"
    count = len(names) if isinstance(names, list) else 0
    if count != num_classes:
        text = f"class names from {origin}: {count} names, but {weights.path} has {num_classes} classes"
        raise UserError(f"{text}; give --class_names FILE with {num_classes} lines")
    return [printable(str(name)) for name in names], f"names from {origin}"


if __name__ == "__main__":
    run_command(main)
