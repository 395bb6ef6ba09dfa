"""The blog's example: two networks that learn from each other, on the user's own pictures."""

import json
import re
import shutil

import numpy as np
import paddle
import pytest
from conftest import SHARED, assert_user_error
from in_process import call
from running import Run

from models import build, model_config
from models.weights import load_weights, read_weights, save_weights
from reproduce import train
from reproduce.optim import loss_scaler, make_optimizer
from reproduce.recipes import get_recipe

TINY = ("--image_size", 32, "--num_epochs", 1, "--workers", 0, "--train_per_class", 3)


@pytest.fixture(scope="session")
def photos():
    folder = SHARED / "growth_stages"
    if not folder.exists():
        pytest.skip(f"the photos are not at {folder}")
    return folder


def test_both_networks_train_and_the_evaluation_repeats_each(tmp_path, photos):
    words = ("growth_stages", "--data_dir", photos, *TINY, "--run", "pair", "--out", tmp_path)
    done = call("reproduce.train", *words)
    assert done.returncode == 0, done.stderr
    assert "12 to train on, 16 held out" in done.stdout and "there are no test images" in done.stdout
    assert "(chosen on validation): the validation images (there are no test images) top-1" in done.stdout
    rows = [json.loads(line) for line in (tmp_path / "logs" / "pair" / "metrics.jsonl").read_text().splitlines()]
    (validated,) = [row for row in rows if "validation/accuracy" in row]
    assert validated["step"] == 2  # one epoch of 12 pictures in batches of 8
    names = {f"validation/{which}{what}" for which in ("", "first_", "second_") for what in ("accuracy", "nll")}
    assert names < validated.keys()
    assert rows[0]["train/kl"] > 1e-3  # two networks differ from the first update on

    best = json.loads((tmp_path / "logs" / "pair" / "run.json").read_text())["result"]["best"]
    done = call("reproduce.evaluate", tmp_path / "checkpoints" / "pair" / "best.pdparams", "--data_dir", photos)
    assert done.returncode == 0, done.stderr
    assert "first {'network': 'Res2Net50_vd_26w_4s', 'num_classes': 4, 'image_size': 32" in done.stdout
    found = json.loads(done.stdout.splitlines()[-1])
    assert {key: found[key] for key in best["test"]} == best["test"]
    assert found["first"] == best["test_first"] and found["second"] == best["test_second"]
    assert found["first"] != found["second"] and found["total"] == 16
    done = call("reproduce.predict", tmp_path / "checkpoints" / "pair" / "best.pdparams", next(photos.glob("img/*")))
    assert done.returncode == 0, done.stderr


def test_one_adam_for_both_is_an_adam_for_each():
    """What the blog does with two optimizers, number by number."""
    recipe = get_recipe("growth_stages", model="SE_ResNet50_vd", image_size=32, precision="fp32")

    def updated(separately):
        paddle.seed(1)
        model = build(recipe.network(4))
        rng = np.random.default_rng(1)
        images = paddle.to_tensor(rng.random((8, 3, 32, 32), np.float32))
        labels = paddle.to_tensor(rng.integers(0, 4, 8))
        optimizers = [make_optimizer(recipe, model)]
        if separately:
            both = (model.first, model.second)
            optimizers = [paddle.optimizer.Adam(3e-4, parameters=part.parameters()) for part in both]
        model.train()
        for _ in range(2):
            train.add_gradients(recipe, model, loss_scaler(recipe), [(images, labels)])
            for optimizer in optimizers:
                optimizer.step()
                optimizer.clear_grad()
        return {name: value.numpy() for name, value in model.state_dict().items()}

    one, two = updated(separately=False), updated(separately=True)
    for name, value in one.items():
        assert value.tobytes() == two[name].tobytes(), name


def test_the_pair_predicts_the_mean_of_both_probabilities():
    model = build(model_config("SE_ResNet50_vd", 3, 32, "Res2Net50_vd_26w_4s"))
    model.eval()
    images = paddle.to_tensor(np.random.default_rng(0).random((2, 3, 32, 32), np.float32))
    softmax = paddle.nn.functional.softmax
    mean = (softmax(model.first(images)).numpy() + softmax(model.second(images)).numpy()) / 2
    np.testing.assert_allclose(model(images).exp().numpy(), mean, rtol=1e-6)


