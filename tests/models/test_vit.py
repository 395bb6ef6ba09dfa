import numpy as np
import paddle
import pytest
from paddle.nn import functional as F
from scipy.special import erf, expit

from common.errors import UserError
from models import MODELS, build_model, count_parameters, model_config, vit
from models.vit import compute_by

PARAMETERS = {  # 224 px, 1000 classes; ViT-B_16 and ViT-L_16 as in google-research/vision_transformer's tests
    "ViT-Ti_16": 5_717_416,
    "ViT-S_16": 22_050_664,
    "ViT-B_16": 86_567_656,
    "ViT-B_32": 88_224_232,
    "ViT-L_16": 304_326_632,
    "ViT-L_32": 306_535_400,
    "ViT-H_14": 632_045_800,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name):
    assert count_parameters(model_config(name, 1000, 224)) == PARAMETERS[name]


def test_a_real_network_has_as_many_parameters_as_are_counted():
    for second in ("", "ViT-digits"):
        model = build_model("ViT-Ti_16", 100, 32, second=second)
        assert sum(p.size for p in model.parameters()) == count_parameters(model.config)


def test_headline_parameter_count():
    assert count_parameters(model_config("ViT-B_16", 100, 384)) == 86_167_396


def test_a_fresh_network_predicts_the_uniform_distribution():
    model = build_model("ViT-digits", 10, 8)
    logits = model(paddle.randn([3, 3, 8, 8]))
    assert logits.shape == [3, 10]
    np.testing.assert_array_equal(logits.numpy(), 0)


def test_dropout_acts_where_the_official_code_has_it():
    """After the position embedding and twice in each MLP: 1 + 2 * depth layers of the given rate, no other."""
    model = build_model("ViT-digits", 10, 8, dropout=0.25)
    rates = {name: layer.p for name, layer in model.named_sublayers() if isinstance(layer, paddle.nn.Dropout)}
    active = {name for name, rate in rates.items() if rate}
    blocks = range(MODELS["ViT-digits"]["depth"])
    assert active == {"pos_dropout"} | {f"blocks.{i}.mlp.dropout{k}" for i in blocks for k in (1, 2)}
    assert {rates[name] for name in active} == {0.25}
    other = build_model("ViT-digits", 10, 8, dropout=0.0, attention_dropout=0.1, projection_dropout=0.2)
    rates = {name: layer.p for name, layer in other.named_sublayers() if isinstance(layer, paddle.nn.Dropout)}
    assert {name.split(".")[-1]: rate for name, rate in rates.items() if rate} == {
        "weights_dropout": 0.1,
        "proj_dropout": 0.2,
    }


@pytest.mark.parametrize(
    ("pooling", "activation"), [("token", "gelu"), ("avg", "gelu"), ("token", "relu"), ("avg", "quick_gelu")]
)
def test_forward_pass_equals_plain_numpy(pooling, activation):
    """One block written out in NumPy, with random weights everywhere (the head too)."""
    paddle.seed(0)
    model = build_model("ViT-digits", 10, 8, depth=1, pooling=pooling, activation=activation)
    rng = np.random.default_rng(0)
    for parameter in model.parameters():
        parameter.set_value(rng.normal(0, 0.3, parameter.shape).astype("float32"))
    model.eval()
    images = rng.normal(size=(2, 3, 8, 8)).astype("float32")
    found = model(paddle.to_tensor(images)).numpy()

    w = {name: value.numpy().astype(np.float64) for name, value in model.state_dict().items()}

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def dense(x, name):
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    patches = images.reshape(2, 3, 4, 2, 4, 2).transpose(0, 2, 4, 1, 3, 5).reshape(2, 16, 12)
    x = patches @ w["patch_embed.proj.weight"].reshape(64, 12).T + w["patch_embed.proj.bias"]
    x = np.concatenate([np.broadcast_to(w["cls_token"], (2, 1, 64)), x], axis=1) + w["pos_embed"]
    y = norm(x, "blocks.0.norm1")
    q, k, v = (
        dense(y, f"blocks.0.attn.{part}").reshape(2, 17, 4, 16).transpose(0, 2, 1, 3)
        for part in ("query", "key", "value")
    )
    scores = np.exp(q @ k.transpose(0, 1, 3, 2) / 4)
    y = (scores / scores.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3).reshape(2, 17, 64)
    x = x + dense(y, "blocks.0.attn.proj")
    y = dense(norm(x, "blocks.0.norm2"), "blocks.0.mlp.fc1")
    factor = {"gelu": 0.5 * (1 + erf(y / np.sqrt(2))), "relu": y > 0, "quick_gelu": expit(1.702 * y)}[activation]
    x = norm(x + dense(y * factor, "blocks.0.mlp.fc2"), "norm")
    x = x[:, 1:].mean(1) if pooling == "avg" else x[:, 0]  # timm's global_pool="avg", fc_norm=False
    np.testing.assert_allclose(found, dense(x, "head"), rtol=0, atol=1e-4)


