"""Several adapters behind one base: each request is answered as by a model that has its adapter alone."""

import dataclasses

import jax
import numpy as np
import pytest
from support.louder import louder
from support.tiny_decoder import TINY

from fiat_jax.errors import UserError
from fiat_jax.inference.config import EngineConfig
from fiat_jax.inference.engine import Engine
from fiat_jax.inference.requests import Request
from fiat_jax.models.lora import LoraConfig
from fiat_jax.models.model import random_model

CONFIG = EngineConfig(4, 48, 64, block=4, prefill_rows=2, shortest_bucket=32, order="arrival")
NO_END = -5


@pytest.fixture(scope="module")
def base(one_device):
    return louder(random_model(TINY, one_device, lora=LoraConfig(rank=4)), 8)


@pytest.fixture(scope="module")
def adapters(base):
    """Two adapters that say what the base does not."""

    def noise(seed):
        rng = np.random.default_rng(seed)
        return jax.tree.map(lambda x: jax.numpy.asarray(rng.normal(0, 0.5, x.shape), x.dtype), base.trainable)

    return {"first": noise(1), "second": noise(2)}


@pytest.fixture(scope="module")
def engine(base, adapters):
    engine = Engine(base, NO_END, CONFIG)
    for name, adapter in adapters.items():
        engine.add_adapter(name, adapter)
    return engine


def requests(engine, name=""):
    rng = np.random.default_rng(0)
    key = engine.add_prefix(list(range(40)), adapter=name)
    prompts = [tuple(rng.integers(0, 61, n + 3).tolist()) for n in range(6)]
    return [Request(ids, 9, adapter=name, prefix=("", key)[n % 2]) for n, ids in enumerate(prompts)]


def test_each_request_is_answered_as_by_its_adapter_alone(base, adapters, engine):
    names = ["", *adapters]
    together = [request for three in zip(*(requests(engine, name) for name in names), strict=True) for request in three]
    found = engine.generate(together)
    for n, name in enumerate(names):
        model = dataclasses.replace(base, trainable=adapters.get(name, base.trainable))
        alone = Engine(model, NO_END, CONFIG)
        assert found[n::3] == alone.generate(requests(alone))
    assert found[0::3] != found[1::3] != found[2::3]


def test_a_prefix_is_for_the_adapter_that_it_was_read_with(engine):
    key = engine.add_prefix([1, 2, 3], adapter="first")
    assert key != engine.add_prefix([1, 2, 3], adapter="second") != engine.add_prefix([1, 2, 3])
    with pytest.raises(UserError, match=f"no prefix '{key}'"):
        engine.generate([Request((1,), 2, prefix=key, adapter="second")])
    engine.drop_prefix(key)
    with pytest.raises(UserError, match=f"no prefix '{key}'"):
        engine.drop_prefix(key)


def test_a_prefix_in_use_is_not_dropped(engine):
    key = engine.add_prefix([4, 5, 6])
    engine.submit(Request((1,), 9, prefix=key))
    with pytest.raises(UserError, match="is needed by requests"):
        engine.drop_prefix(key)
    list(engine.run())
    engine.drop_prefix(key)


def test_an_adapter_that_is_none_is_refused(engine, adapters, base):
    with pytest.raises(UserError, match="no adapter 'third'; there are"):
        engine.generate([Request((1,), 2, adapter="third")])
    with pytest.raises(UserError, match="there is an adapter 'first' already"):
        engine.add_adapter("first", adapters["first"])
    with pytest.raises(UserError, match="not of the shapes"):
        engine.add_adapter("third", jax.tree.map(lambda x: x[..., :2], adapters["first"]))
