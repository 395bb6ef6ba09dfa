"""Weight files of every layout through the command that users type, at the size they have: ViT-B/16.

`bash run_tests.sh -m slow tests/models`: about three minutes on 2 idle cores, 2 GB of memory.
"""

import json
import os
import pickle
import subprocess

import numpy as np
import pytest
from conftest import assert_user_error
from PIL import Image
from weight_files import WRITERS, random_state

import reproduce
from common.errors import UserError
from models import model_config, state_shapes
from models.weights import METADATA
from reproduce.evaluate import main

LAYOUTS = {
    "PaddleClas": "PaddleClas",
    "timm": "timm",
    "Hugging Face": "Hugging Face",
    "Google": "Google",
    "official": "official R-Drop",
    "own": "this project",
}


@pytest.fixture(scope="module")
def folder_of_12_classes(tmp_path_factory):
    """train/ and val/ with a folder for each of 12 classes, which has a picture of 32 pixels."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for part in ("train", "val"):
        for label in range(12):
            folder = root / part / f"class{label:02}"
            folder.mkdir(parents=True)
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / "one.png")
    return root


def run_eval(*arguments):
    command = ["bash", reproduce.ROOT / "run_eval.sh", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_every_layout_evaluates_to_the_same_figures_at_full_size(folder_of_12_classes, tmp_path):
    results = {}
    for qkv_bias in (True, False):  # the released Paddle port has none
        config = model_config("ViT-B_16", 12, 224, qkv_bias=qkv_bias, layer_norm_epsilon=1e-5)
        rng = np.random.default_rng(0)
        state = {k: rng.normal(0, 0.04, shape).astype("float32") for k, shape in state_shapes(config).items()}
        for layout, label in LAYOUTS.items():
            if not qkv_bias and layout not in ("PaddleClas", "own"):
                continue
            path = tmp_path / "weights"
            WRITERS[layout][1](state, config, path)
            epsilon = [] if layout == "own" else ["--layer_norm_epsilon", "1e-5"]
            done = run_eval(path, "--dataset", "imagenet", "--data_dir", folder_of_12_classes, "--workers", 1, *epsilon)
            assert done.returncode == 0, done.stderr
            assert f"({label})" in done.stdout
            assert "num_classes 12, image_size 224, patch_size 16, width 768, depth 12, heads 12" in done.stdout
            result = json.loads(done.stdout.splitlines()[-1])
            assert result["total"] == 12
            results[qkv_bias, layout] = (result["nll"], result["correct"], result["ece"])
            path.unlink()
    for qkv_bias in (True, False):
        own = results[qkv_bias, "own"]
        assert all(found == own for (bias, _), found in results.items() if bias == qkv_bias), results
    assert results[True, "own"] != results[False, "own"]


def test_a_bad_file_ends_the_command_with_one_line(command, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    path = tmp_path / "w.pdparams"
    path.write_bytes(pickle.dumps({"head.bias": Evil()}))
    assert_user_error(command("reproduce.evaluate", path), str(path), "posix.system", "save the arrays alone")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "recipe",
    [
        {"dataset": 5},
        {"dataset": "none"},
        {"dataset": ["digits"]},
        {"eval_batch_size": 0},
        {"split_seed": "x"},
        {"train_per_class": -1},
        {"validation_per_class": True},
    ],
)
def test_odd_recipes_in_the_metadata_are_errors(recipe, tmp_path):
    config = model_config("ViT-digits", 10, 8)
    (tmp_path / "w").write_bytes(pickle.dumps({**random_state(config), METADATA: json.dumps({"recipe": recipe})}))
    with pytest.raises(UserError, match=f"its metadata has {next(iter(recipe))}"):
        main([str(tmp_path / "w")])


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--batch_size", "0", "--batch_size must be at least 1"),
        ("--workers", "-1", "--workers at least 0"),
        ("--image_size", "0", "image_size 0: must be from 1 to 2,048"),
        ("--heads", "0", "heads 0: must be from 1 to 16,384"),
        ("--layer_norm_epsilon", "nan", "layer_norm_epsilon nan: must be at least 0"),
        ("--layer_norm_epsilon", "1", "layer_norm_epsilon 1.0: must be at least 0 and less than 1"),
        ("--output", ".", r"--output \.: is a folder"),
    ],
)
def test_odd_options_are_errors(option, value, message):
    with pytest.raises(UserError, match=message):
        main([option, value])
