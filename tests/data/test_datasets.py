import hashlib
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import tarfile

import numpy as np
import paddle
import pytest
from PIL import Image

import data
from common.errors import UserError
from data import cifar, load_dataset, split_indices
from data.augment import Augmentation


@pytest.fixture(scope="session")
def cifar100(cifar100_folder):
    return load_dataset("cifar100", str(cifar100_folder), train_per_class=50, validation_per_class=10)


def test_real_cifar100_passes_its_sha1_and_is_split_evenly(cifar100):
    assert (len(cifar100.train), len(cifar100.validation), len(cifar100.test)) == (5000, 1000, 10_000)
    for split, each in ((cifar100.train, 50), (cifar100.validation, 10), (cifar100.test, 100)):
        np.testing.assert_array_equal(np.bincount(split.labels), np.full(100, each))
    assert cifar100.class_names[:2] == ["apple", "aquarium_fish"] and len(cifar100.class_names) == 100


def test_one_changed_pixel_of_cifar100_is_noticed(cifar100_folder, tmp_path):
    source = cifar100_folder / "cifar-100-python"
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "meta"):
        (folder / name).symlink_to(source / name)
    test = pickle.loads((source / "test").read_bytes(), encoding="bytes")
    test[b"data"] = test[b"data"].copy()
    test[b"data"][1234, 567] ^= 1
    (folder / "test").write_bytes(pickle.dumps(test, 2))
    with pytest.raises(UserError, match="the test images or labels are not the official ones"):
        load_dataset("cifar100", str(tmp_path))


def python2_pickle(value) -> bytes:
    """`value` as cPickle of Python 2 writes it with protocol 2, its strings as bytes: the official archives are so."""

    def write(value) -> bytes:
        if isinstance(value, bytes):
            short = len(value) < 256
            return (b"U" + bytes([len(value)]) if short else b"T" + len(value).to_bytes(4, "little")) + value
        if isinstance(value, bool):
            return b"\x88" if value else b"\x89"
        if isinstance(value, int):
            return b"J" + value.to_bytes(4, "little", signed=True)
        if isinstance(value, list):
            return b"](" + b"".join(map(write, value)) + b"e"
        if isinstance(value, dict):
            return b"}(" + b"".join(write(each) for item in value.items() for each in item) + b"u"
        if isinstance(value, tuple):
            return b"(" + b"".join(map(write, value)) + b"t"
        if value is None:
            return b"N"
        assert value.dtype == np.uint8
        empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + write((0,)) + write(b"b") + b"tR"
        kind = b"cnumpy\ndtype\n" + write((b"u1", 0, 1)) + b"R" + write((3, b"|", None, None, None, -1, -1, 0)) + b"b"
        return empty + b"(" + write(1) + write(value.shape) + kind + write(False) + write(value.tobytes()) + b"tb"

    return b"\x80\x02" + write(value) + b"."


