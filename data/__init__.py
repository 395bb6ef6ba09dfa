"""The data sets: `load_dataset(name, ...)` gives training, validation and test images of any of them."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.errors import UserError, near
from data import cifar, digits, folders, tables
from data.folders import ImageFiles
from data.in_memory import InMemory
from data.split import split_indices

DOWNLOADS = Path(__file__).resolve().parent / "downloads"

# None: whatever the user's table has, see `dataset_sizes`.
CLASSES = {"cifar10": 10, "cifar100": 100, "digits": 10, "imagenet": 1000, "growth_stages": 4, "images": None}
TABLES = ("growth_stages", "images")  # a user's own pictures, see tables.EXPECTED
FROM_FILES = ("imagenet", *TABLES)  # decoded and resized from image files; the others are in memory
IMAGES = {
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "digits": (1_297, 500),
    "imagenet": (1_281_167, 50_000),
}

Split = InMemory | ImageFiles


@dataclass(frozen=True)
class DataSet:
    """Three disjoint splits; `validation` is held out of the official training images.

    A table has no test images. Its `test` is then `validation`, or all images where none is held out, as `test_is`
    says; whoever reports a test accuracy has to say so too.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: list[str]
    test_is: str = "test"  # or "validation" or "all"
    notes: list[str] = field(default_factory=list)  # lines for people: what was found, chosen and left out


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


@dataclass(frozen=True)
class Sizes:
    """Numbers of classes and of images of each split."""

    classes: int
    train: int
    validation: int
    test: int


def dataset_files(name: str, data_dir: str = "") -> dict[Path, str]:
    """The files or folders that `load_dataset` reads, each with its address ("" = it cannot be downloaded)."""
    _check_name(name)
    if name == "digits":
        return {}
    if name in TABLES:
        return {Path(data_dir or DOWNLOADS / name): ""}
    if name == "imagenet":
        return folders.files(Path(data_dir or DOWNLOADS / name))
    return cifar.files(name, Path(data_dir or DOWNLOADS))


def dataset_sizes(
    name: str,
    data_dir: str = "",
    *,
    train_per_class: int = 0,
    validation_per_class: int = 0,
    validation_share: float = 0.0,
    split_seed: int = 0,
) -> Sizes:
    """What `load_dataset` will give, without decoding an image: a table counts as if all could be read.

    The official sets are not looked at; those whose classes differ in size (ImageNet, digits) are taken as even.
    A zip is unpacked. Raises UserError as `load_dataset` does, but for what only shows in the images.
    """
    _check_name(name)
    if name in TABLES:
        table = _read_table(name, data_dir)
        kept, held_out = _split_table(
            table, train_per_class, validation_per_class, split_seed, validation_share=validation_share
        )
        return Sizes(len(table.class_names), len(kept), len(held_out), len(held_out) or len(table.labels))
    classes, (images, test) = CLASSES[name], IMAGES[name]
    even = np.repeat(np.arange(classes), images // classes)
    counts = (train_per_class, validation_per_class, split_seed)
    kept, held_out = split_indices(even, *counts, name, validation_share=validation_share)
    return Sizes(classes, len(kept) if train_per_class else images - len(held_out), len(held_out), test)


def load_dataset(
    name: str,
    data_dir: str = "",
    *,
    train_per_class: int = 0,
    validation_per_class: int = 0,
    validation_share: float = 0.0,
    split_seed: int = 0,
    strict: bool = False,
    workers: int = 0,
) -> DataSet:
    """Load a data set by name.

    Args:
        name: cifar10, cifar100, digits, imagenet (folders); growth_stages (a table of 4 classes) or images (any table).
        data_dir: folder with the data; "" means data/downloads, where CIFAR is downloaded when it is missing. For a
            table a folder, a CSV or a .zip, which is unpacked to data/downloads.
        train_per_class: keep that many training images of each class; 0 keeps all.
        validation_per_class: hold that many training images of each class out for validation.
        validation_share: hold that share of each class out instead (0.1 = 90/10), at least one image; 0 = off.
        split_seed: which images those are; not the run's seed, so that runs of several seeds can be compared.
        strict: a picture of a table that cannot be read is an error; otherwise it is left out, with a note. (In
            imagenet it is one when it is come upon.)
        workers: processes that decode each picture of a table once to find those; 0 = none.

    Raises:
        UserError: unknown name, data missing or damaged, more images asked for than there are.
    """
    _check_name(name)
    counts = (train_per_class, validation_per_class, split_seed)
    if name in TABLES:
        table = tables.without_unreadable(_read_table(name, data_dir), strict, workers)
        images = ImageFiles(table.paths, table.labels)
        kept, held_out = _split_table(table, *counts, validation_share=validation_share)
        validation = images.subset(held_out)
        test_is, test = ("validation", validation) if len(held_out) else ("all", images)
        note = "there are no test images: what is called test below is " + (
            "the validation images" if len(held_out) else "all images, those of the training among them")  # fmt: skip
        return DataSet(name, images.subset(kept), validation, test, table.class_names, test_is, [*table.notes, note])
    if name == "digits":
        train, test, class_names = digits.load()
    elif name == "imagenet":
        train, test, class_names = folders.load(Path(data_dir or DOWNLOADS / name))
    else:
        train, test, class_names = cifar.load(name, Path(data_dir or DOWNLOADS), download=not data_dir)
    kept, held_out = split_indices(train.labels, *counts, name, validation_share=validation_share)
    return DataSet(name, train.subset(kept), train.subset(held_out), test, class_names)


def _read_table(name: str, data_dir: str) -> tables.Table:
    table = tables.read_table(data_dir or DOWNLOADS / name, DOWNLOADS)
    found, expected = table.class_names, CLASSES[name]
    if expected not in (None, len(found)):
        raise UserError(
            f"{table.source}: has {len(found)} classes ({', '.join(found[:5])}{', ...' if len(found) > 5 else ''}), "
            f"{name} has {expected}; for any other table say --dataset images"
        )
    return table


def _split_table(table: tables.Table, *counts, validation_share: float):
    return split_indices(
        table.labels, *counts, str(table.source),
        validation_share=validation_share, keys=table.names, class_names=table.class_names,
    )  # fmt: skip


def _check_name(name: str) -> None:
    if name not in CLASSES:
        raise UserError(f"unknown data set {name!r}: {near(name, CLASSES)}")
