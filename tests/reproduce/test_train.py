"""The whole path in processes of its own, as a user starts it."""

import contextlib
import dataclasses
import io
import itertools
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
import weakref
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from conftest import assert_user_error
from in_process import call
from PIL import Image
from visualdl import LogReader

from data import load_dataset
from models import build_model, model_config
from models.weights import read_weights
from reproduce import ROOT, checkpoint, cli, curves, optim, train
from reproduce.checkpoint import training_record
from reproduce.job import Job, finish
from reproduce.optim import clip, global_norm, loss_scaler, make_optimizer
from reproduce.recipes import get_recipe

SHORT = ("digits", "--num_steps", 24, "--warmup_steps", 4, "--eval_every", 8, "--batch_size", 16, "--log_every", 4)
SHORT += ("--save_every", 5, "--run", "short")


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
    tags = {
        "train/loss",
        "train/cross_entropy",
        "train/kl",
        "train/gradient_norm",
        "train/learning_rate",
        "train/images_per_second",
        "validation/accuracy",
        "test/accuracy",
    }
    assert tags <= set(board.get_tags()["scalar"])
    drawn = {record.id: record.value for record in board.get_data("scalar", "train/loss")}
    assert drawn == pytest.approx(losses)
    assert Image.open(tmp_path / "images" / "short.png").size[0] > 1000

    for name, expected in (("best", best["test"]), ("last", header["result"]["last"]["test"])):
        predictions = tmp_path / f"{name}.npz"
        done = call("reproduce.evaluate", saved / f"{name}.pdparams", "--output", predictions)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        assert {key: found[key] for key in expected} == expected  # to the last digit
    with np.load(tmp_path / "best.npz") as one, np.load(logs / "predictions.npz") as two:
        for key in two:
            np.testing.assert_array_equal(one[key], two[key])

    short = ("reproduce.train", *SHORT, "--out", tmp_path)
    again = call(*short)
    assert again.returncode == 0 and "finished:" in again.stdout and records(logs) == rows
    assert f"bash run_eval.sh {saved / 'best.pdparams'}" in again.stdout
    (saved / "best.pdparams").unlink()
    again = call(*short)
    assert again.returncode == 0 and "best:       step" in again.stdout and "run_eval.sh" not in again.stdout
    assert_user_error(call(*short, "--alpha", "0.25"), "other settings (alpha 1.0 -> 0.25)", "--restart")
    assert command("reproduce.train", *SHORT, "--restart").returncode == 0  # a process of its own, as the first was
    assert (tmp_path / "logs" / "short.old-1" / "metrics.jsonl").exists()
    untimed = [{k: v for k, v in row.items() if "per_second" not in k} for row in rows]
    assert [{k: v for k, v in row.items() if "per_second" not in k} for row in records(logs)] == untimed


def gradients(recipe):
    """Gradients of the first update of `recipe` on digits, by parameter."""
    paddle.seed(7)
    model = build_model("ViT-digits", 10, 8, dropout=recipe.dropout)
    rng = np.random.default_rng(7)
    model.head.weight.set_value(rng.normal(size=[64, 10]).astype("float32"))
    data = load_dataset("digits", validation_per_class=20)
    batches = train.micro_batches(recipe, data.train, 1, recipe.micro_batch_size)
    cut = train.pieces_of_a_batch(recipe, recipe.micro_batch_size)
    sums = train.add_gradients(recipe, model, loss_scaler(recipe), itertools.islice(batches, len(cut)))
    return sums.numpy(), {name: p.grad.numpy() for name, p in model.named_parameters()}


@pytest.mark.parametrize("micro_batch_size", [1, 3, 8])
def test_micro_batches_do_not_change_loss_or_gradient(micro_batch_size):
    recipe = get_recipe("digits", batch_size=16, dropout=0.0, kl_sum_over=4, precision="fp32")
    parts, whole = gradients(recipe)
    pieces, found = gradients(dataclasses.replace(recipe, micro_batch_size=micro_batch_size))
    assert pieces == pytest.approx(parts, rel=1e-5, abs=1e-6)
    for name, value in whole.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=2e-6 * max(1, np.abs(value).max()), err_msg=name)


