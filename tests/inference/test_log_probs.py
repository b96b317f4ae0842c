"""Log-probabilities that the engine tells: of what it writes, of the likeliest alternatives, of given texts."""

import dataclasses

import jax
import numpy as np
import pytest
from support.drawn import drawn
from support.louder import louder
from support.tiny_decoder import TINY

from fiat_jax.errors import UserError
from fiat_jax.inference.config import EngineConfig
from fiat_jax.inference.engine import Engine
from fiat_jax.inference.requests import Request
from fiat_jax.models.config import EncoderDecoderConfig, Reach
from fiat_jax.models.model import logits, random_model
from fiat_jax.models.rope import Rope
from fiat_jax.sharding import MeshConfig

CONFIG = EngineConfig(4, 40, 0, block=4, prefill_rows=4, shortest_bucket=20, alternatives=3, score=True)
NO_END = -5


@pytest.fixture(scope="module", params=[(1, 1, 1), (2, 2, 2)], ids=["1 device", "8 devices"])
def engine(request):
    count = int(np.prod(request.param))
    mesh = MeshConfig(*request.param).build(jax.devices()[:count])
    model = drawn(TINY, mesh, lambda model: louder(model, 8))
    return Engine(model, NO_END, CONFIG)


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(1)
    return [tuple(rng.integers(0, 61, n).tolist()) for n in (20, 7, 40, 1, 13, 25)]


def expected(model, text):
    """Return log P of every next token behind every token of a text [T, V]."""
    return np.asarray(jax.nn.log_softmax(logits(model, np.array([text]))[0]))


def test_a_given_texts_log_probabilities_are_those_of_one_full_pass(engine, texts):
    for text, found in zip(texts, engine.score(texts, alternatives=2), strict=True):
        all_TV = expected(engine.model, text)[:-1]
        want = [all_TV[t, token] for t, token in enumerate(text[1:])]
        np.testing.assert_allclose(found.log_probs, want, atol=1e-4)
        assert len(found.alternatives) == len(text) - 1
        for place, best in zip(all_TV, found.alternatives, strict=True):
            assert list(best) == np.argsort(-place)[:2].tolist()
            np.testing.assert_allclose(list(best.values()), np.sort(place)[:-3:-1], atol=1e-4)
    assert engine.score([texts[0]])[0].alternatives == ()


def test_where_angles_depend_on_a_texts_length_it_is_that_of_the_text_and_not_of_its_row(one_device, texts):
    dynamic = Reach(None, Rope(kind="dynamic", factor=4.0, original_length=16))
    config = dataclasses.replace(TINY, reaches=(dynamic,), max_length=96)
    engine = Engine(drawn(config, one_device, lambda model: louder(model, 8)), NO_END, CONFIG)
    for text, found in zip(texts, engine.score(texts), strict=True):
        all_TV = expected(engine.model, text)[:-1]
        np.testing.assert_allclose(found.log_probs, [all_TV[t, token] for t, token in enumerate(text[1:])], atol=1e-4)


def test_alternatives_are_the_likeliest_of_every_place_and_change_nothing(engine, texts):
    plain = [Request(text[:20], 9, temperature=n / 2, seed=n) for n, text in enumerate(texts)]
    asked = [dataclasses.replace(request, alternatives=n % 4) for n, request in enumerate(plain)]
    for request, (found,), (told,) in zip(asked, engine.generate(plain), engine.generate(asked), strict=True):
        assert told.tokens == found.tokens
        assert len(told.alternatives) == (9 if request.alternatives else 0)
        all_TV = expected(engine.model, request.tokens + told.tokens)[len(request.tokens) - 1 : -1]
        for place, best, token, log_prob in zip(
            all_TV, told.alternatives or [{}] * 9, told.tokens, told.log_probs, strict=True
        ):
            assert list(best) == np.argsort(-place)[: request.alternatives].tolist()
            assert best.get(token, log_prob) == pytest.approx(log_prob, abs=1e-5)


def test_what_is_ended_early_tells_no_more_alternatives_than_tokens(engine, texts):
    ((whole,),) = engine.generate([Request(texts[0], 12, alternatives=1)])
    ((cut,),) = engine.generate([Request(texts[0], 12, alternatives=1, stop=(whole.tokens[5:7],))])
    assert len(cut.alternatives) == len(cut.tokens) <= 5
    assert cut.alternatives == whole.alternatives[: len(cut.tokens)]


def test_what_cannot_be_told_is_refused(engine, texts):
    with pytest.raises(UserError, match="4 alternatives are asked for; this engine tells 3"):
        engine.generate([Request(texts[0], 2, alternatives=4)])
    with pytest.raises(UserError, match="a text of 41 tokens is to be scored; this engine takes 1 to 40"):
        engine.score([(1,) * 41])
    with pytest.raises(UserError, match="a text holds token 99"):
        engine.score([(1, 99)])


@pytest.fixture(scope="module")
def reader(one_device):
    config = EncoderDecoderConfig(
        vocab_size=61, width=32, num_layers=2, num_decoder_layers=2, num_heads=4, head_dim=8, mlp_width=48,
        num_buckets=8,
    )  # fmt: skip
    return Engine(louder(random_model(config, one_device), 8), NO_END, dataclasses.replace(CONFIG, alternatives=0))


@pytest.mark.parametrize("engine", [(1, 1, 1)], indirect=True)
def test_answers_are_ranked_as_if_they_were_written(engine, reader, texts):
    for one in (engine, reader):
        ((told,),) = one.generate([Request(texts[1], 9)])
        other = tuple(60 - token for token in told.tokens[:5])
        found = one.rank(texts[1], [told.tokens, other, told.tokens[:4], *[other] * 4])
        np.testing.assert_allclose(found[0], told.log_probs, atol=1e-4)
        np.testing.assert_allclose(found[2], told.log_probs[:4], atol=1e-4)
        assert sum(found[1]) < sum(found[0][:5])
        assert found[1] == pytest.approx(found[6], abs=1e-4)


def test_an_encoder_decoder_scores_answers_alone(reader, texts):
    with pytest.raises(UserError, match="no log-probabilities of what it reads"):
        reader.score(texts)
    with pytest.raises(UserError, match="an answer has more than 20 tokens"):
        reader.rank(texts[0], [(1,) * 21])
