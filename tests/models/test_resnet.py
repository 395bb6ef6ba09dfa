"""Res2Net and the SE-ResNets against PaddleClas's names and an independent PyTorch version of the same networks."""

import functools
import hashlib
import importlib
import json

import numpy as np
import paddle
import pytest
from paddle import nn

from models import build_model, count_parameters, model_config, state_shapes
from models.resnet import HEAD, NETWORKS
from models.weights import load_weights, read_weights

PARAMETERS = {"Res2Net50_vd_26w_4s": 25_718_352, "SE_ResNet50_vd": 28_107_256, "SE_ResNeXt50_vd_32x4d": 27_687_768}
# "Params(M)" in PaddleClas's docs/en/algorithm_introduction/ImageNet_models_en.md, which counts the running
# statistics in.
PUBLISHED_MILLIONS = {"Res2Net50_vd_26w_4s": 25.78, "SE_ResNet50_vd": 28.16, "SE_ResNeXt50_vd_32x4d": 27.76}
# SHA-256 of json.dumps(sorted [name, shape] pairs) of the state with 1000 classes, made by running the classes of the
# wheel paddleclas 2.6.0 under Paddle 3.3.1.
NAMES_AND_SHAPES = {
    "Res2Net50_vd_26w_4s": "d59dbbb6c6b68245e36dfbf0d6a740e7a3d4171515f9ba1ca2bb19a888dbdc54",
    "SE_ResNet50_vd": "6a42e20775d47edfdf9b4abd4c051f7bff5b8ab9440926f5a2a6b1e900da576e",
    "SE_ResNeXt50_vd_32x4d": "bc7730662eff30b2ace72f7f1be21d34cb80b61e5911bfc144ea6341edd24034",
}
EXAMPLES = {  # some of what the digests stand for
    "Res2Net50_vd_26w_4s": {
        "conv1_3._conv.weight": (64, 32, 3, 3),
        "bb_2_5.res4f_branch2b_3._batch_norm._variance": (104,),
        "bb_3_0.short._conv.weight": (2048, 1024, 1, 1),
    },
    "SE_ResNet50_vd": {"bb_0_0.conv1._conv.weight": (64, 64, 3, 3), "bb_3_2.scale.squeeze.weight": (2048, 128)},
    "SE_ResNeXt50_vd_32x4d": {"conv1_3._conv.weight": (128, 64, 3, 3), "bb_0_0.conv1._conv.weight": (128, 4, 3, 3)},
}
RUNNING = ("._mean", "._variance")  # ends of the names of running statistics

pytestmark = pytest.mark.filterwarnings("ignore:When training, we now always track")  # Paddle's, each step
every_network = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if "ResNeXt" in name else name for name in NETWORKS]
)  # which is SE_ResNet50 with other groups and widths


@pytest.fixture(scope="module")
def torch():
    """Skip where PyTorch cannot be imported, and say why."""
    try:
        module = importlib.import_module("torch")
    except Exception as reason:  # a CUDA build without its libraries: ValueError or OSError
        pytest.skip(f"Res2Net and SE-ResNet are NOT checked against torch ({type(reason).__name__}: {reason})")
    threads = module.get_num_threads()
    module.set_num_threads(1)  # two libraries' threads that wait for each other on few cores take three times as long
    yield module
    module.set_num_threads(threads)


def digest(shapes) -> str:
    pairs = sorted((name, list(shape)) for name, shape in shapes.items())
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def shapes_of(model) -> dict:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


@functools.cache
def fabricated(name) -> dict[str, np.ndarray]:
    """Random arrays under PaddleClas's names, no two alike, such that activations stay of about one size."""
    rng = np.random.default_rng(0)

    def array(key, shape):
        if key.endswith(("_variance", "_batch_norm.weight")):
            return rng.uniform(0.5, 1.5, shape)
        fan_in = 100 if len(shape) == 1 else shape[0] if len(shape) == 2 else np.prod(shape[1:])
        return rng.normal(0, fan_in**-0.5, shape)

    shapes = state_shapes(model_config(name, 1000, 64))
    return {key: array(key, shape).astype("float32") for key, shape in shapes.items()}