def fake_cifar10(folder, broken=False, dump=python2_pickle):
    """A tiny set in the layout of cifar-10-python (its content has no published SHA-1 to check)."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        data = rng.integers(0, 256, (20, 3000 if broken else 3072), np.uint8)
        (folder / name).write_bytes(dump({b"data": data, b"labels": [i % 10 for i in range(20)]}))
    names = [f"class {i}".encode() for i in range(10)]
    (folder / "batches.meta").write_bytes(dump({b"label_names": names}))
    return folder


def test_pickles_of_python_2_are_read_as_those_of_python_3(tmp_path):
    """As the official archives were written; those in data/downloads may have been packed anew."""
    folders = [
        fake_cifar10(tmp_path / name / "cifar-10-batches-py", dump=dump)
        for name, dump in (("2", python2_pickle), ("3", pickle.dumps))
    ]
    raw = (folders[0] / "data_batch_1").read_bytes()
    plain = pickle.loads(raw, encoding="bytes")  # the standard library agrees on what that is
    assert raw != (folders[1] / "data_batch_1").read_bytes() and plain[b"data"].shape == (20, 3072)
    two, three = (load_dataset("cifar10", str(folder)) for folder in folders)
    np.testing.assert_array_equal(two.train.images, three.train.images)
    np.testing.assert_array_equal(two.train.images[:20], plain[b"data"].reshape(-1, 3, 32, 32))
    np.testing.assert_array_equal(two.test.labels, three.test.labels)
    assert two.class_names == three.class_names


@pytest.fixture
def packed_cifar10(tmp_path, monkeypatch):
    """An archive of `fake_cifar10` in data/downloads, as if the official one had just been fetched."""
    archive = tmp_path / "downloads" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(fake_cifar10(tmp_path / "made" / "cifar-10-batches-py"), "cifar-10-batches-py")
    monkeypatch.setattr(cifar._SOURCES["cifar10"], "md5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(data, "DOWNLOADS", archive.parent)
    monkeypatch.setattr(os, "sync", lambda: None)  # which waits for all that others write
    return archive


def test_cifar10_folder_and_archive_give_the_same_images(packed_cifar10, tmp_path):
    made = load_dataset("cifar10", str(tmp_path / "made"))
    for _ in range(2):
        found = load_dataset("cifar10")
        assert len(found.train) == 100 and found.train.images.shape == (100, 3, 32, 32)
        np.testing.assert_array_equal(found.train.images, made.train.images)
        np.testing.assert_array_equal(found.test.labels, np.arange(20) % 10)
        packed_cifar10.write_bytes(b"no longer looked at")
    assert sorted(os.listdir(packed_cifar10.parent)) == ["cifar-10-batches-py", packed_cifar10.name]


def test_a_killed_extraction_leaves_nothing_at_the_final_place_and_is_repeated(packed_cifar10):
    def unpack(rename=os.rename):
        os.rename = rename
        load_dataset("cifar10")

    def ended(*arguments):
        children = [multiprocessing.get_context("fork").Process(target=unpack, args=each) for each in arguments]
        for child in children:
            child.start()
        for child in children:
            child.join(60)
        return [child.exitcode for child in children]

    folder = packed_cifar10.parent / "cifar-10-batches-py"
    assert ended([lambda *_: os.kill(os.getpid(), signal.SIGKILL)]) == [-signal.SIGKILL]
    assert not folder.exists() and folder.with_name(f"{folder.name}.part").exists()
    assert ended([], [], []) == [0, 0, 0]
    assert (folder / "test_batch").exists()
    assert sorted(os.listdir(packed_cifar10.parent)) == [folder.name, packed_cifar10.name]


def test_an_extraction_without_room_leaves_nothing_at_the_final_place(packed_cifar10):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(UserError, match=r"python\.tar\.gz: cannot be unpacked .*File too large.*run the same"):
            load_dataset("cifar10")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(packed_cifar10.parent) == [packed_cifar10.name]
    assert len(load_dataset("cifar10").train) == 100


def test_cifar_data_that_cannot_be_used(packed_cifar10, tmp_path):
    for place in (tmp_path, packed_cifar10):  # with --data_dir nothing is downloaded or unpacked
        with pytest.raises(UserError, match=r"holds no folder cifar-10-batches-py; unpack .*https.*leave out"):
            load_dataset("cifar10", str(place))
    with pytest.raises(UserError, match="data_batch_1: not a CIFAR batch"):
        load_dataset("cifar10", str(fake_cifar10(tmp_path / "cifar-10-batches-py", broken=True)))
    packed_cifar10.write_bytes(b"half a download")
    with pytest.raises(UserError, match=r"downloads/cifar-10-python\.tar\.gz: its md5 is"):
        load_dataset("cifar10")
    address = cifar._HOST + "cifar-10-python.tar.gz"
    assert data.dataset_files("cifar10") == {packed_cifar10.parent / "cifar-10-batches-py": address}


@pytest.mark.parametrize(
    "names",
    [
        ["a", 1],
        [b"\xff\xfe", b"b"],
        [None, b"b"],
        [[b"a"], b"b"],
        7,
        b"airplane",
        [b"a\x1b[31m", b"b"],
        ["a\nb", "c"],
        np.arange(3),
    ],
    ids=repr,
)
def test_odd_names_of_classes_are_refused(tmp_path, names):
    folder = fake_cifar10(tmp_path / "cifar-10-batches-py")
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": names}))
    with pytest.raises(UserError, match=r"batches\.meta: its label_names are no names of classes; extract"):
        load_dataset("cifar10", str(folder))


def test_names_of_classes_may_be_text_in_any_script(tmp_path):
    folder = fake_cifar10(tmp_path / "cifar-10-batches-py")
    names = ["飞机", "Vögel", *"abcdefgh"]
    for dumped in (names, [name.encode() for name in names]):
        (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": dumped}))
        assert load_dataset("cifar10", str(folder)).class_names == names


PIXELS = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    "batch",
    [
        {b"data": PIXELS, b"labels": [1, [2, 3]]},
        {b"data": PIXELS, b"labels": [1, None]},
        {b"data": PIXELS, b"labels": [1, 2**70]},
        {b"data": PIXELS, b"labels": "12"},
        {b"data": PIXELS, b"labels": [0.5, 1.5]},
        {b"data": PIXELS, b"labels": [1]},
        {b"data": PIXELS[:0], b"labels": []},
        {b"data": PIXELS[0], b"labels": [1, 2]},
        {b"data": PIXELS.astype(int), b"labels": [1, 2]},
        {b"data": [1, 2], b"labels": [1, 2]},
        {b"data": None, b"labels": {}},
    ],
    ids=range(11),
)
def test_batches_of_odd_content_are_refused(tmp_path, batch):
    folder = fake_cifar10(tmp_path / "cifar-10-batches-py")
    (folder / "data_batch_2").write_bytes(pickle.dumps(batch))
    with pytest.raises(UserError, match=r"data_batch_2: not a CIFAR batch"):
        load_dataset("cifar10", str(folder))


def test_a_malicious_batch_is_refused(tmp_path):
    folder = fake_cifar10(tmp_path / "cifar-10-batches-py")

    class Evil:
        def __reduce__(self):
            return eval, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    (folder / "data_batch_3").write_bytes(pickle.dumps({b"data": Evil()}))
    with pytest.raises(UserError, match=r"data_batch_3: refused, it asks for builtins\.eval"):
        load_dataset("cifar10", str(folder))
    assert not (tmp_path / "ran").exists()


def test_digits_are_real_and_split_without_overlap():
    data = load_dataset("digits", validation_per_class=20)
    assert (len(data.train), len(data.validation), len(data.test)) == (1097, 200, 500)
    rows = np.concatenate([s.images.reshape(len(s), -1) for s in (data.train, data.validation, data.test)])
    assert len(np.unique(rows, axis=0)) == 1797  # every image of the source once
    assert data.test.images.max() == 255


def test_held_out_images_depend_on_the_split_seed_alone():
    labels = np.repeat(np.arange(5), 30)
    train, held_out = split_indices(labels, 10, 4, 0, split_seed=0)
    assert len(train) == 50 and len(held_out) == 20 and not set(train) & set(held_out)
    np.testing.assert_array_equal(held_out, split_indices(labels, 0, 4, 0, split_seed=0)[1])
    assert set(held_out) != set(split_indices(labels, 10, 4, 0, split_seed=1)[1])
    with pytest.raises(UserError, match="class 0 has 30 training images, fewer than"):
        split_indices(labels, 27, 4, 0, split_seed=0)


@pytest.fixture
def picture_folders(tmp_path):
    """train/ and val/ of two classes, told apart by colour: JPEG, PNG, grey, palette, turned by EXIF."""
    for split, count in (("train", 6), ("val", 2)):
        for name, colour in (("blue", (0, 0, 250)), ("red", (250, 0, 0))):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = Image.new("RGB", (40 + i, 30), colour)
                if i == 1:
                    image = image.convert("P")
                image.save(folder / f"{i}.{'png' if i == 1 else 'jpg'}")
    return tmp_path


def test_a_class_without_pictures_is_named(picture_folders):
    for picture in (picture_folders / "val" / "red").iterdir():
        picture.unlink()
    with pytest.raises(UserError, match=r"val/red: no image files \(.*; fill or remove this folder"):
        load_dataset("imagenet", str(picture_folders))


def test_a_label_without_a_class_is_named(tmp_path):
    folder = fake_cifar10(tmp_path / "cifar-10-batches-py")
    (folder / "batches.meta").write_bytes(python2_pickle({b"label_names": [b"a", b"b"]}))
    with pytest.raises(UserError, match="has labels from 0 to 9 for 2 classes"):
        load_dataset("cifar10", str(folder))


@pytest.mark.parametrize("workers", [0, 2])
def test_image_folders_decode_in_order(picture_folders, workers):
    data = load_dataset("imagenet", str(picture_folders), validation_per_class=2)
    assert data.class_names == ["blue", "red"]
    assert (len(data.train), len(data.validation), len(data.test)) == (8, 4, 4)
    how = Augmentation()
    draws = how.draw(np.random.default_rng(0), 8)
    order = np.array([7, 0, 6, 1, 5, 2, 4, 3])
    pieces = [(order[:3], draws[:3]), (order[3:], draws[3:])]
    batches = list(data.train.stream(iter(pieces), 16, how, workers=workers))
    labels = np.concatenate([labels.numpy() for _, labels in batches])
    images = paddle.concat([images for images, _ in batches])
    np.testing.assert_array_equal(labels, data.train.labels[order])
    assert images.shape == [8, 3, 16, 16]
    reddest = images.mean(axis=[2, 3]).argmax(axis=1).numpy()  # channel 0 is red, 2 blue
    np.testing.assert_array_equal(reddest, np.where(labels == 1, 0, 2))


def test_image_folders_that_cannot_be_used(picture_folders, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"none: no folder and no .*--data_dir takes .*train/ and val/"):
        load_dataset("imagenet", str(tmp_path / "none"))
    shutil.copytree(picture_folders / "val" / "red", picture_folders / "val" / "green")
    with pytest.raises(UserError, match="val: these classes are either here or in train/ alone: green"):
        load_dataset("imagenet", str(picture_folders))
    shutil.rmtree(picture_folders / "val" / "green")
    (picture_folders / "train" / "red" / "0.jpg").write_bytes(b"no picture")
    found = load_dataset("imagenet", str(picture_folders))
    assert len(found.train) == 11 and any("red/0.jpg: not a readable picture" in note for note in found.notes)
    with pytest.raises(UserError, match=r"red/0\.jpg: not a readable picture .*--strict false leaves"):
        load_dataset("imagenet", str(picture_folders), strict=True)
    monkeypatch.setattr(data, "CHECKED_AT_MOST", 10)
    found = load_dataset("imagenet", str(picture_folders))
    assert any("16 pictures are too many to check before" in note for note in found.notes)
    with pytest.raises(UserError, match=r"red/0\.jpg: not a readable picture"):
        list(found.train.stream(iter([(np.arange(12), None)]), 16))


def test_unknown_data_set():
    with pytest.raises(UserError, match="did you mean cifar100"):
        load_dataset("cifar_100")