def trained(tmp_path, name="run", **changes):
    """Records of a short run of digits in this process."""
    short = {"num_steps": 6, "warmup_steps": 2, "eval_every": 0, "log_every": 1, "precision": "fp32"}
    recipe = get_recipe("digits", **{**short, "save_every": 0, **changes})
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        train.train(Job(recipe, name, tmp_path))
    return [row["train/loss"] for row in records(tmp_path / "logs" / name)], stdout.getvalue()


def test_on_a_gpu_a_run_is_saved_by_time_and_records_its_memory(tmp_path, monkeypatch):
    """Emulated: an update takes 4 minutes and a save is due after more than 10, so after updates 3 and 6; the end."""
    clock, saved, save, step = [0.0], [], checkpoint.save, train.train_step

    def saving(folder, progress, *state):
        saved.append(progress.step)
        return save(folder, progress, *state)

    def four_minutes_later(*arguments):
        clock[0] += 240
        return step(*arguments)

    monkeypatch.setattr(checkpoint, "on_gpu", lambda: True)
    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(monotonic=lambda: clock[0], perf_counter=time.perf_counter))
    monkeypatch.setattr(paddle.device.cuda, "max_memory_reserved", lambda: 3 * 2**30)
    monkeypatch.setattr(checkpoint, "save", saving)
    monkeypatch.setattr(train, "train_step", four_minutes_later)
    trained(tmp_path, num_steps=8)
    assert saved == [3, 6, 8]
    assert {row["train/gpu_memory_gib"] for row in records(tmp_path / "logs" / "run")} == {3.0}
    saved.clear()
    trained(tmp_path, "by steps", num_steps=8, save_every=5)
    assert saved == [5, 8]


def test_nothing_of_a_micro_batch_is_kept_while_the_next_one_is_computed():
    recipe = get_recipe("digits", precision="fp32", batch_size=6, micro_batch_size=2)
    model = train.build_network(recipe, 10, fused=False)
    views, before = model.views, []

    def watched(images):
        assert [given() for given in before] == [None] * len(before)
        found = views(images)
        before.extend(map(weakref.ref, found))
        return found

    model.views = watched
    images, labels = paddle.zeros([2, 3, 8, 8]), paddle.zeros([2], "int64")
    train.add_gradients(recipe, model, loss_scaler(recipe), [(images, labels)] * 3)
    assert len(before) == 6


def test_the_precision_that_was_chosen_once_is_kept_on_resume(tmp_path):
    """A run that was begun in fp32 goes on in it where `auto` would choose bf16; with --precision the user decides."""
    started = ("reproduce.train", "digits", "--dry_run", "--gpu", "A100 40GB", "--run", "x", "--out", tmp_path)
    assert "as on A100 40GB, bf16, micro-batches of 64, fused attention" in call(*started).stdout
    (tmp_path / "logs" / "x").mkdir(parents=True)
    (tmp_path / "logs" / "x" / "run.json").write_text('{"recipe": {"precision": "fp32"}, "finished": false}')
    assert "as on A100 40GB, fp32, micro-batches of 64 (auto: " in call(*started).stdout
    assert "as on A100 40GB, fp16, micro-batches" in call(*started, "--precision", "fp16").stdout
    assert "as on A100 40GB, bf16, micro-batches" in call(*started, "--restart").stdout


def test_recompute_is_the_same_to_the_bit(tmp_path):
    plain, _ = trained(tmp_path)
    again, _ = trained(tmp_path, "recompute", recompute=True)
    assert len(plain) == 6 and plain[0] != plain[-1] and again == plain


def test_batches_made_ahead_by_a_thread_are_the_same(tmp_path, monkeypatch):
    """What a GPU gets, on a CPU; an error in the thread reaches the trainer, and an unfinished stream ends."""
    recipe = get_recipe("digits", precision="fp32")
    images = load_dataset("digits", validation_per_class=20).train
    plain = itertools.islice(train.micro_batches(recipe, images, 1, 64), 5)
    threads = threading.active_count()
    made = train.ahead(train.micro_batches(recipe, images, 1, 64))
    for (one, labels), (two, same) in zip(plain, made, strict=False):
        assert (one.numpy() == two.numpy()).all() and (labels.numpy() == same.numpy()).all()
    made.close()
    while threading.active_count() > threads:
        time.sleep(0.01)

    def broken():
        yield 1
        raise OSError("the disk is gone")

    stream = train.ahead(broken())
    assert next(stream) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)
    assert list(train.ahead(iter(range(7)))) == list(range(7))


