"""Which samples make up step k: a pure function of (seed, step), the same for any number of processes.

Epoch after epoch, each a permutation of its own, form one endless stream; step k takes the next `batch_size` of
it, across the border of two epochs where needed. Ranks and micro-batches are contiguous pieces of that batch.
"""

import functools
import itertools

import numpy as np

# Streams of random numbers that must never coincide: the first word after the run's seed.
_SHUFFLE, _AUGMENT, _NETWORK, _DROPOUT = range(4)


@functools.lru_cache(maxsize=2)  # a batch touches at most two epochs unless it is larger than the data set
def _epoch(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    return np.random.default_rng([seed, _SHUFFLE, epoch]).permutation(num_samples)


def step_samples(seed: int, step: int, batch_size: int, num_samples: int) -> np.ndarray:
    """Indices (batch_size,) int64 of the samples of update `step`, which counts from 1."""
    position = np.arange((step - 1) * batch_size, step * batch_size)
    epochs, offsets = np.divmod(position, num_samples)
    samples = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        samples[here] = _epoch(seed, int(epoch), num_samples)[offsets[here]]
    return samples


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
