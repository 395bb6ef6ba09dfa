"""Weights from a file into a network, strictly: every name, shape and change is accounted for.

`models.weight_files` reads the file, `models.layouts` knows whose names it holds; here they meet a network.
ViTs come in many layouts. The convolutional networks have PaddleClas's names, so their files are taken as they are.
"""

import dataclasses
import json
import math
import pickle
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.atomic import atomic_write
from common.errors import UserError
from models import CNNConfig, Config, TwoNetworksConfig, build, config_from_dict, resnet
from models.layouts import convert, state_shapes
from models.vit import ViT, ViTConfig
from models.weight_files import read_arrays

METADATA = "metadata@@"  # entry of our own weight files: JSON about the run that made them

_GOOGLE = "https://storage.googleapis.com/vit_models/"
_AUGREG = "B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz"  # its authors' choice of ViT-B/16
_TIMM = "https://huggingface.co/timm/"
_PADDLECLAS = "https://paddle-imagenet-models-name.bj.bcebos.com/dygraph/"
PRETRAINED_URLS = {  # file name -> official address
    **{
        f"{name}.npz": f"{_GOOGLE}imagenet21k/{name}.npz"
        for name in ("ViT-B_16", "ViT-B_32", "ViT-L_16", "ViT-L_32", "ViT-H_14")
    },
    _AUGREG: f"{_GOOGLE}augreg/{_AUGREG}",  # ViT-B/16 on ImageNet-21k too, trained with more augmentation (2106.10270)
    "vit_tiny_patch16_224.safetensors": (
        f"{_TIMM}vit_tiny_patch16_224.augreg_in21k_ft_in1k/resolve/main/model.safetensors"
    ),
    **{f"{name}_pretrained.pdparams": f"{_PADDLECLAS}{name}_pretrained.pdparams" for name in resnet.NETWORKS},
}


@dataclass
class Weights:
    """A file's arrays under the names and in the layouts of our networks."""

    path: Path
    layout: str
    arrays: dict[str, np.ndarray]
    metadata: dict
    left_out: list[str] = field(default_factory=list)  # names of a layer before the head, which go with the head
    network: dict = field(default_factory=dict)  # ViTConfig fields that the file tells beyond its shapes


@dataclass
class LoadReport:
    """What `load_weights` did beyond copying."""

    layout: str
    copied: int
    resized: list[str]
    replaced: list[str]
    left_out: list[str]
    assumed: list[str] = field(default_factory=list)  # what neither the file nor the user says

    def __str__(self) -> str:
        parts = [f"{self.copied} arrays ({self.layout})"]
        for label in ("resized", "replaced", "left_out", "assumed"):
            if names := getattr(self, label):
                parts.append(f"{label.replace('_', ' ')}: {', '.join(names)}")
        return "; ".join(parts)


def save_weights(path, model, metadata: dict) -> None:
    """Write the state of `model` with `metadata` (JSON), whole or not at all; `paddle.load` reads it too."""
    state = {name: np.asarray(value.numpy()) for name, value in model.state_dict().items()}
    with atomic_write(path) as file:
        pickle.dump({**state, METADATA: json.dumps(metadata)}, file, protocol=4)


def read_weights(path) -> Weights:
    """Read a weight file of any known layout. Raises UserError, naming the file and the reason."""
    container, arrays, texts = read_arrays(path)
    metadata = _metadata(path, texts)
    if any(name.endswith("._batch_norm._mean") for name in arrays):
        label = "this project" if metadata else "PaddleClas"
        return Weights(Path(path), label, arrays, metadata, network=metadata.get("network", {}))
    try:
        found = convert(container, arrays)
    except ValueError as reason:
        raise UserError(f"{path}: {reason}") from None
    if found is None:
        some = ", ".join(sorted(arrays)[:3]) or "nothing"
        raise UserError(f"{path}: a {container} file, but of no known ViT layout (it holds {some}, ...)")
    network = {**found.network, **metadata.get("network", {})}
    return Weights(Path(path), found.label, found.arrays, metadata, found.left_out, network)


