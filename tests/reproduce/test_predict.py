"""Pictures in, classes out, as a user asks for it."""

import dataclasses
import json

import numpy as np
import paddle
import pytest
from conftest import assert_user_error
from made_weights import write_weights
from PIL import Image

from common.errors import UserError
from common.pixels import Resize
from data import load_dataset
from data.prepared import Preparation, preparation, resize_option
from data.splits import ImageFiles
from models import build_model
from models.weights import model_from_file, save_weights
from reproduce.evaluate import evaluate
from reproduce.evaluate import main as evaluate_main
from reproduce.predict import main

SIZE = 12  # not the digits' own 8 px, so that each way of resizing gives other pixels
DIGITS = {"recipe": {"dataset": "digits"}}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    names = {"class_names": [str(i) for i in range(10)]}
    return write_weights(tmp_path_factory.mktemp("weights") / "best.pdparams", {**DIGITS, **names}, SIZE)


@pytest.fixture
def pictures(tmp_path):
    """A folder of real digits as files, and a large coloured picture that is not square."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, pixels in enumerate(load_dataset("digits").test.images[:9]):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / f"{i}.png")
    noise = np.random.default_rng(1).integers(0, 256, (50, 70, 3), np.uint8)
    Image.fromarray(noise).save(folder / "photo.JPG", "JPEG")
    (folder / "notes.txt").write_text("no picture, and not named like one")
    return folder


def check_against(expected, rows):
    """Each row of `--top 10 --json` against the evaluation of the same image."""
    for row, label, top5, confidence, nll in zip(rows, *expected, strict=True):
        found = {entry["class"]: entry["probability"] for entry in row["top"]}
        assert list(found)[:5] == list(top5)
        assert row["top"][0]["probability"] == pytest.approx(confidence, rel=1e-5)
        assert -np.log(found[label]) == pytest.approx(nll, abs=1e-5)
        assert list(found.values()) == sorted(found.values(), reverse=True)
        assert sum(found.values()) == pytest.approx(1, abs=1e-5)


def test_probabilities_are_those_of_the_evaluation(weights, pictures, capsys):
    (pictures / "photo.JPG").unlink()
    main([str(weights), str(pictures), "--top", "10", "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["image"] for row in rows] == [str(pictures / f"{i}.png") for i in range(9)]
    assert all(entry["name"] == str(entry["class"]) for row in rows for entry in row["top"])
    assert np.ptp([row["top"][0]["probability"] for row in rows]) > 1e-3  # else one that sees nothing would pass
    test = load_dataset("digits").test.subset(np.arange(9))
    check_against(evaluate(model_from_file(weights)[0], test, SIZE, batch_size=4), rows)


def test_probabilities_are_those_of_the_evaluation_of_image_files(tmp_path, pictures, capsys):
    paths = [*(pictures / f"{i}.png" for i in range(9)), pictures / "photo.JPG"]
    weights = write_weights(tmp_path / "w.pdparams", {"recipe": {"dataset": "imagenet"}}, SIZE)
    main([str(weights), str(pictures), "--top", "10", "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["image"] for row in rows] == list(map(str, paths))
    check_against(evaluate(model_from_file(weights)[0], ImageFiles(paths, np.arange(10)), SIZE, 4), rows)


def test_what_cannot_be_read_is_named_and_the_rest_is_done(command, weights, pictures):
    good, text, missing = pictures / "3.png", pictures / "notes.txt", pictures / "missing.png"
    done = command("reproduce.predict", weights, text, missing, good)
    assert_user_error(done, "2 of 3 pictures could not be read")
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 3 and all(line.startswith("error: ") for line in lines)
    assert f"{text}: not a readable picture" in lines[0]
    assert f"{missing}: no such file" in lines[1]
    shown = done.stdout.splitlines()
    at = shown.index(str(good))
    assert len(shown) == at + 6 and f"names from {weights}" in done.stdout
    model = model_from_file(weights)[0]
    expected = evaluate(model, load_dataset("digits").test.subset([3]), SIZE, batch_size=1)
    assert [line.split()[-1] for line in shown[at + 1 :]] == [str(i) for i in expected.top5[0]]
    assert f"{100 * expected.confidence[0]:.2f} %" in shown[at + 1]


def names_of(output):
    return [line.split("%  ")[1] for line in output.splitlines() if " %  " in line]


def test_names_come_from_the_option_then_the_weights(tmp_path, pictures, capsys):
    own = [f"own {i}" for i in range(10)]
    both = write_weights(tmp_path / "both.pdparams", {**DIGITS, "class_names": own}, SIZE)
    one = str(pictures / "0.png")
    main([str(both), one, "--top", "10"])
    assert sorted(names_of(capsys.readouterr().out)) == own
    listed = tmp_path / "names.txt"
    listed.write_text("\n".join(f"größe {i}" for i in range(10)) + "\n\n", "utf-8")
    main([str(both), one, "--top", "10", "--class_names", str(listed)])
    assert sorted(names_of(capsys.readouterr().out)) == [f"größe {i}" for i in range(10)]
    listed.write_bytes("größe 0\n".encode("latin-1") + b"other\n" * 9)
    main([str(both), one, "--top", "10", "--class_names", str(listed)])
    assert "gr\\xf6\\xdfe 0" in names_of(capsys.readouterr().out)
    unknown = write_weights(tmp_path / "unknown.pdparams", {}, SIZE)
    main([str(unknown), one, "--top", "10"])
    output = capsys.readouterr().out
    assert sorted(names_of(output)) == [f"class {i}" for i in range(10)]
    assert "names not known" in output and "--class_names FILE" in output
    main([str(unknown), one, "--json"])
    assert json.loads(capsys.readouterr().out)["top"][0]["name"] is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (9 * b"name\n", "9 names, but .* has 10 classes"),
        (11 * b"name\n", "11 names, but .* has 10 classes"),
        (b"", "0 names, but"),
        (5 * b"name\n" + b"\n" + 4 * b"name\n", "9 names, but"),  # an empty line names no class
        (bytes(range(256)), "names, but"),
    ],
)
def test_unusable_names_are_refused(weights, pictures, tmp_path, content, message, capsys):
    (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        main([str(weights), str(pictures), "--class_names", str(tmp_path / "names.txt")])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("names", ["10 letters", ["too", "few"], None])
def test_unusable_names_in_the_weights_are_refused(tmp_path, pictures, names):
    path = write_weights(tmp_path / "w.pdparams", {"class_names": names}, SIZE)
    with pytest.raises(UserError, match=r"class names from .*w\.pdparams"):
        main([str(path), str(pictures)])


def test_other_bad_input(weights, pictures, tmp_path):
    for top in ("0", "-1"):
        with pytest.raises(UserError, match=f"--top {top}: must be at least 1"):
            main([str(weights), str(pictures), "--top", top])
    with pytest.raises((UserError, OSError), match=r"missing\.pdparams"):
        main([str(tmp_path / "missing.pdparams"), str(pictures)])
    with pytest.raises(FileNotFoundError, match=r"names\.txt"):
        main([str(weights), str(pictures), "--class_names", str(tmp_path / "names.txt")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: no image files .*; name another"):
        main([str(weights), str(pictures), str(tmp_path / "empty")])
    broken = write_weights(tmp_path / "overflow.pdparams", DIGITS, SIZE, overflow=True)
    with pytest.raises(UserError, match="not finite"):
        main([str(broken), str(pictures)])


# ---- how pictures are prepared


def test_our_own_weights_are_prepared_as_in_their_evaluation():
    for dataset, from_files in (("digits", False), ("cifar100", False), ("imagenet", True), ("images", True)):
        found = preparation({"scale": "imagenet"}, dataset, 224)
        assert found == Preparation(224, "imagenet", Resize(), from_files)


def test_foreign_weights_are_prepared_as_is_said_of_them():
    resize = Resize(256, 1.0, True, "bicubic", "config.json")
    found = preparation({"scale": "imagenet", "resize": resize}, "digits", 224)
    assert found == Preparation(224, "imagenet", resize, from_files=True)
    assert str(found) == (
        "shorter side resized to 256 px, centre crop 224 x 224, bicubic in 8 bits, pixel scale imagenet, "
        "as config.json says"
    )
    found = preparation({"scale": "-1..1", "resize": Resize(share=0.875, keep_ratio=True)}, "imagenet", 384)
    assert "shorter side resized to 438 px, centre crop 384 x 384" in str(found)


@pytest.mark.parametrize("resize", ["223", "897", "-5", "1e3", "²", "all"])
def test_a_size_that_leaves_no_crop_is_refused(resize):
    with pytest.raises(UserError, match=r"^--resize: resize .*: must be 'whole', or the pixels"):
        preparation({"scale": "-1..1", "resize": resize_option(resize)}, "imagenet", 224)


def test_the_crop_is_the_middle_of_the_picture_resized(tmp_path):
    """Against Pillow by hand; the corners of a wide picture are cut off, and one that is very long costs no memory."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 101, 3), np.uint8)
    picture = Image.fromarray(noise)
    picture.save(tmp_path / "wide.png")
    found = Preparation(28, resize=Resize(32, keep_ratio=True)).decoded(tmp_path / "wide.png")
    by_hand = np.asarray(picture.resize((53, 32), Image.Resampling.BILINEAR))[2:30, 12:40]
    np.testing.assert_array_equal(found, by_hand)
    Image.new("RGB", (20_000, 1)).save(tmp_path / "line.png")
    found = Preparation(224, resize=Resize(256, keep_ratio=True)).decoded(tmp_path / "line.png")
    assert found.shape == (224, 224, 3)


