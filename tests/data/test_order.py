import numpy as np
import pytest

from fiat_jax.data.order import LENGTHS, ROWS, order


def test_an_order_holds_every_index_once():
    assert sorted(order(1000, seed=3, epoch=2)) == list(range(1000))
    assert order(0, seed=3, epoch=2).shape == (0,)


def test_seed_epoch_and_stream_each_change_the_order():
    orders = [order(50, 0, 0), order(50, 1, 0), order(50, 0, 1), order(50, 0, 0, ROWS), order(50, 0, 0, LENGTHS)]
    assert len({tuple(one) for one in orders}) == len(orders)


def test_the_order_is_the_same_for_ever():
    # A checkpoint of an older installation must find its examples again.
    assert order(8, seed=7, epoch=3).tolist() == [2, 5, 7, 3, 0, 6, 4, 1]


def test_every_example_is_as_likely_to_come_first():
    first = [order(4, seed, 0)[0] for seed in range(4000)]
    counts = np.bincount(first, minlength=4)
    assert abs(counts - 1000).max() < 120  # four standard deviations


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed -1"):
        order(3, seed=-1, epoch=0)
