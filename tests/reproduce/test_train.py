"""The whole path in processes of its own, as a user starts it."""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import paddle
import pytest
from conftest import assert_user_error
from PIL import Image
from visualdl import LogReader

from data import load_dataset
from models import build_model, model_config
from models.weights import read_weights
from reproduce import ROOT, train
from reproduce.recipes import get_recipe

SHORT = ("digits", "--num_steps", 24, "--warmup_steps", 4, "--eval_every", 8, "--batch_size", 16,
         "--log_every", 4, "--save_every", 5, "--run", "short")  # fmt: skip


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_train_then_evaluate(command, tmp_path):
    done = command("reproduce.train", *SHORT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("recipe:     digits")
    logs, saved = tmp_path / "logs" / "short", tmp_path / "checkpoints" / "short"

    header = json.loads((logs / "run.json").read_text())
    assert header["finished"] and header["recipe"]["num_steps"] == 24
    assert header["machine"]["packages"]["paddlepaddle"] and "reproduce.train" in header["machine"]["command"]
    best = header["result"]["best"]

    rows = records(logs)
    losses = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
    assert list(losses) == [4, 8, 12, 16, 20, 24]
    validated = {row["step"]: row["validation/accuracy"] for row in rows if "validation/accuracy" in row}
    assert list(validated) == [8, 16, 24]
    assert best["accuracy"] == max(validated.values()) and validated[best["step"]] == best["accuracy"]

    board = LogReader(file_path=str(next(logs.glob("vdlrecords.*"))))
    tags = {"train/loss", "train/cross_entropy", "train/kl", "train/gradient_norm", "train/learning_rate",
            "train/images_per_second", "validation/accuracy", "test/accuracy"}  # fmt: skip
    assert tags <= set(board.get_tags()["scalar"])
    drawn = {record.id: record.value for record in board.get_data("scalar", "train/loss")}
    assert drawn == pytest.approx(losses)
    assert Image.open(tmp_path / "images" / "short.png").size[0] > 1000

    for name, expected in (("best", best["test"]), ("last", header["result"]["last"]["test"])):
        predictions = tmp_path / f"{name}.npz"
        done = command("reproduce.evaluate", saved / f"{name}.pdparams", "--output", predictions)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        assert {key: found[key] for key in expected} == expected  # to the last digit
    with np.load(tmp_path / "best.npz") as one, np.load(logs / "predictions.npz") as two:
        for key in two:
            np.testing.assert_array_equal(one[key], two[key])

    again = command("reproduce.train", *SHORT)
    assert again.returncode == 0 and "finished:" in again.stdout and records(logs) == rows
    (saved / "last.pdparams").rename(saved / "moved")  # the record of a finished run is never overwritten
    assert_user_error(command("reproduce.train", *SHORT), "finished run whose weights are not here", "--restart")
    (saved / "moved").rename(saved / "last.pdparams")
    anew = command("reproduce.train", *SHORT, "--restart")
    assert anew.returncode == 0
    assert (tmp_path / "logs" / "short.old-1" / "metrics.jsonl").exists()
    untimed = [{k: v for k, v in row.items() if "per_second" not in k} for row in rows]
    assert [{k: v for k, v in row.items() if "per_second" not in k} for row in records(logs)] == untimed


def test_a_run_of_other_settings_is_not_continued(command, tmp_path):
    assert command("reproduce.train", *SHORT).returncode == 0
    (tmp_path / "checkpoints" / "short" / "last.pdparams").unlink()  # else it counts as finished
    assert_user_error(command("reproduce.train", *SHORT, "--alpha", "0.25"), "alpha 1.0 -> 0.25", "--restart")


def gradients(recipe):
    """Gradients of the first update of `recipe` on digits, by parameter."""
    paddle.seed(7)
    model = build_model("ViT-digits", 10, 8, dropout=recipe.dropout)
    rng = np.random.default_rng(7)
    model.head.weight.set_value(rng.normal(size=[64, 10]).astype("float32"))
    data = load_dataset("digits", validation_per_class=20)
    batches = data.train.stream(train.requests(recipe, len(data.train), 1), 8, train.augmentation(recipe))
    parts = train.accumulate_gradients(recipe, [model], None, batches)
    return parts, {name: p.grad.numpy() for name, p in model.named_parameters()}


@pytest.mark.parametrize("micro_batch_size", [1, 3, 8])
def test_micro_batches_do_not_change_loss_or_gradient(micro_batch_size):
    recipe = get_recipe("digits", batch_size=16, dropout=0.0, attention_dropout=0.0, kl_sum_over=4, num_views=2)
    parts, whole = gradients(recipe)
    pieces, found = gradients(dataclasses.replace(recipe, micro_batch_size=micro_batch_size))
    assert pieces == pytest.approx(parts, rel=1e-5, abs=1e-6)
    for name, value in whole.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=2e-6 * max(1, np.abs(value).max()), err_msg=name)


