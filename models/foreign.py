"""What weight files of other projects mean: whose layout their arrays have, and what config files beside them say.

A layout is known by its names. Which way round matrices are is known by the container, never by shapes: PyTorch
(`.bin`, `.safetensors`) writes (out, in), Paddle and Flax write (in, out), as here. The config files are Hugging Face's
two, and timm's config.json.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.errors import UserError
from common.pixels import SCALES, Resize
from models import check_types
from models.vit import ACTIVATIONS, POOLINGS, ViTConfig

Arrays = dict[str, np.ndarray]


class _Layout(NamedTuple):
    label: str
    mark: str  # an array that no other layout has
    blocks: str  # stands before the number of a block
    told: dict  # ViTConfig fields that whoever has this layout has, too
    base: str = ""  # stands before all names but those of the head
    words: tuple = ()  # (theirs, ours) within names


_TOKEN = {"pooling": "token"}
_CODE = {**_TOKEN, "activation": "gelu"}  # of the projects whose code has no other
_JOINT_QKV = "blocks.0.attn.qkv.weight"
_FLAX = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/bias"
_FLAX_WORDS = (("/", "."), (".kernel", ".weight"), (".scale", ".weight"))
_LAYOUTS = (  # R-Drop's is that of jeonsworld/ViT-pytorch, timm's also that of PaddleClas and the Paddle port
    _Layout("this project", "blocks.0.attn.query.weight", "blocks.", _CODE),
    _Layout("timm", _JOINT_QKV, "blocks.", {}),
    _Layout("official R-Drop", "encoder.layer.0.attn.query.weight", "encoder.layer.", _CODE, "transformer."),
    _Layout("Hugging Face", "encoder.layer.0.attention.attention.query.weight", "encoder.layer.", _TOKEN, "vit."),
    _Layout("Hugging Face", "layers.0.attention.q_proj.weight", "layers.", _TOKEN, "vit."),  # transformers 5
    _Layout("Google", _FLAX, "Transformer.encoderblock_", _CODE, words=_FLAX_WORDS),
)
_BEFORE_THE_HEAD = ("pre_logits", "pooler.")  # a layer of ImageNet-21k files, dropped with their head
_NAMES = {  # layers outside and inside the blocks -> ours
    # official R-Drop and Hugging Face
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    # official R-Drop
    "embeddings.patch_embeddings": "patch_embed.proj",
    "encoder.encoder_norm": "norm",
    "attention_norm": "norm1",
    "ffn_norm": "norm2",
    "ffn.fc1": "mlp.fc1",
    "ffn.fc2": "mlp.fc2",
    "attn.out": "attn.proj",
    # Hugging Face
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
    "classifier": "head",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    # Google
    "cls": "cls_token",
    "Transformer.posembed_input.pos_embedding": "pos_embed",
    "embedding": "patch_embed.proj",
    "Transformer.encoder_norm": "norm",
    "LayerNorm_0": "norm1",
    "LayerNorm_2": "norm2",
    "MultiHeadDotProductAttention_1.out": "attn.proj",
    "MlpBlock_3.Dense_0": "mlp.fc1",
    "MlpBlock_3.Dense_1": "mlp.fc2",
}
_QKV = ("query", "key", "value")
_NAMES |= {f"attention.attention.{part}": f"attn.{part}" for part in _QKV}
_NAMES |= {f"attention.{part[0]}_proj": f"attn.{part}" for part in _QKV}  # transformers 5
_NAMES |= {f"MultiHeadDotProductAttention_1.{part}": f"attn.{part}" for part in _QKV}


def converted(container: str, arrays: Arrays) -> tuple[str, Arrays, list[str], dict]:
    """(label, our arrays, names of a layer before the head, told fields); what no layout knows keeps its name.

    Raises ValueError when no layout is recognised, when matrices are the other way round than the container has them
    or do not fit each other, or when two networks are in the file.
    """
    layout, prefix = _layout_of(container, arrays)
    label, told = layout.label, dict(layout.told)
    wrapper = prefix.removesuffix(layout.base)
    if wrapper:
        label += f", prefix {wrapper!r:.40}"
    renamed = {_our_name(name.removeprefix(wrapper), layout): value for name, value in arrays.items()}
    if len(renamed) < len(arrays):
        raise ValueError("two of its arrays are for the same place")
    left_out = [name for name in renamed if name.startswith(_BEFORE_THE_HEAD)]
    arrays = _as_in_out(container, {name: value for name, value in renamed.items() if name not in left_out})
    if layout.mark == _FLAX:
        arrays, told["heads"] = _without_flax_shapes(arrays)
    if layout.mark != _JOINT_QKV:
        return label, arrays, left_out, told
    for name in [name for name in arrays if ".attn.qkv." in name]:
        pieces = zip(_QKV, np.split(arrays.pop(name), 3, axis=-1), strict=True)
        arrays |= {name.replace("qkv", part): piece for part, piece in pieces}
    if container == "pdparams":
        label, told = label.replace("timm", "PaddleClas"), dict(_CODE)
    fc1 = arrays.get("blocks.7.mlp.fc1.weight")
    if fc1 is not None and fc1.shape == (768, 2304) and "blocks.8.mlp.fc1.weight" not in arrays:
        # timm's vit_small_p16_224 of 2020 divides scores by the root of 768, not of its 96 features a head; so
        # does PaddleClas's ViT_small. The query matrices take up the difference.
        label, told = f"{label} ViT_small", {**_CODE, "heads": 8, "layer_norm_epsilon": 1e-5}
        factor = np.float32((96 / 768) ** 0.5)
        arrays = {name: value * factor if ".attn.query." in name else value for name, value in arrays.items()}
    return label, arrays, left_out, told


def _layout_of(container: str, arrays: Arrays) -> tuple[_Layout, str]:
    """The layout, and what stands before its names in a wrapped network, as `module.` of PyTorch's parallel ones."""
    for layout in _LAYOUTS:
        if layout.mark in arrays:
            return layout, ""
        prefixes = [name.removesuffix(layout.mark) for name in arrays if name.endswith(f".{layout.mark}")]
        if len(prefixes) > 1:
            listed = ", ".join(f"{prefix!r:.40}" for prefix in prefixes[:5])
            raise ValueError(f"holds several networks, whose names begin with {listed}; save one alone")
        if prefixes:
            return layout, prefixes[0]
    some = ", ".join(sorted(arrays)[:3]) or "nothing"
    raise ValueError(f"a {container} file, but of no known ViT layout (it holds {some}, ...)")


