"""What the config beside a weight file says is followed; what nothing says is named; what cannot be done is refused."""

import json

import numpy as np
import paddle
import pytest
from safetensors.numpy import save_file
from weight_files import hugging_face, joint, random_state, turned

from common.errors import UserError
from common.pixels import Resize
from models import model_config
from models.foreign import read_configs
from models.vit import ViT
from models.weights import assumptions, model_from_file, save_weights
from reproduce.evaluate import main

DIGITS = model_config("ViT-digits", 10, 8, depth=2)
TIMM = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "interpolation": "bicubic", "crop_pct": 0.9}
VIT = {"size": {"height": 224, "width": 224}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
OF_PICTURES = "preprocessor_config.json"


def put(folder, **configs):
    for name, content in configs.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("config", "resize", "scale"),
    [
        ({"pretrained_cfg": TIMM}, Resize(0, 0.9, True, "bicubic"), "imagenet"),
        ({"pretrained_cfg": {**TIMM, "crop_mode": "squash"}}, Resize(0, 0.9, False, "bicubic"), "imagenet"),
        (VIT, Resize(), "-1..1"),
        ({**VIT, "size": 224, "resample": 3}, Resize(resample="bicubic"), "-1..1"),
        ({**VIT, "size": 256, "do_center_crop": True}, Resize(256), "-1..1"),
        ({**VIT, "size": {"shortest_edge": 256}, "do_center_crop": True}, Resize(256, keep_ratio=True), "-1..1"),
        ({**VIT, "do_normalize": False}, Resize(), "0..1"),
    ],
)
def test_how_pictures_are_prepared(config, resize, scale, tmp_path):
    path = tmp_path / ("config.json" if "pretrained_cfg" in config else OF_PICTURES)
    path.write_text(json.dumps(config))
    found = read_configs(tmp_path, 192, {})
    assert found["resize"] == resize._replace(origin=str(path)) and found["scale"] == scale