@pytest.mark.parametrize(
    "error",  # of the allocator; of a layer's own backward pass, as in recompute; of cuBLAS
    [
        MemoryError("ResourceExhaustedError: Out of memory error on GPU 0. Cannot allocate 9.0GB memory"),
        OSError("(External) MemoryError: Out of memory error on GPU 0 (at py_layer_node.cc:177)"),
        RuntimeError("(External) CUDA error(2), out of memory."),
    ],
)
def test_an_update_that_runs_out_of_memory_is_repeated_with_half_of_the_micro_batch(tmp_path, monkeypatch, error):
    """With dropout 0 the update is the same; the new size is said and recorded."""
    expected, _ = trained(tmp_path, dropout=0.0)
    real = train.rdrop_loss

    def short_of_memory(logits_a, *arguments):
        if len(logits_a) > 20:
            raise error
        return real(logits_a, *arguments)

    monkeypatch.setattr(train, "rdrop_loss", short_of_memory)
    found, stdout = trained(tmp_path, "halved", dropout=0.0)
    assert found == pytest.approx(expected, rel=1e-5)
    assert "step 1: out of memory; goes on with --micro_batch_size 16" in stdout
    assert json.loads((tmp_path / "logs" / "halved" / "run.json").read_text())["micro_batch_size"] == 16
    monkeypatch.setattr(train, "rdrop_loss", lambda *given: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        trained(tmp_path, "none")


def test_one_transfer_an_update_whatever_the_micro_batches(monkeypatch):
    """Each transfer makes a GPU wait for Python."""
    recipe = get_recipe("digits", batch_size=16, micro_batch_size=2, dropout=0.0, precision="fp32")
    paddle.seed(1)
    model = build_model("ViT-digits", 10, 8)  # the plain network, as on a GPU
    optimizer = make_optimizer(recipe, model)
    images = load_dataset("digits", validation_per_class=20).train
    batches = list(itertools.islice(train.micro_batches(recipe, images, 1, 2), 8))
    counted = []
    for name in ("numpy", "item", "tolist", "__float__", "__int__", "__bool__", "__array__"):
        real = getattr(paddle.Tensor, name)

        def counting(tensor, *arguments, real=real, name=name):
            counted.append(name)
            return real(tensor, *arguments)

        monkeypatch.setattr(paddle.Tensor, name, counting)
    found = train.train_step(recipe, model, optimizer, loss_scaler(recipe), 1, iter(batches))
    assert found["loss"] > 0 and counted in (["tolist"], ["tolist", "numpy"])  # tolist may call numpy


@pytest.mark.parametrize(("max_norm", "gpu"), [(0.5, False), (0.5, True), (500.0, False), (math.inf, False)])
def test_clipping_equals_paddles(max_norm, gpu, monkeypatch):
    """Below the limit and where there is none, gradients stay as they are."""
    monkeypatch.setattr(optim, "on_gpu", lambda: gpu)

    def ours(parameters):
        gradients = [p.grad for p in parameters]
        norm = float(global_norm(gradients))
        clip(gradients, norm, max_norm)
        return norm

    found = []
    for clipping in (ours, lambda parameters: paddle.nn.utils.clip_grad_norm_(parameters, max_norm)):
        layers = paddle.nn.Linear(30, 20), paddle.nn.Linear(20, 3)
        for layer in layers:
            layer.weight.set_value(paddle.ones(layer.weight.shape) / 7)
        parameters = [p for layer in layers for p in layer.parameters()]
        layers[1](layers[0](paddle.ones([2, 30]))).sum().backward()
        norm = clipping(parameters)
        found.append([np.float32(norm), *(p.grad.numpy() for p in parameters)])
    assert 1 < found[1][0] < 500
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6)