def reference(torch, name, state, images, training):
    """Logits by PyTorch's functions. `state` holds tensors; in training, its running statistics take a step.

    PyTorch's momentum is the share of the new value, and its running variance takes up the batch's unbiased variance
    (divided by n - 1) where Paddle's takes up the biased one (by n): the step of the variance is scaled by (n - 1) / n.
    """
    F = torch.nn.functional

    def conv_norm(x, layer, stride=1, groups=1):
        kernel = state[f"{layer}._conv.weight"]
        x = F.conv2d(x, kernel, stride=stride, padding=(kernel.shape[-1] - 1) // 2, groups=groups)
        norm = f"{layer}._batch_norm."
        mean, variance = state[f"{norm}_mean"].clone(), state[f"{norm}_variance"].clone()
        x = F.batch_norm(x, mean, variance, state[f"{norm}weight"], state[f"{norm}bias"], training, 0.1, 1e-5)
        if training:
            n, kept = x.numel() // x.shape[1], 0.9 * state[f"{norm}_variance"]
            state[f"{norm}_mean"], state[f"{norm}_variance"] = mean, kept + (variance - kept) * (n - 1) / n
        return x

    def dense(x, layer):
        return x @ state[f"{layer}.weight"] + state[f"{layer}.bias"]

    def ladder(x, block, letter, stride):
        a, b, c, d = x.chunk(4, dim=1)
        rung = f"{block}.res{int(block[3]) + 2}{letter}_branch2b_"
        first = F.relu(conv_norm(a, f"{rung}1", stride))
        second = F.relu(conv_norm(b + first if stride == 1 else b, f"{rung}2", stride))
        third = F.relu(conv_norm(c + second if stride == 1 else c, f"{rung}3", stride))
        if stride == 2:
            d = F.avg_pool2d(d, 3, stride=2, padding=1, count_include_pad=False)
        return torch.cat([first, second, third, d], dim=1)

    x = F.relu(conv_norm(images, "conv1_1", stride=2))
    x = F.relu(conv_norm(x, "conv1_2"))
    x = F.max_pool2d(F.relu(conv_norm(x, "conv1_3")), 3, stride=2, padding=1)
    for stage, depth in enumerate((3, 4, 6, 3)):
        for index in range(depth):
            block, stride = f"bb_{stage}_{index}", 2 if stage and not index else 1
            y = F.relu(conv_norm(x, f"{block}.conv0"))
            if name == "Res2Net50_vd_26w_4s":
                y = conv_norm(ladder(y, block, "abcdef"[index], stride), f"{block}.conv2")
            else:
                groups = 32 if name == "SE_ResNeXt50_vd_32x4d" else 1
                y = conv_norm(F.relu(conv_norm(y, f"{block}.conv1", stride, groups)), f"{block}.conv2")
                gate = F.relu(dense(y.mean((2, 3)), f"{block}.scale.squeeze"))
                y = y * torch.sigmoid(dense(gate, f"{block}.scale.excitation"))[:, :, None, None]
            if index == 0:
                x = F.avg_pool2d(x, 2, stride=2, ceil_mode=True) if stride == 2 else x
                x = conv_norm(x, f"{block}.short")
            x = F.relu(x + y)
    return dense(x.mean((2, 3)), "out")


def network(name, classes=1000, dropout=0.0):
    return build_model(name, classes, 64, dropout=dropout)


def strictly_loaded(model, state):
    dtype = model.out.weight.dtype
    missing, unexpected = model.set_state_dict({k: paddle.to_tensor(v, dtype=dtype) for k, v in state.items()})
    assert (missing, unexpected) == ([], [])
    return model


def running(model) -> dict:
    return {key: value for key, value in model.state_dict().items() if key.endswith(RUNNING)}


def relative(found, expected) -> float:
    """Largest difference of a Paddle and a PyTorch tensor, as a share of the largest value."""
    found, expected = found.numpy(), expected.detach().numpy()
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@every_network
def test_names_shapes_and_counts_are_paddleclas(name):
    model = network(name)
    shapes = shapes_of(model)
    assert shapes.items() >= EXAMPLES[name].items()
    assert digest(shapes) == NAMES_AND_SHAPES[name]
    assert sum(p.size for p in model.parameters() if not p.stop_gradient) == PARAMETERS[name]
    assert count_parameters(model.config) == PARAMETERS[name]
    everything = sum(value.size for value in model.state_dict().values())
    assert round(everything / 1e6, 2) == PUBLISHED_MILLIONS[name]


@every_network
def test_a_file_with_paddleclas_names_loads_strictly(name, tmp_path):
    """All of it where the classes are the same, all but the head where they are others."""
    state = fabricated(name)
    path = tmp_path / f"{name}_pretrained.pdparams"
    paddle.save({key: paddle.to_tensor(value) for key, value in state.items()}, str(path))
    weights = read_weights(path)
    for classes, surplus in ((1000, ""), (4, "; replaced: out.weight, out.bias")):
        model = network(name, classes)
        report = load_weights(model, weights, replace_head=True)
        expected = {key: value for key, value in state.items() if not surplus or key not in HEAD}
        assert report == f"{len(expected)} arrays (PaddleClas){surplus}"
        loaded = model.state_dict()
        for key, value in expected.items():
            np.testing.assert_array_equal(loaded[key].numpy(), value, err_msg=key)


@every_network
def test_equals_an_independent_torch_network(torch, name):
    """A training step's logits, gradients and running statistics, then logits by these statistics.

    In float64, where a difference is a fault and not rounding; 49 pixels become 25, 13, 7, 4, 2: all but one from odd.
    """
    images = np.random.default_rng(1).normal(size=(4, 3, 49, 64))
    labels = [0, 999, 20, 20]
    model = network(name)
    model.to(dtype="float64")
    strictly_loaded(model, fabricated(name))
    model.train()
    logits = model(paddle.to_tensor(images))
    nn.functional.cross_entropy(logits, paddle.to_tensor(labels)).backward()

    state = {key: torch.tensor(value, dtype=torch.float64) for key, value in fabricated(name).items()}
    learned = {key: value.requires_grad_() for key, value in state.items() if not key.endswith(RUNNING)}
    expected = reference(torch, name, state, torch.tensor(images), training=True)
    torch.nn.functional.cross_entropy(expected, torch.tensor(labels)).backward()

    # Paddle keeps the momentum, and 1 / n in the gradient of a mean, as float32: 0.1 is off by 2e-7.
    assert relative(logits, expected) < 1e-10
    parameters = {key: value for key, value in model.named_parameters() if not value.stop_gradient}
    assert parameters.keys() == learned.keys()
    gradients = {key: relative(parameters[key].grad, value.grad) for key, value in learned.items()}
    assert max(gradients.values()) < 1e-6, max(gradients, key=gradients.get)
    statistics = {key: relative(value, state[key]) for key, value in running(model).items()}
    assert max(statistics.values()) < 1e-6, max(statistics, key=statistics.get)

    model.eval()
    with paddle.no_grad(), torch.no_grad():
        found = model(paddle.to_tensor(images))
        expected = reference(torch, name, state, torch.tensor(images), training=False)
    assert relative(found, expected) < 1e-5
    assert statistics == {key: relative(value, state[key]) for key, value in running(model).items()}  # at rest


@every_network
def test_any_image_size(name):
    model = network(name, 4, dropout=0.25)
    assert model.dropout.p == 0.25
    for height, width in [(1, 1), (65, 47)]:
        for mode in (model.train, model.eval):
            mode()
            logits = model(paddle.ones([2, 3, height, width]))
            assert logits.shape == [2, 4]
            assert paddle.isfinite(logits).all()


def test_dropout_gives_two_views_of_one_image():
    """Both halves of [x; x] have the same batch statistics: only dropout makes them differ, and only in training."""
    paddle.seed(0)
    images = paddle.randn([2, 3, 32, 32])

    def two_views(model):
        return [logits.numpy() for logits in model.views(images)]

    model = network("SE_ResNet50_vd", 4, dropout=0.5)
    seen = {}
    model.dropout.register_forward_pre_hook(lambda _, inputs: seen.update(before=inputs[0].numpy()))
    model.out.register_forward_pre_hook(lambda _, inputs: seen.update(behind=inputs[0].numpy()))
    a, b = two_views(model)
    assert np.abs(a - b).max() > 1e-3
    assert seen["before"].shape == (4, 2048)
    assert 0.4 < (seen["behind"] == 0)[seen["before"] > 0].mean() < 0.6
    model.eval()
    np.testing.assert_allclose(*two_views(model), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(*two_views(network("SE_ResNet50_vd", 4)), rtol=1e-5, atol=1e-5)  # off


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Res2Net50_vd_26w_4s", "SE_ResNet50_vd"])
def test_exported_network_gives_the_same_logits(name, tmp_path):
    """Batch and image size left open; Paddle's translation of Python code knows less than Python."""
    paddle.seed(0)
    model = network(name, 4)
    model.eval()
    path = str(tmp_path / name)
    paddle.jit.save(model, path, input_spec=[paddle.static.InputSpec([None, 3, None, None], "float32")])
    loaded = paddle.jit.load(path)
    loaded.eval()
    for shape in [(1, 3, 64, 64), (3, 3, 33, 50)]:
        images = paddle.randn(shape)
        np.testing.assert_allclose(loaded(images).numpy(), model(images).numpy(), rtol=1e-5, atol=1e-5)
