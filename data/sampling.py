"""Which images are kept, which are held out, and which of them make up step k.

Step k is a pure function of (seed, step), the same for any number of processes: epoch after epoch, each a permutation
of its own, form one endless stream, and step k takes the next `batch_size` of it, across the border of two epochs
where needed. Ranks and micro-batches are contiguous pieces of that batch.
"""

import functools
import hashlib
import itertools

import numpy as np

from common.errors import UserError

# Streams of random numbers that must never coincide: the first word after the run's seed.
_SHUFFLE, _AUGMENT, _NETWORK, _DROPOUT = range(4)


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
        validation_share: hold that share of each class out instead of a number (0.1 = 90/10); 0 = off.
        split_seed: which those are; not the run's seed, so that runs of several seeds can be compared.
        name, class_names: what an error calls the data and the classes (default: their labels).
        keys: a name for each image. The order within a class is then that of a hash of seed and name, so that one
            image more or less moves no other image (but for one at the border, where the count changes).
    """
    if validation_share and validation_per_class:
        text = f"--validation_share {validation_share} and --validation_per_class {validation_per_class}"
        raise UserError(f"{text} both say how many images are held out; set one of them to 0")
    if not 0 <= validation_share < 1:
        raise UserError(f"--validation_share {validation_share}: must be at least 0 and below 1")

    def hashed(index):
        return hashlib.sha256(f"{split_seed}/{keys[index]}".encode(errors="surrogateescape")).digest()

    rng = np.random.default_rng(split_seed)
    train, validation = [], []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        order = rng.permutation(own) if keys is None else np.array(sorted(own, key=hashed), np.int64)
        held_out = held_out_of(len(own), validation_share) if validation_share else validation_per_class
        end = held_out + train_per_class if train_per_class else len(order)
        if end > len(order) or held_out >= len(order):
            text = f"{name}: class {class_names[label] if class_names else label} has {len(order)} training images"
            option = f"share {validation_share}" if validation_share else f"per_class {validation_per_class}"
            needed = f"{train_per_class or 'at least 1'} to train on (--train_per_class {train_per_class})"
            raise UserError(f"{text}, fewer than {held_out} to hold out (--validation_{option}) and {needed}")
        validation.append(order[:held_out])
        train.append(order[held_out:end])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(validation))


def held_out_of(count: int, share: float) -> int:
    """The share of the `count` images of one class, rounded half up, but at least one."""
    return max(1, int(count * share + 0.5))


@functools.lru_cache(maxsize=2)  # a batch touches at most two epochs unless it is larger than the data set
def _epoch(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    return np.random.default_rng([seed, _SHUFFLE, epoch]).permutation(num_samples)


def step_samples(seed: int, step: int, batch_size: int, num_samples: int) -> np.ndarray:
    """Indices (batch_size,) int64 of the samples of update `step`, which counts from 1."""
    epochs, offsets = np.divmod(np.arange((step - 1) * batch_size, step * batch_size), num_samples)
    parts = [_epoch(seed, int(epoch), num_samples)[offsets[epochs == epoch]] for epoch in np.unique(epochs)]
    return np.concatenate(parts)


def augmentation_rng(seed: int, step: int) -> np.random.Generator:
    """Generator of the crops and flips of the whole batch of update `step`."""
    return np.random.default_rng([seed, _AUGMENT, step])


def network_seed(seed: int) -> int:
    """Seed of the framework's generator for the initial weights."""
    return _word(seed, _NETWORK)


def dropout_seed(seed: int, step: int, rank: int = 0) -> int:
    """Seed of the framework's generator for the dropout masks of update `step` on process `rank`.

    Seeding afresh at each step makes a resumed run draw the masks of an unbroken one without saved states.
    """
    return _word(seed, _DROPOUT, step, rank)


def _word(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1, np.uint32)[0] >> 1)


def pieces(length: int, parts: int) -> list[slice]:
    """Cut `length` items into `parts` contiguous pieces whose sizes differ by at most one."""
    bounds = [length * i // parts for i in range(parts + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]
