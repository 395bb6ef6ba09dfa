import numpy as np
import pytest

from data.sampling import augmentation_rng, dropout_seed, network_seed, pieces, step_samples


def test_each_epoch_holds_every_sample_once_also_across_steps():
    stream = np.concatenate([step_samples(1, step, 7, 10) for step in range(1, 21)])
    epochs = stream.reshape(-1, 10)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(10))
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)  # shuffled anew each time
    larger = np.concatenate([step_samples(1, step, 28, 10) for step in range(1, 6)])
    np.testing.assert_array_equal(larger, stream)  # one stream for every batch size


def test_a_step_depends_on_seed_and_step_alone():
    one = step_samples(1, 500, 64, 5000)
    step_samples(2, 3, 5, 11)
    np.testing.assert_array_equal(one, step_samples(1, 500, 64, 5000))
    assert (one != step_samples(2, 500, 64, 5000)).any()


def test_a_batch_larger_than_the_data_set():
    counts = np.bincount(step_samples(0, 1, 25, 10))
    assert counts.sum() == 25 and counts.min() >= 2 and counts.max() <= 3


@pytest.mark.parametrize(("length", "parts"), [(8, 3), (512, 16), (3, 5), (1, 1)])
def test_pieces_cover_the_batch_once_and_are_even(length, parts):
    found = pieces(length, parts)
    assert [i for piece in found for i in range(length)[piece]] == list(range(length))
    sizes = [piece.stop - piece.start for piece in found]
    assert len(found) == parts and max(sizes) - min(sizes) <= 1


def test_streams_of_random_numbers_do_not_coincide():
    seeds = [network_seed(3), *(dropout_seed(3, step, rank) for step in range(1, 200) for rank in range(4))]
    assert len(set(seeds)) == len(seeds) and min(seeds) >= 0
    assert augmentation_rng(3, 1).random() != augmentation_rng(3, 2).random()