def test_a_record_has_means_over_its_updates_and_leaves_out_the_norms_of_skipped_ones():
    shared = {"cross_entropy": 1.0, "kl": 0.5, "learning_rate": 0.1}
    updates = [
        {**shared, "loss": 3.0, "gradient_norm": 5.0, "seconds": 1.0},
        {**shared, "loss": 2.0, "gradient_norm": 2.0, "seconds": 3.0},
    ]
    expected = {
        "train/loss": 2.5,
        "train/cross_entropy": 1.0,
        "train/kl": 0.5,
        "train/gradient_norm": 3.5,
        "train/learning_rate": 0.1,
        "train/images_per_second": 4.0,
    }
    assert training_record(updates, 8) == expected
    updates[1]["gradient_norm"] = math.inf
    assert training_record(updates, 8) == expected | {"train/gradient_norm": 5.0}
    assert "train/gradient_norm" not in training_record(updates[1:], 8)


def test_a_loss_that_is_not_finite_stops_the_run_with_the_step(tmp_path):
    done = call("reproduce.train", *SHORT, "--learning_rate", "1e30", "--max_grad_norm", 0, "--out", tmp_path)
    assert_user_error(done, "no checkpoint yet", "--learning_rate")
    assert re.search(r"step \d+: the (loss|gradient norm) is (nan|inf)", done.stderr)


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["dgits"], ["unknown recipe 'dgits'", "did you mean digits"]),
        (["digits", "--num_step", "5"], ["unknown: --num_step 5", "did you mean num_steps"]),
        (["digits", "--lr", "0.1"], ["unknown: --lr 0.1", "known: ", "learning_rate"]),
        (["digits", "--epochs=3"], ["unknown: --epochs=3", "did you mean num_epochs"]),
        (["digits", "--gpu", "A100"], ["--gpu A100: is for --dry_run"]),
        (["digits", "--gpu", "Z80", "--dry_run"], ["--gpu Z80: known are", "A100"]),
        (["digits", "--num_steps", "many"], ["--num_steps", "many"]),
        (["digits", "--num_steps", "-1"], ["--num_steps -1: must be at least 1"]),
        (["digits", "--precision", "bf16", "--device", "cpu"], ["--precision bf16", "CPU"]),
        (["digits", "--pretrained", "no.npz"], ["no.npz: no such file"]),
        (["digits", "--second_pretrained", "x.npz"], ["--second_pretrained x.npz: there is no second network"]),
        (["digits", "--seed", 2**63], ["--seed 9223372036854775808: must be below 9223372036854775808"]),
        (["digits", "--validation_share", "0.1", "--dry_run"], ["both say how many images are held out"]),
        (
            ["cifar100_vit_b16_rdrop", "--validation_per_class", 500, "--dry_run"],
            ["cifar100: class 0 has 500 training"],
        ),
        (["cifar100_vit_ti16", "--train_per_class", 100_000, "--dry_run"], ["--train_per_class 100000"]),
        (["digits", "--pretrained", "README.md"], ["README.md", "no weight file"]),
        (["cifar100_vit_ti16", "--pretrained", "", "--data_dir", "tests"], ["tests: holds no folder cifar-100-python"]),
        (["digits", "--run", "../away"], ["--run ../away"]),
        (["digits", "--run", ".", "--restart"], ["--run .:"]),
        (["cifar100_vit_b16_rdrop", "--pretrained", "tests/ViT-B_16.npz"], ["tests/ViT-B_16.npz: no such file"]),
        (["digits", "--train_per_class", "5000"], ["class 0 has", "--train_per_class 5000"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, arguments, fragments):
    assert_user_error(call("reproduce.train", *arguments, "--out", tmp_path), *fragments)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ["study", "alignment", "README.md"])
def test_what_is_no_run_is_not_taken_for_one(name):
    """A folder of runs, one of other evidence, a file."""
    done = call("reproduce.train", "digits", "--run", name, "--restart")
    assert_user_error(done, f"--run {name}:", f"logs/{name} holds something else than one run")


def test_a_run_inside_another_is_refused(tmp_path):
    """The outer one would no longer be taken for a run, and could not be continued."""
    outer = tmp_path / "logs" / "outer"
    outer.mkdir(parents=True)
    (outer / "run.json").touch()
    done = call("reproduce.train", "digits", "--run", "outer/deep/inner", "--out", tmp_path)
    assert_user_error(done, "--run outer/deep/inner: outer is a run itself; choose another name")
    assert [path.name for path in outer.iterdir()] == ["run.json"]


