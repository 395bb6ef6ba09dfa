import json
import pickle

import numpy as np
import paddle
import pytest
from safetensors.numpy import save_file
from scipy.ndimage import zoom

from common.errors import UserError
from models import build_model
from models.pretrained import (
    config_from_weights,
    load_weights,
    read_weights,
    resize_position_embedding,
    save_weights,
)


def random_model(name="ViT-digits", classes=10, size=8, seed=0, **options):
    model = build_model(name, classes, size, **options)
    rng = np.random.default_rng(seed)
    for parameter in model.parameters():
        parameter.set_value(rng.normal(0, 0.2, parameter.shape).astype("float32"))
    model.eval()
    return model


def as_timm(model) -> dict:
    """The state of `model` under timm's names, matrices (out, in), query, key and value in one."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    found = {}
    for name, value in state.items():
        if value.ndim == 2:
            value = value.T
        if ".attn.query." in name:
            parts = [state[name.replace("query", part)] for part in ("query", "key", "value")]
            found[name.replace("query", "qkv")] = np.concatenate([p.T if p.ndim == 2 else p for p in parts])
        elif ".attn.key." not in name and ".attn.value." not in name:
            found[name] = value
    return {name: np.ascontiguousarray(value) for name, value in found.items()}


def as_google(model) -> dict:
    """The state of `model` as Flax writes it."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    width, heads = model.config.width, model.config.heads
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
    for i in range(model.config.depth):
        ours, block = f"blocks.{i}", f"Transformer/encoderblock_{i}"
        for flax, norm in (("LayerNorm_0", "norm1"), ("LayerNorm_2", "norm2")):
            found[f"{block}/{flax}/scale"] = state[f"{ours}.{norm}.weight"]
            found[f"{block}/{flax}/bias"] = state[f"{ours}.{norm}.bias"]
        attention = f"{block}/MultiHeadDotProductAttention_1"
        for part in ("query", "key", "value"):
            found[f"{attention}/{part}/kernel"] = state[f"{ours}.attn.{part}.weight"].reshape(width, heads, -1)
            found[f"{attention}/{part}/bias"] = state[f"{ours}.attn.{part}.bias"].reshape(heads, -1)
        found[f"{attention}/out/kernel"] = state[f"{ours}.attn.proj.weight"].reshape(heads, -1, width)
        found[f"{attention}/out/bias"] = state[f"{ours}.attn.proj.bias"]
        for k in (0, 1):
            found[f"{block}/MlpBlock_3/Dense_{k}/kernel"] = state[f"{ours}.mlp.fc{k + 1}.weight"]
            found[f"{block}/MlpBlock_3/Dense_{k}/bias"] = state[f"{ours}.mlp.fc{k + 1}.bias"]
    return found


def write_google(model, path):
    with open(path, "wb") as file:  # np.savez would add a suffix to a path
        np.savez(file, **as_google(model))


WRITERS = {
    "timm": lambda model, path: save_file(as_timm(model), path),
    "Google": write_google,
    "this project": lambda model, path: save_weights(path, model, {"step": 7}),
}


@pytest.mark.parametrize("layout", WRITERS)
def test_every_layout_gives_the_same_logits(layout, tmp_path):
    source, path = random_model(), tmp_path / "weights"  # no suffix: the content tells the format
    WRITERS[layout](source, path)
    target = random_model(seed=1)
    report = load_weights(target, read_weights(path), replace_head=False)
    assert report.layout == layout and not report.replaced and not report.resized
    images = paddle.to_tensor(np.random.default_rng(2).normal(size=(2, 3, 8, 8)).astype("float32"))
    np.testing.assert_array_equal(target(images).numpy(), source(images).numpy())


def test_own_files_are_read_by_paddle_itself(tmp_path):
    source, path = random_model(), tmp_path / "w.pdparams"
    save_weights(path, source, {"recipe": {"dataset": "digits"}})
    loaded = paddle.load(str(path))
    assert json.loads(loaded.pop("metadata@@"))["recipe"] == {"dataset": "digits"}
    target = random_model(seed=1)
    missing, unexpected = target.set_state_dict(loaded)
    assert not missing and not unexpected
    np.testing.assert_array_equal(target.head.weight.numpy(), source.head.weight.numpy())


