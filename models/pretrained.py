"""Weights from a file into a ViT, strictly: every name, shape and change is accounted for.

Three layouts are known: this project's own, timm's (`.safetensors`, PyTorch's (out, in) matrices) and Google's
(`.npz`, Flax names). The layout is recognised from the container and the names inside, never from square shapes.
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
from models.containers import read_arrays
from models.vit import ViT, ViTConfig

METADATA = "metadata@@"  # entry of our own weight files: JSON about the run that made them

_GOOGLE = "https://storage.googleapis.com/vit_models/imagenet21k/"
_TIMM = "https://huggingface.co/timm/"
PRETRAINED_URLS = {  # file name -> official address
    **{f"{name}.npz": f"{_GOOGLE}{name}.npz" for name in ("ViT-B_16", "ViT-B_32", "ViT-L_16", "ViT-L_32", "ViT-H_14")},
    "vit_tiny_patch16_224.safetensors": (
        f"{_TIMM}vit_tiny_patch16_224.augreg_in21k_ft_in1k/resolve/main/model.safetensors"
    ),
}


@dataclass
class Weights:
    """A file's arrays under the names and in the layouts of `models.vit.ViT`."""

    path: Path
    layout: str
    arrays: dict[str, np.ndarray]
    metadata: dict
    left_out: list[str] = field(default_factory=list)  # names of the file that this network has no use for


@dataclass
class LoadReport:
    """What `load_weights` did beyond copying."""

    layout: str
    copied: int
    resized: list[str]
    replaced: list[str]
    left_out: list[str]

    def __str__(self) -> str:
        parts = [f"{self.copied} arrays ({self.layout})"]
        for label in ("resized", "replaced", "left_out"):
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
    own = "blocks.0.attn.query.weight" in arrays
    if container == "pdparams" and own:
        return Weights(Path(path), "this project", arrays, _metadata(path, texts))
    if container == "safetensors" and "blocks.0.attn.qkv.weight" in arrays:
        return Weights(Path(path), "timm", *_from_timm(arrays))
    if container == "npz" and "Transformer/encoder_norm/scale" in arrays:
        return Weights(Path(path), "Google", *_from_google(arrays))
    some = ", ".join(sorted(arrays)[:3]) or "nothing"
    raise UserError(f"{path}: a {container} file, but of no known ViT layout (it holds {some}, ...)")


def _metadata(path, texts: dict[str, str]) -> dict:
    try:
        metadata = json.loads(texts.get(METADATA, "{}"))
        network = metadata.get("network", {})
        if set(network) <= {f.name for f in dataclasses.fields(ViTConfig)}:
            return metadata
    except (ValueError, AttributeError):
        pass
    raise UserError(f"{path}: its entry {METADATA!r} does not describe a run; get the file again") from None


def _from_timm(arrays):
    """timm's names are ours but for the joint qkv; matrices are (out, in)."""
    ours = {}
    for name, value in arrays.items():
        if value.ndim == 2 and name.endswith(".weight"):
            value = value.T
        if ".attn.qkv." in name:
            for part, piece in zip(("query", "key", "value"), np.split(value, 3, axis=-1), strict=True):
                ours[name.replace("qkv", part)] = piece
        else:
            ours[name] = value
    return ours, {}


