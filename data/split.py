"""Which training images are kept and which are held out for validation."""

import hashlib

import numpy as np

from common.errors import UserError


def split_indices(
    labels: np.ndarray,
    train_per_class: int = 0,
    validation_per_class: int = 0,
    validation_share: float = 0.0,
    split_seed: int = 0,
    *,
    name: str = "data",
    keys: list[str] | None = None,
    class_names: list[str] | None = None,
):
    """Choose training and validation images of each class at random: (train, validation) indices, sorted.

    The validation images depend on the seed alone, not on `train_per_class`.

    Args:
        labels: int64 (N,).
        train_per_class: keep that many of each class; 0 keeps all.
        validation_per_class: hold that many of each class out.
        validation_share: hold that share of each class out instead (0.1 = 90/10), see `held_out_of`; 0 = off.
        split_seed: which those are; not the run's seed, so that runs of several seeds can be compared.
        name, class_names: what an error calls the data and the classes (default: their labels).
        keys: a name for each image. The order within a class is then that of a hash of seed and name, so that one
            image more or less, or another order of all, moves no other image (but for one at the border, where
            the count changes). Without names it is a permutation of the images as they stand.
    """
    if validation_share and validation_per_class:
        text = f"--validation_share {validation_share} and --validation_per_class {validation_per_class} both say how"
        raise UserError(f"{text} many images are held out; set one of them to 0")
    if not 0 <= validation_share < 1:
        raise UserError(f"--validation_share {validation_share}: must be at least 0 and below 1")
    rng = np.random.default_rng(split_seed)
    train, validation = [], []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        order = rng.permutation(own) if keys is None else _order_of_hashes(own, keys, split_seed)
        held_out = held_out_of(len(own), validation_share) if validation_share else validation_per_class
        end = held_out + train_per_class if train_per_class else len(order)
        if end > len(order) or held_out >= len(order):
            option = f"share {validation_share}" if validation_share else f"per_class {validation_per_class}"
            text = f"{name}: class {class_names[label] if class_names else label} has {len(order)} training images"
            needed = f"{train_per_class or 'at least 1'} to train on (--train_per_class {train_per_class})"
            raise UserError(f"{text}, fewer than {held_out} to hold out (--validation_{option}) and {needed}")
        validation.append(order[:held_out])
        train.append(order[held_out:end])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(validation))


def held_out_of(count: int, share: float) -> int:
    """Images that are held out of the `count` of one class: the share, rounded half up, but at least one.

    Each class is rounded by itself, so that a change in one class leaves the others alone.
    """
    return max(1, int(count * share + 0.5))


def _order_of_hashes(indices: np.ndarray, keys: list[str], seed: int) -> np.ndarray:
    def hashed(i):
        return hashlib.sha256(f"{seed}/{keys[i]}".encode(errors="surrogateescape")).digest()

    return np.array(sorted(indices, key=hashed), np.int64)
