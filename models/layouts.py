"""The names and shapes of a ViT's arrays: this project's own, and from those of other projects to them.

A layout is known by the names in the file. Which way round matrices are is known by the container, never by shapes:
PyTorch (`.bin`, `.safetensors`) writes (out, in), Paddle and Flax write (in, out), which is also ours.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from models.vit import ViTConfig

Arrays = dict[str, np.ndarray]
_BEFORE_THE_HEAD = ("pre_logits", "vit.pooler.")  # a layer of ImageNet-21k files, dropped with their head


def state_shapes(config: ViTConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every array in the state of `ViT(config)`, without making one."""
    d, m = config.width, config.mlp_width
    shapes = {
        "cls_token": (1, 1, d),
        "pos_embed": (1, config.tokens, d),
        "patch_embed.proj.weight": (d, 3, config.patch_size, config.patch_size),
        "patch_embed.proj.bias": (d,),
    }
    linear = {"attn.query": (d, d), "attn.key": (d, d), "attn.value": (d, d), "attn.proj": (d, d)}
    linear |= {"mlp.fc1": (d, m), "mlp.fc2": (m, d)}
    for i in range(config.depth):
        for norm in ("norm1", "norm2"):
            shapes |= {f"blocks.{i}.{norm}.weight": (d,), f"blocks.{i}.{norm}.bias": (d,)}
        for layer, shape in linear.items():
            shapes[f"blocks.{i}.{layer}.weight"] = shape
            if config.qkv_bias or layer not in ("attn.query", "attn.key", "attn.value"):
                shapes[f"blocks.{i}.{layer}.bias"] = shape[1:]
    classes = config.num_classes
    return shapes | {"norm.weight": (d,), "norm.bias": (d,), "head.weight": (d, classes), "head.bias": (classes,)}


class Converted(NamedTuple):
    label: str  # whose layout it is
    arrays: Arrays  # ours; what the layout does not know keeps the name that it has
    left_out: list[str]  # names of a layer before the head that our network has not
    network: dict  # ViTConfig fields that this layout tells and shapes do not


def convert(container: str, arrays: Arrays) -> Converted | None:
    """`arrays` of a file under our names and in our layouts; None when no layout is recognised.

    Raises ValueError when matrices are the other way round than the container has them, or do not fit each other.
    """
    for layout in _LAYOUTS:
        if layout.mark in arrays:
            break
    else:
        return None
    left_out = [name for name in arrays if name.startswith(_BEFORE_THE_HEAD)]
    kept = {name: value for name, value in arrays.items() if name not in left_out}
    named, network = layout.convert(_as_in_out(container, kept))
    if container == "pdparams" and layout.mark == _JOINT_QKV:
        return _paddleclas_small(named) or Converted("PaddleClas", named, left_out, network)
    return Converted(layout.label, named, left_out, network)


def _as_in_out(container: str, arrays: Arrays) -> Arrays:
    """Every matrix as (in, out). Its bias, or the three outputs an input of a joint qkv, tells when that is wrong."""
    turned = dict(arrays)
    for name, value in arrays.items():
        if value.ndim != 2 or not name.endswith((".weight", "/kernel")):
            continue
        turned[name] = value.T if container in ("torch", "safetensors") else value
        bias = arrays.get(name[: -len("weight")] + "bias")
        outputs = bias.size if bias is not None else 3 * min(value.shape) if ".qkv." in name else turned[name].shape[1]
        if turned[name].shape[1] != outputs == turned[name].shape[0]:
            raise ValueError(
                f"transposed kernels: {name} is {value.shape}, the other way round than a {container} file has it"
            )
    return turned


def _renamed(arrays: Arrays, outside: dict, prefix: str, inside: dict) -> Arrays:
    """Names by table: `outside` for layers (or arrays) outside the blocks, `inside` for those after `prefix` and N."""

    def ours(name: str) -> str:
        layer, _, kind = name.rpartition(".")
        number, _, part = layer.removeprefix(prefix).partition(".")
        if name in outside:
            return outside[name]
        if layer in outside:
            return f"{outside[layer]}.{kind}"
        if layer.startswith(prefix) and part in inside:
            return f"blocks.{number}.{inside[part]}.{kind}"
        return name

    found = {ours(name): value for name, value in arrays.items()}
    if len(found) < len(arrays):
        raise ValueError("two of its arrays are for the same place")
    return found


def _from_own(arrays: Arrays):
    return arrays, {}


def _from_joint_qkv(arrays: Arrays):
    """timm, PaddleClas and the Paddle port of R-Drop: our names, but query, key and value in one layer."""
    found = {}
    for name, value in arrays.items():
        if ".attn.qkv." in name:
            for part, piece in zip(("query", "key", "value"), np.split(value, 3, axis=-1), strict=True):
                found[name.replace("qkv", part)] = piece
        else:
            found[name] = value
    return found, {}


