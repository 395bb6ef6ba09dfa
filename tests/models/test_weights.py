import argparse
import dataclasses
import io
import json
import math
import os
import pickle
import tempfile
import time
import tracemalloc
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import paddle
import pytest
from safetensors.numpy import save, save_file
from scipy.ndimage import zoom
from weight_files import (
    WITHOUT_QKV_BIAS,
    WRITERS,
    google,
    hugging_face,
    joint,
    official,
    random_state,
    torch_pickle,
    turned,
    write_npz,
    write_paddle,
    write_torch,
)

from common.errors import UserError
from common.pixels import Resize
from models import build_model, model_config, state_shapes
from models.vit import ViT, ViTConfig
from models.weight_files import SMALL, _view, check_members
from models.weights import (
    METADATA,
    config_from_weights,
    load_weights,
    model_from_file,
    read_weights,
    resize_position_embedding,
    save_weights,
)

DIGITS = model_config("ViT-digits", 10, 8, depth=2)
STATE = random_state(DIGITS)


def random_model(name="ViT-digits", classes=10, size=8, seed=0, depth=2, **options):
    model = build_model(name, classes, size, depth=depth, **options)
    state = model.state_dict()
    for key, value in random_state(model.config, seed).items():
        state[key].set_value(value)
    model.eval()
    return model


def logits(model) -> np.ndarray:
    shape = (2, 3, model.config.image_size, model.config.image_size)
    return model(paddle.to_tensor(np.random.default_rng(2).normal(size=shape).astype("float32"))).numpy()


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_the_table_of_shapes_is_the_network(qkv_bias):
    config = model_config("ViT-digits", 7, 32, depth=2, qkv_bias=qkv_bias)
    state = ViT(config).state_dict()
    assert state_shapes(config) == {key: tuple(value.shape) for key, value in state.items()}


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("layout", WRITERS)
def test_every_layout_gives_the_same_logits(layout, qkv_bias, tmp_path):
    if not qkv_bias and layout not in WITHOUT_QKV_BIAS:
        pytest.skip("this layout always has the bias")
    source, path = random_model(qkv_bias=qkv_bias), tmp_path / "weights"  # no suffix: the content tells the format
    label, write = WRITERS[layout]
    write(random_state(source.config), source.config, path)
    target, _, report = model_from_file(path, heads=4, dropout=0.0)
    assert report == f"{len(source.state_dict())} arrays ({label})"
    np.testing.assert_array_equal(logits(target), logits(source))


@pytest.mark.parametrize("layout", WRITERS)
def test_the_network_is_read_from_the_file(layout, tmp_path):
    config = model_config("ViT-Ti_16", 100, 48, depth=2, qkv_bias=layout == "Google")
    label, write = WRITERS[layout]
    write(random_state(config), config, tmp_path / "w")
    model, weights, report = model_from_file(tmp_path / "w")
    assert model.config == config and f"arrays ({label})" in report
    open_fields = {"heads": 3, "layer_norm_epsilon": 1e-6, "pooling": "token", "activation": "gelu"}
    told = {"own": [*open_fields], "Google": ["heads", "pooling", "activation"], "Hugging Face": ["pooling"]}
    if "timm" not in layout:  # the code of the others has no other pooling or activation
        told.setdefault(layout, ["pooling", "activation"])
    left = {name: value for name, value in open_fields.items() if name not in told.get(layout, [])}
    pictures = {"scale": "-1..1", "resize": Resize(), "class_order": "that of the data set"}
    assert weights.assumed == {**left, **pictures}


@pytest.mark.parametrize("layout", WRITERS)
def test_square_matrices_are_turned_by_the_container_alone(layout, tmp_path):
    config = model_config("ViT-digits", 64, 8, depth=2, mlp_width=64)  # every matrix but a joint qkv is 64 by 64
    _, write = WRITERS[layout]
    write(random_state(config), config, tmp_path / "w")
    for name, value in read_weights(tmp_path / "w").arrays.items():
        np.testing.assert_array_equal(value, random_state(config)[name], err_msg=name)


@pytest.mark.parametrize(
    ("write", "layout", "theirs", "ours", "qkv_bias"),
    [
        (save_file, lambda s: turned(joint(s)), "blocks.1.attn.qkv.weight", "blocks.1.attn.qkv.weight", False),
        (save_file, hugging_face, "layer.1.output.dense.weight", "blocks.1.mlp.fc2.weight", True),
        (write_torch, official, "layer.0.ffn.fc1.weight", "blocks.0.mlp.fc1.weight", False),
        (write_paddle, joint, "blocks.0.mlp.fc2.weight", "blocks.0.mlp.fc2.weight", True),
        (write_paddle, joint, "blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.weight", False),
        (write_npz, lambda s: google(s, DIGITS), "1/MlpBlock_3/Dense_0/kernel", "blocks.1.mlp.fc1.weight", True),
    ],
)
def test_transposed_kernels_are_an_error_that_names_the_first(write, layout, theirs, ours, qkv_bias, tmp_path):
    arrays = layout(random_state(dataclasses.replace(DIGITS, qkv_bias=qkv_bias)))
    (name,) = (name for name in arrays if theirs in name)
    write(arrays | {name: np.ascontiguousarray(arrays[name].T)}, tmp_path / "w")
    with pytest.raises(UserError, match=f"w: transposed kernels: {ours} is "):
        read_weights(tmp_path / "w")


