"""Weights from a file into a network, strictly: every name, shape and change is accounted for.

`models.weight_files` reads the arrays, `models.foreign` tells whose they are and reads the configs beside them. Here
stands what network they belong to, and how they get into one.
"""

import dataclasses
import json
import math
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.pixels import SCALES, Resize
from models import CNNConfig, Config, TwoNetworksConfig, build, check_types, config_from_dict, resnet, state_shapes
from models.foreign import Arrays, converted, read_configs
from models.vit import ACTIVATIONS, POOLINGS, ViTConfig
from models.weight_files import read_arrays, write_sealed

METADATA = "metadata@@"  # entry of our own weight files: JSON about the run that made them

_GOOGLE = "https://storage.googleapis.com/vit_models/"
_OFFICIAL = {  # folder -> files
    f"{_GOOGLE}imagenet21k/": [f"ViT-{name}.npz" for name in ("B_16", "B_32", "L_16", "L_32", "H_14")],
    # on ImageNet-21k too, with more augmentation (2106.10270): its authors' choice of ViT-B/16
    f"{_GOOGLE}augreg/": ["B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz"],
    "https://paddle-imagenet-models-name.bj.bcebos.com/dygraph/": [f"{n}_pretrained.pdparams" for n in resnet.NETWORKS],
}
_VIT_TI16 = "https://huggingface.co/timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k/resolve/main/model.safetensors"
PRETRAINED_URLS = {file: folder + file for folder, files in _OFFICIAL.items() for file in files}  # name -> address
PRETRAINED_URLS["vit_tiny_patch16_224.safetensors"] = _VIT_TI16

_CONVOLUTIONAL = {"network", "first"}  # a field of CNNConfig, and one of TwoNetworksConfig, that no ViTConfig has
_TOLD = ("heads", "layer_norm_epsilon", "pooling", "activation")  # fields that no shape tells
_IMAGENET = (1000, 21841, 21843)  # classes of ImageNet-1k and the two counts of ImageNet-21k
_LARGEST = {"image_size": 2048, "patch_size": 2048, "tokens": 16385, "depth": 64}
_LARGEST |= {"width": 2**14, "heads": 2**14, "mlp_width": 2**16, "num_classes": 2**17}


@dataclass
class Weights:
    """A file's arrays under the names and in the layouts of our networks."""

    path: Path
    layout: str
    arrays: Arrays
    metadata: dict
    left_out: list[str] = field(default_factory=list)  # names of a layer before the head, which go with the head
    network: dict = field(default_factory=dict)  # ViTConfig fields that the file tells beyond its shapes
    pictures: dict = field(default_factory=dict)  # `scale`, `resize`, `class_names`: see foreign.read_configs
    assumed: dict = field(default_factory=dict)  # what nothing says, by the name of its option


def save_weights(path, model, metadata: dict) -> None:
    """Write the state of `model` with `metadata` (JSON), whole or not at all; `paddle.load` reads it too."""
    state = {name: np.asarray(value.numpy()) for name, value in model.state_dict().items()}
    write_sealed(path, {**state, METADATA: json.dumps(metadata)})


def read_weights(path, entry: str = "") -> Weights:
    """Read a weight file of any known layout, or raise UserError; `entry` chooses one of several networks in it."""
    container, arrays, texts, entry = read_arrays(path, entry)
    metadata = _metadata(path, texts)
    network = metadata.get("network", {})
    if _CONVOLUTIONAL & network.keys() or any(name.endswith("._batch_norm._mean") for name in arrays):
        label = "this project" if metadata else "PaddleClas"
        return Weights(Path(path), label, arrays, metadata, network=network)
    try:
        label, arrays, left_out, told = converted(container, arrays)
    except ValueError as reason:
        raise UserError(f"{path}: {reason}") from None
    if entry:
        label += f", entry {entry!r:.40}"
    return Weights(Path(path), label, arrays, metadata, left_out, {**told, **network})


def _metadata(path, texts: dict[str, str]) -> dict:
    """The entry of our own files; it comes from outside too, so its types are checked as far as it is used here."""
    try:
        metadata = json.loads(texts.get(METADATA, "{}"))
        network, scale = metadata.get("network", {}), metadata.get("recipe", {}).get("scale", "-1..1")
        if scale not in list(SCALES):
            raise ValueError(f"recipe has 'scale' {scale!r:.40}")
        if _CONVOLUTIONAL & network.keys():
            config_from_dict(network)
        else:
            check_types(ViTConfig, network)
    except (ValueError, AttributeError, RecursionError) as reason:
        raise UserError(f"{path}: its entry {METADATA!r} does not describe a run ({reason})") from None
    return metadata


# ---- into a network


