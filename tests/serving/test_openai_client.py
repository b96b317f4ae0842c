"""OpenAI's own client against our server: what it asks is what it gets, whole or as a stream."""

import jax
import numpy as np
import openai
import pytest
from support.texts import full_pass_texts

from fiat_jax.models.model import ModelConfig, load_model, logits
from fiat_jax.prompts.tokenizer import Tokenizer
from fiat_jax.sharding import MeshConfig

PROMPTS = ["It is sunny on hill 3!", "Es ist nass: See 7!", "It is", "xyz " * 30]


@pytest.fixture(scope="module")
def large(pair):
    """θ_β as a full pass computes it, and its tokenizer."""
    mesh = MeshConfig(1, 1, 1).build(jax.devices()[:1])
    path = str(pair.root / "large")
    return load_model(ModelConfig(path), mesh, tuned=False), Tokenizer.from_directory(path)


def ids_of(tokenizer, prompt):
    return tokenizer.encode(prompt, start=True)


def expected_texts(large, prompts, count):
    model, tokenizer = large
    found = full_pass_texts(model, [ids_of(tokenizer, prompt) for prompt in prompts], count)
    return [ids[: ids.index(tokenizer.eos_id)] if tokenizer.eos_id in ids else ids for ids in found]


def test_greedy_completions_are_what_a_full_pass_writes(client, large):
    found = client.completions.create(model="large", prompt=PROMPTS, max_tokens=16, temperature=0)
    expected = [large[1].decode(ids) for ids in expected_texts(large, PROMPTS, 16)]
    assert [choice.text for choice in found.choices] == expected
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    assert found.usage.prompt_tokens == sum(len(ids_of(large[1], prompt)) for prompt in PROMPTS)
    assert found.usage.completion_tokens == found.usage.total_tokens - found.usage.prompt_tokens > 0


def test_a_prompt_may_be_token_ids(client, large):
    ids = ids_of(large[1], PROMPTS[0])
    asked = {"model": "large", "max_tokens": 9, "temperature": 0}
    text, tokens = (client.completions.create(prompt=prompt, **asked).choices[0].text for prompt in (PROMPTS[0], ids))
    assert text == tokens


def test_a_stream_is_the_whole_answer_in_parts(client):
    asked = {"model": "large", "prompt": PROMPTS, "max_tokens": 21, "n": 2, "seed": 5, "temperature": 0.9}
    whole = client.completions.create(**asked)
    texts, reasons, usage = [""] * 8, [None] * 8, None
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    for chunk in chunks:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage
    assert len(chunks) > 16


def test_samples_differ_and_a_seed_repeats_them(client):
    asked = {"model": "large", "prompt": PROMPTS[0], "max_tokens": 12, "n": 3, "temperature": 1.0}
    one, same, other = (
        [c.text for c in client.completions.create(**asked, seed=seed).choices] for seed in (7, 7, -(2**70))
    )
    assert one == same
    assert len({*one, *other}) == 6
    free = [client.completions.create(**asked).choices[0].text for _ in range(2)]
    assert free[0] != free[1]


def test_a_stop_string_ends_the_text_wherever_its_tokens_are_cut(client):
    asked = {"model": "large", "prompt": PROMPTS[0], "max_tokens": 40, "temperature": 0}
    whole = client.completions.create(**asked).choices[0].text
    for start in (3, 9, 14):
        stop = whole[start : start + 3]
        for logprobs in (None, 1):
            found = client.completions.create(**asked, stop=["never", stop], logprobs=logprobs)
            assert found.choices[0].text == whole[: whole.index(stop)]
            assert found.choices[0].finish_reason == "stop"
            assert 0 < found.usage.completion_tokens <= 40
        parts = client.completions.create(**asked, stop=stop, stream=True)
        assert "".join(chunk.choices[0].text for chunk in parts) == whole[: whole.index(stop)]


