import os
import shutil
import signal

import numpy as np
import paddle
import pytest
from conftest import SHARED
from PIL import Image

import data
from common.errors import UserError
from data import dataset_sizes, load_dataset, split_indices, splits
from data.augment import Augmentation
from data.sampling import held_out_of
from data.splits import read_image

PHOTOS = SHARED / "growth_stages"
COLOURS = {"blue": (0, 0, 250), "green": (0, 250, 0), "red": (250, 0, 0)}


@pytest.fixture(scope="session")
def photos():
    if not PHOTOS.exists():
        pytest.skip(f"the real photos of growth stages are not at {PHOTOS}")
    return PHOTOS


def make_table(folder, counts=None, below="img", labels=None):
    """A CSV and pictures of one colour a class: blue, green and red, unless `counts` says otherwise."""
    rows = []
    (folder / below).mkdir(parents=True)
    for name, count in (counts or {"blue": 10, "green": 12, "red": 20}).items():
        for i in range(count):
            Image.new("RGB", (20 + i, 15), COLOURS[name]).save(folder / below / f"{name}{i:02}.png")
            rows.append(f"{name}{i:02}.png,{labels[name] if labels else name}")
    write_csv(folder, rows)
    return folder


def write_csv(folder, rows, header="image,label"):
    (folder / "df_all.csv").write_text("\n".join([header, *rows]) + "\n")


def make_class_folders(folder, count=5):
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (10, 10), colour).save(folder / name / f"{i}.png")
    return folder


def load(folder, **options):
    return load_dataset("images", str(folder), **{"validation_share": 0.1, **options})


def names(split):
    return [path.name for path in split.paths]


def pixels(split, size=8, **options):
    return next(split.stream(iter([(np.arange(len(split)), None)]), size, **options))[0].numpy()


# ---- the real photos


def test_real_photos_are_split_90_to_10_in_each_class(photos):
    found = load_dataset("growth_stages", str(photos), validation_share=0.1)
    assert found.class_names == ["0", "1", "2", "3"]
    np.testing.assert_array_equal(np.bincount(found.train.labels), [21, 54, 35, 32])
    np.testing.assert_array_equal(np.bincount(found.validation.labels), [2, 6, 4, 4])
    everything = names(found.train) + names(found.validation)
    assert sorted(everything) == sorted(path.name for path in (photos / "img").iterdir())
    labels = np.concatenate([found.train.labels, found.validation.labels])
    assert all(name.startswith(f"stage{label}_") for name, label in zip(everything, labels, strict=True))
    assert found.test is found.validation and found.test_is == "validation"
    assert any("no test images" in note for note in found.notes)
    assert not any("cannot be read" in note or "class numbers" in note for note in found.notes)
    sizes = dataset_sizes("growth_stages", str(photos), validation_share=0.1)
    assert sizes == data.Sizes(classes=4, train=142, validation=16, test=16)


def test_the_split_belongs_to_the_seed_and_not_to_the_order_of_the_rows(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "copy")
    rows = (photos / "df_all.csv").read_text().splitlines()
    write_csv(tmp_path / "copy", rows[:0:-1])
    first, reversed_rows, other = (
        load_dataset("growth_stages", str(folder), validation_share=0.1, split_seed=seed)
        for folder, seed in ((photos, 0), (tmp_path / "copy", 0), (photos, 1))
    )
    assert names(first.validation) == names(reversed_rows.validation) and names(first.train) == names(
        reversed_rows.train
    )
    assert names(first.validation) != names(other.validation)