def _metadata(path, texts: dict[str, str]) -> dict:
    """The entry of our own files; it comes from outside too, so its types are checked as far as it is used here."""
    types = {f.name: f.type for f in dataclasses.fields(ViTConfig)}
    try:
        metadata = json.loads(texts.get(METADATA, "{}"))
        network = metadata.get("network", {}) if isinstance(metadata, dict) else None
        if not (isinstance(network, dict) and isinstance(metadata.get("recipe", {}), dict)):
            raise ValueError("it is no table with the tables network and recipe")
        if {"network", "first"} & network.keys():
            config_from_dict(network)
            return metadata
        for name, value in network.items():
            if type(value) not in ((int, float) if types.get(name) is float else (types.get(name),)):
                raise ValueError(f"network has {name!r:.40} {value!r:.40}")
    except (ValueError, RecursionError) as reason:
        raise UserError(f"{path}: its entry {METADATA!r} does not describe a run ({reason})") from None
    return metadata


def config_from_weights(weights: Weights, **options) -> Config:
    """The network that the arrays belong to, read from their shapes and what else the file tells.

    `options` are ViTConfig fields that override. Heads that nothing tells are as in every published ViT: 16 of 80
    features for a width of 1280 (ViT-H), else of 64 features each. Raises UserError when no network comes of it.
    """
    arrays = weights.arrays
    if "conv1_1._conv.weight" in arrays or {"network", "first"} & weights.network.keys():
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
        raise UserError(f"{weights.path}: a convolutional network that knows ImageNet's classes; it is a start for "
                        "training, --pretrained")  # fmt: skip
    if options:
        raise UserError(f"{weights.path}: a convolutional network, for which --{next(iter(options))} has no meaning")
    config = config_from_dict(weights.network)
    if not image_size:
        return config
    if isinstance(config, TwoNetworksConfig):
        return TwoNetworksConfig(
            *(dataclasses.replace(each, image_size=image_size) for each in (config.first, config.second))
        )
    return dataclasses.replace(config, image_size=image_size)


def _check(config: ViTConfig, path) -> None:
    for f in dataclasses.fields(config):
        if f.type is int and getattr(config, f.name) < 1:
            raise UserError(f"{path}: {f.name} {getattr(config, f.name)}: must be 1 or more")
    if config.width % config.heads:
        raise UserError(f"{path}: {config.heads} heads do not divide its width {config.width}; say --heads NUMBER")
    if config.image_size % config.patch_size:
        raise UserError(f"image size {config.image_size}: must be a multiple of the patch size {config.patch_size}")
    if not 0 < config.layer_norm_epsilon < 1:
        raise UserError(f"{path}: layer_norm_epsilon {config.layer_norm_epsilon}: must be between 0 and 1")
    if not all(0 <= rate < 1 for rate in (config.dropout, config.attention_dropout, config.projection_dropout)):
        raise UserError(f"{path}: a dropout rate must be at least 0 and less than 1")


def fit(weights: Weights, config: ViTConfig, replace_head: bool) -> tuple[dict[str, np.ndarray], LoadReport]:
    """The arrays that `ViT(config)` takes from `weights`, and what that changes; nothing is built for it.

    A position embedding of another grid is resized. When `replace_head`, as for training, a head that is missing, of
    another class count, or made for a layer before it that our network has not, is left to the fresh network;
    otherwise that is an error.

    Raises:
        UserError: names missing or unexpected, or shapes that differ, listed.
    """
    expected, arrays, resized, replaced = state_shapes(config), dict(weights.arrays), [], []
    bias = arrays.get("head.bias")
    if replace_head and (bias is None or bias.shape != expected["head.bias"] or weights.left_out):
        replaced = ["head.weight", "head.bias"]
        for name in replaced:
            del expected[name]
            arrays.pop(name, None)
    position = arrays.get("pos_embed")
    if position is not None and position.shape != expected["pos_embed"] and position.shape[::2] == (1, config.width):
        try:
            arrays["pos_embed"] = resize_position_embedding(position, config.tokens)
        except ValueError as reason:
            raise UserError(f"{weights.path}: {reason}") from None
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
    _report_problems(weights.path, problems)
    return arrays, LoadReport(weights.layout, len(expected), resized, replaced, weights.left_out)


def _copy(arrays: dict[str, np.ndarray], model) -> None:
    state = model.state_dict()
    for name, value in arrays.items():
        state[name].set_value(np.ascontiguousarray(value))


