"""Which training images are kept and which are held out for validation."""

import hashlib

import numpy as np

from common.errors import UserError


def split_indices(
    labels: np.ndarray,
    train_per_class: int,
    validation_per_class: int,
    validation_share: float,
    seed: int,
    *,
    name: str = "data",
    keys: list[str] | None = None,
    class_names: list[str] | None = None,
):
    """Choose training and validation images of each class at random: (train, validation) indices, sorted.

    The validation images depend on the seed alone, not on `train_per_class`.

    Args:
        labels: int64 (N,).
        validation_share: hold this share of each class out instead, see `held_out_of`; 0 = `validation_per_class`.
        name, class_names: what an error calls the data and the classes (default: their labels).
        keys: a name for each image. The order within a class is then that of a hash of seed and name, so that one
            image more or less, or another order of all, moves no other image (but for one at the border, where
            the count changes). Without names it is a permutation of the images as they stand.
    """
    if validation_share and validation_per_class:
        raise UserError(
            f"--validation_share {validation_share} and --validation_per_class {validation_per_class} both say how "
            "many images are held out; set one of them to 0"
        )
    if not 0 <= validation_share < 1:
        raise UserError(f"--validation_share {validation_share}: must be at least 0 and below 1")
    rng = np.random.default_rng(seed)
    train, validation = [], []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        order = rng.permutation(own) if keys is None else _order_of_hashes(own, keys, seed)
        held_out = held_out_of(len(own), validation_share) if validation_share else validation_per_class
        end = held_out + train_per_class if train_per_class else len(order)
        if end > len(order) or held_out >= len(order):
            option = f"share {validation_share}" if validation_share else f"per_class {validation_per_class}"
            raise UserError(
                f"{name}: class {class_names[label] if class_names else label} has {len(order)} training images, "
                f"fewer than {held_out} to hold out (--validation_{option}) and {train_per_class or 'at least 1'} to "
                f"train on (--train_per_class {train_per_class})"
            )
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