def test_the_network_is_read_from_the_file(tmp_path):
    source = random_model("ViT-Ti_16", 100, 48, depth=2)
    save_file(as_timm(source), tmp_path / "w")
    config = config_from_weights(read_weights(tmp_path / "w"))
    assert config == source.config


def test_position_embedding_is_resized_as_the_official_code_does():
    rng = np.random.default_rng(0)
    for old, new in ((14, 24), (14, 4), (7, 7), (4, 14), (2, 3)):
        embedding = rng.normal(size=(1, 1 + old * old, 5)).astype("float32")
        found = resize_position_embedding(embedding, 1 + new * new)
        grid = zoom(embedding[0, 1:].reshape(old, old, 5), (new / old, new / old, 1), order=1)
        np.testing.assert_allclose(found[0, 1:], grid.reshape(-1, 5), rtol=0, atol=1e-6)
        np.testing.assert_array_equal(found[0, 0], embedding[0, 0])


def test_a_head_of_other_classes_is_replaced_in_training_and_refused_in_evaluation(tmp_path):
    path = tmp_path / "w"
    save_weights(path, random_model(classes=1000), {})
    target = build_model("ViT-digits", 10, 8)
    with pytest.raises(UserError, match=r"head\.weight is \(64, 1000\) instead of \(64, 10\)"):
        load_weights(target, read_weights(path), replace_head=False)
    report = load_weights(target, read_weights(path), replace_head=True)
    assert report.replaced == ["head.weight", "head.bias"]
    assert not target.head.weight.numpy().any()  # fresh


def test_nothing_is_loaded_when_anything_does_not_fit(tmp_path):
    arrays = as_timm(random_model())
    del arrays["blocks.1.norm1.bias"]
    arrays["blocks.2.surplus"] = np.zeros(3, np.float32)
    save_file(arrays, tmp_path / "w")
    target = random_model(seed=1)
    before = target.norm.weight.numpy()
    with pytest.raises(UserError, match=r"missing blocks\.1\.norm1\.bias; unexpected blocks\.2\.surplus"):
        load_weights(target, read_weights(tmp_path / "w"), replace_head=True)
    np.testing.assert_array_equal(target.norm.weight.numpy(), before)


def test_names_without_a_place_are_reported(tmp_path):
    arrays = as_google(random_model()) | {"pre_logits/kernel": np.zeros((64, 64), np.float32)}
    np.savez(tmp_path / "w.npz", **arrays)
    report = load_weights(random_model(seed=1), read_weights(tmp_path / "w.npz"), replace_head=True)
    assert report.left_out == ["pre_logits/kernel"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"hello, this is text\n", "no weight file that is known"),
        (b"PK\x03\x04 and then nothing of a zip", "not a readable .npz"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{and no header}", "not a readable .safetensors"),
        (b"\xff\xff\xff\xff\x00\x00\x00\x00{}", "not a readable .safetensors"),  # a header of 4 GB
        (pickle.dumps([1, 2]), "holds a list"),
        (pickle.dumps({"a": {}}), "entry 'a' is a dict"),
        (pickle.dumps({"a": np.array([1.0, np.nan])}), "a holds values that are not finite"),
        (pickle.dumps({"a": np.arange(500.0)})[:-100], "not a readable pickle"),
    ],
)
def test_bad_files_are_named_with_the_reason(content, reason, tmp_path):
    path = tmp_path / "some.file"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path}: .*{reason}"):
        read_weights(path)


def test_folders_and_missing_files(tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        read_weights(tmp_path)
    with pytest.raises(UserError, match="No such file"):
        read_weights(tmp_path / "none")


def test_the_real_vit_ti16_file(vit_ti16_file):
    weights = read_weights(vit_ti16_file)
    config = config_from_weights(weights)
    assert (config.image_size, config.width, config.depth, config.heads) == (224, 192, 12, 3)
    model = build_model("ViT-Ti_16", 100, 64)
    report = load_weights(model, weights, replace_head=True)
    assert report.resized == ["pos_embed 197 -> 17 tokens"] and report.replaced == [
        "head.weight",
        "head.bias",
    ]
