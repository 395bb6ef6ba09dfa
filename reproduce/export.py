"""A network for use without this project: a Paddle inference model, checked after it is written.

    python -m reproduce.export checkpoints/digits-seed42/best.pdparams

writes checkpoints/exported/digits-seed42/ with `inference.json` and `inference.pdiparams`, which `paddle.inference`
loads for batches of any size, and `description.json`, which says what goes in and what comes out.
"""

import dataclasses
import json
import tempfile
from pathlib import Path

import numpy as np
import paddle
from paddle import inference
from paddle.static import InputSpec

from common.errors import UserError
from common.pixels import SCALES
from common.system import file_digest, flush_to_disk, require_file
from reproduce import ROOT
from reproduce.cli import Parser, choose_device, parse, run_command, say
from reproduce.predict import add_options, open_weights

_TOLERANCE = 1e-5  # largest difference of a logit


def main(argv=None) -> None:
    parser = Parser(prog="python -m reproduce.export", description=__doc__)
    add_options(parser)
    parser.add_argument("--output", metavar="FOLDER", help="default: checkpoints/exported/ and the run's name")
    options = parse(parser, argv)
    path = Path(options.weights).resolve()
    name = path.parent.name if path.stem in ("best", "last") else path.stem
    output = Path(options.output or ROOT / "checkpoints" / "exported" / name).resolve()
    if output.exists():
        raise UserError(f"{output}: exists already; remove it, or give another --output FOLDER")
    choose_device("cpu")
    require_file(options.weights)
    digest = file_digest(options.weights, "sha256")
    model, weights, prepare, names = open_weights(options)
    if file_digest(options.weights, "sha256") != digest:  # as a run that goes on replaces its best weights
        raise UserError(f"{options.weights}: was changed while it was read; export again")
    say("images", f"each {prepare}")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.partial-") as beside:
        folder = Path(beside) / output.name
        write_model(model, folder)
        text = json.dumps(description(weights, digest, model.config, prepare, names), indent=2, ensure_ascii=False)
        (folder / "description.json").write_text(text + "\n", "utf-8")
        difference = largest_difference(model, folder)
        say("check", f"logits differ by up to {difference:.1e} (allowed {_TOLERANCE:.0e}) on random images, CPU")
        if not difference <= _TOLERANCE:  # also when it is not a number
            raise UserError(f"the exported files give other logits, by up to {difference:.1e}; they were removed")
        for written in (*folder.iterdir(), folder):
            flush_to_disk(written)
        folder.rename(output)
    flush_to_disk(output.parent)
    say("written", str(output))


def write_model(model, folder: Path) -> None:
    """Write the files that `paddle.inference` loads; the batch dimension is left open.

    Raises UserError for parameters that are cut short: Paddle does not notice a disk that runs full.
    """
    size = model.config.image_size
    images = InputSpec([None, 3, size, size], "float32", "images")
    paddle.jit.save(model, str(folder / "inference"), input_spec=[images])
    found = (folder / "inference.pdiparams").stat().st_size
    least = sum(parameter.size * parameter.element_size() for parameter in model.parameters())
    if found < least:
        raise UserError(f"inference.pdiparams has {found:,} of {least:,} bytes; make free space, then try again")


@paddle.no_grad()
def largest_difference(model, folder: Path) -> float:
    """Largest |logit| difference between `model` and the files in `folder`, on random images. Runs on the CPU."""
    settings = inference.Config(str(folder / "inference.json"), str(folder / "inference.pdiparams"))
    settings.disable_glog_info()
    settings.disable_mkldnn()  # the same kernels on both sides: what remains is a fault, not rounding
    predictor = inference.create_predictor(settings)  # sets the threads of this process: before `model` runs
    rng, size, differences = np.random.default_rng(0), model.config.image_size, []
    for count in (1, 3):
        images = paddle.to_tensor(rng.uniform(-1, 1, (count, 3, size, size)).astype(np.float32))
        (logits,) = predictor.run([images])
        expected = model(images).numpy()
        if not np.isfinite(expected).all():
            raise UserError("the network gives logits that are not finite; these weights are no use")
        differences.append(np.abs(logits.numpy() - expected).max())
    return float(np.max(differences))


def description(weights, digest: str, config, prepare, names) -> dict:
    """What a program needs to feed the network and to read its answer, and where the network comes from."""
    divisor, offset = (np.broadcast_to(value, 3) for value in SCALES[prepare.scale])  # one for each colour
    return {
        "source": {"file": weights.path.name, "sha256": digest},
        "input": {
            "name": "images",
            "dtype": "float32",
            "shape": [None, 3, config.image_size, config.image_size],
            "colours": "RGB",
            "resize": f"{prepare}; Pillow's antialiasing",
            "mean": (offset * divisor).tolist(),  # (pixel - mean) / std of pixels 0..255
            "std": divisor.tolist(),
        },
        "output": {"what": "logits", "dtype": "float32", "shape": [None, config.num_classes]},
        "class_names": names,
        "network": dataclasses.asdict(config),
        "paddle": paddle.__version__,
    }


if __name__ == "__main__":
    run_command(main)
