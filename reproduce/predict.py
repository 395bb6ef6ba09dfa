"""What a network sees in pictures: the most probable classes of image files, with their probabilities.

    python -m reproduce.predict checkpoints/digits-seed42/best.pdparams photo.png folder/

A picture is prepared as in the evaluation of the data set that the weights were trained on, so that the probabilities
are the same. For weights from elsewhere it is prepared as a config beside the file says, or as is usual for the
classes of ImageNet. What nothing says is printed as "assumed", and each of it can be said by an option.
"""

import contextlib
import dataclasses
import json
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle
from paddle.nn import functional as F
from PIL import Image

from common.errors import UserError, printable
from data import CLASSES, FROM_FILES, dataset_files, load_dataset
from data.augment import SCALES
from data.folders import SUFFIXES, read_image
from data.in_memory import InMemory
from data.tables import is_picture, visible
from models.vit import ViTConfig
from models.weights import Weights, model_from_file
from reproduce.cli import WEIGHTS_HELP, Parser, choose_device, parse, run_command, say

_TOP = 5
_IMAGENET = (1000, 21841, 21843)  # classes of ImageNet-1k and the two counts of ImageNet-21k
_CROP_SHARE = 0.875  # of the shorter side: 224 of 256, the usual centre crop of ImageNet
_LARGEST = 4  # times the network's image size that a picture is resized to before the crop
_LONGEST = 16  # times the shorter side of a picture; what is further from the middle is cut off before resizing
_DECODERS, _AHEAD = 2, 8  # threads, and pictures that are decoded before the network wants them
_NETWORK_OPTIONS = {  # fields of the network's configuration that a weight file may leave open
    f.name: f.type
    for f in dataclasses.fields(ViTConfig)
    if f.name in ("heads", "layer_norm_epsilon", "pooling", "activation")
}


# ---- how a picture becomes the input of the network


@dataclass
class Preparation:
    """From a picture to float32 (3, image_size, image_size)."""

    image_size: int
    from_files: bool = True  # resized in 8 bits by Pillow; otherwise in float32, as CIFAR and digits are in memory
    scale: str = "-1..1"  # what pixel values become: a name of data.augment.SCALES
    resize: int = 0  # pixels of the side or sides before the centre crop; 0 = image_size
    keep_ratio: bool = False  # `resize` means the shorter side; otherwise both
    resample: Image.Resampling = Image.Resampling.BILINEAR
    assumed: list[str] = dataclasses.field(default_factory=list)  # what nothing says
    origin: str = ""  # the file that says it

    def __str__(self) -> str:
        side, size = self.resize or self.image_size, self.image_size
        text = f"shorter side resized to {side} px" if self.keep_ratio else f"resized whole to {side} x {side} px"
        if self.keep_ratio or side > size:
            text += f", centre crop {size} x {size}"
        way = f"{self.resample.name.lower()} in {'8 bits' if self.from_files else 'float32'}"
        return f"{text}, {way}, pixel scale {self.scale}{f', as {self.origin} says' if self.origin else ''}"

    def decoded(self, path) -> np.ndarray:
        """uint8 (H, W, 3); for `from_files` of the network's size. Raises UserError for a file that is no picture."""
        picture = read_image(path)
        if not self.from_files:
            return np.asarray(picture)
        side = self.resize or self.image_size
        sides = (side, side)
        if self.keep_ratio:  # rounded as torchvision's Resize and CenterCrop do
            shorter = min(picture.size)
            picture = _middle(picture, *(min(length, _LONGEST * shorter) for length in picture.size))
            sides = tuple(int(side * length / shorter) for length in picture.size)
        return np.asarray(_middle(picture.resize(sides, self.resample), self.image_size, self.image_size))

    def images(self, pixels: np.ndarray):
        """What `decoded` gave as the network's input, (1, 3, S, S)."""
        split = InMemory(pixels.transpose(2, 0, 1)[None], np.zeros(1, np.int64))
        return next(split.stream([([0], None)], self.image_size, scale=self.scale))[0]


