import asyncio

import pytest

from fiat_jax.reasoning.pace import Pace


def test_one_answer_that_asks_for_less_halves_the_limit_and_a_round_of_answers_adds_one():
    pace = Pace(16)
    pace.overloaded(0)
    assert pace.limit == 8
    for _ in range(9):  # a little more than the eight of a round
        pace.succeeded()
    assert pace.limit == 9


def test_the_limit_stays_between_one_and_the_ceiling():
    pace = Pace(4)
    pace.succeeded()
    assert pace.limit == 4
    for halvings in range(10):
        pace.overloaded(halvings)
    assert pace.limit == 1
    for _ in range(100):
        pace.succeeded()
    assert pace.limit == 4


def test_a_crowd_that_was_sent_together_halves_once():
    async def crowd():
        pace = Pace(16)
        for begun in [await pace.begin() for _ in range(16)]:
            pace.overloaded(begun)
            pace.end()
        later = await pace.begin()
        at_first, _ = pace.limit, pace.overloaded(later)
        return at_first, pace.limit

    assert asyncio.run(crowd()) == (8, 4)


@pytest.mark.parametrize("halved", [False, True])
def test_never_more_are_under_way_than_the_limit_allows_and_all_have_their_turn(halved):
    async def run():
        pace, under_way, most, done = Pace(6), 0, 0, 0
        if halved:
            pace.overloaded(0)

        async def request():
            nonlocal under_way, most, done
            await pace.begin()
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0)
            under_way, done = under_way - 1, done + 1
            pace.end()

        await asyncio.gather(*(request() for _ in range(40)))
        return most, done

    assert asyncio.run(run()) == (3 if halved else 6, 40)


def test_a_request_that_is_given_up_leaves_its_turn_to_the_next():
    async def run():
        pace = Pace(1)
        await pace.begin()
        given_up, waiting = (asyncio.create_task(pace.begin()) for _ in range(2))
        await asyncio.sleep(0)
        pace.end()  # the turn is given_up's
        given_up.cancel()
        await asyncio.wait_for(waiting, timeout=30)

    asyncio.run(run())