@pytest.fixture
def classes_of_pictures(tmp_path, pictures):
    """train/ and val/ with ten classes; each class in val/ has one picture, 50 x 70 pixels or larger."""
    for label in range(10):
        for part in ("train", "val"):
            folder = tmp_path / "classes" / part / f"c{label}"
            folder.mkdir(parents=True)
            noise = np.random.default_rng(label).integers(0, 256, (50 + label, 70 - label, 3), np.uint8)
            Image.fromarray(noise).save(folder / "one.png")
    return tmp_path / "classes"


@pytest.mark.parametrize("how", ["option", "timm's config", "nothing"])
def test_an_evaluation_of_picture_folders_sees_what_prediction_sees(how, classes_of_pictures, tmp_path, capsys):
    """For weights from elsewhere; squashed pictures give another NLL."""
    path = write_weights(tmp_path / "w" / "w.pdparams", {}, SIZE)
    options = ["--resize", "15"] if how == "option" else []
    if how == "timm's config":
        config = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "crop_pct": 0.8}
        (path.parent / "config.json").write_text(json.dumps({"pretrained_cfg": config}))
    of_folder = ["--dataset", "imagenet", "--data_dir", str(classes_of_pictures), "--workers", "1", "--batch_size", "4"]
    evaluate_main([str(path), *of_folder, *options])
    shown = capsys.readouterr().out
    how_prepared = "resized whole to 12 x 12 px" if how == "nothing" else "shorter side resized to 15 px, centre crop"
    assert how_prepared in shown and ("resize whole" in shown) == (how == "nothing")
    files = sorted(map(str, classes_of_pictures.glob("val/*/one.png")))
    main([str(path), *files, "--top", "10", "--json", *options])
    rows = [json.loads(line)["top"] for line in capsys.readouterr().out.splitlines()]
    nll = [-np.log(next(e["probability"] for e in top if e["class"] == label)) for label, top in enumerate(rows)]
    found = json.loads(shown.splitlines()[-1])
    assert found["total"] == 10 and found["nll"] == pytest.approx(np.mean(nll), abs=1e-5)
    evaluate_main([str(path), *of_folder, "--resize", "whole"])
    squashed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (squashed["nll"] == pytest.approx(found["nll"], abs=1e-5)) == (how == "nothing")


