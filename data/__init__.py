"""The data sets: `load_dataset(name, ...)` gives training, validation and test images of any of them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import UserError, near
from data import cifar, digits, image_files
from data.image_files import ImageFiles
from data.in_memory import InMemory

DOWNLOADS = Path(__file__).resolve().parent / "downloads"

CLASSES = {"cifar10": 10, "cifar100": 100, "digits": 10, "imagenet": 1000}
IMAGES = {
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "digits": (1_297, 500),
    "imagenet": (1_281_167, 50_000),
}

Split = InMemory | ImageFiles


@dataclass(frozen=True)
class DataSet:
    """Three disjoint splits; `validation` is held out of the official training images."""

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: list[str]


def dataset_files(name: str, data_dir: str = "") -> dict[Path, str]:
    """The files or folders that `load_dataset` reads, each with its address ("" = it cannot be downloaded)."""
    _check_name(name)
    if name == "digits":
        return {}
    if name == "imagenet":
        return image_files.files(Path(data_dir or DOWNLOADS / name))
    return cifar.files(name, Path(data_dir or DOWNLOADS))


def load_dataset(
    name: str,
    data_dir: str = "",
    *,
    train_per_class: int = 0,
    validation_per_class: int = 0,
    split_seed: int = 0,
) -> DataSet:
    """Load a data set by name.

    Args:
        name: cifar10, cifar100, imagenet (folders), digits.
        data_dir: folder with the data; "" means data/downloads, where CIFAR is downloaded when it is missing.
        train_per_class: keep that many training images of each class; 0 keeps all.
        validation_per_class: hold that many training images of each class out for validation.
        split_seed: which images those are; not the run's seed, so that runs of several seeds can be compared.

    Raises:
        UserError: unknown name, data missing or damaged, more images asked for than there are.
    """
    _check_name(name)
    if name == "digits":
        train, test, class_names = digits.load()
    elif name == "imagenet":
        train, test, class_names = image_files.load(Path(data_dir or DOWNLOADS / name))
    else:
        train, test, class_names = cifar.load(name, Path(data_dir or DOWNLOADS), download=not data_dir)
    kept, held_out = split_indices(train.labels, train_per_class, validation_per_class, split_seed, name)
    return DataSet(name, train.subset(kept), train.subset(held_out), test, class_names)


def split_indices(labels: np.ndarray, train_per_class: int, validation_per_class: int, seed: int, name: str = "data"):
    """Choose training and validation images of each class at random: (train, validation) indices, sorted.

    The validation images depend on the seed alone, not on `train_per_class`.
    """
    rng = np.random.default_rng(seed)
    train, validation = [], []
    for label in np.unique(labels):
        order = rng.permutation(np.flatnonzero(labels == label))
        end = validation_per_class + train_per_class if train_per_class else len(order)
        if end > len(order) or validation_per_class >= len(order):
            raise UserError(
                f"{name}: class {label} has {len(order)} training images, fewer than --validation_per_class "
                f"{validation_per_class} and --train_per_class {train_per_class} ask for together"
            )
        validation.append(order[:validation_per_class])
        train.append(order[validation_per_class:end])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(validation))


def _check_name(name: str) -> None:
    if name not in CLASSES:
        raise UserError(f"unknown data set {name!r}: {near(name, CLASSES)}")