def test_transposed_attention_of_google_is_an_error(tmp_path):
    arrays = google(random_state(DIGITS), DIGITS)
    name = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1/out/kernel"
    arrays[name] = arrays[name].transpose(2, 0, 1)
    write_npz(arrays, tmp_path / "w")
    with pytest.raises(UserError, match=r"transposed kernels: blocks\.1\.attn\.proj\.weight is"):
        read_weights(tmp_path / "w")


def test_heads_of_unusual_width(tmp_path):
    huge = ViTConfig(5, 14, 14, 1280, 1, 16, 64)  # ViT-H: 80 features a head
    write_torch(official(random_state(huge)), tmp_path / "huge")
    assert config_from_weights(read_weights(tmp_path / "huge")).heads == 16
    write_torch(official(random_state(DIGITS)), tmp_path / "w")
    assert model_from_file(tmp_path / "w", heads=4, layer_norm_epsilon=1e-5)[0].config.layer_norm_epsilon == 1e-5
    with pytest.raises(UserError, match="5 heads do not divide its width 64"):
        model_from_file(tmp_path / "w", heads=5)


@pytest.mark.parametrize("project", ["PaddleClas", "timm"])
def test_the_small_vit_of_2020_scales_its_scores_by_768(project, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"blocks.0.attn.qkv.weight": (768, 3 * 768), "blocks.7.mlp.fc1.weight": (768, 2304)}
    arrays = {name: rng.normal(size=shape).astype("float32") for name, shape in arrays.items()}
    if project == "timm":
        write_torch(turned(arrays), tmp_path / "w")
    else:
        write_paddle(arrays, tmp_path / "w")
    weights = read_weights(tmp_path / "w")
    assert weights.layout == f"{project} ViT_small"
    assert weights.network == {"pooling": "token", "activation": "gelu", "heads": 8, "layer_norm_epsilon": 1e-5}
    query, key, _ = np.split(arrays["blocks.0.attn.qkv.weight"], 3, axis=1)
    found = weights.arrays["blocks.0.attn.query.weight"]
    np.testing.assert_allclose(found * (768 // 8) ** -0.5, query * 768**-0.5, rtol=1e-6)
    np.testing.assert_array_equal(weights.arrays["blocks.0.attn.key.weight"], key)


def as_bfloat16(value) -> np.ndarray:
    return (value.view("<u4") >> 16).astype("<u2")  # the upper half of a float32


def bfloat16_safetensors(arrays, path) -> None:
    content = save({name: as_bfloat16(value) for name, value in arrays.items()})
    end = 8 + int.from_bytes(content[:8], "little")
    header = content[8:end].replace(b'"U16"', b'"BF16"')
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[end:])


def paddle_bfloat16(arrays, path) -> None:
    paddle.save({name: paddle.to_tensor(value).astype("bfloat16") for name, value in arrays.items()}, str(path))


def each(function):
    return lambda arrays: {name: function(value) for name, value in arrays.items()}


@pytest.mark.parametrize(
    ("write", "layout", "relative"),
    [
        (lambda a, p: save_file(each(np.float16)(a), p), lambda s: turned(joint(s)), 2**-11),
        (lambda a, p: write_torch(each(as_bfloat16)(a), p), official, 2**-7),
        (bfloat16_safetensors, lambda s: turned(joint(s)), 2**-7),
        (paddle_bfloat16, joint, 2**-7),
        (lambda a, p: write_paddle(each(lambda v: v.astype(">f8"))(a), p), joint, 0),
        (lambda a, p: write_torch(each(np.float64)(a), p), official, 0),
    ],
)
def test_numbers_of_other_precision_come_as_float32(write, layout, relative, tmp_path):
    state = random_state(DIGITS)
    write(layout(state), tmp_path / "w")
    for name, value in read_weights(tmp_path / "w").arrays.items():
        assert value.dtype == np.float32 and value.dtype.isnative
        np.testing.assert_allclose(value, state[name], rtol=relative, atol=1e-7, err_msg=name)


def torch_view(offset, shape, strides, path) -> np.ndarray:
    """`head.bias` of a torch file in which it is a view of the storage 0, 1, ..., 11."""
    arrays = official(random_state(DIGITS)) | {"head.bias": np.arange(12, dtype=np.float32)}
    write_torch(arrays, path, torch_pickle(arrays, views={"head.bias": (offset, shape, strides)}))
    return read_weights(path).arrays["head.bias"]


@pytest.mark.parametrize(
    ("offset", "shape", "strides", "expected"),
    [
        (0, (4, 3), (1, 4), np.arange(12).reshape(3, 4).T),
        (1, (4,), (3,), [1, 4, 7, 10]),
        (11, (), (), 11),
        (4, (3,), (0,), [4, 4, 4]),
    ],
)
def test_tensors_of_torch_are_views_of_their_storage(offset, shape, strides, expected, tmp_path):
    np.testing.assert_array_equal(torch_view(offset, shape, strides, tmp_path / "w"), expected)


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (12, (), ()),
        (6, (3, 4), (4, 1)),
        (-1, (3,), (1,)),
        (11, (3,), (-1,)),
        (0, (5,), (2**61,)),  # in 64 bits the last would be where the first is
        (0, (10**6, 10**6), (0, 0)),  # twelve numbers that would be 4 TB once they are copied
    ],
)
def test_tensors_outside_their_storage_are_errors(offset, shape, strides, tmp_path):
    with pytest.raises(UserError, match=r"a tensor of shape .* in a storage of 12 numbers"):
        torch_view(offset, shape, strides, tmp_path / "w")


