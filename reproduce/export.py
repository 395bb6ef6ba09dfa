"""A network for use without this project: a Paddle inference model, checked after it is written.

    python -m reproduce.export checkpoints/digits-seed42/best.pdparams

writes checkpoints/exported/digits-seed42/ with `inference.json` and `inference.pdiparams`, which `paddle.inference`
loads for batches of any size, and `description.json`, which says what goes in and what comes out.
"""

import dataclasses
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import paddle
from paddle import inference
from paddle.static import InputSpec

from common.atomic import file_digest, flush_to_disk, require_file
from common.errors import UserError
from common.pixels import SCALES
from reproduce import ROOT
from reproduce.cli import Parser, choose_device, parse, run_command, say
from reproduce.predict import add_options, open_weights

_FILES = ("inference.json", "inference.pdiparams", "description.json")
_TOLERANCE = 1e-5  # largest difference of a logit
_CHECKED_BATCHES = (1, 3)
# Paddle does not notice a disk that runs full while it writes
_REMOVED = "they were removed; look at the free space, then try again"


def default_output(weights) -> Path:
    """The run's folder names the export of its best or last weights; any other file names it itself."""
    path = Path(weights).resolve()
    return ROOT / "checkpoints" / "exported" / (path.parent.name if path.stem in ("best", "last") else path.stem)


def save_inference_model(model, folder: Path) -> None:
    """Write the files that `paddle.inference` loads; the batch dimension is left open."""
    size = model.config.image_size
    images = InputSpec([None, 3, size, size], "float32", "images")
    with _without_native_warnings():
        paddle.jit.save(model, str(folder / "inference"), input_spec=[images])
    require_whole(model, folder)


def require_whole(model, folder: Path) -> None:
    """Raise UserError if the parameters in `folder` are cut short, which Paddle neither reports nor minds."""
    found = (folder / _FILES[1]).stat().st_size
    least = sum(parameter.size * parameter.element_size() for parameter in model.parameters())
    if found < least:
        raise UserError(f"{_FILES[1]} has {found:,} bytes, its parameters alone are {least:,}; {_REMOVED}")


@paddle.no_grad()
def largest_difference(model, folder: Path) -> float:
    """Largest |logit| difference between `model` and the files in `folder`, on random images. Runs on the CPU.

    Raises UserError for files that cannot be run and for a `model` whose logits are not finite.
    """
    settings = inference.Config(*(str(folder / name) for name in _FILES[:2]))
    settings.disable_glog_info()
    settings.disable_mkldnn()  # the same kernels on both sides: what remains is a fault, not rounding
    rng, size, differences = np.random.default_rng(0), model.config.image_size, []
    try:
        predictor = inference.create_predictor(settings)  # sets the threads of this process: before `model` runs
        for count in _CHECKED_BATCHES:
            images = paddle.to_tensor(rng.uniform(-1, 1, (count, 3, size, size)).astype(np.float32))
            (logits,) = predictor.run([images])
            expected = model(images).numpy()
            if not np.isfinite(expected).all():
                raise UserError("the network gives logits that are not finite; these weights are no use")
            differences.append(np.abs(logits.numpy() - expected).max())
    except (RuntimeError, ValueError) as reason:
        raise UserError(f"the exported files cannot be used ({_first_line(reason)}); {_REMOVED}") from None
    return float(np.max(differences))


@contextmanager
def whole_folder(path: Path):
    """A new folder that gets the name `path` when the block ends without an error, and vanishes else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed export that had this process id, as in containers
    partial.mkdir()
    try:
        yield partial
        for written in (*partial.iterdir(), partial):
            flush_to_disk(written)
        require_free(path)  # once more: the work above took its time
        partial.rename(path)
        flush_to_disk(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def require_free(path: Path) -> None:
    """Raise UserError when anything is at `path`: nothing is ever replaced."""
    if path.exists():
        raise UserError(f"{path}: exists already; remove it, or give another --output FOLDER")


def description(weights, digest: str, config, prepare, names) -> dict:
    """What a program needs to feed the network and to read its answer, and where the network comes from."""
    divisor, offset = (np.broadcast_to(value, 3) for value in SCALES[prepare.scale])
    return {
        "source": {"file": weights.path.name, "sha256": digest},
        "input": {
            "name": "images",
            "dtype": "float32",
            "shape": [None, 3, config.image_size, config.image_size],
            "colours": "RGB",
            "resize": f"{prepare}; Pillow's antialiasing",
            "mean": [float(mean) for mean in offset * divisor],  # (pixel - mean) / std of pixels 0..255
            "std": [float(std) for std in divisor],
        },
        "output": {"what": "logits", "dtype": "float32", "shape": [None, config.num_classes]},
        "class_names": names,
        "network": dataclasses.asdict(config),
        "paddle": paddle.__version__,
    }


def _parser() -> Parser:
    parser = Parser(
        prog="python -m reproduce.export",
        description="Write weights as a Paddle inference model and check that it gives the same logits.",
        epilog="Example: python -m reproduce.export checkpoints/digits-seed42/best.pdparams --output served "
        "writes served/inference.json and .pdiparams (paddle.inference.Config takes these two) and "
        "served/description.json: image size, normalisation, class names, SHA-256 of the weights.",
    )
    add_options(parser)
    parser.add_argument("--output", metavar="FOLDER", help="default: checkpoints/exported/ and the run's name")
    return parser


def main(argv=None) -> None:
    options = parse(_parser(), argv)
    output = default_output(options.weights) if options.output is None else Path(options.output).resolve()
    require_free(output)
    choose_device("cpu")
    require_file(options.weights)
    digest = file_digest(options.weights, "sha256")
    model, weights, prepare, names = open_weights(options)
    if file_digest(options.weights, "sha256") != digest:
        raise UserError(f"{options.weights}: was changed while it was read; export again")
    say("images", f"each {prepare}")
    with whole_folder(output) as folder:
        told = description(weights, digest, model.config, prepare, names)
        text = json.dumps(told, indent=2, ensure_ascii=False)
        (folder / "description.json").write_text(text + "\n", "utf-8")
        save_inference_model(model, folder)
        difference = largest_difference(model, folder)
        say("check", f"logits differ by up to {difference:.1e} (allowed {_TOLERANCE:.0e}) on random images, CPU")
        if not difference <= _TOLERANCE:  # also when it is not a number
            raise UserError(f"the exported files give other logits, by up to {difference:.1e}; {_REMOVED}")
    say("written", f"{output}: {', '.join(_FILES)}")


def _first_line(reason: Exception) -> str:
    """Paddle's errors are pages long, with the C++ stack first; the sentence that matters stands near the end."""
    lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
    return next((line for line in lines if "Error: " in line), lines[0] if lines else type(reason).__name__)


@contextmanager
def _without_native_warnings():
    """Keep Paddle's C++ side from printing: each export warns of an `out` argument that no ViT uses."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


if __name__ == "__main__":
    run_command(main)
