"""The five stages of Paddle's guide to reproductions, in the format of its reprod_log.

Each stage writes ours.npy and torch.npy; reprod_log reads both and takes the differences. A quantity passes when the
mean of its absolute differences is at most the threshold.
"""

import re
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import paddle
import torch
from reprod_log import ReprodDiffHelper, ReprodLogger
from safetensors.numpy import save_file
from safetensors.torch import load_file
from torch.nn import functional as F

from . import our_side, torch_side
from .masks import Masks, replay_in_torch

torch.set_num_threads(1)  # the networks are small, and Paddle's threads are there too

DTYPES = ("float32", "float64")
FORMS = {"sum": ("official", torch_side.official_loss), "mean": ("port", torch_side.port_loss)}  # ours: theirs
METRIC_IMAGES = 500  # digits has no more
BINS = 15  # of the calibration error


def threshold(dtype: str, quantity: str) -> float:
    if dtype == "float64":
        return 1e-10
    return 1e-5 if quantity.startswith("logits") else 1e-6


@dataclass(frozen=True)
class Difference:
    """One quantity: mean and maximum of the absolute differences of its numbers.

    Where it is compared after each of several updates, `arrays` of them, mean and maximum are those of the worst.
    """

    stage: str
    dtype: str
    form: str
    quantity: str
    arrays: int
    mean: float
    max: float
    threshold: float

    @property
    def passed(self) -> bool:
        return self.mean <= self.threshold  # False for a difference that is not a number


@dataclass
class Facts:
    """What makes the differences worth something; the dictionaries are by (dtype, form)."""

    images: str
    norms: dict = field(default_factory=dict)  # of the gradients before clipping, one an update
    places: dict = field(default_factory=dict)  # (ours, theirs): how many masks each dropout has drawn


def run_all() -> tuple[list[Difference], Facts]:
    """All differences of all stages, and the facts behind them."""
    with tempfile.TemporaryDirectory() as folder:
        return _run_all(Path(folder))


def _run_all(folder: Path):
    weights = folder / "weights.safetensors"
    write_random_weights(weights)
    found, facts = [], Facts(our_side.images().name)
    both_logits = {dtype: logits(weights, dtype) for dtype in DTYPES}
    for dtype, sides in both_logits.items():
        found += compare(folder, "forward", dtype, "", *sides)
    found += compare(folder, "metric", "float32", "", *metrics(weights))
    for dtype, sides in both_logits.items():
        for form in FORMS:
            found += compare(folder, "loss", dtype, form, *losses(*sides, form))
    for dtype in DTYPES:
        for form in FORMS:
            our_masks, their_masks = Masks(), Masks()
            ours = our_side.train(weights, dtype, form, our_masks, folder / f"run-{dtype}-{form}")
            theirs, norms = train_torch(weights, dtype, form, their_masks, ours.batches)
            found += compare(folder, "backward", dtype, form, gradients(ours), gradients(theirs))
            found += compare(folder, "training", dtype, form, courses(ours), courses(theirs))
            facts.norms[dtype, FORMS[form][0]] = norms
            facts.places[dtype, FORMS[form][0]] = our_masks.places, their_masks.places
    return found, facts


def compare(folder: Path, stage: str, dtype: str, form: str, ours: dict, theirs: dict) -> list[Difference]:
    """Write both sides as reprod_log does, read them back, and take the differences quantity by quantity."""
    shapes = {name: np.shape(value) for name, value in theirs.items()}
    assert {name: np.shape(value) for name, value in ours.items()} == shapes  # reprod_log would transpose
    infos, helper = [], ReprodDiffHelper()
    for side, quantities in (("ours", ours), ("torch", theirs)):
        logger, path = ReprodLogger(), folder / f"{stage}-{dtype}-{form}-{side}.npy"
        for name, value in quantities.items():
            logger.add(name, np.asarray(value, np.float64))
        logger.save(str(path))
        infos.append(helper.load_info(str(path)))
    helper.compare_info(*infos)
    over_updates = defaultdict(list)
    for name, differences in helper.diff_dict.items():
        over_updates[re.sub(r"^update \d+: ", "", name)].append(differences)
    return [
        Difference(
            stage,
            dtype,
            FORMS[form][0] if form else "",
            name,
            len(each),
            float(np.max([d["mean"] for d in each])),
            float(np.max([d["max"] for d in each])),
            threshold(dtype, name),
        )
        for name, each in over_updates.items()
    ]


def torch_vit():
    return torch_side.build_vit(
        **our_side.NETWORK,
        image_size=our_side.IMAGE_SIZE,
        num_classes=len(our_side.images().class_names),
        dropout=our_side.DROPOUT,
    )


def write_random_weights(path) -> None:
    """A weight file with timm's names; no weight, bias or head is zero, and attention is far from uniform."""
    rng, arrays = np.random.default_rng(0), {}
    for name, value in torch_vit().state_dict().items():
        centre, spread = 0.0, 0.1
        if "norm" in name and name.endswith("weight"):
            centre = 1.0
        elif value.ndim > 1 and "embed" not in name and "token" not in name:
            spread = value[0].numel() ** -0.5
        if name == "head.weight":
            spread *= 0.3  # keeps the KL terms, which count 32 times, near 0.03 and so the loss near 4
        if name == "head.bias":
            centre = 4.0 * (np.arange(value.numel()) < our_side.SHOWN_CLASSES)
        arrays[name] = rng.normal(centre, spread, tuple(value.shape)).astype("float32")
    save_file(arrays, path)


