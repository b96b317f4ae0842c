"""Who gets a slot, and when: plain Python."""

import itertools

import pytest

from fiat_jax.inference.requests import Request
from fiat_jax.inference.scheduler import PATIENCE, Scheduler, Sequence

numbers = itertools.count()


def waiting(length=3, new=4, prefix=""):
    return Sequence(Request((1,) * length, new, prefix=prefix), next(numbers), 0)


def test_the_longest_go_first_in_bulk_and_the_first_to_come_otherwise():
    sequences = [waiting(2), waiting(9), waiting(3, new=20), waiting(5)]
    for order, expected in (("longest", [2, 1, 3, 0]), ("arrival", [0, 1, 2, 3])):
        scheduler = Scheduler(4, order)
        scheduler.add(sequences)
        assert scheduler.admit(4) == [sequences[n] for n in expected]


def test_slots_are_given_once_and_again_when_they_are_free():
    scheduler = Scheduler(2, "arrival")
    a, b, c = sequences = [waiting() for _ in range(3)]
    scheduler.add(sequences)
    assert scheduler.admit(1) == [a]
    assert scheduler.admit(8) == [b]
    assert scheduler.admit(8) == []
    assert {a.slot, b.slot} == {0, 1}
    scheduler.release(a, "stop")
    assert scheduler.admit(8) == [c]
    assert c.slot == a.slot
    assert (a.finish_reason, scheduler.idle) == ("stop", False)
    scheduler.release(b, "length")
    scheduler.release(c, "length")
    assert scheduler.idle


def test_one_prefix_is_at_work_at_a_time():
    scheduler = Scheduler(4, "longest")
    sequences = [waiting(prefix=prefix) for prefix in ("a", "b", "a", "b", "a")]
    scheduler.add(sequences)
    assert scheduler.admit(8) == [sequences[n] for n in (0, 2, 4)]
    assert scheduler.admit(8) == []
    for one in list(scheduler.running.values()):
        scheduler.release(one, "stop")
    assert scheduler.admit(8) == [sequences[1], sequences[3]]
    assert scheduler.group == ("", "b")


def test_who_waits_for_another_prefix_is_overtaken_only_so_often():
    scheduler = Scheduler(2, "arrival")
    scheduler.add([waiting(prefix="a")])
    scheduler.admit(2)
    other = waiting(prefix="b")
    scheduler.add([other])
    overtaking = 0
    while other.slot is None:
        scheduler.add([waiting(prefix="a")])
        overtaking += len(scheduler.admit(1))
        scheduler.release(next(iter(scheduler.running.values())), "stop")
        assert overtaking <= 2 * PATIENCE
        if not scheduler.running:
            assert scheduler.admit(1)[0] is other
    assert overtaking == 2 * PATIENCE


@pytest.mark.parametrize("order", ["longest", "arrival"])
def test_what_is_over_leaves_slots_and_the_line(order):
    scheduler = Scheduler(1, order)
    a, b, c = sequences = [waiting(9), waiting(5), waiting(2)]
    scheduler.add(sequences)
    scheduler.admit(1)
    assert scheduler.end(lambda one: one is not c, "cancelled") == [a, b]
    assert (a.finish_reason, b.finish_reason, c.finish_reason) == ("cancelled", "cancelled", None)
    assert scheduler.admit(1) == [c]