def _our_name(name: str, layout: _Layout) -> str:
    name = name.removeprefix(layout.base)
    for theirs, ours in layout.words:
        name = name.replace(theirs, ours)
    layer, _, kind = name.rpartition(".")
    number, _, part = layer.removeprefix(layout.blocks).partition(".")
    if layer.startswith(layout.blocks) and part:
        return f"blocks.{number}.{_NAMES.get(part, part)}.{kind}"
    if name in _NAMES:
        return _NAMES[name]
    return f"{_NAMES[layer]}.{kind}" if layer in _NAMES else name


def _as_in_out(container: str, arrays: Arrays) -> Arrays:
    """Every matrix as (in, out). Its bias, or the three outputs an input of a joint qkv, tells when that is wrong."""
    turned = dict(arrays)
    for name, value in arrays.items():
        if value.ndim != 2 or not name.endswith(".weight"):
            continue
        turned[name] = value.T if container in ("torch", "safetensors") else value
        bias = arrays.get(name.removesuffix("weight") + "bias")
        outputs = bias.size if bias is not None else 3 * min(value.shape) if ".qkv." in name else turned[name].shape[1]
        if turned[name].shape[1] != outputs == turned[name].shape[0]:
            text = f"transposed kernels: {name} is {value.shape}"
            raise ValueError(f"{text}, the other way round than a {container} file has it")
    return turned


def _without_flax_shapes(arrays: Arrays) -> tuple[Arrays, int]:
    """The arrays, and how many heads they have."""
    heads, features = arrays["blocks.0.attn.query.bias"].shape
    width = heads * features
    found = dict(arrays)
    for name, value in arrays.items():
        if name == "patch_embed.proj.weight":
            found[name] = value.transpose(3, 2, 0, 1)  # Flax has HWIO
        elif ".attn." in name and name.endswith(".bias"):
            found[name] = value.reshape(width)
        elif ".attn." in name:
            expected = (heads, features, width) if ".proj." in name else (width, heads, features)
            if value.shape != expected:
                raise ValueError(f"transposed kernels: {name} is {value.shape} instead of {expected}")
            found[name] = value.reshape(width, width)
    return found, heads


# ---- config files beside the weights

_FIELDS = {  # what says it in config.json or in timm's model_args -> ViTConfig's field, the values that it may have
    "num_attention_heads": ("heads", None),
    "num_heads": ("heads", None),
    "layer_norm_eps": ("layer_norm_epsilon", None),
    "hidden_act": ("activation", ACTIVATIONS),
    "act_layer": ("activation", ACTIVATIONS),
    "global_pool": ("pooling", POOLINGS),
}
_RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's numbers 0 to 5
_SEEN_IN_THE_ARRAYS = "patch_size embed_dim depth mlp_ratio qkv_bias class_token fc_norm num_classes in_chans"
_HARMLESS = "init_values img_size dynamic_img_size drop_rate drop_path_rate weight_init"
_MODEL_ARGS = ("global_pool", "act_layer", "num_heads", *_SEEN_IN_THE_ARRAYS.split(), *_HARMLESS.split())