def test_a_view_of_a_view_with_gaps_is_an_error():
    """Twelve times the last number of a storage; what is behind it is not of the file."""
    gaps = _view(np.arange(12, dtype=np.float32), 11, (12,), (0,))
    with pytest.raises(ValueError, match="not contiguous"):
        _view(gaps, 0, (12,), (1,))


def test_two_arrays_for_the_same_place_are_an_error(tmp_path):
    arrays = official(random_state(DIGITS))
    write_torch(arrays | {"norm.bias": arrays["transformer.encoder.encoder_norm.bias"] + 1}, tmp_path / "w")
    with pytest.raises(UserError, match="two of its arrays are for the same place"):
        read_weights(tmp_path / "w")


def test_files_of_pytorch_itself(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is only a test dependency")
    state = random_state(DIGITS)
    tensors = {name: torch.from_numpy(value) for name, value in official(state).items()}
    fc1 = "transformer.encoder.layer.0.ffn.fc1.weight"
    tensors[fc1] = torch.from_numpy(official(state)[fc1].T.copy()).T  # a view with other strides
    both = torch.stack([tensors["head.bias"] + 1, tensors["head.bias"]])
    tensors["head.bias"] = both[1]  # a part of a larger storage
    tensors["head.weight"] = torch.nn.Parameter(tensors["head.weight"])
    torch.save({"state_dict": tensors, "step": 7}, tmp_path / "w")
    found = read_weights(tmp_path / "w").arrays
    assert set(found) == set(state)
    for name, value in found.items():
        np.testing.assert_array_equal(value, state[name], err_msg=name)
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))  # has versions and an int64 count
    torch.save(module.state_dict(), tmp_path / "other")
    with pytest.raises(UserError, match=r"a torch file, but of no known ViT layout \(it holds 0\.bias"):
        read_weights(tmp_path / "other")
    torch.save(tensors, tmp_path / "old", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"old: is damaged .*, or written by PyTorch before 1\.6; .* save it anew"):
        read_weights(tmp_path / "old")


def test_own_files_are_read_by_paddle_itself(tmp_path):
    source, path = random_model(), tmp_path / "w.pdparams"
    save_weights(path, source, {"recipe": {"dataset": "digits"}})
    loaded = paddle.load(str(path))
    assert json.loads(loaded.pop("metadata@@"))["recipe"] == {"dataset": "digits"}
    target = random_model(seed=1)
    missing, unexpected = target.set_state_dict(loaded)
    assert not missing and not unexpected
    np.testing.assert_array_equal(target.head.weight.numpy(), source.head.weight.numpy())


def test_position_embedding_is_resized_as_the_official_code_does():
    rng = np.random.default_rng(0)
    for old, new in ((14, 24), (14, 4), (7, 7), (4, 14), (2, 3)):
        embedding = rng.normal(size=(1, 1 + old * old, 5)).astype("float32")
        found = resize_position_embedding(embedding, 1 + new * new)
        grid = zoom(embedding[0, 1:].reshape(old, old, 5), (new / old, new / old, 1), order=1)
        np.testing.assert_allclose(found[0, 1:], grid.reshape(-1, 5), rtol=0, atol=1e-6)
        np.testing.assert_array_equal(found[0, 0], embedding[0, 0])


@pytest.mark.parametrize("layout", ["timm", "Google"])
def test_a_head_of_other_classes_is_replaced_in_training_and_refused_in_evaluation(layout, tmp_path):
    config = model_config("ViT-digits", 1000, 8, depth=2)
    WRITERS[layout][1](random_state(config), config, tmp_path / "w")
    target = build_model("ViT-digits", 10, 8, depth=2)
    with pytest.raises(UserError, match=r"head\.weight is \(64, 1000\) instead of \(64, 10\)"):
        load_weights(target, read_weights(tmp_path / "w"), replace_head=False)
    report = load_weights(target, read_weights(tmp_path / "w"), replace_head=True)
    assert report.startswith(f"{len(state_shapes(config)) - 2} arrays (")
    assert "; replaced: head.weight, head.bias" in report
    assert not target.head.weight.numpy().any()  # fresh


@pytest.mark.parametrize("replace_head", [True, False])
def test_nothing_is_loaded_when_anything_does_not_fit(replace_head, tmp_path):
    config = model_config("ViT-digits", 10, 8, depth=3)
    WRITERS["timm"][1](random_state(config), config, tmp_path / "w")
    weights = read_weights(tmp_path / "w")
    weights.arrays["blocks.1.norm1.odd"] = weights.arrays.pop("blocks.1.norm1.bias")
    target = random_model(seed=1)
    before = target.norm.weight.numpy()
    with pytest.raises(UserError, match=r"missing blocks\.1\.norm1\.bias; unexpected .* and \d+ more$") as caught:
        load_weights(target, weights, replace_head=replace_head)
    assert str(caught.value).count("unexpected blocks.2.") == 3  # four problems are named, the others counted
    np.testing.assert_array_equal(target.norm.weight.numpy(), before)