def test_a_file_of_paddleclas_starts_either_network_but_for_its_head(tmp_path):
    """The names are PaddleClas's, see tests/models/test_cnns.py; its files have 1000 classes and no metadata."""
    path = tmp_path / "SE_ResNet50_vd_pretrained.pdparams"
    paddle.seed(3)
    imagenet = build(model_config("SE_ResNet50_vd", 1000, 224))
    paddle.save(imagenet.state_dict(), str(path))
    model = build(model_config("SE_ResNet50_vd", 4, 32))
    head = model.out.weight.numpy()
    report = load_weights(model, read_weights(path), replace_head=True)
    assert "(PaddleClas); replaced: out.weight, out.bias" in report
    np.testing.assert_array_equal(model.out.weight.numpy(), head)
    state = imagenet.state_dict()
    for name, value in model.state_dict().items():
        if not name.startswith("out."):
            np.testing.assert_array_equal(value.numpy(), state[name].numpy(), err_msg=name)


def test_files_that_do_not_fit(tmp_path):
    model = build(model_config("SE_ResNet50_vd", 1000, 32))
    save_weights(tmp_path / "imagenet.pdparams", model, {})
    done = call("reproduce.evaluate", tmp_path / "imagenet.pdparams")
    assert_user_error(done, "knows ImageNet's classes", "--pretrained")
    done = call("reproduce.train", "digits", "--pretrained", tmp_path / "imagenet.pdparams", "--out", tmp_path)
    assert_user_error(done, "imagenet.pdparams", "does not fit this network")


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["--micro_batch_size", 4], ["--micro_batch_size 4", "batch norm", "batch of 8"]),
        (["--recompute", "true"], ["--recompute true: only ViTs"]),
        (["--num_views", 1], ["--second_model SE_ResNet50_vd: two networks are two views"]),
        (["--attention_dropout", 0.1], ["Res2Net50_vd_26w_4s has no place for --attention_dropout"]),
        (["--dataset", "images", "--data_dir", "tests/models"], ["tests/models"]),
    ],
)
def test_bad_settings(tmp_path, photos, arguments, fragments):
    words = ("growth_stages", "--data_dir", photos, *arguments, "--out", tmp_path)
    assert_user_error(call("reproduce.train", *words), *fragments)


def test_batch_norm_refuses_several_processes(photos, monkeypatch):
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "2")
    done = call("reproduce.train", "growth_stages", "--data_dir", photos)
    assert_user_error(done, "batch norm is trained by one process")


@pytest.mark.parametrize("changes", [(), ("--alpha", 0), ("--second_model", "", "--dropout", 0.1)])
def test_the_runs_to_compare_with(photos, changes):
    done = call("reproduce.train", "growth_stages", "--data_dir", photos, "--dry_run", "--image_size", 64, *changes)
    assert done.returncode == 0, done.stderr
    assert "142 training images (growth_stages), 36 steps = 2.0 epochs" in done.stdout
    parameters = "23,677,548" if "--second_model" in changes else "49,744,000"
    assert f" {parameters} parameters, 64 px" in done.stdout
    assert not re.search("FLOP|GiB|time:", done.stdout)  # not counted, so not said


@pytest.mark.slow
def test_a_run_is_not_continued_on_other_pictures(tmp_path, photos):
    shutil.copytree(photos, tmp_path / "photos")
    short = ("--pretrained", "", "--image_size", 32, "--save_every", 1, "--workers", 0)
    run = Run(tmp_path, "images_vit_ti16", "--batch_size", 32, "--data_dir", tmp_path / "photos", *short)
    process = run.start()
    run.await_step(process, 3)
    process.kill()
    process.wait()
    table = tmp_path / "photos" / "df_all.csv"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(lines[:-1]))
    assert run.finish() == 2 and "holds a run with other settings (images '" in run.stderr
    table.write_text("".join(lines))
    assert run.finish() == 0, run.stderr


def test_a_table_of_other_classes(tmp_path):
    from PIL import Image

    for name in ("red", "green", "blue"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (40, 30), name).save(tmp_path / "pictures" / name / f"{number}.png")
    where = ("--data_dir", tmp_path / "pictures", *TINY, "--out", tmp_path)
    assert call("reproduce.train", "growth_stages", *where).returncode == 0  # three stages instead of four
    done = call("reproduce.train", "images_vit_ti16", "--pretrained", "", *where, "--batch_size", 3)
    assert done.returncode == 0, done.stderr
    assert "9 to train on, 3 held out of them, 3 to test on" in done.stdout