def _middle(picture: Image.Image, width: int, height: int) -> Image.Image:
    left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
    return picture.crop((left, top, left + width, top + height))


def preparation(weights: Weights, num_classes: int, image_size: int, scale: str = "", resize: str = "") -> Preparation:
    """How pictures are prepared for `weights`; `scale` and `resize` are what the user says, "" for nothing.

    Raises UserError for what cannot be done here.
    """
    recipe = weights.metadata.get("recipe", {})
    if recipe:
        found = Preparation(image_size, recipe.get("dataset", "imagenet") in FROM_FILES)
        found.scale = recipe.get("scale", "-1..1")
        if not isinstance(found.scale, str) or found.scale not in SCALES:
            raise UserError(f"{weights.path}: its metadata has scale {found.scale!r:.40}; get the file again")
    else:
        found = _from_config(weights.path.parent, image_size) or _assumed(num_classes, image_size)
    if scale:
        found.scale = scale
        found.assumed = [text for text in found.assumed if not text.startswith("scale")]
    if resize:
        found.resize, found.keep_ratio, found.from_files = 0, resize != "whole", True
        found.assumed = [text for text in found.assumed if not text.startswith("resize")]
        if found.keep_ratio:
            found.resize = int(resize) if resize.isdecimal() else -1
    if found.resize and not image_size <= found.resize <= _LARGEST * image_size:
        asked = f"--resize {resize}" if resize else f"{found.origin}: resize {found.resize}"
        raise UserError(
            f"{asked}: must be 'whole', or the pixels of the shorter side before the crop to {image_size}, from "
            f"{image_size} to {_LARGEST * image_size}"
        )
    return found


def _assumed(num_classes: int, image_size: int) -> Preparation:
    found = Preparation(image_size)
    text = "resize whole"
    if num_classes in _IMAGENET:
        found.resize, found.keep_ratio = int(image_size / _CROP_SHARE), True
        text = f"resize {found.resize} and centre crop"
    found.assumed = [f"scale {found.scale}", text]
    return found


def _from_config(folder: Path, image_size: int) -> Preparation | None:
    """As timm's config.json or Hugging Face's preprocessor_config.json in `folder` says; None without them."""
    for name, read in (("preprocessor_config.json", _hugging_face), ("config.json", _timm)):
        path = folder / name
        if not path.is_file():
            continue
        try:
            found = read(json.loads(path.read_text("utf-8")), Preparation(image_size, origin=str(path)))
        except UserError as reason:
            raise UserError(f"{path}: {reason}; say it by --scale and --resize, or move that file away") from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ArithmeticError) as reason:
            raise UserError(f"{path}: no config of timm or Hugging Face ({reason!r:.80}); move it away") from None
        if found is not None:
            return found
    return None


def _timm(config: dict, found: Preparation) -> Preparation | None:
    said = config.get("pretrained_cfg")
    if said is None:
        return None  # Hugging Face's config.json says nothing about pictures
    mode = said.get("crop_mode", "center")
    if mode not in ("center", "squash"):
        raise UserError(f"crop_mode {mode!r:.40} cannot be computed here")
    found.resize, found.keep_ratio = int(found.image_size / float(said["crop_pct"])), mode == "center"
    found.resample = _resampling(said["interpolation"])
    found.scale = _scale_of(said["mean"], said["std"])
    return found


def _hugging_face(config: dict, found: Preparation) -> Preparation:
    size = config["size"]
    if isinstance(size, dict) and "shortest_edge" in size:
        found.resize, found.keep_ratio = int(size["shortest_edge"]), True
    else:
        found.resize = int(size["height"]) if isinstance(size, dict) else int(size)
    if not config.get("do_center_crop", False):
        if found.keep_ratio:
            raise UserError("a picture resized without a crop is not square, which cannot be computed here")
        found.resize = 0  # both sides at once: whatever image size was chosen
    found.resample = Image.Resampling(config["resample"])
    found.scale = _scale_of(config["image_mean"], config["image_std"]) if config.get("do_normalize", True) else "0..1"
    return found