def test_a_broken_picture_is_named_and_left_out_and_moves_no_other(tmp_path):
    folder = make_table(tmp_path / "t")
    whole = load(folder)
    victim = next(name for name in names(whole.train) if name.startswith("red"))  # 2 of 20 are held out, and of 19
    content = (folder / "img" / victim).read_bytes()
    (folder / "img" / victim).write_bytes(content[: len(content) // 2])  # the header is whole
    broken = load(folder, workers=2)
    assert any("1 of 42 pictures cannot be read and are left out" in note for note in broken.notes)
    assert any(f"{victim}: not a readable picture (" in note for note in broken.notes)
    assert names(broken.validation) == names(whole.validation)
    assert names(broken.train) == [name for name in names(whole.train) if name != victim]
    with pytest.raises(UserError, match=rf"{victim}: not a readable picture .*1 of 42 .*--strict false leaves"):
        load(folder, workers=2, strict=True)


# ---- where tables are found


def test_a_table_is_found_in_every_layout(tmp_path):
    flat = make_table(tmp_path / "flat", below=".")
    below = make_table(tmp_path / "below", below="imgV")  # the blog: img/df_all.csv, img/imgV/*
    (below / "notes").mkdir()
    loaded = [load(place) for place in (flat, flat / "df_all.csv", below, below / "df_all.csv")]
    loaded.append(load_dataset("growth_stages", str(flat), validation_share=0.1))  # four stages or any other number
    for found in loaded:
        assert found.class_names == ["blue", "green", "red"]
        assert names(found.validation) == names(loaded[0].validation) and len(found.train) == 38
        reddest = pixels(found.train).mean(axis=(2, 3)).argmax(axis=1)
        np.testing.assert_array_equal(reddest, 2 - found.train.labels)  # channel 0 is red, and class 2
    assert any(
        "the labels of df_all.csv became class numbers: blue = 0, green = 1, red = 2" in n for n in loaded[0].notes
    )
    assert any("the pictures of df_all.csv are those in imgV/" in note for note in loaded[2].notes)


def test_class_folders(tmp_path):
    folder = make_class_folders(tmp_path / "set")
    for name in (".DS_Store", "readme.txt"):
        (folder / "red" / name).write_text("x")
    (folder / "__MACOSX").mkdir()
    found = load(folder)
    assert found.class_names == ["blue", "green", "red"]
    assert (len(found.train), len(found.validation)) == (12, 3)
    assert any("1 entries of the class folders are no image files, red/readme.txt" in n for n in found.notes)


def test_labels_become_numbers_in_order_of_value_or_name(tmp_path):
    folder = make_table(tmp_path / "gaps", labels={"blue": "10", "green": "2.0", "red": "07"})
    found = load(folder)
    assert found.class_names == ["2", "7", "10"]
    assert any("2 = 0, 7 = 1, 10 = 2" in note for note in found.notes)
    by_file = dict(zip(names(found.train), found.train.labels, strict=True))
    assert {name[0]: label for name, label in by_file.items()} == {"b": 2, "g": 0, "r": 1}
    mixed = make_table(tmp_path / "mixed", labels={"blue": "10", "green": "2", "red": "NA"})
    assert load(mixed).class_names == ["10", "2", "NA"]


@pytest.mark.parametrize(("encoding", "notes"), [("utf-8-sig", 0), ("gbk", 1)])
def test_chinese_tables(tmp_path, encoding, notes):
    folder = make_class_folders(tmp_path)
    rows = [f"{colour}/{i}.png,{label}" for colour, label in (("blue", "发芽期"), ("red", "幼苗期")) for i in range(5)]
    (folder / "df_all.csv").write_bytes("\n".join(["image,label", *rows]).encode(encoding))
    found = load(folder)
    assert found.class_names == ["发芽期", "幼苗期"]
    assert [n for n in found.notes if "UTF-8" in n] == ["df_all.csv is not in UTF-8; it was read as GBK"] * notes


def test_a_table_of_paths_anywhere(tmp_path):
    folder = make_table(tmp_path / "pictures")
    table = tmp_path / "tables" / "mine.csv"
    table.parent.mkdir()
    rows = [f"{folder}/img/blue{i:02}.png,0" for i in range(5)] + [f"../pictures/img/red{i:02}.png,1" for i in range(4)]
    rows += [r"..\pictures\img\red04.png,1", ""]
    table.write_text(
        "\n".join(["id,label,image", *(f"7,{r.split(',')[1]},{r.split(',')[0]}" if r else "" for r in rows)])
    )
    found = load(table)
    assert len(found.train) + len(found.validation) == 10


# ---- the split


def test_shares_are_rounded_by_class_and_never_to_nothing():
    assert [held_out_of(n, 0.1) for n in (2, 4, 5, 14, 15, 23, 60, 39, 36)] == [1, 1, 1, 1, 2, 2, 6, 4, 4]
    labels = np.repeat([0, 1, 2], [2, 30, 100])
    train, held_out = split_indices(labels, 0, 0, 0.1, 0)
    np.testing.assert_array_equal(np.bincount(labels[held_out]), [1, 3, 10])
    assert len(train) == 118 and not set(train) & set(held_out)


def test_with_keys_one_image_less_moves_at_most_one_other():
    keys = [f"{i}.png" for i in range(200)]
    labels = np.zeros(200, np.int64)

    def held_out(kept):
        _, chosen = split_indices(labels[kept], 0, 0, 0.1, 3, keys=[keys[i] for i in kept])
        return {keys[kept[i]] for i in chosen}

    whole = held_out(list(range(200)))
    for gone in range(0, 200, 7):
        assert len(held_out([i for i in range(200) if i != gone]) - whole) <= 1
    assert held_out(list(range(199, -1, -1))) == whole


def test_per_class_counts_work_on_tables_too(tmp_path):
    folder = make_table(tmp_path / "t")
    found = load(folder, validation_share=0, validation_per_class=3, train_per_class=5)
    np.testing.assert_array_equal(np.bincount(found.validation.labels), [3, 3, 3])
    np.testing.assert_array_equal(np.bincount(found.train.labels), [5, 5, 5])
    nothing_held_out = load(folder, validation_share=0)
    assert (len(nothing_held_out.validation), len(nothing_held_out.test), nothing_held_out.test_is) == (0, 42, "all")
    assert any("those of the training too" in note for note in nothing_held_out.notes)
    assert dataset_sizes("images", str(folder)) == data.Sizes(3, 42, 0, 42)


def test_sizes_of_the_official_sets_need_no_files():
    sizes = dataset_sizes("cifar100", "/nowhere", validation_per_class=10)
    assert sizes == data.Sizes(100, 49_000, 1000, 10_000)
    assert dataset_sizes("cifar100", validation_share=0.1, train_per_class=50) == data.Sizes(100, 5000, 5000, 10_000)


# ---- kinds of pictures


def rgb(path):
    return np.asarray(read_image(path)).astype(int)


def test_sixteen_bit_grey_keeps_its_brightness(tmp_path):
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(ramp * 257).save(tmp_path / name)
        np.testing.assert_array_equal(rgb(tmp_path / name), np.repeat(ramp[..., None], 3, axis=2))
    (tmp_path / "a.pgm").write_bytes(b"P5 16 16 65535\n" + (ramp * 257).astype(">u2").tobytes())  # Pillow: 32 bits
    np.testing.assert_array_equal(rgb(tmp_path / "a.pgm")[..., 0], ramp)
    Image.fromarray(np.full((4, 4), 200, np.uint16)).save(tmp_path / "dark.png")
    assert rgb(tmp_path / "dark.png").max() == 1  # 200 / 257, rounded
    Image.fromarray(np.full((4, 4), 70_000, np.int32)).save(tmp_path / "b.tif")
    with pytest.raises(UserError, match=r"b\.tif: not a readable picture \(grey whose range is not known"):
        read_image(tmp_path / "b.tif")
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "c.tif")
    with pytest.raises(UserError, match=r"c\.tif: not a readable picture \(grey whose range is not known"):
        read_image(tmp_path / "c.tif")


def test_transparent_pixels_are_white(tmp_path):
    red = Image.new("RGBA", (4, 4), (255, 0, 0, 255))
    red.putpixel((0, 0), (0, 0, 0, 0))
    red.putpixel((1, 0), (0, 0, 0, 128))
    red.save(tmp_path / "rgba.png")
    grey = Image.new("LA", (4, 4), (9, 255))
    grey.putpixel((0, 0), (0, 0))
    grey.save(tmp_path / "la.png")
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.putpixel((0, 0), 0)
    palette.save(tmp_path / "p.png", transparency=0)
    palette.save(tmp_path / "p.gif", transparency=0)
    keyed = Image.new("RGB", (4, 4), (255, 0, 0))
    keyed.putpixel((0, 0), (1, 2, 3))
    keyed.save(tmp_path / "keyed.png", transparency=(1, 2, 3))
    for name in ("rgba.png", "la.png", "p.png", "p.gif", "keyed.png"):
        found = rgb(tmp_path / name)
        assert found[0, 0].tolist() == [255, 255, 255], name
        assert found[2, 2].tolist() == ([9, 9, 9] if name == "la.png" else [255, 0, 0]), name
    assert rgb(tmp_path / "rgba.png")[0, 1].tolist() == [127, 127, 127]  # half of black on white


def test_other_modes_are_pillows_rgb(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 9, 3), np.uint8))
    for mode, name in (
        ("L", "l.png"),
        ("1", "one.png"),
        ("P", "p.png"),
        ("CMYK", "c.jpg"),
        ("RGB", "rgb.jpg"),
        ("RGB", "w.webp"),
    ):
        noise.convert(mode).save(tmp_path / name)
        with Image.open(tmp_path / name) as image:
            assert image.mode == mode
            np.testing.assert_array_equal(rgb(tmp_path / name), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_every_turn_of_exif_is_undone(tmp_path, suffix):
    upright = Image.new("RGB", (32, 16), "white")
    upright.paste("red", (0, 0, 16, 8))
    undo = Image.Transpose
    stored = {1: None, 3: undo.ROTATE_180, 6: undo.ROTATE_90, 8: undo.ROTATE_270}
    for orientation, turn in stored.items():
        image = upright.transpose(turn) if turn is not None else upright
        exif = image.getexif()
        exif[0x0112] = orientation
        image.save(tmp_path / f"{orientation}.{suffix}", exif=exif)
        found = rgb(tmp_path / f"{orientation}.{suffix}")
        assert found.shape == (16, 32, 3)
        assert found[4, 8, 1] < 20 and found[4, 24, 1] > 235 and found[12, 8, 1] > 235


def test_one_pixel_is_a_picture(tmp_path):
    folder = make_table(tmp_path / "t")
    Image.new("RGB", (1, 1), COLOURS["red"]).save(folder / "img" / "red00.png")
    found = load(folder, validation_share=0)
    at = names(found.train).index("red00.png")
    how = Augmentation()
    draws = how.draw(np.random.default_rng(0), 1)
    for images, _ in found.train.stream(iter([([at], None), ([at], draws)]), 16, how):
        np.testing.assert_allclose(images.numpy()[0, :, 7, 7], np.array([250, 0, 0]) / 127.5 - 1, atol=1e-6)


def test_a_picture_of_20_000_by_20_000_is_refused_and_named(tmp_path):
    folder = make_table(tmp_path / "t")
    Image.new("1", (20_000, 20_000)).save(folder / "img" / "red00.png")  # a real one: 50 kB of PNG
    found = load(folder)
    assert any("1 of 42 pictures cannot be read" in note for note in found.notes)
    assert any("red00.png: not a readable picture (Image size (400000000 pixels) exceeds" in n for n in found.notes)


def test_large_pictures_and_odd_metadata_are_read_without_warnings(tmp_path, recwarn):
    Image.new("L", (10_000, 9_000), 7).save(tmp_path / "large.png")  # Pillow warns from 89 million pixels on
    assert read_image(tmp_path / "large.png").size == (10_000, 9_000)
    assert not list(recwarn)


# ---- what the networks get


def test_the_scale_of_the_pixels(tmp_path):
    folder = make_table(tmp_path / "t")
    split = load(folder, validation_share=0).train
    shades = np.array([COLOURS[name[:-6]] for name in names(split)], np.float64)  # the colour of each picture
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = {"-1..1": shades / 127.5 - 1, "0..1": shades / 255, "imagenet": (shades / 255 - mean) / std}
    in_memory = data.InMemory(np.tile(shades.astype(np.uint8)[:, :, None, None], (1, 1, 6, 5)), split.labels)
    for scale, values in expected.items():
        for source in (split, in_memory):
            np.testing.assert_allclose(pixels(source, scale=scale)[:, :, 3, 4], values, atol=2e-6)
    np.testing.assert_array_equal(pixels(split), pixels(split, scale="-1..1"))


def test_a_killed_worker_is_a_clear_error_and_not_the_end_of_all(tmp_path):
    split = load(make_table(tmp_path / "t"), validation_share=0).train

    def requests():
        yield np.arange(4), None
        for process in list(splits._pool(2)._processes.values()):
            os.kill(process.pid, signal.SIGKILL)  # as the kernel does when memory runs out
        for _ in range(8):
            yield np.arange(4), None

    with pytest.raises(UserError, match=r"processes that decode pictures was ended from outside.*--workers"):
        list(split.stream(requests(), 8, workers=2))
    assert len(list(split.stream(iter([(np.arange(4), None)]), 8, workers=2))) == 1


# ---- tables that cannot be used


def bad_tables():
    def edited(*rows, header="image,label"):
        return lambda folder: write_csv(folder, rows, header)

    def raw(content):
        return lambda folder: (folder / "df_all.csv").write_bytes(content)

    def removed(*removed_names):
        return lambda folder: [(folder / "img" / name).unlink() for name in removed_names]

    def second_copy(folder):
        shutil.copytree(folder / "img", folder / "thumbs")

    def three_tables(folder):
        for name in ("a.csv", "b.csv"):
            shutil.copy(folder / "df_all.csv", folder / name)

    def broken_class(folder):
        for path in (folder / "img").glob("blue*"):
            path.write_bytes(b"no picture")

    return {
        "other columns": (
            edited("x.png,0", header="file,class"),
            "its columns are file, class; it needs one image",
        ),
        "semicolons": (edited("x.png;0", header="image;label"), "columns are image;label; .*separated by commas"),
        "no bytes": (raw(b""), "its columns are none; it needs one image"),
        "no rows": (edited(), "0 pictures of 0 classes; training needs two classes"),
        "surplus fields": (edited("red00.png,1,x", "red01.png,2,x"), "line 2 has 3 fields, the header 2; put names"),
        "surplus field": (edited("red00.png,1", "red01.png,2,x"), "line 3 has 3 fields, the header 2"),
        "open quote": (edited('"red00.png,1', "red01.png,2"), "not a readable CSV"),
        "no text": (raw(b"image,label\n\xff\xff\xff\x80,1\n"), "not a text in UTF-8 or GBK; save it"),
        "UTF-16": (raw("image,label\n".encode("utf-16")), "not a text in UTF-8 or GBK; save it"),
        "zeros": (edited("red00.png,1", "red\0.png,1"), "line 3|line contains NUL"),
        "no label": (
            edited("red00.png,1", "", "red01.png,", "red02.png"),
            "line 4 has no image or no label; fill it in or take",
        ),
        "nan label": (edited("red00.png,1.0", "red01.png,nan"), "line 3 has no image or no"),
        "no image": (edited("red00.png,1", ",2"), "line 3 has no image or no"),
        "one class": (edited("red00.png,1", "red01.png,1"), "2 pictures of 1 classes; training needs two classes"),
        "missing": (
            removed("red00.png", "red01.png"),
            r"2 of 42 listed pictures are missing in .*img: red00\.png, red",
        ),
        "all missing": (edited("x.png,1", "y.png,2"), "2 of 2 listed pictures are missing in .*/t: x"),
        "listed twice": (
            edited("red00.png,1", "red01.png,2", "./red00.png,2"),
            r"line 4 lists red00\.png again; leave it a single row",
        ),
        "two folders": (second_copy, "img/ and thumbs/ both hold pictures of these names; write the"),
        "two tables": (three_tables, r"holds 3 CSV files \(a\.csv, b\.csv, df_all\.csv\); give the path"),
        "single picture": (edited("red00.png,1", "red01.png,2", "red02.png,2"), "class 1 has 1 training images, fewer"),
        "class of broken ones": (broken_class, r"class 'blue' has no picture that can be read: .*blue00\.png"),
    }


@pytest.mark.parametrize("case", bad_tables())
def test_tables_that_cannot_be_used(case, tmp_path):
    folder = make_table(tmp_path / "t")
    spoil, message = bad_tables()[case]
    spoil(folder)
    with pytest.raises(UserError, match=message) as raised:
        load(folder)
    assert str(folder) in str(raised.value) and "\n" not in str(raised.value)


def test_places_that_are_no_table(tmp_path, monkeypatch):
    for name in ("a.txt", "a.zip"):
        (tmp_path / name).write_text("x")
    for name in ("a.txt", "a.zip", "none"):
        with pytest.raises(UserError, match=rf"{name}: no folder and no \.csv file \(unpack .*--data_dir takes a CSV"):
            load(tmp_path / name)
    monkeypatch.setattr(data, "DOWNLOADS", tmp_path / "downloads")
    with pytest.raises(UserError, match=r"downloads/growth_stages: no folder and no"):
        load_dataset("growth_stages")
    with pytest.raises(UserError, match=r"none\.csv: no such file"):
        load(tmp_path / "none.csv")
    make_class_folders(tmp_path / "one" / "more")
    Image.new("RGB", (5, 5)).save(tmp_path / "one" / "single.png")
    with pytest.raises(UserError, match="one: holds neither a CSV nor folders of at least two classes"):
        load(tmp_path / "one")


def test_options_that_contradict_the_data(tmp_path):
    folder = make_table(tmp_path / "t")
    with pytest.raises(UserError, match=r"--validation_share 0\.1 and --validation_per_class 3 both say"):
        load(folder, validation_per_class=3)
    with pytest.raises(UserError, match=r"--validation_share 1\.0: must be at least 0 and below 1"):
        load(folder, validation_share=1.0)
    with pytest.raises(UserError, match="class blue has 10 training images, fewer than 4 to hold out"):
        load(folder, validation_share=0.4, train_per_class=7)


def test_training_can_use_the_pictures_on_the_device(photos):
    found = load_dataset("growth_stages", str(photos), validation_share=0.1)
    how = Augmentation(min_area=1.0)
    draws = how.draw(np.random.default_rng(0), 8)
    ((images, _),) = found.train.stream(iter([(np.arange(8), draws)]), 256, how, scale="0..1")
    assert images.shape == [8, 3, 256, 256] and images.dtype == paddle.float32
    assert 0 <= float(images.min()) < 0.2 and 0.8 < float(images.max()) <= 1
    with Image.open(found.train.paths[0]) as image:
        expected = np.asarray(image.convert("RGB").resize((256, 256), Image.Resampling.BILINEAR)) / 255
    np.testing.assert_allclose(images[0].numpy(), expected.transpose(2, 0, 1), atol=1e-6)