@pytest.mark.parametrize("max_norm", [0.5, 500.0, math.inf])
def test_clipping_equals_paddles(max_norm):
    """Below the limit and where there is none, gradients stay as they are."""
    found = []
    for clip in (train.clip_gradients, paddle.nn.utils.clip_grad_norm_):
        layers = paddle.nn.Linear(30, 20), paddle.nn.Linear(20, 3)
        for layer in layers:
            layer.weight.set_value(paddle.ones(layer.weight.shape) / 7)
        parameters = [p for layer in layers for p in layer.parameters()]
        layers[1](layers[0](paddle.ones([2, 30]))).sum().backward()
        unused = paddle.nn.Linear(2, 2).parameters()
        norm = clip(parameters + unused, max_norm)
        found.append([np.float32(norm), *(p.grad.numpy() for p in parameters)])
    assert 1 < found[1][0] < 500
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_a_record_has_means_over_its_updates_and_leaves_out_the_norms_of_skipped_ones():
    updates = [{"loss": 3.0, "gradient_norm": 5.0, "seconds": 1.0}, {"loss": 2.0, "gradient_norm": 2.0, "seconds": 3.0}]
    expected = {"train/loss": 2.5, "train/gradient_norm": 3.5, "train/learning_rate": 0.1,
                "train/images_per_second": 4.0}  # fmt: skip
    assert train.training_record(updates, 0.1, 8) == expected
    updates[1]["gradient_norm"] = math.inf
    assert train.training_record(updates, 0.1, 8) == expected | {"train/gradient_norm": 5.0}
    assert "train/gradient_norm" not in train.training_record(updates[1:], 0.1, 8)


@pytest.mark.parametrize("option", ["fused", "resident", "recompute"])
def test_options_for_gpus_change_nothing_but_rounding(option, monkeypatch):
    """What can be seen of them on a CPU; `recompute` is the same to the bit."""
    losses, real = [], train.training_record
    for on in (False, True):
        recipe = get_recipe("digits", dropout=0.1, num_steps=6, warmup_steps=2, eval_every=0, **{option: on})
        rows = []
        monkeypatch.setattr(train, "training_record", lambda *given, rows=rows: rows.extend(given[0]) or real(*given))
        with tempfile.TemporaryDirectory() as out:
            train.train(dataclasses.replace(recipe, log_every=1), "run", Path(out))
        losses.append([row["loss"] for row in rows])
    assert len(losses[0]) == 6 and losses[0][0] != losses[0][-1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0 if option != "fused" else 1e-6)