def model_from_file(path, entry: str = "", **said) -> tuple:
    """(network, Weights, what was done) of what a weight file holds, ready for evaluation.

    `said` is what the user says: fields of ViTConfig, `scale` (a name of SCALES) and `resize` (a Resize). It goes
    before the file's own metadata, that before config files beside it. What nobody says is in `Weights.assumed`.
    Raises UserError for a file that cannot be read or used; shapes are compared before a network is made.
    """
    weights = read_weights(path, entry)
    pictures = {name: said.pop(name) for name in ("scale", "resize") if name in said}
    recipe, beside = weights.metadata.get("recipe"), {}
    if recipe:
        beside = {"scale": recipe.get("scale", "-1..1")}
    elif "norm.bias" in weights.arrays:
        known = {**weights.network, **said, **pictures}
        beside = read_configs(weights.path.parent, weights.arrays["norm.bias"].size, known)
    weights.network |= {name: beside.pop(name) for name in _TOLD if name in beside}
    weights.pictures = {**beside, **pictures}
    config = config_from_weights(weights, **said)
    arrays, report = fit(weights, config, replace_head=False)
    if isinstance(config, ViTConfig):
        told = {**weights.network, **said}
        weights.assumed = {name: getattr(config, name) for name in _TOLD if name not in told}
    if not recipe:
        _assume_pictures(weights, config.num_classes)
    model = build(config)
    _copy(arrays, model)
    model.eval()
    return model, weights, report


def _assume_pictures(weights: Weights, num_classes: int) -> None:
    crop = Resize(share=0.875, keep_ratio=True)  # 224 of 256, the usual centre crop
    usual = {"scale": "-1..1", "resize": crop if num_classes in _IMAGENET else Resize()}
    weights.assumed |= {name: value for name, value in usual.items() if name not in weights.pictures}
    weights.pictures = {**usual, **weights.pictures}
    if "class_names" not in {**weights.metadata, **weights.pictures}:
        weights.assumed["class_order"] = "that of the data set"


def assumptions(assumed: dict) -> str:
    """What is assumed, as one line for people."""
    listed = ", ".join(f"{name} {value}" for name, value in assumed.items())
    return f"{listed}; not said by the file, see --help for the options that say it"