def _from_official(arrays: Arrays):
    """The official R-Drop code (and jeonsworld/ViT-pytorch, which it is made from)."""
    outside = {
        "transformer.embeddings.cls_token": "cls_token",
        "transformer.embeddings.position_embeddings": "pos_embed",
        "transformer.embeddings.patch_embeddings": "patch_embed.proj",
        "transformer.encoder.encoder_norm": "norm",
    }
    inside = {"attention_norm": "norm1", "ffn_norm": "norm2", "ffn.fc1": "mlp.fc1", "ffn.fc2": "mlp.fc2"}
    inside |= {"attn.query": "attn.query", "attn.key": "attn.key", "attn.value": "attn.value", "attn.out": "attn.proj"}
    return _renamed(arrays, outside, "transformer.encoder.layer.", inside), {}


def _from_hugging_face(arrays: Arrays):
    """`ViTForImageClassification` of transformers."""
    outside = {
        "vit.embeddings.cls_token": "cls_token",
        "vit.embeddings.position_embeddings": "pos_embed",
        "vit.embeddings.patch_embeddings.projection": "patch_embed.proj",
        "vit.layernorm": "norm",
        "classifier": "head",
    }
    inside = {
        "layernorm_before": "norm1",
        "attention.attention.query": "attn.query",
        "attention.attention.key": "attn.key",
        "attention.attention.value": "attn.value",
        "attention.output.dense": "attn.proj",
        "layernorm_after": "norm2",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    }
    return _renamed(arrays, outside, "vit.encoder.layer.", inside), {}


def _from_google(arrays: Arrays):
    """Flax: attention kernels are (in, heads, head_dim) and (heads, head_dim, out), the patch kernel HWIO."""
    outside = {
        "cls": "cls_token",
        "Transformer.posembed_input.pos_embedding": "pos_embed",
        "embedding": "patch_embed.proj",
        "Transformer.encoder_norm": "norm",
    }
    attention = "MultiHeadDotProductAttention_1"
    inside = {
        "LayerNorm_0": "norm1",
        f"{attention}.query": "attn.query",
        f"{attention}.key": "attn.key",
        f"{attention}.value": "attn.value",
        f"{attention}.out": "attn.proj",
        "LayerNorm_2": "norm2",
        "MlpBlock_3.Dense_0": "mlp.fc1",
        "MlpBlock_3.Dense_1": "mlp.fc2",
    }
    if arrays[_GOOGLE].ndim != 2:
        raise ValueError(f"{_GOOGLE} is {arrays[_GOOGLE].shape}, not (heads, features)")
    heads, features = arrays[_GOOGLE].shape
    width = heads * features
    kinds = {"kernel": "weight", "scale": "weight"}
    found = {}
    for name, value in arrays.items():
        layer, _, kind = name.replace("/", ".").rpartition(".")
        if attention in layer and kind == "kernel":
            if value.shape != ((heads, features, width) if layer.endswith(".out") else (width, heads, features)):
                raise ValueError(f"transposed kernels: {name} is {value.shape}, for a width of {width}")
            value = value.reshape(width, width)
        elif attention in layer:
            value = value.reshape(width)
        elif name == "embedding/kernel":
            value = value.transpose(3, 2, 0, 1)
        found[f"{layer}.{kinds.get(kind, kind)}" if layer else kind] = value
    return _renamed(found, outside, "Transformer.encoderblock_", inside), {"heads": heads}


def _paddleclas_small(arrays: Arrays):
    """PaddleClas's ViT_small (768 wide, 8 blocks) divides scores by the root of 768, not of its 96 features a head.

    The query matrices take up the difference. None for any other network.
    """
    fc1 = arrays.get("blocks.7.mlp.fc1.weight")
    if fc1 is None or fc1.shape != (768, 2304) or "blocks.8.mlp.fc1.weight" in arrays:
        return None
    factor = np.float32((96 / 768) ** 0.5)
    scaled = {name: value * factor if ".attn.query." in name else value for name, value in arrays.items()}
    return Converted("PaddleClas ViT_small", scaled, [], {"heads": 8, "layer_norm_epsilon": 1e-5})


class _Layout(NamedTuple):
    label: str
    mark: str  # an array that no other layout has
    convert: Callable[[Arrays], tuple[Arrays, dict]]


_JOINT_QKV = "blocks.0.attn.qkv.weight"
_GOOGLE = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/bias"
_LAYOUTS = (
    _Layout("this project", "blocks.0.attn.query.weight", _from_own),
    _Layout("timm", _JOINT_QKV, _from_joint_qkv),
    _Layout("official R-Drop", "transformer.encoder.layer.0.attn.query.weight", _from_official),
    _Layout("Hugging Face", "vit.encoder.layer.0.attention.attention.query.weight", _from_hugging_face),
    _Layout("Google", _GOOGLE, _from_google),
)