def test_a_loss_that_is_not_finite_stops_the_run_with_the_step(command):
    done = command("reproduce.train", *SHORT, "--learning_rate", "1e30", "--max_grad_norm", 0)
    assert_user_error(done, "no checkpoint yet", "--learning_rate")
    assert re.search(r"step \d+: the (loss|gradient norm) is (nan|inf)", done.stderr)


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["dgits"], ["unknown recipe 'dgits'", "did you mean digits"]),
        (["digits", "--num_step", "5"], ["unknown: --num_step 5", "did you mean --num_steps"]),
        (["digits", "--num_steps", "many"], ["--num_steps", "many"]),
        (["digits", "--num_steps", "-1"], ["--num_steps -1: must be at least 1"]),
        (["digits", "--precision", "bf16", "--device", "cpu"], ["--precision bf16", "CPU"]),
        (["digits", "--pretrained", "no.npz"], ["no.npz: no such file"]),
        (["digits", "--second_pretrained", "x.npz"], ["--second_pretrained x.npz: there is no second network"]),
        (["digits", "--seed", 2**63], ["--seed 9223372036854775808: must be below 2^63"]),
        (["digits", "--validation_share", "0.1", "--dry_run"], ["both say how many images are held out"]),
        (
            ["cifar100_vit_b16_rdrop", "--validation_per_class", 500, "--dry_run"],
            ["cifar100: class 0 has 500 training"],
        ),
        (["cifar100_vit_ti16", "--train_per_class", 100_000, "--dry_run"], ["--train_per_class 100000"]),
        (["digits", "--pretrained", "README.md"], ["README.md", "no weight file"]),
        (["cifar100_vit_ti16", "--pretrained", "", "--data_dir", "tests"], ["tests: holds neither"]),
        (["digits", "--run", "../away"], ["--run ../away"]),
        (["digits", "--run", ".", "--restart"], ["--run .:"]),
        (["digits", "--run", "evidence", "--restart"], ["--run evidence:"]),
        (["cifar100_vit_b16_rdrop", "--pretrained", "tests/ViT-B_16.npz"], ["tests/ViT-B_16.npz: no such file"]),
        (["digits", "--train_per_class", "5000"], ["class 0 has", "--train_per_class 5000"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(command, tmp_path, arguments, fragments):
    assert_user_error(command("reproduce.train", *arguments), *fragments)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_folder_that_cannot_be_written(command, tmp_path):
    (tmp_path / "logs").write_text("a file where the folder should be")
    assert_user_error(command("reproduce.train", *SHORT), f"{tmp_path}/logs: cannot be written")


def test_weights_of_another_shape(command, tmp_path, vit_ti16_file):
    done = command("reproduce.train", *SHORT, "--pretrained", vit_ti16_file)
    assert_user_error(done, str(vit_ti16_file), "does not fit this network", "patch_embed.proj.weight is")
    done = command("reproduce.evaluate", vit_ti16_file)  # 1000 ImageNet classes, no such data here
    assert_user_error(done, "data/downloads/imagenet/train: no such folder")


def test_list_and_dry_run_say_everything_and_write_nothing(command, tmp_path):
    done = command("reproduce.train", "--list")
    assert done.returncode == 0 and "cifar100_vit_l16_baseline" in done.stdout
    done = command("reproduce.train", "cifar100_vit_b16_rdrop", "--dry_run")
    assert done.returncode == 0, done.stderr
    for text in ("86,167,396 parameters", "577 tokens", "49,000 training images", "16 micro-batches", "FLOPs",
                 "ViT-B_16.npz: missing; will be fetched from https://storage.googleapis.com/"):  # fmt: skip
        assert text in done.stdout
    assert not list(tmp_path.iterdir())


def test_default_recipe_without_a_gpu_is_digits_and_says_so(command):
    done = command("reproduce.train", "--dry_run")
    why = "chosen because PaddlePaddle sees no GPU; cifar100_vit_b16_rdrop needs one"
    assert done.stdout.splitlines()[0].startswith(f"recipe:     digits ({why})")


@pytest.mark.slow
def test_one_real_update_of_the_headline_on_the_cpu(command, tmp_path, cifar100_folder):
    """ViT-B/16 at 384 px from a fabricated file in Google's layout, on real CIFAR-100 images."""
    sys.path.insert(0, str(ROOT / "tests" / "models"))
    from weight_files import google, random_state

    config = model_config("ViT-B_16", 21_843, 224)
    np.savez(tmp_path / "ViT-B_16.npz", **google(random_state(config), config))
    done = command(
        "reproduce.train", "cifar100_vit_b16_rdrop", "--num_steps", 1, "--batch_size", 2, "--eval_every", 0,
        "--data_dir", cifar100_folder, "--pretrained", tmp_path / "ViT-B_16.npz", "--run", "one",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "pos_embed 197 -> 577 tokens" in done.stdout
    (row,) = records(tmp_path / "logs" / "one")
    assert row["train/cross_entropy"] == pytest.approx(np.log(100), abs=1e-5)  # the zero head
    weights = read_weights(tmp_path / "checkpoints" / "one" / "last.pdparams")
    assert sum(value.size for value in weights.arrays.values()) == 86_167_396
    assert weights.arrays["head.bias"].any()  # it did learn


@pytest.mark.slow
def test_small_real_cifar100_run(command, tmp_path, cifar100_folder, vit_ti16_file):
    done = command(
        "reproduce.train", "cifar100_vit_ti16", "--num_steps", 12, "--warmup_steps", 2, "--eval_every", 0,
        "--data_dir", cifar100_folder, "--pretrained", vit_ti16_file, "--run", "small", "--log_every", 3,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    losses = [row["train/cross_entropy"] for row in records(tmp_path / "logs" / "small")]
    assert losses[0] == pytest.approx(np.log(100), abs=0.2) and losses[-1] < losses[0]


def test_processor_settings_hold_for_python_m():
    code = "import os, reproduce; print(os.environ['OMP_NUM_THREADS'], reproduce.PROCESSOR_SETTINGS)"
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_DEBUG_CPU_TYPE")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.startswith(str(len(os.sched_getaffinity(0)))) and not done.stderr
    with open("/proc/cpuinfo") as file:
        assert ("MKL_DEBUG_CPU_TYPE" in done.stdout) == ("AuthenticAMD" in file.read())