@pytest.mark.parametrize(
    ("layout", "write", "surplus"),
    [
        (lambda s: google(s, DIGITS), write_npz, "conv_root/kernel"),  # the hybrid with a ResNet below
        (lambda s: turned(joint(s)), save_file, "blocks.0.ls1.gamma"),  # a network with more in each block
        (official, write_torch, "transformer.encoder.layer.0.attn.query.scale"),
    ],
)
def test_arrays_of_another_network_are_unexpected(layout, write, surplus, tmp_path):
    write(layout(random_state(DIGITS)) | {surplus: np.ones(64, np.float32)}, tmp_path / "w")
    with pytest.raises(UserError, match="unexpected "):
        load_weights(random_model(), read_weights(tmp_path / "w"), replace_head=True)


@pytest.mark.parametrize(
    ("layout", "write", "names"),
    [
        (lambda s: google(s, DIGITS), write_npz, ["pre_logits/bias", "pre_logits/kernel"]),
        (lambda s: turned(joint(s)), save_file, ["pre_logits.fc.bias", "pre_logits.fc.weight"]),
        (hugging_face, save_file, ["vit.pooler.dense.bias", "vit.pooler.dense.weight"]),
    ],
)
def test_a_layer_before_the_head_goes_with_the_head_and_cannot_be_evaluated(layout, write, names, tmp_path):
    surplus = {names[0]: np.ones(64, np.float32), names[1]: np.ones((64, 64), np.float32)}
    write(layout(random_state(DIGITS)) | surplus, tmp_path / "w")
    report = load_weights(random_model(seed=1), read_weights(tmp_path / "w"), replace_head=True)
    names = [name.removeprefix("vit.").replace("/", ".").replace("kernel", "weight") for name in names]
    assert "; replaced: head.weight, head.bias; left out: " in report
    assert sorted(report.rpartition("left out: ")[2].split(", ")) == names
    with pytest.raises(UserError, match=f"its head belongs behind ({'|'.join(names)}), which this network has not"):
        model_from_file(tmp_path / "w")


def test_a_file_without_a_head_starts_training_and_cannot_be_evaluated(tmp_path):
    state = {k: v for k, v in random_state(DIGITS).items() if not k.startswith("head.")}
    save_file(hugging_face(state), tmp_path / "w")
    report = load_weights(random_model(), read_weights(tmp_path / "w"), replace_head=True)
    assert "; replaced: head.weight, head.bias" in report
    with pytest.raises(UserError, match=r"not a whole ViT with a head \('head\.bias'\)"):
        model_from_file(tmp_path / "w")


def test_two_vits_are_read_back(tmp_path):
    model = build_model("ViT-digits", 10, 8, second="ViT-digits", depth=2, dropout=0.1)
    save_weights(tmp_path / "w", model, {"network": dataclasses.asdict(model.config)})
    assert model_from_file(tmp_path / "w")[0].config == model.config


# ---- what others put around and in place of the names


def base_model(state, config) -> dict:
    """`ViTModel.save_pretrained`: no prefix and no head, a pooler."""
    arrays = {
        name.removeprefix("vit."): value for name, value in hugging_face(state).items() if "classifier" not in name
    }
    d = config.width
    return arrays | {"pooler.dense.weight": np.ones((d, d), np.float32), "pooler.dense.bias": np.ones(d, np.float32)}


def transformers_5(state) -> dict:
    pairs = {
        ".attention.attention.query.": ".attention.q_proj.",
        ".attention.attention.key.": ".attention.k_proj.",
        ".attention.attention.value.": ".attention.v_proj.",
        ".attention.output.dense.": ".attention.o_proj.",
        ".intermediate.dense.": ".mlp.fc1.",
        ".output.dense.": ".mlp.fc2.",
        "vit.encoder.layer.": "vit.layers.",
    }
    found = {}
    for name, value in hugging_face(state).items():
        for old, new in pairs.items():
            name = name.replace(old, new)
        found[name] = value
    return found


@pytest.mark.parametrize("prefix", ["vit.", ""])
def test_names_of_transformers_5(prefix, tmp_path):
    arrays = {name.replace("vit.", prefix): value for name, value in transformers_5(STATE).items()}
    save_file(arrays, tmp_path / "w")
    model, _, report = model_from_file(tmp_path / "w", heads=4, layer_norm_epsilon=1e-6)
    assert "arrays (Hugging Face)" in report
    np.testing.assert_array_equal(logits(model), logits(random_model()))


def test_the_base_model_of_hugging_face_starts_training(tmp_path):
    save_file(base_model(STATE, DIGITS), tmp_path / "w")
    model = random_model(seed=1)
    report = load_weights(model, read_weights(tmp_path / "w"), replace_head=True)
    assert "(Hugging Face); replaced: head.weight, head.bias" in report
    np.testing.assert_array_equal(model.blocks[1].attn.key.weight.numpy(), STATE["blocks.1.attn.key.weight"])


