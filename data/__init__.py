"""The data sets: `load_dataset(name, ...)` gives training, validation and test images of any of them."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.errors import UserError, near, printable
from data import cifar, digits, tables
from data.sampling import split_indices
from data.splits import ImageFiles, InMemory

DOWNLOADS = Path(__file__).resolve().parent / "downloads"

# None: whatever the user's table has.
CLASSES = {"cifar10": 10, "cifar100": 100, "digits": 10, "imagenet": 1000, "growth_stages": None, "images": None}
CHECKED_AT_MOST = 100_000  # pictures in files that are all decoded once before a run starts: minutes
FROM_FILES = ("imagenet", "growth_stages", "images")  # decoded and resized from image files; the others are in memory
IMAGES = {  # for training and for the test
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "digits": (1_297, 500),
    "imagenet": (1_281_167, 50_000),
}

Split = InMemory | ImageFiles


@dataclass(frozen=True)
class DataSet:
    """Three disjoint splits; `validation` is held out of the official training images.

    A table alone has no test images. Its `test` is then `validation`, or all images where none is held out, as
    `test_is` says; whoever reports a test accuracy has to say so too.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: list[str]
    test_is: str = "test"  # or "validation" or "all"
    notes: list[str] = field(default_factory=list)  # lines for people: what was found, chosen and left out


class Sizes(NamedTuple):
    """Numbers of classes and of images of each split."""

    classes: int
    train: int
    validation: int
    test: int


def fingerprint(data: DataSet) -> str:
    """Changes with the images of any split (in files: their names), their order and their labels."""
    digest = hashlib.sha256()
    for split in (data.train, data.validation, data.test):
        digest.update(split.labels.tobytes())
        if isinstance(split, ImageFiles):
            digest.update("\0".join(path.name for path in split.paths).encode("utf-8", "surrogateescape"))
        else:
            digest.update(np.ascontiguousarray(split.images))
    return digest.hexdigest()[:16]


def dataset_files(name: str, data_dir: str = "") -> dict[Path, str]:
    """The files or folders that `load_dataset` reads, each with its address ("" = it cannot be downloaded)."""
    _check_name(name, data_dir)
    if name == "digits":
        return {}
    if name in FROM_FILES:
        return {Path(data_dir or DOWNLOADS / name): ""}
    return {cifar.folder(name, Path(data_dir or DOWNLOADS)): cifar.url(name)}


def dataset_sizes(name: str, data_dir: str = "", **choice) -> Sizes:
    """What `load_dataset` will give, without decoding an image: a table counts as if all could be read.

    The official sets are not looked at; those whose classes differ in size (ImageNet, digits) are taken as even.
    """
    _check_name(name, data_dir)
    if name not in IMAGES:
        parts = tables.read_tables(Path(data_dir or DOWNLOADS / name))
        found = _from_tables(name, parts, **choice)
        return Sizes(len(found.class_names), len(found.train), len(found.validation), len(found.test))
    classes, (images, test) = CLASSES[name], IMAGES[name]
    even = np.repeat(np.arange(classes), images // classes)
    kept, held_out = split_indices(even, **choice, name=name)
    return Sizes(classes, len(kept) if choice.get("train_per_class") else images - len(held_out), len(held_out), test)


def load_dataset(name: str, data_dir: str = "", *, strict: bool = False, workers: int = 0, **choice) -> DataSet:
    """Load a data set by name; UserError for data that are missing, damaged, or fewer than asked for.

    Args:
        name: cifar10, cifar100, digits, or pictures in files: imagenet, growth_stages, images.
        data_dir: `tables.EXPECTED`, or CIFAR's folder; "" means data/downloads, where CIFAR is fetched when missing.
        strict: a picture that cannot be read is an error; otherwise it is left out, with a note.
        workers: processes that decode each picture once to find those; 0 = none.
        choice: which images are kept and held out; see `split_indices`.
    """
    _check_name(name, data_dir)
    if name in FROM_FILES:
        parts = tables.read_tables(Path(data_dir or DOWNLOADS / name))
        total = sum(len(table.labels) for table in parts.values())
        if total <= CHECKED_AT_MOST:
            parts = {part: tables.without_unreadable(table, strict, workers) for part, table in parts.items()}
        else:
            note = f"{total:,} pictures are too many to check before; one that cannot be read stops the run"
            parts["train"].notes.append(note)
        return _from_tables(name, parts, **choice)
    if name == "digits":
        train, test, class_names = digits.load()
    else:
        train, test, class_names = cifar.load(name, Path(data_dir or DOWNLOADS), download=not data_dir)
    kept, held_out = split_indices(train.labels, **choice, name=name)
    return DataSet(name, train.subset(kept), train.subset(held_out), test, class_names)


def _from_tables(name, parts, **choice) -> DataSet:
    """Nothing is held out of the training table where there are validation images."""
    table = parts["train"]
    if "validation" in parts:
        choice |= {"validation_per_class": 0, "validation_share": 0}
    words = {"name": str(table.source), "keys": table.names, "class_names": table.class_names}
    kept, held_out = split_indices(table.labels, **choice, **words)
    files = {part: ImageFiles(each.paths, each.labels) for part, each in parts.items()}
    notes = [printable(note) for each in parts.values() for note in each.notes]
    train, validation = files["train"].subset(kept), files.get("validation", files["train"].subset(held_out))
    test, test_is = files.get("test"), "test"
    if test is None:
        test, test_is = (validation, "validation") if len(validation) else (files["train"], "all")
        what = "the validation images" if len(validation) else "all images, those of the training too"
        notes.append(f"there are no test images: what is called test below is {what}")
    return DataSet(name, train, validation, test, table.class_names, test_is, notes)


def _check_name(name: str, data_dir: str) -> None:
    if name not in CLASSES:
        raise UserError(f"unknown data set {name!r}: {near(name, CLASSES)}")
    if name == "digits" and data_dir:
        raise UserError(f"--data_dir {data_dir}: digits come with this project; leave it out, or say --dataset images")
