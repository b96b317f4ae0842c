import numpy as np
import pytest

from fiat_jax.data.ragged import Ragged, running, spans, within


def test_arrays_come_back_as_they_went_in():
    arrays = [np.array([3, 1]), np.array([], int), np.array([7])]
    ragged = Ragged.of(arrays)
    assert [ragged[i].tolist() for i in range(len(ragged))] == [a.tolist() for a in arrays]
    assert ragged.lengths.tolist() == [2, 0, 1]


def test_taking_follows_the_order_asked_for():
    taken = Ragged.of([np.array([3, 1]), np.array([], int), np.array([7])]).take(np.array([2, 1, 0, 2]))
    assert [taken[i].tolist() for i in range(len(taken))] == [[7], [], [3, 1], [7]]


def test_indices_beyond_the_end_are_refused():
    with pytest.raises(IndexError, match="array 1 of 1"):
        Ragged.of([np.array([1])])[1]


def test_spans_and_positions_within_them():
    lengths = np.array([2, 0, 3])
    assert spans(np.array([10, 50, 20]), lengths).tolist() == [10, 11, 20, 21, 22]
    assert within(lengths).tolist() == [0, 1, 0, 1, 2]


def test_running_starts_again_in_each_group():
    assert running(np.array([2, 3, 4, 1]), np.array([2, 0, 2])).tolist() == [0, 2, 0, 4]