def read_configs(folder: Path, width: int, said: dict) -> dict:
    """The facts in the config files of `folder` about a ViT of that width, but for those that are `said` already.

    Keys: fields of ViTConfig; `scale`, a name of SCALES; `resize`, a Resize; `class_names`; each if it is known.
    Raises UserError for files that are damaged or of another network, and for what cannot be computed here, by name.
    """
    found = {}
    for name, facts_in in (("config.json", _config), ("preprocessor_config.json", _preprocessor_config)):
        path = folder / name
        if not path.is_file():
            continue
        try:
            for fact, value_of, *arguments in facts_in(json.loads(path.read_text("utf-8")), width, str(path)):
                if fact not in said:
                    found[fact] = value_of(*arguments)
            check_types(ViTConfig, {k: v for k, v in found.items() if k in ViTConfig.__dataclass_fields__})
        except UserError as reason:
            raise UserError(f"{path}: {reason}; say it by an option (--help), or move that file away") from None
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError, ArithmeticError) as reason:
            raise UserError(f"{path}: no config of timm or Hugging Face ({reason!r:.80}); move it away") from None
    return found


def _config(config: dict, width: int, path: str):
    """Yield the name of each fact, the function that gives its value or raises UserError, and its arguments."""
    own_width = config.get("hidden_size", config.get("num_features", width))
    if own_width != width:
        raise UserError(f"is of a network of width {own_width!r:.40}, and the weights are {width} wide")
    arguments, labels = config.get("model_args", {}), config.get("label_names")
    if config.get("pretrained_cfg") is not None:  # of timm
        yield "pooling", str, "token"
        yield "scale", _scale, config["pretrained_cfg"]["mean"], config["pretrained_cfg"]["std"]
        yield "resize", _timm_resize, config["pretrained_cfg"], path
    for name, value in {**config, **arguments}.items():
        if name in arguments and name not in _MODEL_ARGS:
            raise UserError(f"{name!r:.40} in model_args cannot be computed here")
        if name in _FIELDS:
            ours, known = _FIELDS[name]
            yield ours, _known, name, value, known
    if isinstance(config.get("id2label"), dict):
        labels = [config["id2label"][str(number)] for number in range(len(config["id2label"]))]
    if isinstance(labels, list) and all(isinstance(name, str) for name in labels) and "LABEL_0" not in labels:
        yield "class_names", list, labels  # in the order of the logits; LABEL_0 and so on say nothing


def _timm_resize(config: dict, path: str) -> Resize:
    mode = _known("crop_mode", config.get("crop_mode", "center"), ("center", "squash"))
    resample = _known("interpolation", config["interpolation"], _RESAMPLING)
    share = float(config["crop_pct"])
    if not 0.25 <= share <= 1:
        raise UserError(f"crop_pct {share} cannot be computed here")
    return Resize(0, share, mode == "center", resample, path)


def _preprocessor_config(config: dict, _width: int, path: str):
    if config.get("do_normalize", True):
        yield "scale", _scale, config["image_mean"], config["image_std"]
    else:
        yield "scale", str, "0..1"
    yield "resize", _hugging_face_resize, config, path


def _hugging_face_resize(config: dict, path: str) -> Resize:
    for name in ("do_resize", "do_rescale"):
        if not config.get(name, True):
            raise UserError(f"{name} false cannot be computed here")
    size, crop = config["size"], config.get("do_center_crop", False)
    shorter = isinstance(size, dict) and "shortest_edge" in size
    if shorter and not crop:
        raise UserError("a picture resized without a crop is not square, which cannot be computed here")
    if isinstance(size, dict):
        size = size["shortest_edge" if shorter else "height"]
    # without a crop both sides at once: whatever image size was chosen
    return Resize(int(size) if crop else 0, 1.0, shorter, _RESAMPLING[range(6)[config["resample"]]], path)


def _known(what: str, value, known):
    if known is not None and not (isinstance(value, str) and value in known):
        raise UserError(f"{what} {value!r:.40} cannot be computed here")
    return value


def _scale(mean, std) -> str:
    """The name of a scale with that mean and deviation of pixels from 0 to 1."""
    for name, (divisor, offset) in SCALES.items():
        means, deviations = np.multiply(divisor, offset) / 255, np.divide(divisor, 255)
        if np.allclose(mean, means, atol=1e-3) and np.allclose(std, deviations, atol=1e-3):
            return name
    raise UserError(f"pixel mean {mean!r:.60} and deviation {std!r:.60} are of no scale known here")