def test_unknown_names_and_sizes():
    with pytest.raises(UserError, match="did you mean ViT-B_16"):
        model_config("ViT-B-16", 10, 224)
    with pytest.raises(UserError, match="multiple of its patch size 16"):
        model_config("ViT-B_16", 10, 225)


def test_views_equal_two_passes_without_dropout():
    """Outputs and gradients."""
    model = build_model("ViT-digits", 10, 8, dropout=0.0)
    model.head.weight.set_value(paddle.randn(model.head.weight.shape))
    images = paddle.randn([5, 3, 8, 8])
    found = []
    for two_views in (model.views, lambda x: (model(x), model(x))):
        logits = paddle.concat(two_views(images))
        (logits**2).mean().backward()
        found.append([logits.numpy(), *(p.grad.numpy() for p in model.parameters())])
        model.clear_gradients()
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1, np.abs(b).max()))


def test_views_have_masks_of_their_own_from_the_first_dropout_on():
    model = build_model("ViT-digits", 10, 8, dropout=0.5)
    model.head.weight.set_value(paddle.randn(model.head.weight.shape))
    model.blocks.eval()  # the dropout after the position embedding alone
    first, second = model.views(paddle.randn([5, 3, 8, 8]))
    assert first.shape == [5, 10] and not np.allclose(first.numpy(), second.numpy())


def test_views_of_two_networks_are_one_of_each():
    model = build_model("ViT-digits", 10, 8, second="ViT-digits", dropout=0.0)
    for network in (model.first, model.second):
        network.head.weight.set_value(paddle.randn(network.head.weight.shape))
    images = paddle.randn([5, 3, 8, 8])
    first, second = model.views(images)
    np.testing.assert_array_equal(first.numpy(), model.parts()["first"](images).numpy())
    np.testing.assert_array_equal(second.numpy(), model.parts()["second"](images).numpy())
    assert list(model.parts()) == ["", "first", "second"] and model.parts()[""] is model
    mean = (F.softmax(first, axis=-1) + F.softmax(second, axis=-1)) / 2
    np.testing.assert_allclose(model(images).numpy(), mean.log().numpy(), atol=1e-6)


def test_recompute_keeps_the_masks_and_the_gradients():
    model = build_model("ViT-digits", 10, 8, dropout=0.3)
    model.head.weight.set_value(paddle.randn(model.head.weight.shape))
    images, found = paddle.randn([5, 3, 8, 8]), []
    for again in (False, True):
        if again:
            compute_by(model, recompute=True, fused=False)
        paddle.seed(1)
        logits = model(images)
        (logits**2).mean().backward()
        found.append([logits.numpy(), *(p.grad.numpy() for p in model.parameters())])
        model.clear_gradients()
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("dtype", "calls"), [("float64", 4), ("float32", 0)])
def test_fused_attention_gives_the_same_logits(dtype, calls, monkeypatch):
    """In float32, as evaluation computes, it is not taken."""
    model = build_model("ViT-digits", 10, 8, dropout=0.0).to(dtype=dtype)
    model.head.weight.set_value(paddle.randn(model.head.weight.shape).astype(dtype))
    images = paddle.randn([5, 3, 8, 8]).astype(dtype)
    expected, called, real = model(images).numpy(), [], F.scaled_dot_product_attention
    monkeypatch.setattr(vit.F, "scaled_dot_product_attention", lambda *a, **b: called.append(1) or real(*a, **b))
    compute_by(model, recompute=False, fused=True)
    np.testing.assert_allclose(model(images).numpy(), expected, atol=1e-12 if calls else 0)
    assert len(called) == calls