def config_from_weights(weights: Weights, **options) -> Config:
    """The network that the arrays belong to, read from their shapes and what else the file tells.

    `options` are ViTConfig fields that override. Heads that nothing tells are as in every published ViT: 16 of 80
    features for a width of 1280 (ViT-H), else of 64 features each. Raises UserError when no network comes of it.
    """
    arrays = weights.arrays
    if "conv1_1._conv.weight" in arrays or _CONVOLUTIONAL & weights.network.keys():
        return _config_by_name(weights, **options)
    try:
        width, _, patch, _ = arrays["patch_embed.proj.weight"].shape
        grid = math.isqrt(arrays["pos_embed"].shape[1] - 1)
        shapes = {
            "num_classes": arrays["head.bias"].shape[0],
            "image_size": grid * patch,
            "patch_size": patch,
            "width": width,
            "depth": sum(name.endswith(".norm1.weight") for name in arrays),
            "mlp_width": arrays["blocks.0.mlp.fc1.bias"].shape[0],
            "qkv_bias": "blocks.0.attn.query.bias" in arrays,
        }
    except (KeyError, ValueError, IndexError) as reason:
        raise UserError(f"{weights.path}: not a whole ViT with a head ({reason})") from None
    heads = 16 if width == 1280 else max(1, width // 64)
    config = ViTConfig(**{"heads": heads, **weights.network, **shapes, **options})
    _check(config, weights.path)
    return config


def _config_by_name(weights: Weights, image_size: int = 0, **options) -> CNNConfig | TwoNetworksConfig:
    if not weights.network:
        text = f"{weights.path}: a convolutional network that knows ImageNet's classes"
        raise UserError(f"{text}; it is a start for training, --pretrained")
    if options:
        raise UserError(f"{weights.path}: a convolutional network, for which --{next(iter(options))} has no meaning")
    config = config_from_dict(weights.network)
    parts = [config.first, config.second] if isinstance(config, TwoNetworksConfig) else [config]
    parts = [dataclasses.replace(part, image_size=image_size or part.image_size) for part in parts]
    for part in parts:
        _check(part, weights.path)
    return TwoNetworksConfig(*parts) if len(parts) == 2 else parts[0]


def _check(config: ViTConfig | CNNConfig, path) -> None:
    """Raise UserError unless the network can be made, in the memory of a usual machine."""
    for name, largest in _LARGEST.items():
        value = getattr(config, name, 1)
        if not 1 <= value <= largest:
            raise UserError(f"{path}: {name} {value:,}: must be from 1 to {largest:,}")
    for name in (f.name for f in dataclasses.fields(config) if f.type is float):
        if not 0 <= getattr(config, name) < 1:
            raise UserError(f"{path}: {name} {getattr(config, name)}: must be at least 0 and less than 1")
    if isinstance(config, CNNConfig):
        return
    if config.width % config.heads:
        raise UserError(f"{path}: {config.heads} heads do not divide its width {config.width}; say --heads NUMBER")
    if config.image_size % config.patch_size:
        raise UserError(f"image size {config.image_size}: must be a multiple of the patch size {config.patch_size}")
    for name, known in (("pooling", POOLINGS), ("activation", ACTIVATIONS)):
        if getattr(config, name) not in known:
            raise UserError(f"{path}: {name} {getattr(config, name)!r:.40}: must be one of {', '.join(known)}")


def load_weights(model, weights: Weights, replace_head: bool) -> str:
    """Copy `weights` into `model`, which is untouched when anything does not fit; rules and errors as in `fit`."""
    arrays, report = fit(weights, model.config, replace_head)
    _copy(arrays, model)
    return report


def _copy(arrays: Arrays, model) -> None:
    state = model.state_dict()
    for name, value in arrays.items():
        state[name].set_value(np.ascontiguousarray(value))


def load_pretrained(model, *files) -> list[str]:
    """Load a file into each network of `model`, "" for random weights; a line about each. Heads as `fit` says."""
    networks = [model.first, model.second] if isinstance(model.config, TwoNetworksConfig) else [model]
    lines = []
    for network, file in zip(networks, files, strict=False):
        if file:
            lines.append(f"{file}: {load_weights(network, read_weights(file), replace_head=True)}")
        else:
            lines.append("random, no pretrained file")
    return lines


def fit(weights: Weights, config: Config, replace_head: bool) -> tuple[Arrays, str]:
    """The arrays that `build(config)` takes from `weights`, and what that changes, in words; nothing is built for it.

    A position embedding of another grid is resized. When `replace_head`, as for training, a head that is missing, of
    another class count, or made for a layer before it that our network has not, is left to the fresh network;
    otherwise that is an error. Raises UserError, which lists names missing or unexpected and shapes that differ.
    """
    expected, arrays, resized, replaced = state_shapes(config), dict(weights.arrays), [], []
    head = list(resnet.HEAD) if isinstance(config, CNNConfig) else ["head.weight", "head.bias"]
    same_head = all(name not in expected or np.shape(arrays.get(name)) == expected[name] for name in head)
    if replace_head and (weights.left_out or not same_head):
        replaced = head
        for name in replaced:
            expected.pop(name, None)
            arrays.pop(name, None)
    position = arrays.get("pos_embed", np.empty(0))
    one_grid = isinstance(config, ViTConfig) and position.shape[::2] == (1, config.width)
    if one_grid and position.shape != expected["pos_embed"]:
        with suppress(ValueError):  # one that is no square is a problem that is named below
            arrays["pos_embed"] = resize_position_embedding(position, config.tokens)
            resized = [f"pos_embed {position.shape[1]} -> {config.tokens} tokens"]
    problems = [
        f"{name} is {arrays[name].shape} instead of {shape}"
        for name, shape in expected.items()
        if name in arrays and arrays[name].shape != shape
    ]
    problems += [f"missing {name}" for name in expected if name not in arrays]
    problems += [f"unexpected {name}" for name in arrays if name not in expected]
    problems += [f"{name} is {value.dtype}" for name, value in arrays.items() if value.dtype != np.float32]
    if not replaced:
        problems += [f"its head belongs behind {name}, which this network has not" for name in weights.left_out[:1]]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise UserError(f"{weights.path}: does not fit this network: {'; '.join(problems[:4])}{more}")
    changes = {"resized": resized, "replaced": replaced, "left out": weights.left_out}
    changed = [f"; {what}: {', '.join(names)}" for what, names in changes.items() if names]
    return arrays, f"{len(expected)} arrays ({weights.layout}){''.join(changed)}"


def resize_position_embedding(embedding: np.ndarray, tokens: int) -> np.ndarray:
    """(1, 1 + g*g, D) -> (1, tokens, D): the class token as it is, the grid linearly, end points aligned.

    Equal to `scipy.ndimage.zoom(order=1)` in the official code. Raises ValueError for a grid that is no square.
    """
    old, new = math.isqrt(embedding.shape[1] - 1), math.isqrt(tokens - 1)
    grid = embedding[0, 1:].reshape(old, old, embedding.shape[2])
    at = np.linspace(0, old - 1, new)
    lines = np.stack([np.interp(at, np.arange(old), unit) for unit in np.eye(old)], axis=1)  # (new, old)
    grid = np.einsum("io,jp,opd->ijd", lines, lines, grid, optimize=True)
    return np.concatenate([embedding[:, :1], grid.reshape(1, new * new, -1)], axis=1).astype(np.float32)
