"""What a run may cost: said before, and never passed."""

import pytest
from support.oracle import Oracle

from fiat_jax.errors import UserError
from fiat_jax.reasoning.backend import Completion
from fiat_jax.reasoning.cost import Prices
from fiat_jax.reasoning.drive import GenerateOptions
from fiat_jax.reasoning.generate import bill, generate

PRICES = Prices(prompt=1e6, completion=1e6, cached=0.5e6)  # a token costs 1, one that was read before half of it


def counted(renderer, row):
    prompt = renderer.reasoning_prompt(row)
    return len(prompt.prefix_ids) + len(prompt.own_ids)


class Priced(Oracle):
    """Its answers take all that they may, of a prompt that is as long as was counted."""

    def __init__(self, renderer, usage=True):
        super().__init__()
        self.usage, self.under_way, self.most_at_once = usage, 0, 0

    async def complete(self, prompt, *, seed, sample):
        self.under_way += 1
        self.most_at_once = max(self.most_at_once, self.under_way)
        await super().complete(prompt, seed=seed, sample=sample)
        self.under_way -= 1
        read = len(prompt.prefix_ids) + len(prompt.own_ids)
        return Completion("So the answer is no.", "stop", *((read, 20) if self.usage else ()))


@pytest.mark.parametrize("usage", [True, False], ids=["usage is said", "usage is not said"])
def test_no_request_is_begun_that_might_pass_the_limit_of_costs(task, rows, renderer, store, usage):
    rows = rows[:10]  # of one digit: their prompts are of one length
    each = counted(renderer, rows[0]) + 20
    limit, backend = 4.5 * each, Priced(renderer, usage)
    options = GenerateOptions(concurrency=8, max_cost=limit)
    summary = generate(task, rows, renderer, backend, store, options, prices=PRICES)
    assert (summary.written, summary.interrupted) == (4, True)
    assert summary.cost == 4 * each <= limit
    assert backend.most_at_once == 4
    assert "Generate.max_cost" in summary.stopped_by
    again = generate(task, rows, renderer, Priced(renderer), store, prices=PRICES)
    assert (again.written, again.interrupted, again.stopped_by) == (6, False, "")


def test_money_that_requests_did_not_need_is_spent_on_others(task, rows, renderer, store):
    each = counted(renderer, rows[0]) + 20
    oracle = Oracle()  # 10 + 5 tokens, a fraction of the worst
    options = GenerateOptions(concurrency=8, max_cost=2.0 * each)
    summary = generate(task, rows[:10], renderer, oracle, store, options, prices=PRICES)
    assert (summary.written, summary.interrupted, summary.cost) == (10, False, 150)


def test_an_endpoint_that_counts_more_tokens_than_we_do_does_not_pass_the_limit_either(task, rows, renderer, store):
    class Twice(Oracle):
        first_alone = True

        async def complete(self, prompt, *, seed, sample):
            await super().complete(prompt, seed=seed, sample=sample)
            return Completion("So the answer is no.", "stop", 2 * (len(prompt.prefix_ids) + len(prompt.own_ids)), 20)

    rows = rows[:10]
    truly = 2 * counted(renderer, rows[0]) + 20
    options = GenerateOptions(concurrency=8, max_cost=4.5 * truly)
    summary = generate(task, rows, renderer, Twice(), store, options, prices=PRICES)
    assert (summary.written, summary.cost) == (4, 4 * truly)


def test_tokens_that_were_read_before_cost_what_is_said_of_them():
    assert Prices(2.0, 10.0, 0.5).of(1_000_000, 100_000, 600_000) == pytest.approx(0.8 + 0.3 + 1.0)


def test_the_bill_says_what_the_run_may_cost(task, rows, renderer, store):
    expected = bill(task, rows, renderer, Oracle(), store, prices=PRICES)
    assert expected.cost_at_most == expected.prompt_tokens + expected.completion_tokens_at_most
    assert bill(task, rows, renderer, Oracle(), store).cost_at_most is None


def test_a_limit_without_prices_is_an_error(task, rows, renderer, store):
    with pytest.raises(UserError, match=r"max_cost needs prices: set Endpoint\.price_in"):
        generate(task, rows, renderer, Oracle(), store, GenerateOptions(max_cost=1.0))