def test_weights_of_others_are_not_taken_for_a_run(tmp_path):
    """As the pretrained ones in checkpoints/pretrained."""
    (tmp_path / "checkpoints" / "pretrained").mkdir(parents=True)
    (tmp_path / "checkpoints" / "pretrained" / "ViT-B_16.npz").touch()
    done = call("reproduce.train", "digits", "--run", "pretrained", "--restart", "--out", tmp_path)
    assert_user_error(done, "--run pretrained:", "checkpoints/pretrained holds something else than one run")


@pytest.mark.parametrize(("options", "said"), [(("--num_steps", 100), True), (("--num_epochs", 7), False)])
def test_a_warm_up_that_takes_the_whole_run_is_named(options, said):
    done = call("reproduce.train", "digits", "--dry_run", *options)  # 100 steps of warm-up; an epoch has 18
    assert ("the warm-up of 100 steps does not end before step 100, the last" in done.stdout) is said


@pytest.mark.parametrize("name", ["logs", "checkpoints"])
def test_a_folder_that_cannot_be_written(tmp_path, name):
    (tmp_path / name).write_text("a file where the folder should be")
    assert_user_error(call("reproduce.train", *SHORT, "--out", tmp_path), f"{tmp_path}/{name}: ", "check the path")


def test_weights_of_another_shape(tmp_path, vit_ti16_file):
    done = call("reproduce.train", *SHORT, "--pretrained", vit_ti16_file, "--out", tmp_path)
    assert_user_error(done, str(vit_ti16_file), "does not fit this network", "patch_embed.proj.weight is")
    assert_user_error(call("reproduce.evaluate", vit_ti16_file), "which data set it is for; say --dataset NAME")
    done = call("reproduce.evaluate", vit_ti16_file, "--dataset", "digits")
    assert_user_error(done, "its head has 1000 classes, digits has 10")


def test_list_and_dry_run_say_everything_and_write_nothing(tmp_path):
    done = call("reproduce.train", "--list")
    assert done.returncode == 0 and "cifar100_vit_l16_baseline" in done.stdout
    done = call("reproduce.train", "cifar100_vit_b16_rdrop", "--dry_run", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    for text in (
        "86,167,396 parameters",
        "49,000 training images (cifar100), 10,000 steps = 104.5 epochs",
        "micro-batches of 32",
        "FLOPs",
        "ViT-B_16.npz: missing; will be fetched from https://storage.googleapis.com/",
    ):
        assert text in done.stdout
    assert not list(tmp_path.iterdir())


def test_default_recipe_without_a_gpu_is_digits_and_says_so():
    done = call("reproduce.train", "--dry_run")
    why = "chosen because PaddlePaddle sees no GPU; cifar100_vit_b16_rdrop needs one"
    assert done.stdout.splitlines()[0].startswith(f"recipe:     digits ({why})")
    done = call("reproduce.train", "--dry_run", "--gpu", "A100")
    assert done.stdout.startswith("recipe:     cifar100_vit_b16_rdrop (chosen because a GPU computes it)")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "steps", "tokens", "parameters"),
    [("cifar100_vit_b16_rdrop", 1, 577, 86_167_396), ("cifar100_vit_b16_fast", 2, 197, 85_875_556)],
)
def test_real_updates_of_the_headline_on_the_cpu(tmp_path, cifar100_folder, recipe, steps, tokens, parameters):
    """ViT-B/16 at 384 and 224 px from a fabricated file in Google's layout, on real CIFAR-100 images."""
    sys.path.insert(0, str(ROOT / "tests" / "models"))
    from weight_files import google, random_state

    config = model_config("ViT-B_16", 21_843, 224)
    np.savez(tmp_path / "ViT-B_16.npz", **google(random_state(config), config))
    small = ("--batch_size", 2, "--num_steps", steps, "--warmup_steps", 1, "--eval_every", 0, "--log_every", 1)
    files = ("--data_dir", cifar100_folder, "--pretrained", tmp_path / "ViT-B_16.npz", "--out", tmp_path)
    done = call("reproduce.train", recipe, *small, *files, "--run", "one")
    assert done.returncode == 0, done.stderr
    assert ("pos_embed 197 -> 577 tokens" in done.stdout) == (tokens == 577)
    rows = records(tmp_path / "logs" / "one")
    assert len(rows) == steps
    assert rows[0]["train/cross_entropy"] == pytest.approx(np.log(100), abs=1e-5)  # the zero head
    weights = read_weights(tmp_path / "checkpoints" / "one" / "last.pdparams")
    assert sum(value.size for value in weights.arrays.values()) == parameters
    assert weights.arrays["pos_embed"].shape == (1, tokens, 768)
    assert weights.arrays["head.bias"].any()  # it did learn


