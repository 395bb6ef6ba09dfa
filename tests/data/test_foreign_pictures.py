"""Pictures, tables and folders as other people have them: read as meant, or refused in one line.

None may wait for ever, start a program or give a wrong label without a word.
"""

import os
import shutil
import time
import tracemalloc
import unicodedata

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from common.errors import UserError
from data import dataset_sizes, load_dataset, tables
from data.splits import read_image

RED, BLUE = (250, 0, 0), (0, 0, 250)


def save(path, colour=RED, size=(6, 5)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def table(folder, rows, header="image,label", encoding="utf-8"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "df_all.csv").write_bytes("\n".join([header, *rows]).encode(encoding))
    return str(folder)


# ---- pictures


@pytest.mark.parametrize(
    "start", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\xd7\xcd\xc6\x9a" + bytes(40)]
)
@pytest.mark.parametrize("name", ["photo.jpg", "photo.png"])
def test_no_picture_starts_a_program(tmp_path, monkeypatch, start, name):
    witness = tmp_path / "ran"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {witness}\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / name).write_bytes(start + b"%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(UserError, match=f"{name}: not a readable picture \\(no known image format"):
        read_image(tmp_path / name)
    assert not witness.exists()


def test_every_opening_of_a_picture_names_its_formats():
    root = tables.Path(tables.__file__).parents[1]
    opened = [
        line
        for part in ("data", "models", "reproduce", "common")
        for path in (root / part).glob("*.py")
        for line in path.read_text().splitlines()
        if "Image.open(" in line
    ]
    assert opened and all("formats=FORMATS" in line for line in opened)


def test_a_png_whose_pixels_are_damaged_or_cut_is_not(tmp_path):
    whole = save(tmp_path / "a.png", size=(50, 50)).read_bytes()
    at = whole.index(b"IDAT") + 6
    for content in (whole[:at] + b"!!!!" + whole[at + 4 :], whole[:-30], whole[:20], whole[:33]):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(UserError, match=r"a\.png: not a readable picture"):
            read_image(tmp_path / "a.png")


def test_a_text_that_unpacks_to_eighty_megabytes_does_not_cost_them(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("note", "x" * (80 << 20), zip=True)
    Image.new("RGB", (4, 4), RED).save(tmp_path / "a.png", pnginfo=info)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"a\.png: not a readable picture \(Decompressed data too large"):
        read_image(tmp_path / "a.png")
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("suffix", ["gif", "ppm", "pgm", "jfif", "jpe", "avif", "jp2", "webp", "bmp", "pbm"])
def test_what_the_decoder_reads_counts_as_a_picture(tmp_path, suffix):
    for name in ("a", "b"):
        path = tmp_path / name / f"1.{suffix}"
        path.parent.mkdir()
        Image.new("L", (8, 8), 255).save(path, format={"jfif": "JPEG", "jpe": "JPEG"}.get(suffix))
    found = load_dataset("images", str(tmp_path))
    assert len(found.train) == 2
    assert np.asarray(read_image(found.train.paths[0])).min() > 250


# ---- pipes, and what is wide or deep


def test_pipes_are_refused_and_not_waited_for(tmp_path):
    for name in ("a.png", "a.csv"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=r"a\.png: not a regular file but a pipe"):
        read_image(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.csv: not a regular file but a pipe"):
        load_dataset("images", str(tmp_path / "a.csv"))
    with pytest.raises(UserError, match=r"a\.png, .* missing|missing in .*: a\.png"):
        load_dataset("images", table(tmp_path, ["a.png,1", "b.png,2"]))
    (tmp_path / "cifar").mkdir()
    (tmp_path / "cifar" / "batches.meta").touch()
    for i in range(1, 6):
        os.mkfifo(tmp_path / "cifar" / f"data_batch_{i}")
    with pytest.raises(UserError, match="data_batch_1: not a regular file but a pipe"):
        load_dataset("cifar10", str(tmp_path / "cifar"))


def test_a_pipe_among_the_pictures_of_a_class_is_left_out(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / name / "1.png")
    os.mkfifo(tmp_path / "a" / "2.png")
    os.mkfifo(tmp_path / "df_all.csv")
    notes = load_dataset("images", str(tmp_path)).notes
    assert any("2 entries of the class folders are no image files, a/2.png, df_all.csv" in note for note in notes)


def test_a_table_of_very_many_columns_costs_no_more_than_it_weighs(tmp_path):
    wide = ",".join(["image", "label", *(f"c{i}" for i in range(100_000))])
    rows = [f"{save(tmp_path / name)},{name}" for name in ("a.png", "b.png")]
    began = time.monotonic()
    assert dataset_sizes("images", table(tmp_path / "header", rows + ["," + " "] * 20_000, header=wide)).classes == 2
    assert time.monotonic() - began < 10  # each short row filled up to 100,002 cells takes minutes
    with pytest.raises(UserError, match="line 2 has 100,002 fields, the header 2"):
        load_dataset("images", table(tmp_path / "row", [wide]))
    with pytest.raises(UserError, match=r"not a readable CSV \(line 2: field larger than"):
        load_dataset("images", table(tmp_path / "field", ["x" * 200_000 + ",1"]))


# ---- folders of classes: one reader


@pytest.fixture
def splits(tmp_path):
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        for name, colour in (("2", RED), ("10", BLUE)):
            for i in range(count):
                save(tmp_path / split / name / f"{i}.png", colour)
    return tmp_path


@pytest.mark.parametrize("dataset", ["images", "imagenet"])
def test_train_val_and_test_are_each_what_they_are_called(splits, dataset):
    found = load_dataset(dataset, str(splits), validation_share=0.5)
    assert [len(split) for split in (found.train, found.validation, found.test)] == [6, 4, 2]
    assert found.class_names == ["2", "10"] and found.test_is == "test"
    reds = [read_image(path).getpixel((0, 0)) == RED for path in found.test.paths]
    assert found.test.labels.tolist() == [0 if red else 1 for red in reds]
    assert any("val/ gives the validation images; test/ gives the test images" in note for note in found.notes)
    if dataset == "images":
        sizes = dataset_sizes(dataset, str(splits), validation_share=0.5)
        assert (sizes.classes, sizes.train, sizes.validation, sizes.test) == (2, 6, 4, 2)


@pytest.mark.parametrize("name", ["val", "test"])
def test_a_single_folder_beside_train_is_the_test_set(splits, name):
    (splits / "test").rename(splits / "extra")
    (splits / "val").rename(splits / name)
    found = load_dataset("imagenet", str(splits), validation_per_class=1)
    assert [len(split) for split in (found.train, found.validation, found.test)] == [4, 2, 4]
    assert any(f"{name}/ gives the test images; left out: extra" in note for note in found.notes)


def test_a_folder_of_validation_images_that_is_called_otherwise_is_told_of_val(splits):
    shutil.rmtree(splits / "test")
    (splits / "val").rename(splits / "valid")
    with pytest.raises(UserError, match=r"train: no image files .* a folder with train/ and val/ of such"):
        load_dataset("images", str(splits))


@pytest.mark.parametrize("dataset", ["images", "imagenet"])
def test_hidden_folders_are_no_classes_and_what_is_left_out_is_named(splits, dataset):
    save(splits / "train" / ".ipynb_checkpoints" / "0.png")
    (splits / "train" / "__MACOSX").mkdir()
    (splits / "train" / ".empty").mkdir()
    save(splits / "train" / "2" / "nested" / "0.png")
    (splits / "train" / "10" / "notes.txt").touch()
    found = load_dataset(dataset, str(splits))
    assert found.class_names == ["2", "10"] and len(found.train) == 6
    assert any("2 entries of the class folders are no image files, 10/notes.txt, 2/nested" in n for n in found.notes)


def test_both_readers_number_twelve_classes_alike(tmp_path):
    for split in ("train", "val"):
        for name in range(12):
            save(tmp_path / split / str(name) / "0.png")
    names = [load_dataset("imagenet", str(tmp_path)).class_names, load_dataset("images", str(tmp_path)).class_names]
    names.append(load_dataset("images", str(tmp_path / "train")).class_names)
    assert names == [[str(i) for i in range(12)]] * 3


# ---- tables


@pytest.mark.parametrize(
    ("header", "twice"),
    [("image,label,label", "label"), ("image,image,label", "image"), ("label,image, label", "label")],
)
def test_a_column_twice_is_refused(tmp_path, header, twice):
    with pytest.raises(UserError, match=f"its columns are .*{twice}.*{twice}.*; it needs one image and one label"):
        load_dataset("images", table(tmp_path, ["a.png,1,2", "b.png,2,1"], header=header))


@pytest.mark.parametrize("word", ["Grün", "épine", "がぎ"])
def test_unicode_forms_are_one_name(tmp_path, word):
    composed, apart = (unicodedata.normalize(form, word) for form in ("NFC", "NFD"))
    assert composed != apart
    for i, form in enumerate((composed, apart)):
        save(tmp_path / f"{form}{i}.png")
    save(tmp_path / "c.png")
    rows = [f"{apart}0.png,{composed}", f"{composed}1.png,{apart}", "c.png,x"]
    found = load_dataset("images", table(tmp_path, rows))
    assert found.class_names == sorted([composed, "x"]) and len(found.train) == 3
    for i, form in enumerate((composed, apart)):
        save(tmp_path / "folders" / form / f"{i}.png")
    save(tmp_path / "folders" / "x" / "0.png")
    assert load_dataset("images", str(tmp_path / "folders")).class_names == sorted([composed, "x"])


@pytest.mark.parametrize("label", ["café", "Grünkohl", "señal", "naïve"])
def test_a_latin_1_table_is_not_read_as_chinese(tmp_path, label):
    for name in ("a", "b"):
        save(tmp_path / f"{name}.png")
    with pytest.raises(UserError, match=r"not a text in UTF-8 or GBK; save it as CSV in UTF-8"):
        load_dataset("images", table(tmp_path, [f"a.png,{label}", "b.png,x"], encoding="latin-1"))


@pytest.mark.parametrize("label", ["a\x1b[31mred", "zero\u200bwidth", "right\u202eleft"])
def test_names_that_would_steer_the_screen_are_refused(tmp_path, label):
    for name in ("a", "b"):
        save(tmp_path / f"{name}.png")
    with pytest.raises(UserError, match=r"line 2: .* has characters that cannot be printed") as error:
        load_dataset("images", table(tmp_path, [f"a.png,{label}", "b.png,x"]))
    assert str(error.value).isprintable()
    save(tmp_path / "folders" / label / "0.png")
    save(tmp_path / "folders" / "x" / "0.png")
    with pytest.raises(UserError, match="has characters that cannot be printed"):
        load_dataset("images", str(tmp_path / "folders"))


@pytest.mark.parametrize("name", ["x\x1b[31mred", "two\nlines", "\u202egnp", "\udcff"])
def test_names_of_files_are_shown_and_not_obeyed(tmp_path, name):
    for place in ("a/1.png", "b/1.png"):
        save(tmp_path / place)
    (tmp_path / "a" / f"{name}.png").write_bytes(b"no picture")
    (tmp_path / "a" / f"{name}.txt").touch()
    notes = load_dataset("images", str(tmp_path)).notes
    assert all(note.isprintable() for note in notes) and sum("red" in n or "\\" in n for n in notes) == 2
    with pytest.raises(UserError) as error:
        load_dataset("images", str(tmp_path), strict=True)
    assert str(error.value).isprintable()


def test_a_quote_in_a_label_is_text_like_any_other(tmp_path):
    for name in ("a, b", "c"):
        save(tmp_path / f"{name}.png")
    found = load_dataset("images", table(tmp_path, ['"a, b.png","say ""x"""', "c.png,y"]))
    assert found.class_names == ['say "x"', "y"]
    assert tables.sorted_classes(["b", "10", "2"]) == ["10", "2", "b"]


# ---- data sets by name


def test_digits_take_no_folder(tmp_path):
    for call in (load_dataset, dataset_sizes):
        with pytest.raises(UserError, match=r"digits come with this project; leave it out, or say --dataset images"):
            call("digits", str(tmp_path))