def load_torch(weights, dtype: str, masks: Masks):
    model = torch_vit()
    model.load_state_dict(load_file(weights), strict=True)
    return replay_in_torch(model, masks).to(getattr(torch, dtype)).train()


def logits(weights, dtype: str):
    """Both views of 32 images on both sides, as {quantity: array}."""
    pixels, _ = our_side.first_images(our_side.images().train, our_side.MICRO_BATCH)
    pixels = pixels.astype(dtype)
    ours = our_side.two_views(our_side.load(weights, dtype, Masks()), pixels)
    with torch.no_grad():
        theirs = torch_side.two_views(load_torch(weights, dtype, Masks()), torch.from_numpy(pixels))
    names = ("logits of view 1", "logits of view 2")
    return tuple({n: v.numpy() for n, v in zip(names, side, strict=True)} for side in (ours, theirs))


def losses(our_logits: dict, their_logits: dict, form: str):
    """The loss and its parts, each side from its own logits; the parts in the official code's scale."""
    _, labels = our_side.first_images(our_side.images().train, our_side.MICRO_BATCH)
    ours = our_side.loss(*map(paddle.to_tensor, our_logits.values()), labels, form)
    loss = FORMS[form][1]
    theirs = loss(*map(torch.from_numpy, their_logits.values()), torch.from_numpy(labels), our_side.ALPHA)
    return (
        {
            "loss": ours.loss.numpy(),
            "cross-entropies": 2 * ours.cross_entropy.numpy(),
            "mean KL divergences": 2 * ours.kl.numpy(),
        },
        {
            "loss": theirs.total.numpy(),
            "cross-entropies": theirs.cross_entropies.numpy(),
            "mean KL divergences": theirs.kls.numpy() / len(labels),
        },
    )


@torch.no_grad()
def metrics(weights):
    """Top-1, top-5, NLL and calibration error.

    The labels are drawn from the network's own probabilities, so that all four are far from those of chance.
    """
    pixels, _ = our_side.first_images(our_side.images().test, METRIC_IMAGES)
    scores = load_torch(weights, "float32", Masks()).eval()(torch.from_numpy(pixels)).double()
    probabilities = scores.softmax(-1)
    labels = torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(0))
    confidence, first = probabilities.max(-1)
    hit, gaps = (first == labels[:, 0]).double(), 0.0
    for low in range(BINS):
        inside = (confidence > low / BINS) & (confidence <= (low + 1) / BINS)
        gaps += (hit[inside].sum() - confidence[inside].sum()).abs().item()
    theirs = {
        "top-1": hit.mean().item(),
        "top-5": (scores.topk(5).indices == labels).any(-1).double().mean().item(),
        "NLL": F.cross_entropy(scores, labels[:, 0]).item(),
        "ECE": gaps / METRIC_IMAGES,
    }
    found = our_side.metrics(our_side.load(weights, "float32", Masks()), labels[:, 0].numpy())
    names = ("accuracy", "top5_accuracy", "nll", "ece")
    return {theirs_name: found[name] for theirs_name, name in zip(theirs, names, strict=True)}, theirs


def train_torch(weights, dtype: str, form: str, masks: Masks, batches):
    """The same run on the torch side; returns it and the gradient norms before clipping."""
    model, run, norms = load_torch(weights, dtype, masks), our_side.Run(), []
    # Paddle's operator keeps the momentum in float32 even for float64 weights: 0.8999999761581421.
    momentum = float(np.float32(0.9))
    optimizer, scheduler = torch_side.make_optimizer(
        model, our_side.PEAK_RATE, our_side.UPDATES, our_side.WARMUP, momentum
    )
    per_update = our_side.MICRO_BATCHES

    def micro_batches(update):
        for index in range(per_update):
            masks.start(update, index)
            pixels, labels = batches[update * per_update + index]
            yield torch.from_numpy(pixels), torch.from_numpy(labels)

    for update in range(our_side.UPDATES):
        run.losses.append(
            torch_side.accumulate(model, micro_batches(update), per_update, FORMS[form][1], our_side.ALPHA)
        )
        if update < our_side.GRADIENT_UPDATES:
            run.gradients.append({name: value.grad.numpy().copy() for name, value in model.named_parameters()})
        norms.append(torch_side.apply(model, optimizer, scheduler, max_norm=1.0))
        run.weights.append({name: value.detach().numpy().copy() for name, value in model.named_parameters()})
    return run, norms


def gradients(run) -> dict:
    """Every parameter's gradient of the first updates."""
    return {
        f"update {update}: gradient of {name}": value
        for update, arrays in enumerate(run.gradients, start=1)
        for name, value in arrays.items()
    }


def courses(run) -> dict:
    """The losses of all updates as one array, and every weight after each update."""
    return {"losses": np.array(run.losses)} | {
        f"update {update}: weights {name}": value
        for update, arrays in enumerate(run.weights, start=1)
        for name, value in arrays.items()
    }