@pytest.mark.slow
def test_small_real_cifar100_run(tmp_path, cifar100_folder, vit_ti16_file):
    short = ("--num_steps", 40, "--warmup_steps", 4, "--eval_every", 0, "--log_every", 4, "--run", "small")
    files = ("--data_dir", cifar100_folder, "--pretrained", vit_ti16_file, "--out", tmp_path)
    done = call("reproduce.train", "cifar100_vit_ti16", *short, *files)
    assert done.returncode == 0, done.stderr
    losses = [row["train/cross_entropy"] for row in records(tmp_path / "logs" / "small")]
    assert losses[0] == pytest.approx(np.log(100), abs=0.2) and losses[-1] < losses[0] - 0.2


def test_flags_of_the_cpu_are_not_set_on_a_gpu(monkeypatch):
    told = {}
    monkeypatch.setattr(cli, "has_gpu", lambda: True)
    monkeypatch.setattr(cli, "SET_HERE", {"FLAGS_use_stride_kernel"})
    monkeypatch.setattr(paddle, "set_device", lambda name: told.update(device=name))
    monkeypatch.setattr(paddle, "set_flags", told.update)
    for name in ("cudnn", "cublas"):
        monkeypatch.setattr(paddle.base.core, f"set_{name}_switch", lambda on, name=name: told.update({name: on}))
    cli.choose_device("cpu")
    assert told == {"device": "cpu"}
    cli.choose_device("auto")
    assert told == {"device": "gpu", "FLAGS_use_stride_kernel": True, "cudnn": False, "cublas": False}  # no TF32


def test_a_gpu_build_that_finds_no_gpu_says_so(monkeypatch, capsys):
    """Paddle's own warning comes while it is imported, and is not shown then."""
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: True)
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 0)
    assert cli.choose_device("cpu") == "cpu" and capsys.readouterr().out == ""
    assert cli.choose_device("auto") == "cpu"
    assert capsys.readouterr().out.startswith("warning:    the GPU build of PaddlePaddle finds no GPU")


def test_processes_that_would_compute_in_different_precisions_do_not_start(tmp_path):
    """As cards of different kinds choose for themselves; here a run.json that only one of them sees."""
    record = tmp_path / "logs" / "x" / "run.json"
    record.parent.mkdir(parents=True)
    record.write_text('{"recipe": {"precision": "bf16"}, "finished": false}')
    script = (
        "from reproduce import distributed, job, train\n"
        "from reproduce.cli import run_command\n"
        "if distributed.rank():\n"
        "    job.read_header = lambda folder: None\n"
        "job._check_precision = lambda precision, gpu: None\n"
        "run_command(train.main)\n"
    )
    (tmp_path / "two_kinds.py").write_text(script)
    words = [sys.executable, "-m", "reproduce.launch", "two_kinds", "digits", "--run", "x", "--out", str(tmp_path)]
    environment = {**os.environ, "NPROC": "2", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert_user_error(done, "the processes would compute in different precisions, as their GPUs differ")


def test_the_result_comes_first_and_a_picture_that_cannot_be_drawn_ends_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(curves, "draw_run", lambda *given: 1 / 0)
    finish(Job(get_recipe("digits"), "run", tmp_path, result={"last": {"step": 6}}))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("last:       step 6") and "could not be drawn (division by zero)" in lines[-1]


def test_processor_settings_hold_for_python_m():
    code = "import os, reproduce; print(os.environ['OMP_NUM_THREADS'], reproduce.PROCESSOR_SETTINGS)"
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_DEBUG_CPU_TYPE")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.startswith(str(len(os.sched_getaffinity(0)))) and not done.stderr
    with open("/proc/cpuinfo") as file:
        assert ("MKL_DEBUG_CPU_TYPE" in done.stdout) == ("AuthenticAMD" in file.read())