def test_log_probabilities_are_the_models_own(client, large):
    model, tokenizer = large
    asked = {"model": "large", "prompt": PROMPTS[1], "max_tokens": 10, "temperature": 0}
    found = client.completions.create(**asked, logprobs=3).choices[0]
    ids = ids_of(tokenizer, PROMPTS[1])
    written = expected_texts(large, PROMPTS[1:2], 10)[0]
    all_TV = np.asarray(jax.nn.log_softmax(logits(model, np.array([ids + written]))[0]))[len(ids) - 1 : -1]
    told = found.logprobs
    np.testing.assert_allclose(told.token_logprobs, [row[t] for row, t in zip(all_TV, written, strict=True)], atol=1e-3)
    best = [np.sort(row)[-3:] for row in all_TV]
    np.testing.assert_allclose([sorted(top.values()) for top in told.top_logprobs], best, atol=1e-3)
    for start, text in zip(told.text_offset, told.tokens, strict=True):
        if text.isascii():  # others may be a part of a character; such parts that none came of are told with the next
            assert found.text[start:].lstrip("\ufffd").startswith(text)
    assert told.text_offset[0] == 0
    assert sum(text.isascii() for text in told.tokens) > 3


def test_an_echoed_prompt_is_scored_token_by_token(client, large):
    model, tokenizer = large
    asked = {"model": "large", "prompt": PROMPTS[0], "temperature": 0, "echo": True, "logprobs": 1}
    alone = client.completions.create(**asked, max_tokens=0).choices[0]
    ids = ids_of(tokenizer, PROMPTS[0])
    all_TV = np.asarray(jax.nn.log_softmax(logits(model, np.array([ids]))[0]))
    want = [row[token] for row, token in zip(all_TV, ids[1:], strict=False)]
    assert alone.text == PROMPTS[0]
    assert alone.logprobs.token_logprobs[0] is None
    np.testing.assert_allclose(alone.logprobs.token_logprobs[1:], want, atol=1e-3)
    more = client.completions.create(**asked, max_tokens=3).choices[0]
    assert more.text.startswith(PROMPTS[0])
    assert more.logprobs.token_logprobs[: len(ids)] == alone.logprobs.token_logprobs
    assert len(more.logprobs.tokens) == len(ids) + 3
    offsets = more.logprobs.text_offset
    assert more.text[offsets[len(ids)] :] == "".join(more.logprobs.tokens[len(ids) :])


def test_the_end_of_a_text_has_its_log_probability_too(client, large):
    """Clients that score texts ask for one new token, and leave out what is told of the last: so there must be one."""
    model, tokenizer = large
    prompts_BT = np.random.default_rng(0).integers(0, tokenizer.vocab_size, (8192, 3))
    last_BV = np.asarray(jax.nn.log_softmax(logits(model, prompts_BT)[:, -1]))
    (ending, *_) = np.flatnonzero(last_BV.argmax(-1) == tokenizer.eos_id)
    asked = {"model": "large", "prompt": prompts_BT[ending].tolist(), "temperature": 0, "logprobs": 2}
    found = client.completions.create(**asked, max_tokens=1, echo=True).choices[0]
    alone = client.completions.create(**asked, max_tokens=5).choices[0]
    assert (alone.text, found.finish_reason, alone.finish_reason) == ("", "stop", "stop")
    for told in (found.logprobs, alone.logprobs):
        assert told.tokens[-1] == "</s>"
        assert told.token_logprobs[-1] == pytest.approx(float(last_BV[ending].max()), abs=1e-3)
        assert len(told.top_logprobs[-1]) == 2
    assert [len(told.tokens) for told in (found.logprobs, alone.logprobs)] == [4, 1]
    assert found.logprobs.text_offset[-1] == len(found.text)