def test_the_side_before_the_crop():
    assert Resize(share=0.9).side(224) == 248 and Resize(share=0.875).side(384) == 438
    assert Resize(256).side(224) == 256 and Resize().side(224) == 224


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"hidden_act": "relu", "num_attention_heads": 4, "layer_norm_eps": 1e-12, "hidden_size": 64},
            {"activation": "relu", "heads": 4, "layer_norm_epsilon": 1e-12},
        ),
        ({"id2label": {"1": "dog", "0": "cat"}}, {"class_names": ["cat", "dog"]}),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, {}),  # what Hugging Face writes when nobody named them
        ({"model_type": "vit"}, {}),
        ({"num_features": 64, "global_pool": "avg", "pretrained_cfg": TIMM}, {"pooling": "avg"}),
        (
            {
                "global_pool": "token",
                "pretrained_cfg": TIMM,
                "label_names": ["cat", "dog"],
                "model_args": {"global_pool": "avg", "fc_norm": False, "act_layer": "quick_gelu", "num_heads": 2},
            },
            {"pooling": "avg", "activation": "quick_gelu", "heads": 2, "class_names": ["cat", "dog"]},
        ),
    ],
)
def test_what_the_network_is(config, expected, tmp_path):
    put(tmp_path, config=config)
    found = read_configs(tmp_path, 64, {})
    assert {name: value for name, value in found.items() if name not in ("scale", "resize")} == expected


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", '{"pretrained_cfg": {"crop_pct": 0}}', "no config of timm"),
        ("config.json", "[1]", "no config of timm"),
        ("config.json", "[" * 100_000, "no config of timm"),
        ("config.json", "\xff\xfe", "no config of timm"),
        ("config.json", '{"num_attention_heads": "x"}', "no config of timm"),
        ("config.json", '{"id2label": {"0": "a", "2": "b"}}', "no config of timm"),
        ("config.json", '{"hidden_size": 768}', "a network of width 768, and the weights are 192 wide"),
        ("config.json", '{"hidden_act": "gelu_new"}', "hidden_act 'gelu_new' cannot be computed"),
        ("config.json", '{"hidden_act": ["gelu"]}', "hidden_act .* cannot be computed"),
        ("config.json", {"pretrained_cfg": TIMM, "global_pool": "map"}, "global_pool 'map' cannot be computed"),
        ("config.json", {"pretrained_cfg": TIMM, "model_args": {"act_layer": "silu"}}, "act_layer 'silu' cannot"),
        ("config.json", {"pretrained_cfg": TIMM, "model_args": {"norm_layer": "x"}}, "'norm_layer' in model_args"),
        ("config.json", {"pretrained_cfg": {**TIMM, "crop_mode": "border"}}, "crop_mode 'border' cannot"),
        ("config.json", {"pretrained_cfg": {**TIMM, "interpolation": "area"}}, "'area' cannot be computed"),
        ("config.json", {"pretrained_cfg": {**TIMM, "mean": [0.1, 0.2, 0.3]}}, "no scale known here"),
        ("config.json", {"pretrained_cfg": {**TIMM, "crop_pct": 1e-9}}, "crop_pct 1e-09 cannot"),
        (OF_PICTURES, {**VIT, "resample": 99}, "no config of timm or Hugging Face"),
        (OF_PICTURES, {**VIT, "size": {"shortest_edge": 256}}, "cannot be computed here"),
        (OF_PICTURES, {**VIT, "do_rescale": False}, "do_rescale false cannot"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(file, content, message, tmp_path):
    (tmp_path / file).write_text(content if isinstance(content, str) else json.dumps(content), "latin-1")
    with pytest.raises(UserError, match=f"{file}: .*{message}") as caught:
        read_configs(tmp_path, 192, {})
    assert len(str(caught.value).splitlines()) == 1


def test_what_the_user_says_goes_before_a_config_that_cannot_be_followed(tmp_path):
    put(tmp_path, config={"hidden_act": "gelu_new", "pretrained_cfg": {**TIMM, "mean": [0.1, 0.2, 0.3]}})
    assert "activation" not in read_configs(tmp_path, 64, {"activation": "gelu", "scale": "0..1"})


def logits(model):
    images = np.random.default_rng(2).normal(size=(4, 3, 8, 8)).astype("float32")
    return model(paddle.to_tensor(images)).numpy()


def expected_logits(**fields):
    config = model_config("ViT-digits", 10, 8, depth=2, **fields)
    model = ViT(config)
    state = model.state_dict()
    for name, value in random_state(DIGITS).items():
        state[name].set_value(value)
    model.eval()
    return logits(model)


@pytest.mark.parametrize("fields", [{"pooling": "avg"}, {"activation": "relu"}, {"activation": "quick_gelu"}])
def test_a_config_and_an_option_change_the_logits_alike(fields, tmp_path):
    """timm's names with global_pool="avg", fc_norm=False, and other activations: silently other logits before."""
    save_file(turned(joint(random_state(DIGITS))), tmp_path / "w")
    expected = expected_logits(**fields)
    assert np.abs(expected - expected_logits()).max() > 1e-3
    np.testing.assert_array_equal(logits(model_from_file(tmp_path / "w", heads=4, **fields)[0]), expected)
    theirs = {"activation": "act_layer", "pooling": "global_pool"}
    arguments = {theirs[name]: value for name, value in fields.items()}
    put(tmp_path, config={"pretrained_cfg": TIMM, "model_args": {**arguments, "num_heads": 4, "fc_norm": False}})
    model, weights, _ = model_from_file(tmp_path / "w")
    np.testing.assert_array_equal(logits(model), expected)
    assert weights.pictures["scale"] == "imagenet" and not {*fields, "heads", "scale"} & weights.assumed.keys()


def test_our_own_metadata_goes_before_a_config_beside_the_file(tmp_path):
    save_weights(tmp_path / "w", ViT(DIGITS), {"recipe": {"scale": "0..1"}, "network": {"heads": 4}})
    put(tmp_path, config={"hidden_act": "relu"}, preprocessor_config=VIT)
    model, weights, _ = model_from_file(tmp_path / "w")
    assert model.config.activation == "gelu" and weights.pictures == {"scale": "0..1"}
    assert weights.assumed == {"layer_norm_epsilon": 1e-6}


def test_everything_assumed_is_one_line(tmp_path):
    save_file(hugging_face(random_state(DIGITS)), tmp_path / "w")
    assert assumptions(model_from_file(tmp_path / "w", heads=4, scale="imagenet")[1].assumed) == (
        "layer_norm_epsilon 1e-06, activation gelu, resize whole, class_order that of the data set; not said by the "
        "file, see --help for the options that say it"
    )


def test_an_evaluation_follows_the_config_and_says_what_it_assumes(tmp_path, capsys):
    """The pixel scale changes the result; classes in another order than those of the data set are refused."""
    save_file(hugging_face(random_state(DIGITS)), tmp_path / "w")

    def run(*options):
        main([str(tmp_path / "w"), "--dataset", "digits", "--heads", "4", *options])
        lines = capsys.readouterr().out.splitlines()
        return json.loads(lines[-1])["nll"], " ".join(line for line in lines if line.startswith("assumed:"))

    plain, said = run()
    assert "scale -1..1" in said and "class_order" in said and "activation gelu" in said
    chosen, said = run("--scale=imagenet", "--activation", "gelu")
    assert chosen != plain and "scale" not in said and "activation" not in said
    put(tmp_path, preprocessor_config={**VIT, "image_mean": TIMM["mean"], "image_std": TIMM["std"]})
    put(tmp_path, config={"id2label": {str(i): str(i) for i in range(10)}})
    followed, said = run()
    assert followed == chosen and "scale" not in said and "class_order" not in said
    put(tmp_path, config={"id2label": {str(i): str(9 - i) for i in range(10)}})
    with pytest.raises(UserError, match="or in another order"):
        run()
