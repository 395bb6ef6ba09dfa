"""Weight files in the layout of each project that is known, made from the state of our own network.

Every writer takes (state, config, path): numpy arrays under our names, matrices (in, out).
"""

import dataclasses
import functools
import json
import pickle
import zipfile

import numpy as np
import paddle
from safetensors.numpy import save_file

from models import state_shapes
from models.weights import METADATA

TIED = ("query", "key", "value")


def random_state(config, seed=0) -> dict[str, np.ndarray]:
    return dict(_random_state(config, seed))


@functools.cache
def _random_state(config, seed) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.2, shape).astype("float32") for name, shape in state_shapes(config).items()}


def turned(arrays) -> dict:
    """Matrices (out, in), as PyTorch has them."""
    return {name: np.ascontiguousarray(value.T if value.ndim == 2 else value) for name, value in arrays.items()}


def joint(state) -> dict:
    """timm's and PaddleClas's names: query, key and value in one layer, still (in, out)."""
    found = {}
    for name, value in state.items():
        if ".attn.query." in name:
            parts = [state[name.replace("query", part)] for part in TIED]
            found[name.replace("query", "qkv")] = np.concatenate(parts, axis=-1)
        elif ".attn.key." not in name and ".attn.value." not in name:
            found[name] = value
    return found


def _renamed(state, pairs) -> dict:
    found = {}
    for name, value in state.items():
        for ours, theirs in pairs:
            if name.startswith(ours) or (ours.startswith(".") and ours in name):
                name = name.replace(ours, theirs)
        found[name] = value
    return found


def official(state) -> dict:
    embeddings = "transformer.embeddings."
    return turned(
        _renamed(
            state,
            [
                ("cls_token", f"{embeddings}cls_token"),
                ("pos_embed", f"{embeddings}position_embeddings"),
                ("patch_embed.proj", f"{embeddings}patch_embeddings"),
                ("norm.", "transformer.encoder.encoder_norm."),
                (".norm1.", ".attention_norm."),
                (".norm2.", ".ffn_norm."),
                (".attn.proj.", ".attn.out."),
                (".mlp.", ".ffn."),
                ("blocks.", "transformer.encoder.layer."),
            ],
        )
    )


def hugging_face(state) -> dict:
    embeddings = "vit.embeddings."
    return turned(
        _renamed(
            state,
            [
                ("cls_token", f"{embeddings}cls_token"),
                ("pos_embed", f"{embeddings}position_embeddings"),
                ("patch_embed.proj", f"{embeddings}patch_embeddings.projection"),
                ("norm.", "vit.layernorm."),
                (".norm1.", ".layernorm_before."),
                (".norm2.", ".layernorm_after."),
                ("head.", "classifier."),
                (".attn.proj.", ".attention.output.dense."),
                (".attn.", ".attention.attention."),
                (".mlp.fc1.", ".intermediate.dense."),
                (".mlp.fc2.", ".output.dense."),
                ("blocks.", "vit.encoder.layer."),
            ],
        )
    )