def test_a_crop_of_pictures_in_memory_is_refused(weights):
    with pytest.raises(UserError, match=r"^--resize: the images of digits are small and resized whole"):
        evaluate_main([str(weights), "--resize", "15"])
    with pytest.raises(UserError, match=r"^--resize: resize 11: must be 'whole', or the pixels"):
        main([str(weights), "none.png", "--resize", "11"])


def test_an_evaluation_of_digits_says_where_it_does_not_follow_a_config(tmp_path, capsys):
    """It sees pictures whole, and takes names that are spelt otherwise for its own."""
    path = write_weights(tmp_path / "w.pdparams", {}, 8)
    config = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "crop_pct": 0.8}
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": config, "label_names": names}))
    evaluate_main([str(path), "--dataset", "digits"])
    assumed = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("assumed:"))
    assert "resize whole" in assumed and "class_order that of the data set" in assumed
    (tmp_path / "config.json").write_text(json.dumps({"label_names": ["1", "0", *"23456789"]}))
    with pytest.raises(UserError, match="its classes are others than those of digits, or in another order"):
        evaluate_main([str(path), "--dataset", "digits"])


def test_what_is_assumed_is_printed_and_options_take_its_place(tmp_path, pictures, capsys):
    """A file in timm's names, which says neither heads nor epsilon nor how pictures are prepared."""
    path = write_weights(tmp_path / "w.pdparams", {}, SIZE)
    paddle.save({k: v for k, v in paddle.load(str(path)).items() if k != "metadata@@"}, str(path))
    one = str(pictures / "photo.JPG")
    main([str(path), one, "--heads", "4"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("assumed:")]
    assert (
        line.endswith(
            "layer_norm_epsilon 1e-06, scale -1..1, resize whole; not said by the file, see --help for "
            "the options that say it"
        )
        and "heads" not in line
    )
    main([str(path), one, "--heads", "4", "--layer_norm_epsilon", "1e-6", "--scale=-1..1", "--resize", "whole"])
    assert "assumed:" not in capsys.readouterr().out


def test_what_would_act_on_a_terminal_is_shown_as_escapes(tmp_path, pictures, capsys):
    path = write_weights(
        tmp_path / "w.pdparams", {**DIGITS, "class_names": [f"\x1b[2J\n{i}\ud800" for i in range(10)]}, SIZE
    )
    odd = pictures / "a\x1b[31m.png"
    (pictures / "0.png").rename(odd)
    main([str(path), str(odd), "--top", "10"])
    output = capsys.readouterr().out
    assert "\x1b" not in output and "\\x1b[2J\\n3\\ud800" in output


def test_three_classes_have_no_top_5(tmp_path, pictures, capsys):
    model = build_model("ViT-digits", 3, SIZE)
    save_weights(tmp_path / "w.pdparams", model, {"network": dataclasses.asdict(model.config)})
    main([str(tmp_path / "w.pdparams"), str(pictures / "0.png")])
    assert len(names_of(capsys.readouterr().out)) == 3
