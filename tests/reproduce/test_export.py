"""An exported network, used as somebody without this project would use it."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import paddle
import pytest
from made_weights import write_weights
from paddle import inference
from PIL import Image

from common.errors import UserError
from data.prepared import Preparation
from models.weights import model_from_file
from reproduce import export
from reproduce.cli import run_command
from reproduce.export import largest_difference, main, write_model
from reproduce.predict import open_weights

FILES = ["description.json", "inference.json", "inference.pdiparams"]


DIGITS = {"recipe": {"dataset": "digits"}, "class_names": [str(i) for i in range(10)]}


@pytest.fixture
def weights(tmp_path):
    return write_weights(tmp_path / "best.pdparams", DIGITS, 8)


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def content(folder):
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


def run_exported(folder, images):
    """Logits of the exported network under the default settings of `paddle.inference`."""
    settings = inference.Config(str(folder / "inference.json"), str(folder / "inference.pdiparams"))
    settings.disable_glog_info()
    return inference.create_predictor(settings).run([paddle.to_tensor(images)])[0].numpy()


def test_the_exported_files_alone_give_the_same_logits(command, weights, tmp_path):
    output = tmp_path / "served" / "digits"
    done = command("reproduce.export", weights, "--output", output)
    assert done.returncode == 0, done.stderr
    assert "logits differ by up to" in done.stdout and str(output) in done.stdout
    assert names(output) == FILES and names(output.parent) == ["digits"]

    model = model_from_file(weights)[0]
    rng = np.random.default_rng(5)
    for count in (1, 3, 7):
        images = rng.uniform(-1, 1, (count, 3, 8, 8)).astype(np.float32)
        with paddle.no_grad():
            expected = model(paddle.to_tensor(images)).numpy()
        np.testing.assert_allclose(run_exported(output, images), expected, rtol=0, atol=1e-5)
        assert np.ptp(expected) > 1  # else anything would be near it

    said = json.loads((output / "description.json").read_text("utf-8"))
    assert said["source"] == {"file": "best.pdparams", "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    assert said["class_names"] == [str(i) for i in range(10)] and said["output"]["shape"] == [None, 10]
    # a picture, prepared from the description alone, is seen as `reproduce.predict` sees it
    Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(tmp_path / "photo.png")
    side = said["input"]["shape"][-1]
    pixels = np.asarray(Image.open(tmp_path / "photo.png").resize((side, side), Image.Resampling.BILINEAR))
    images = ((pixels - said["input"]["mean"]) / said["input"]["std"]).astype(np.float32).transpose(2, 0, 1)[None]
    logits = run_exported(output, images)[0]
    with paddle.no_grad():
        prepare = Preparation(side)
        expected = model(prepare.images(prepare.decoded(tmp_path / "photo.png")[None])).numpy()[0]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_what_options_and_weights_say_is_exported_and_described(tmp_path):
    """Class names that are no text are written as escapes."""
    listed = ["\ud800", "\x1b[2Jred", "größe", *"3456789"]
    weights = write_weights(tmp_path / "w.pdparams", {**DIGITS, "class_names": listed}, 8)
    output = tmp_path / "served"
    of_network = ["--pooling", "avg", "--activation", "quick_gelu"]
    main([str(weights), "--output", str(output), *of_network, "--resize", "9", "--scale", "imagenet"])
    model = model_from_file(weights, pooling="avg", activation="quick_gelu")[0]
    images = np.random.default_rng(5).uniform(-1, 1, (3, 3, 8, 8)).astype(np.float32)
    with paddle.no_grad():
        np.testing.assert_allclose(run_exported(output, images), model(paddle.to_tensor(images)).numpy(), atol=1e-5)
    said = json.loads((output / "description.json").read_text("utf-8"))
    assert said["class_names"] == ["\\ud800", "\\x1b[2Jred", "größe", *"3456789"]
    assert "shorter side resized to 9 px, centre crop 8 x 8" in said["input"]["resize"]
    assert said["input"]["mean"] == pytest.approx([123.675, 116.28, 103.53])
    assert said["input"]["std"] == pytest.approx([58.395, 57.12, 57.375])


def test_nothing_is_ever_replaced(weights, tmp_path):
    """Neither an earlier export, nor a folder of other things, a file or a device."""
    output = tmp_path / "served"
    main([str(weights), "--output", str(output)])
    before = content(output)
    thesis = tmp_path / "mine" / "thesis.tex"
    thesis.parent.mkdir()
    thesis.write_text("five years")
    for path in (output, thesis.parent, thesis, "/dev/null"):
        with pytest.raises(UserError, match=f"^{path}: exists already; remove it, or give another --output"):
            main([str(weights), "--output", str(path)])
    assert content(output) == before and thesis.read_text() == "five years"
    assert Path("/dev/null").is_char_device()


def test_bad_weights_leave_nothing_behind(tmp_path):
    text = tmp_path / "text.pdparams"
    text.write_text("no weights")
    broken = write_weights(tmp_path / "overflow.pdparams", DIGITS, 8, overflow=True)
    output = tmp_path / "served"
    for path, message in ((text, "text.pdparams"), (tmp_path / "none.pdparams", "none.pdparams")):
        with pytest.raises((UserError, OSError), match=message):
            main([str(path), "--output", str(output)])
    with pytest.raises(UserError, match="not finite"):
        main([str(broken), "--output", str(output)])
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    with pytest.raises(UserError, match="2 names, but"):
        main([str(broken), "--output", str(output), "--class_names", str(tmp_path / "names.txt")])
    assert names(tmp_path) == ["names.txt", "overflow.pdparams", "text.pdparams"]


def test_weights_that_change_while_they_are_read_are_refused(weights, tmp_path, monkeypatch):
    """As the best weights of a run that goes on: the description would have the SHA-256 of others."""

    def slow_open(options):
        found = open_weights(options)
        write_weights(weights, DIGITS, 8, seed=1)
        return found

    monkeypatch.setattr(export, "open_weights", slow_open)
    with pytest.raises(UserError, match=r"best\.pdparams: was changed while it was read"):
        main([str(weights), "--output", str(tmp_path / "served")])
    assert names(tmp_path) == ["best.pdparams"]


def test_files_of_other_weights_give_other_logits(weights, tmp_path):
    other = write_weights(tmp_path / "other.pdparams", DIGITS, 8, seed=1)
    write_model(model_from_file(other)[0], tmp_path)
    assert largest_difference(model_from_file(weights)[0], tmp_path) > 0.1


@pytest.mark.parametrize("difference", [1.1e-5, float("nan")])
def test_files_that_give_other_logits_are_removed(weights, tmp_path, monkeypatch, difference):
    monkeypatch.setattr(export, "largest_difference", lambda model, folder: difference)
    with pytest.raises(UserError, match="the exported files give other logits"):
        main([str(weights), "--output", str(tmp_path / "served")])
    assert names(tmp_path) == ["best.pdparams"]


def test_files_cut_short_by_a_full_disk_are_removed(weights, tmp_path, monkeypatch):
    save = paddle.jit.save

    def save_to_a_full_disk(model, path, **options):
        save(model, path, **options)
        os.truncate(f"{path}.pdiparams", os.path.getsize(f"{path}.pdiparams") * 9 // 10)

    monkeypatch.setattr(paddle.jit, "save", save_to_a_full_disk)
    with pytest.raises(UserError, match=r"inference\.pdiparams has .* make free space"):
        main([str(weights), "--output", str(tmp_path / "served")])
    assert names(tmp_path) == ["best.pdparams"]


def test_a_folder_without_write_permission_is_named(weights, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "readonly"
    folder.mkdir()
    weights.rename(folder / "w.pdparams")
    folder.chmod(0o555)
    monkeypatch.chdir(folder)
    if os.geteuid() == 0:  # permissions do not hold root back
        os.seteuid(65534)
    try:
        with pytest.raises(SystemExit, match="2"):
            run_command(lambda: main(["w.pdparams", "--output", "served"]))
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "Permission denied" in error and "served" in error
    assert names(folder) == ["w.pdparams"]


@pytest.mark.parametrize(
    ("file", "name"), [("best", "digits-seed42"), ("last", "digits-seed42"), ("ViT-B_16", "ViT-B_16")]
)
def test_the_default_folder_is_named_after_the_run_or_the_file(file, name, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "ROOT", tmp_path)
    (tmp_path / "digits-seed42").mkdir()
    main([str(write_weights(tmp_path / "digits-seed42" / f"{file}.pdparams", DIGITS, 8))])
    assert names(tmp_path / "checkpoints" / "exported") == [name]