def test_a_chat_is_told_in_the_models_template(client, large):
    tokenizer = large[1]
    messages = [
        {"role": "system", "content": "  Be brief. "},
        {"role": "user", "content": "Is it </s> sunny?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": [{"type": "text", "text": "And on"}, {"type": "text", "text": "hill 3?"}]},
    ]
    asked = {"model": "large", "messages": messages, "max_completion_tokens": 11, "temperature": 0}
    found = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    (bos,) = tokenizer.encode_template("<s>")
    ids = [bos, *tokenizer.encode("system: "), *tokenizer.encode("Be brief."), *tokenizer.encode("\n")]
    ids += [bos, *tokenizer.encode("user: "), *tokenizer.encode("Is it </s> sunny?"), *tokenizer.encode("\n")]
    ids += [bos, *tokenizer.encode("assistant: "), *tokenizer.encode("Yes."), *tokenizer.encode("\n")]
    ids += [bos, *tokenizer.encode("user: "), *tokenizer.encode("And on\nhill 3?"), *tokenizer.encode("\n")]
    ids += [bos, *tokenizer.encode("assistant:")]  # its space is a part of the first word
    assert tokenizer.eos_id not in ids
    plain = client.completions.create(model="large", prompt=ids, max_tokens=11, temperature=0, logprobs=2)
    choice = found.choices[0]
    assert choice.message.content == plain.choices[0].text
    assert choice.message.role == "assistant"
    assert found.usage == plain.usage
    told = [token.logprob for token in choice.logprobs.content]
    assert told == plain.choices[0].logprobs.token_logprobs
    assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == choice.message.content
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant"] + [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == choice.finish_reason


def test_a_prefix_is_read_once_and_counted_as_cached(client, http, large):
    shared = "It is sunny on hill 3! " * 9
    asked = {"model": "large", "prompt": shared + PROMPTS[1], "max_tokens": 12, "temperature": 0}
    before = client.completions.create(**asked)
    held = http.post("/v1/prefixes", json={"model": "large", "prompt": shared}).json()
    assert held["tokens"] == len(ids_of(large[1], shared))
    after = client.completions.create(**asked)
    assert after.choices == before.choices
    assert before.usage.prompt_tokens_details.cached_tokens == 0
    assert after.usage.prompt_tokens_details.cached_tokens == held["tokens"]
    assert after.usage.prompt_tokens == before.usage.prompt_tokens
    listed = {one["id"]: one for one in http.get("/v1/prefixes").json()["data"]}
    assert listed[held["id"]]["used"] == 1
    assert http.delete(f"/v1/prefixes/{held['id']}").json()["deleted"] is True
    assert http.delete(f"/v1/prefixes/{held['id']}").status_code == 404
    assert client.completions.create(**asked).usage.prompt_tokens_details.cached_tokens == 0
    (own,) = (key for key, one in listed.items() if key != held["id"])
    refused = http.delete(f"/v1/prefixes/{own}")
    assert refused.status_code == 409
    assert "the pair's own" in refused.json()["error"]["message"]


def test_models_are_listed_with_what_identifies_them(client, pair):
    models = {model.id: model for model in client.models.list()}
    assert set(models) == {"fiat", "large", "fiat-tau"}
    assert len(models["large"].root) == 64
    assert models["fiat"].model_extra["fields"] == ["report"]


def test_what_is_wrong_is_an_error_of_its_kind_that_names_it(client):
    with pytest.raises(openai.NotFoundError, match=r"there is no model 'larg'; there are fiat, large, fiat-tau\. Did"):
        client.completions.create(model="larg", prompt="a")
    wrong = [
        ({"max_tokens": 10_000}, "a prompt of 1 tokens and 10000 new ones: this server takes 512"),
        ({"n": 17}, "n is 17; this server draws at most 16"),
        ({"logprobs": 6}, "logprobs is 6; this server tells at most 5"),
        ({"prompt": [[1, 2], ["a"]]}, "prompt: expected a text, a list"),
        ({"prompt": [1, 4000]}, "holds token 4000"),
        ({"prompt": []}, "0 prompts in one request"),
        ({"prompt": ""}, "a request without tokens"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"suffix": "end"}, "suffix: this server does not know it"),
        ({"temperature": -1}, "temperature"),
        ({"best_of": 4}, "best_of"),
        ({"extra_body": {"row": {"report": "x"}}}, "row: for a fused pair"),
    ]
    for more, message in wrong:
        asked = {"model": "large", "prompt": "a", "max_tokens": 2, **more}
        with pytest.raises(openai.BadRequestError, match=message):
            client.completions.create(**asked)
        with pytest.raises(openai.BadRequestError, match=message):
            list(client.completions.create(**asked, stream=True))