@pytest.mark.parametrize(
    ("prefix", "layout"),
    [
        ("module.", official),
        ("_orig_mod.", lambda s: turned(joint(s))),
        ("module._orig_mod.", hugging_face),
        ("net.backbone.", transformers_5),
    ],
)
def test_prefixes_of_wrapped_networks_are_taken_off_and_named(prefix, layout, tmp_path):
    write_torch({prefix + name: value for name, value in layout(STATE).items()}, tmp_path / "w")
    weights = read_weights(tmp_path / "w")
    assert weights.layout.endswith(f"prefix '{prefix}'") and weights.arrays.keys() == STATE.keys()
    np.testing.assert_array_equal(weights.arrays["norm.bias"], STATE["norm.bias"])
    np.testing.assert_array_equal(weights.arrays["head.weight"], STATE["head.weight"])


def test_networks_side_by_side_are_named_and_none_is_chosen(tmp_path):
    both = {prefix + name: value for prefix in ("student.", "teacher.") for name, value in turned(joint(STATE)).items()}
    write_torch(both, tmp_path / "w")
    with pytest.raises(UserError, match=r"networks, whose names begin with 'student\.', 'teacher\.'; save one"):
        read_weights(tmp_path / "w")


def test_what_stands_beside_a_wrapped_network_is_not_lost(tmp_path):
    arrays = {"model." + name: value for name, value in turned(joint(STATE)).items()}
    write_torch({**arrays, "loss.weight": np.ones(10, np.float32)}, tmp_path / "w")
    with pytest.raises(UserError, match=r"unexpected loss\.weight"):
        model_from_file(tmp_path / "w", heads=4)


def test_the_network_in_a_training_checkpoint(tmp_path):
    other = random_state(DIGITS, seed=3)
    path, checkpoint = tmp_path / "w", {"model": joint(STATE), "epoch": 3, "optimizer": {"state": {}}, "scaler": None}
    path.write_bytes(pickle.dumps(checkpoint))
    weights = read_weights(path)
    assert weights.layout == "PaddleClas, entry 'model'"
    np.testing.assert_array_equal(weights.arrays["norm.bias"], STATE["norm.bias"])
    path.write_bytes(pickle.dumps({**checkpoint, "best_accuracy": np.array(0.9)}))  # an array beside the network
    assert read_weights(path).layout == "PaddleClas, entry 'model'"
    others = {f"mean {i}": {"x": np.ones(1)} for i in range(5)}  # tables of arrays too, but of no network's name
    path.write_bytes(pickle.dumps({**others, **checkpoint, "model_ema": joint(other)}))
    with pytest.raises(UserError, match="holds several networks: 'model', 'model_ema'; say --entry NAME"):
        read_weights(path)
    np.testing.assert_array_equal(read_weights(path, "model_ema").arrays["norm.bias"], other["norm.bias"])
    with pytest.raises(UserError, match="has no network called 'ema'; it has 'model', 'model_ema'"):
        model_from_file(path, entry="ema")


@pytest.mark.parametrize(
    ("beside", "named"), [(argparse.Namespace(lr=0.1), r"argparse\.Namespace"), (Counter(a=1), r"collections\.Counter")]
)
def test_a_class_beside_the_weights_is_named_with_what_to_do(beside, named, tmp_path):
    """As MAE and DeiT save their options. Saved alone, as the message says, the same weights are read."""
    torch = pytest.importorskip("torch", reason="PyTorch is only a test dependency")
    tensors = {name: torch.from_numpy(value) for name, value in official(STATE).items()}
    torch.save({"model": tensors, "args": beside}, tmp_path / "w")
    with pytest.raises(UserError, match=rf"asks for {named}, which is code.* save the arrays alone, .*torch\.save\("):
        read_weights(tmp_path / "w")
    torch.save(tensors, tmp_path / "w")
    assert read_weights(tmp_path / "w").arrays.keys() == STATE.keys()


# ---- bad input


def test_a_flipped_bit_in_our_own_files_is_an_error(tmp_path):
    path = tmp_path / "w.pdparams"
    save_weights(path, random_model(), {"recipe": {"scale": "0..1"}})
    whole = path.read_bytes()
    assert read_weights(path).metadata == {"recipe": {"scale": "0..1"}}
    rng = np.random.default_rng(0)
    spots = [5, whole.index(b"metadata@@") + 8, whole.index(b"0..1"), len(whole) - 1, len(whole) - 35]
    for at in [*spots, *rng.integers(0, len(whole), 60)]:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(UserError):
            read_weights(path)
    path.write_bytes(whole[:-3])
    with pytest.raises(UserError, match="is damaged"):
        read_weights(path)