def load_weights(model, weights: Weights, replace_head: bool) -> LoadReport:
    """Copy `weights` into `model`, which is untouched when anything does not fit; rules and errors as in `fit`."""
    if isinstance(model.config, ViTConfig):
        arrays, report = fit(weights, model.config, replace_head)
    else:
        arrays, report = _fit_by_name(weights, model, replace_head)
    _copy(arrays, model)
    return report


def load_pretrained(model, *files) -> list[str]:
    """Load a file into each network of `model`, "" for random weights; returns what was done, a line for each network.

    Heads are replaced as in `load_weights`. Raises UserError as that and `read_weights` do.
    """
    networks = [model.first, model.second] if isinstance(model.config, TwoNetworksConfig) else [model]
    if any(files[len(networks) :]):
        raise ValueError(f"{len(files)} files for {len(networks)} networks")
    lines = []
    for network, file in zip(networks, files, strict=False):
        if file:
            lines.append(f"{file}: {load_weights(network, read_weights(file), replace_head=True)}")
        else:
            lines.append("random, no pretrained file")
    return lines


def _fit_by_name(weights: Weights, model, replace_head: bool) -> tuple[dict[str, np.ndarray], LoadReport]:
    """As `fit`, for networks whose files have their own names."""
    expected, arrays, replaced = model.state_dict(), dict(weights.arrays), []
    if replace_head and any(arrays[n].shape != tuple(expected[n].shape) for n in resnet.HEAD if n in arrays):
        replaced = list(resnet.HEAD)
        arrays = {name: value for name, value in arrays.items() if name not in replaced}
        expected = {name: value for name, value in expected.items() if name not in replaced}
    problems = [
        f"{name} is {arrays[name].shape} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in arrays and arrays[name].shape != tuple(value.shape)
    ]
    problems += [f"missing {name}" for name in expected if name not in arrays]
    problems += [f"unexpected {name}" for name in arrays if name not in expected]
    _report_problems(weights.path, problems)
    return arrays, LoadReport(weights.layout, len(expected), [], replaced, [])


def _report_problems(path, problems: list[str]) -> None:
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise UserError(f"{path}: does not fit this network: {'; '.join(problems[:4])}{more}")


def model_from_file(path, **options) -> tuple:
    """(network, Weights, LoadReport) of what a weight file holds, ready for evaluation.

    `options` are fields of its configuration that override. Raises UserError as `read_weights`,
    `config_from_weights` and `fit` do, all before a ViT is made.
    """
    weights = read_weights(path)
    config = config_from_weights(weights, **options)
    if isinstance(config, ViTConfig):
        arrays, report = fit(weights, config, replace_head=False)
        told = {**weights.network, **options}
        report.assumed = [f"{k} {getattr(config, k)}" for k in ("heads", "layer_norm_epsilon") if k not in told]
        model = ViT(config)
    else:
        model = build(config)
        arrays, report = _fit_by_name(weights, model, replace_head=False)
    _copy(arrays, model)
    model.eval()
    return model, weights, report


def resize_position_embedding(embedding: np.ndarray, tokens: int) -> np.ndarray:
    """(1, 1 + g*g, D) -> (1, tokens, D): the class token as it is, the grid linearly, end points aligned.

    Equal to the `scipy.ndimage.zoom(order=1)` of the official code (vit_src/models/modeling.py).
    """
    old, new = math.isqrt(embedding.shape[1] - 1), math.isqrt(tokens - 1)
    if old * old != embedding.shape[1] - 1:
        raise ValueError(f"a position embedding of {embedding.shape[1]} tokens is no square grid and a class token")
    grid = embedding[0, 1:].reshape(old, old, -1)
    lines = _linear_interpolation(old, new)
    grid = np.einsum("io,jp,opd->ijd", lines, lines, grid, optimize=True)
    return np.concatenate([embedding[:, :1], grid.reshape(1, new * new, -1)], axis=1).astype(np.float32)


def _linear_interpolation(old: int, new: int) -> np.ndarray:
    """(new, old) matrix that interpolates `old` samples at `new` evenly spaced points, ends included."""
    at = np.linspace(0, old - 1, new) if new > 1 else np.zeros(1)
    low = np.minimum(np.floor(at).astype(int), max(0, old - 2))
    matrix = np.zeros((new, old))
    matrix[np.arange(new), low] = 1 - (at - low)
    matrix[np.arange(new), np.minimum(low + 1, old - 1)] += at - low
    return matrix