def google(state, config) -> dict:
    width, heads = config.width, config.heads
    found = {
        "cls": state["cls_token"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"],
        "head/bias": state["head.bias"],
    }
    for i in range(config.depth):
        ours, block = f"blocks.{i}", f"Transformer/encoderblock_{i}"
        for flax, norm in (("LayerNorm_0", "norm1"), ("LayerNorm_2", "norm2")):
            found[f"{block}/{flax}/scale"] = state[f"{ours}.{norm}.weight"]
            found[f"{block}/{flax}/bias"] = state[f"{ours}.{norm}.bias"]
        attention = f"{block}/MultiHeadDotProductAttention_1"
        for part in TIED:
            found[f"{attention}/{part}/kernel"] = state[f"{ours}.attn.{part}.weight"].reshape(width, heads, -1)
            found[f"{attention}/{part}/bias"] = state[f"{ours}.attn.{part}.bias"].reshape(heads, -1)
        found[f"{attention}/out/kernel"] = state[f"{ours}.attn.proj.weight"].reshape(heads, -1, width)
        found[f"{attention}/out/bias"] = state[f"{ours}.attn.proj.bias"]
        for k in (0, 1):
            found[f"{block}/MlpBlock_3/Dense_{k}/kernel"] = state[f"{ours}.mlp.fc{k + 1}.weight"]
            found[f"{block}/MlpBlock_3/Dense_{k}/bias"] = state[f"{ours}.mlp.fc{k + 1}.bias"]
    return found


# ---- containers


def write_npz(arrays, path) -> None:
    with open(path, "wb") as file:  # np.savez would add a suffix to a path
        np.savez(file, **arrays)


def write_paddle(arrays, path) -> None:
    """What `paddle.save(model.state_dict(), path)` writes, with Paddle's table of its own names."""
    names = {name: f"linear_{i}.w_0" for i, name in enumerate(arrays)}
    paddle.save({**arrays, "StructuredToParameterName@@": names}, str(path))


def write_paddle_tensors(arrays, path) -> None:
    """As Paddle saves bare tensors, with the protocol of its first versions."""
    paddle.save({name: paddle.to_tensor(value) for name, value in arrays.items()}, str(path), protocol=2)


STORAGES = {"float32": "Float", "float64": "Double", "float16": "Half", "uint16": "BFloat16"}


def _text(text: str) -> bytes:
    return b"X" + len(text.encode()).to_bytes(4, "little") + text.encode()


def _int(number: int) -> bytes:
    return b"\x8a\x09" + int(number).to_bytes(9, "little", signed=True)


def _tuple(numbers) -> bytes:
    return b"(" + b"".join(map(_int, numbers)) + b"t"


def torch_pickle(arrays, views=None) -> bytes:
    """What `torch.save` writes of a state dict, opcode by opcode: tensors as views of the storages 0, 1, 2, ...

    `views` name another (offset, shape, strides), in numbers, than that of the whole array.
    """
    out = b"\x80\x02ccollections\nOrderedDict\n)R("
    for key, (name, value) in enumerate(arrays.items()):
        whole = 0, value.shape, [step // value.itemsize for step in value.strides]
        offset, shape, strides = (views or {}).get(name, whole)
        storage = f"ctorch\n{STORAGES[str(value.dtype)]}Storage\n".encode()
        out += _text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(("
        out += _text("storage") + storage + _text(str(key)) + _text("cpu") + _int(value.size)
        out += b"tQ" + _int(offset) + _tuple(shape) + _tuple(strides) + b"\x89ccollections\nOrderedDict\n)RtR"
    return out + b"u}" + _text("_metadata") + b"}sb."  # a state dict has the versions of its layers hung on it


def write_torch(arrays, path, description=None) -> None:
    """A file of `torch.save`, made without PyTorch; `description` replaces the pickle in it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", torch_pickle(arrays) if description is None else description)
        archive.writestr("archive/byteorder", "little")
        for key, value in enumerate(arrays.values()):
            archive.writestr(f"archive/data/{key}", value.tobytes())
        archive.writestr("archive/version", "3\n")


def write_own(state, config, path) -> None:
    path.write_bytes(pickle.dumps({**state, METADATA: json.dumps({"network": dataclasses.asdict(config)})}, 4))


WRITERS = {  # name of the case -> (label that the report must give, writer)
    "own": ("this project", write_own),
    "timm": ("timm", lambda state, _, path: save_file(turned(joint(state)), path)),
    "timm .bin": ("timm", lambda state, _, path: write_torch(turned(joint(state)), path)),
    "Hugging Face": ("Hugging Face", lambda state, _, path: save_file(hugging_face(state), path)),
    "Google": ("Google", lambda state, config, path: write_npz(google(state, config), path)),
    "PaddleClas": ("PaddleClas", lambda state, _, path: write_paddle(joint(state), path)),
    "PaddleClas tensors": ("PaddleClas", lambda state, _, path: write_paddle_tensors(joint(state), path)),
    "official": ("official R-Drop", lambda state, _, path: write_torch(official(state), path)),
}
WITHOUT_QKV_BIAS = [name for name in WRITERS if name != "Google"]  # Flax has no such network