@pytest.mark.parametrize("member", ["head/bias.npy", "archive/data.pkl"])
def test_members_of_other_compression_are_refused_unread(member, tmp_path):
    """Their memory is not bounded by zipfile: 2 KB of bz2 become 3 GB."""
    with zipfile.ZipFile(tmp_path / "w", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr(member, bytes(2**20))
    with pytest.raises(UserError, match=r"w: member .* is encrypted or compressed by another method than Deflate"):
        read_weights(tmp_path / "w")


def checked_zip(method, content=b"x", flags=0):
    """`check_members` of a zip with one member, whose entry has the `flags`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("a.txt", content)
    buffer.getbuffer()[buffer.getvalue().index(b"PK\1\2") + 8] |= flags
    with zipfile.ZipFile(buffer) as archive:
        check_members(archive, "some.zip")


def test_zips_that_are_not_read():
    for method, flags in ((zipfile.ZIP_BZIP2, 0), (zipfile.ZIP_LZMA, 0), (zipfile.ZIP_STORED, 1)):
        with pytest.raises(UserError, match=r"some\.zip: member 'a\.txt' is encrypted or compressed by another method"):
            checked_zip(method, flags=flags)
    with pytest.raises(UserError, match=r"some\.zip: .* more than 20 times as many"):
        checked_zip(zipfile.ZIP_DEFLATED, bytes(SMALL + 1))
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        checked_zip(method, bytes(SMALL // 16))


@pytest.mark.parametrize(
    "network",
    [
        {"first": {"patch_size": 1024, "image_size": 2048}, "second": {}},
        {"first": {"width": 2**14, "mlp_width": 2**16, "depth": 64}, "second": {"depth": 64}},
        {"first": {"depth": 10**9}, "second": {}},
        {"first": {"first": {}, "second": {}}, "second": {}},
    ],
)
def test_a_pair_that_is_described_but_not_there_is_refused_before_it_is_made(network, tmp_path):
    """14 KB of JSON in a small file made a network of any size before."""
    plain = dataclasses.asdict(DIGITS)
    described = {part: {**plain, **fields} if "first" not in fields else fields for part, fields in network.items()}
    arrays = {f"first.{name}": value for name, value in STATE.items()} | {"b._batch_norm._mean": np.ones(3, np.float32)}
    (tmp_path / "w").write_bytes(pickle.dumps({**arrays, METADATA: json.dumps({"network": described})}))
    began = time.perf_counter()
    with pytest.raises(UserError, match=r"does not fit|must be from|describe a run"):
        model_from_file(tmp_path / "w")
    assert time.perf_counter() - began < 10


def test_an_image_size_that_no_machine_computes_is_refused(tmp_path):
    save_weights(tmp_path / "w", random_model(), {})
    with pytest.raises(UserError, match="image_size 4,096: must be from 1 to 2,048"):
        model_from_file(tmp_path / "w", image_size=4096)


@pytest.mark.parametrize("said", [{"pooling": "map"}, {"activation": "silu"}])
def test_a_network_that_cannot_be_computed_is_refused_by_name(said, tmp_path):
    save_weights(tmp_path / "w", random_model(), {"network": said})
    with pytest.raises(UserError, match=f"{next(iter(said))} '.*': must be one of"):
        model_from_file(tmp_path / "w")


def test_a_position_embedding_of_another_width_is_not_resized(tmp_path):
    """A file of 14 MB took 5 GB."""
    (tmp_path / "w").write_bytes(pickle.dumps(STATE | {"pos_embed": np.ones((1, 5, 65), np.float32)}))
    with pytest.raises(UserError, match=r"pos_embed is \(1, 5, 65\) instead of \(1, 17, 64\)"):
        load_weights(random_model(), read_weights(tmp_path / "w"), replace_head=True)


def npz_that_claims(shape) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("head/bias.npy", header.getvalue() + bytes(40))
    return out.getvalue()


def zip_bomb(member="head/bias.npy", says=2**28) -> bytes:
    """256 MB of zeros in a member whose entry `says` how many they are."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, bytes(2**28))
    at = out.getvalue().index(b"PK\1\2") + 24
    out.getbuffer()[at : at + 4] = says.to_bytes(4, "little")
    return out.getvalue()


def written(write, *arguments) -> bytes:
    """What `write(*arguments, path)` puts into a file."""
    with tempfile.TemporaryDirectory() as folder:
        write(*arguments, Path(folder) / "w")
        return (Path(folder) / "w").read_bytes()


def nan_in(arrays) -> dict:
    name = next(iter(arrays))
    return arrays | {name: np.full_like(arrays[name], math.nan)}


def header_of_safetensors(entries: str) -> bytes:
    return len(entries).to_bytes(8, "little") + entries.encode() + bytes(16)


def write_big_endian(path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", torch_pickle({}))
        archive.writestr("archive/byteorder", "big")


class Empty:
    """Pickles as a call of NumPy's own constructor of arrays of any shape."""

    def __reduce__(self):
        return np.array(0).__reduce__()[0], (np.ndarray, (10**9,), b"d")


RESNET = {"conv1.weight": np.ones((4, 3, 7, 7), np.float32), "layer1.0.bn1.num_batches_tracked": np.array(3)}
BIN, NPZ, SAFE = written(write_torch, official(STATE)), written(write_npz, google(STATE, DIGITS)), save(joint(STATE))
PADDLE = written(write_paddle, joint(STATE))
TWO_TYPES = torch_pickle({"a": np.ones(4, "f4"), "b": np.ones(2, "f8")}).replace(b"X\1\0\0\x001", b"X\1\0\0\x000")
DAMAGED = "not a readable (weight file|pickle)"
BAD = {
    "empty": (b"", "no weight file that is known"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", "no weight file that is known"),
    "zip cut": (b"PK\x03\x04 and then nothing of a zip", DAMAGED),
    "zip of text": (written(lambda p: zipfile.ZipFile(p, "w").writestr("a.txt", "x")), DAMAGED),
    "zip with another name inside": (
        written(lambda p: zipfile.ZipFile(p, "w").writestr("a" * 9999, "x")).replace(b"aa", b"ab", 1),
        DAMAGED,
    ),
    "zip bomb": (zip_bomb(), "become 268,435,456, more than 20 times as many"),
    "npz bomb that lies": (zip_bomb(says=100), DAMAGED),
    "bin bomb that lies": (zip_bomb("archive/data.pkl", says=100), DAMAGED),
    "npz damaged": (NPZ[:5000] + b"damage" + NPZ[5006:], DAMAGED),
    "npz with a huge shape": (npz_that_claims((10**6, 10**6)), r"into shape \(1000000,1000000\)"),
    "npz with a negative shape": (npz_that_claims((-2, -5)), DAMAGED),
    "safetensors cut": (SAFE[:-1000], DAMAGED),
    "safetensors of 4 GB": (b"\xff\xff\xff\xff\0\0\0\0{}", DAMAGED),
    "safetensors with a huge shape": (
        header_of_safetensors('{"a":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,16]}}'),
        DAMAGED,
    ),
    "safetensors of 8 bits": (
        header_of_safetensors('{"a":{"dtype":"F8_E4M3","shape":[16],"data_offsets":[0,16]}}'),
        "a is of type F8_E4M3",
    ),
    "pickle of a list": (pickle.dumps([1, 2]), "holds a list"),
    "nested table": (pickle.dumps({"model": {}}), "entry 'model' is of type dict"),
    "texts": (pickle.dumps({"a": np.array(["x"])}), "refused, it holds an array of 'U1'"),
    "a number for a name": (pickle.dumps({5: np.ones(1)}), "entry called 5"),
    "a number of 5,000 digits for a name": (pickle.dumps({10**5000: np.ones(1)}), DAMAGED),
    "a name of two lines": (pickle.dumps({"a\nb": np.ones(1)}), r"entry called 'a\\nb'"),
    "pickle cut": (PADDLE[: len(PADDLE) // 2], DAMAGED),
    "pickle with a huge array": (pickle.dumps({"a": Empty()}), "entry 'a'|not a readable pickle|of no known"),
    "one array under many names": (
        pickle.dumps(dict.fromkeys(map(str, range(9999)), np.ones(9999, np.float16))),
        "claims 400 MB of arrays",
    ),
    "bin cut": (BIN[: len(BIN) // 2], DAMAGED),
    "bin with another storage": (
        written(lambda p: write_torch({"a": np.ones(4)}, p, torch_pickle({"a": np.ones(5)}))),
        "storage 0 has 4 numbers instead of 5",
    ),
    "bin with a storage of two types": (
        written(lambda p: write_torch({"a": np.ones(4, "f4")}, p, TWO_TYPES)),
        "storage 0 is of two types",
    ),
    "bin of another machine": (written(write_big_endian), "written on a big-endian machine"),
    "bin before 1.6": (pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2), r"by PyTorch before 1\.6"),
    "nan": (save(nan_in(turned(joint(STATE)))), "cls_token holds values that are not finite"),
    "too large for float32": (pickle.dumps({"a": np.array([1e300])}), "a holds values that are not finite"),
    "resnet": (save(RESNET), r"no known ViT layout \(it holds conv1\.weight"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named_with_the_reason(case, tmp_path):
    content, reason = BAD[case]
    path = tmp_path / "some.file"
    path.write_bytes(content)
    tracemalloc.start()  # NumPy reports what it reserves, touched or not
    try:
        with pytest.raises(UserError, match=f"^{path}: .*({reason})") as caught:
            read_weights(path)
        assert tracemalloc.get_traced_memory()[1] < 30 * 2**20
    finally:
        tracemalloc.stop()
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 500


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_is_listed_again_is_unpacked_once(tmp_path, monkeypatch):
    """300 entries for one of 30 MB, in a file of 60 KB, took a minute and more."""
    array = io.BytesIO()
    np.save(array, np.ones(4, np.float32))
    with zipfile.ZipFile(tmp_path / "w", "w") as archive:
        for _ in range(3):
            archive.writestr("head/bias.npy", array.getvalue())
    opened, real = [], zipfile.ZipFile.open
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *arguments: opened.append(1) or real(*arguments))
    with pytest.raises(UserError, match="no known ViT layout"):
        read_weights(tmp_path / "w")
    assert len(opened) == 1


def test_shapes_that_would_make_a_huge_network_are_refused_before_it_is_made(tmp_path):
    state = random_state(DIGITS)
    for i in range(2, 300):
        state[f"blocks.{i}.norm1.weight"] = state["norm.weight"]
    save_file(turned(joint(state)), tmp_path / "w")
    with pytest.raises(UserError, match="depth 300: must be from 1 to 64"):
        model_from_file(tmp_path / "w")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pos_embed": np.ones((1, 18, 64), np.float32)}, r"pos_embed is \(1, 18, 64\) instead of \(1, 17, 64\)"),
        ({"pos_embed": np.ones(5, np.float32)}, "not a whole ViT"),
        ({"pos_embed": np.ones((1, 1, 64), np.float32)}, "image_size 0"),
        ({"pos_embed": np.ones((2, 17, 64), np.float32)}, r"pos_embed is \(2, 17, 64\) instead of \(1, 17, 64\)"),
        ({"head.bias": np.ones((), np.float32)}, "not a whole ViT"),
        ({"patch_embed.proj.weight": np.ones((64, 4, 2, 2), np.float32)}, r"is \(64, 4, 2, 2\) instead of"),
        ({"patch_embed.proj.weight": np.ones((0, 3, 2, 2), np.float32)}, "width 0: must be from 1"),
        ({"norm.bias": np.ones(64, np.int64)}, "norm.bias is int64"),
        ({"blocks.1.norm1.weight": None}, "unexpected blocks.1"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_odd_shapes_are_errors(change, reason, tmp_path):
    state = {k: v for k, v in (random_state(DIGITS) | change).items() if v is not None}
    (tmp_path / "w").write_bytes(pickle.dumps(state))
    with pytest.raises(UserError, match=f"w: .*({reason})"):
        model_from_file(tmp_path / "w")


@pytest.mark.parametrize(
    "metadata",
    [
        "[]",
        "{",
        "[" * 100_000,
        '{"recipe": []}',
        '{"recipe": {"scale": []}}',
        '{"recipe": {"scale": "0..255"}}',
        '{"network": 5}',
        '{"network": {"made_up": 1}}',
        '{"network": {"heads": true}}',
        '{"network": {"heads": -4}}',
        '{"network": {"heads": 7}}',
        '{"network": {"layer_norm_epsilon": NaN}}',
        '{"network": {"dropout": 1}}',
        '{"network": {"heads": %s}}' % ("9" * 5000),
    ],
)
def test_odd_metadata_is_an_error(metadata, tmp_path):
    (tmp_path / "w").write_bytes(pickle.dumps({**random_state(DIGITS), METADATA: metadata}))
    with pytest.raises(UserError, match=f"^{tmp_path / 'w'}: .*(describe a run|heads|epsilon|dropout)") as caught:
        model_from_file(tmp_path / "w")
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 400


# ---- malicious files


class Evil:
    def __init__(self, call, *arguments):
        self.reduced = (call, arguments)

    def __reduce__(self):
        return self.reduced


def in_persistent_id(value) -> bytes:
    """A pickle whose persistent id, as torch has them, holds `value`."""
    return b"\x80\x02}" + b"X\x01\0\0\0a(X\x07\0\0\0storage" + pickle.dumps(value, 2)[2:-1] + b"tQs."


SYSTEM = "posix.system", lambda witness: Evil(os.system, f"touch {witness}")
MALICIOUS = [
    ("pdparams", *SYSTEM),
    ("bin", *SYSTEM),
    ("persistent id of bin", *SYSTEM),
    ("persistent id of pdparams", *SYSTEM),
    ("pdparams", "getattr", lambda witness: Evil(getattr, Evil(__import__, "os"), "system")),
    ("pdparams", "numpy.save|numpy.lib", lambda witness: Evil(np.save, str(witness), np.ones(1))),
    ("bin", "exec", lambda witness: [{"deep": (Evil(exec, f"open({str(witness)!r}, 'w')"),)}]),
]


@pytest.mark.parametrize(("place", "named", "evil"), MALICIOUS)
def test_malicious_files_are_refused_by_name_and_nothing_runs(place, named, evil, tmp_path):
    witness, path = tmp_path / "ran", tmp_path / "w"
    value = evil(witness)
    bad = in_persistent_id(value) if "persistent" in place else pickle.dumps({"head.bias": value}, 2)
    if place.endswith("pdparams"):
        path.write_bytes(bad)
    else:
        write_torch({}, path, bad)
    with pytest.raises(UserError, match=rf"^{path}: refused, it asks for \S*({named})\S*, which is code"):
        read_weights(path)
    assert not witness.exists()


def test_pickles_inside_npz_are_refused(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.array([Evil(os.system, f"touch {tmp_path / 'ran'}")], dtype=object))
    with pytest.raises(UserError, match="cannot create an OBJECT array"):
        read_weights(tmp_path / "w.npz")
    assert not (tmp_path / "ran").exists()


def test_folders_and_missing_files(tmp_path):
    with pytest.raises(UserError, match="a folder, not a file"):
        read_weights(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        read_weights(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="a pipe, a socket or a device"):
        read_weights(tmp_path / "pipe")


def test_the_real_vit_ti16_file(vit_ti16_file):
    weights = read_weights(vit_ti16_file)
    config = config_from_weights(weights)
    assert (config.image_size, config.width, config.depth, config.heads) == (224, 192, 12, 3)
    model = build_model("ViT-Ti_16", 100, 64)
    report = load_weights(model, weights, replace_head=True)
    assert "; resized: pos_embed 197 -> 17 tokens; replaced: head.weight, head.bias" in report


def test_a_safetensors_header_of_any_length_is_recognised(tmp_path):
    """A length of 128 modulo 256 begins with the byte that begins a pickle."""
    arrays, begins = turned(joint(random_state(DIGITS))), set()
    for padding in range(0, 256, 8):  # the writer rounds the header to 8 bytes
        path = tmp_path / f"{padding}"
        save_file(arrays, path, metadata={"note": "x" * (padding + 1)})
        begins.add(path.read_bytes()[0])
        assert read_weights(path).layout == "timm"
    assert 0x80 in begins