def _resampling(name: str) -> Image.Resampling:
    if not isinstance(name, str) or name.upper() not in Image.Resampling.__members__:
        raise UserError(f"interpolation {name!r:.40} cannot be computed here")
    return Image.Resampling[name.upper()]


def _scale_of(mean, std) -> str:
    """The name of a scale with that mean and deviation of pixels from 0 to 1."""
    for name, (divisor, offset) in SCALES.items():
        means, deviations = np.multiply(divisor, offset) / 255, np.divide(divisor, 255)
        if np.allclose(mean, means, atol=1e-3) and np.allclose(std, deviations, atol=1e-3):
            return name
    raise UserError(f"pixel mean {mean!r:.60} and deviation {std!r:.60} are of no scale known here")


# ---- names of classes


def class_names(weights: Weights, num_classes: int, names_file=None) -> tuple[list[str] | None, str]:
    """The names in the order of the logits, and where they were found; (None, why not) when nobody knows them.

    Asked in this order: `names_file` (UTF-8, one name a line), the weight file, the data set it was trained on if
    that is on this disk. Nothing is downloaded. Characters that are not printable are written as escapes.

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
        return None, f"{printable(str(dataset))} is not on this disk"
    else:
        return None, "the weights do not say what they were trained on"
    if not isinstance(names, list) or len(names) != num_classes:
        count = f"{len(names)} names" if isinstance(names, list) else "no list"
        raise UserError(
            f"class names from {origin}: {count}, but {weights.path} has {num_classes} classes; "
            f"give --class_names FILE with {num_classes} lines"
        )
    return [printable(str(name)) for name in names], origin


def _read_names(path) -> list[str]:
    try:
        names = [line.strip() for line in Path(path).read_text("utf-8-sig").rstrip().splitlines()]
    except UnicodeDecodeError:
        raise UserError(f"--class_names {path}: not a UTF-8 text; write one class name a line") from None
    if "" in names:
        raise UserError(f"--class_names {path}: line {names.index('') + 1} is empty; write one class name a line")
    return names


# ---- what predict and export share


def add_options(parser: Parser) -> None:
    """The weight file, and what of it can be said by options."""
    parser.add_argument("weights", help=WEIGHTS_HELP)
    names = "text file with the name of class 0 in its first line and so on; default: from the weights, or from the "
    parser.add_argument("--class_names", metavar="FILE", help=names + "data set that they were trained on")
    parser.add_argument("--scale", choices=SCALES, help="of pixel values, --scale=NAME; default: what the file says")
    resize = "'whole', or pixels of the shorter side before a centre crop; default: what the file says"
    parser.add_argument("--resize", metavar="SIZE", default="", help=resize)
    for name, kind in _NETWORK_OPTIONS.items():
        parser.add_argument(f"--{name}", type=kind, help=f"{name.replace('_', ' ')}; default: what the file says")


def open_weights(options) -> tuple:
    """(model, Weights, Preparation, class names or None) as the options of `add_options` say; prints all of it."""
    chosen = {name: getattr(options, name) for name in _NETWORK_OPTIONS if getattr(options, name) is not None}
    model, weights, report = model_from_file(options.weights, **chosen)
    config = model.config
    prepare = preparation(weights, config.num_classes, config.image_size, options.scale or "", options.resize)
    names, origin = class_names(weights, config.num_classes, options.class_names)
    say("weights", f"{weights.path}: {dataclasses.replace(report, assumed=[])}")
    assumed = [*report.assumed, *prepare.assumed]
    if assumed:
        say("assumed", f"{', '.join(assumed)}; not said by the file, see --help for the options that say it")
    if names:
        say("classes", f"{config.num_classes}, names from {origin}")
    else:
        unknown = f"names not known ({origin}): shown as 'class 0' and so on"
        say("classes", f"{config.num_classes}, {unknown}; give them with --class_names FILE, one name a line")
    return model, weights, prepare, names


# ---- the command


def find_pictures(arguments) -> tuple[list[Path], list[str]]:
    """The image files meant by `arguments` (files, and folders for all image files in them), and what is amiss."""
    found, problems = [], []
    for path in map(Path, arguments):
        if path.is_dir():
            inside = [file for file in visible(path) if is_picture(file)]
            if not inside:
                suffixes = ", ".join(sorted(SUFFIXES))
                problems.append(f"{path}: no image files ({suffixes}) in this folder; name one that holds some")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            problems.append(f"{path}: no such file or folder; check the path")
    return found, problems


@paddle.no_grad()
def probabilities(model, images) -> np.ndarray:
    """float32 (num_classes,) for images (1, 3, S, S)."""
    return F.softmax(model(images).astype("float32"), axis=-1)[0].numpy()


def decoded_ahead(paths: list[Path], prepare: Preparation):
    """(path, pixels or the UserError) in order; threads decode the next pictures while the network works."""
    with ThreadPoolExecutor(_DECODERS) as pool:
        waiting = deque()
        for path in paths:
            waiting.append((path, pool.submit(prepare.decoded, path)))
            if len(waiting) > _AHEAD:
                yield _finished(*waiting.popleft())
        while waiting:
            yield _finished(*waiting.popleft())


def _finished(path, future):
    try:
        return path, future.result()
    except UserError as reason:
        return path, reason


def _parser() -> Parser:
    parser = Parser(
        prog="python -m reproduce.predict",
        description="Print the most probable classes of each picture.",
        epilog="Example: python -m reproduce.predict checkpoints/digits-seed42/best.pdparams seven.png scans/ "
        "prints five lines for seven.png and for each image file in scans/. A picture that cannot be read is named, "
        "the others are still done, and the exit code is 2.",
    )
    add_options(parser)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image file, or folder: every image file in it")
    parser.add_argument("--top", type=int, help=f"classes shown for each picture (default {_TOP}, or all if fewer)")
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto")
    only = "print nothing but one JSON object a line and picture; all else goes to stderr"
    parser.add_argument("--json", action="store_true", help=only)
    return parser


def main(argv=None) -> None:
    options = parse(_parser(), argv)
    with contextlib.redirect_stdout(sys.stderr if options.json else sys.stdout):
        device = choose_device(options.device)
        model, weights, prepare, names = open_weights(options)
        num_classes = model.config.num_classes
        top = min(_TOP, num_classes) if options.top is None else options.top
        if not 1 <= top <= num_classes:
            raise UserError(f"--top {top}: must be from 1 to {num_classes}, the classes of {weights.path}")
        paths, problems = find_pictures(options.images)
        say("device", f"{device}, fp32")
        say("images", f"{len(paths):,}, each {prepare}")
    failed = len(problems)
    for problem in problems:
        _complain(problem)
    for path, pixels in decoded_ahead(paths, prepare):
        if isinstance(pixels, UserError):
            _complain(pixels)
            failed += 1
            continue
        found = probabilities(model, prepare.images(pixels))
        if not np.isfinite(found).all():
            raise UserError(f"{weights.path}: gives logits that are not finite for {path}; these weights are no use")
        _show(path, found, np.argsort(-found, kind="stable")[:top], names, options.json)
    if failed:
        raise UserError(f"{failed} of the pictures or folders could not be used, each named above")


def _complain(problem) -> None:
    sys.stdout.flush()  # so that the line stands where it belongs when both streams end in one file
    print(f"error: {printable(str(problem))}", file=sys.stderr, flush=True)


def _show(path, found, best, names, as_json: bool) -> None:
    """The classes `best` of a picture, as lines or as one JSON object."""
    if as_json:
        top = [{"class": int(i), "name": names and names[i], "probability": float(found[i])} for i in best]
        print(json.dumps({"image": str(path), "top": top}), flush=True)
        return
    print(printable(str(path)))
    for i in best:
        print(f"  {100 * found[i]:6.2f} %  {names[i] if names else f'class {i}'}", flush=True)


if __name__ == "__main__":
    run_command(main)