def _from_google(arrays):
    """Flax: kernels are (in, out), attention kernels (in, heads, head_dim), the patch kernel HWIO."""
    width = arrays["cls"].shape[-1]
    ours, left_out = {}, []
    direct = {
        "cls": "cls_token",
        "Transformer/posembed_input/pos_embedding": "pos_embed",
        "embedding/bias": "patch_embed.proj.bias",
        "Transformer/encoder_norm/scale": "norm.weight",
        "Transformer/encoder_norm/bias": "norm.bias",
        "head/kernel": "head.weight",
        "head/bias": "head.bias",
    }
    parts = {
        "LayerNorm_0/scale": "norm1.weight",
        "LayerNorm_0/bias": "norm1.bias",
        "LayerNorm_2/scale": "norm2.weight",
        "LayerNorm_2/bias": "norm2.bias",
    }
    for flax, layer in (("query", "query"), ("key", "key"), ("value", "value"), ("out", "proj")):
        parts[f"MultiHeadDotProductAttention_1/{flax}/kernel"] = f"attn.{layer}.weight"
        parts[f"MultiHeadDotProductAttention_1/{flax}/bias"] = f"attn.{layer}.bias"
    for flax, layer in (("Dense_0", "fc1"), ("Dense_1", "fc2")):
        parts[f"MlpBlock_3/{flax}/kernel"] = f"mlp.{layer}.weight"
        parts[f"MlpBlock_3/{flax}/bias"] = f"mlp.{layer}.bias"
    for name, value in arrays.items():
        if name == "embedding/kernel":
            ours["patch_embed.proj.weight"] = value.transpose(3, 2, 0, 1)
        elif name in direct:
            ours[direct[name]] = value
        elif name.startswith("Transformer/encoderblock_"):
            block, _, rest = name.removeprefix("Transformer/encoderblock_").partition("/")
            if rest not in parts:
                left_out.append(name)
                continue
            if "Attention_1" in rest:
                value = value.reshape(width, width) if rest.endswith("kernel") else value.reshape(width)
            ours[f"blocks.{block}.{parts[rest]}"] = value
        else:
            left_out.append(name)
    return ours, {}, left_out


def config_from_weights(weights: Weights, **options) -> ViTConfig:
    """The network that the arrays belong to, read from their shapes and the file's metadata.

    Heads cannot be seen in any shape: from `options` or the metadata, else 64 features a head as in every
    published ViT. `options` are ViTConfig fields that override.
    """
    arrays, known = weights.arrays, dict(weights.metadata.get("network", {}))
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
    except (KeyError, ValueError) as reason:
        raise UserError(f"{weights.path}: not a whole ViT with a head ({reason})") from None
    return ViTConfig(**{"heads": max(1, width // 64), **known, **shapes, **options})


def load_weights(model: ViT, weights: Weights, replace_head: bool) -> LoadReport:
    """Copy every array into `model`; the model is untouched when anything does not fit.

    A position embedding of another grid is resized. A head of another class count is kept as it is in `model`
    (fresh) when `replace_head`, as for training; otherwise that is an error.

    Raises:
        UserError: names missing or unexpected, or shapes that differ, listed.
    """
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    arrays, resized, replaced = dict(weights.arrays), [], []
    if replace_head and arrays.get("head.bias", np.empty(0)).shape != expected["head.bias"]:
        replaced = [name for name in ("head.weight", "head.bias") if arrays.pop(name, None) is not None]
        expected = {name: shape for name, shape in expected.items() if not name.startswith("head.")}
    position = arrays.get("pos_embed")
    if position is not None and position.ndim == 3 and position.shape != expected["pos_embed"]:
        try:
            arrays["pos_embed"] = resize_position_embedding(position, expected["pos_embed"][1])
        except ValueError as reason:
            raise UserError(f"{weights.path}: {reason}") from None
        resized = [f"pos_embed {position.shape[1]} -> {expected['pos_embed'][1]} tokens"]
    problems = [
        f"{name} is {tuple(arrays[name].shape)} instead of {shape}"
        for name, shape in expected.items()
        if name in arrays and tuple(arrays[name].shape) != shape
    ]
    problems += [f"missing {name}" for name in expected if name not in arrays]
    problems += [f"unexpected {name}" for name in arrays if name not in expected]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise UserError(f"{weights.path}: does not fit this network: {'; '.join(problems[:4])}{more}")
    state = model.state_dict()
    for name in expected:
        state[name].set_value(np.ascontiguousarray(arrays[name]))
    return LoadReport(weights.layout, len(expected), resized, replaced, weights.left_out)


def model_from_file(path, **options) -> tuple[ViT, Weights, LoadReport]:
    """The network that a weight file holds, ready for evaluation; `options` are ViTConfig fields that override.

    Raises UserError as `read_weights`, `config_from_weights` and `load_weights` do.
    """
    weights = read_weights(path)
    config = config_from_weights(weights, **options)
    if config.image_size % config.patch_size:
        raise UserError(f"image size {config.image_size}: must be a multiple of the patch size {config.patch_size}")
    model = ViT(config)
    report = load_weights(model, weights, replace_head=False)
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
