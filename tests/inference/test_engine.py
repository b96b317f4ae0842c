"""The engine: what a sequence becomes depends on its own text, seed and sample, and on nothing else."""

import dataclasses
import math
import re

import jax
import numpy as np
import pytest
from support.drawn import drawn
from support.louder import louder
from support.texts import full_pass_texts
from support.tiny_decoder import TINY

from fiat_jax.errors import UserError
from fiat_jax.inference import memory
from fiat_jax.inference.config import EngineConfig
from fiat_jax.inference.engine import Engine
from fiat_jax.inference.programs import compile_programs
from fiat_jax.inference.requests import Request
from fiat_jax.models.config import EncoderDecoderConfig, Reach
from fiat_jax.models.lora import LoraConfig
from fiat_jax.models.model import abstract_model
from fiat_jax.models.rope import Rope
from fiat_jax.models.stack import next_logits
from fiat_jax.sharding import DECODE, TRAIN, MeshConfig

WINDOWED = dataclasses.replace(
    TINY,
    reaches=(Reach(9, Rope(theta=100.0)), Reach(None, Rope())),
    layer_reaches=(0, 1, 0),
    attention_cap=5.0,
    qk_norm=True,
)
LONG_ROPED = dataclasses.replace(
    TINY, reaches=(Reach(None, Rope(kind="dynamic", factor=4.0, original_length=24)),), max_length=96
)
EXPERTS = dataclasses.replace(TINY, num_experts=4, experts_per_token=2, mlp_width=24)
READER = EncoderDecoderConfig(
    vocab_size=61, width=32, num_layers=2, num_decoder_layers=3, num_heads=4, head_dim=8, mlp_width=48, num_buckets=8
)
CONFIG = EngineConfig(slots=4, slot_length=48, block=4, prefill_rows=2, shortest_bucket=24, stops=2, stop_length=3)
SHARED = dataclasses.replace(CONFIG, prefix_length=700)
NO_END = -5


def model_of(config, mesh, **options):
    return drawn(config, mesh, lambda model: louder(model, 8), **options)


@pytest.fixture(scope="module")
def model(one_device):
    return model_of(TINY, one_device)


@pytest.fixture(scope="module")
def engine(model):
    return Engine(model, NO_END, CONFIG)


@pytest.fixture(scope="module")
def shared(model):
    return Engine(model, NO_END, SHARED)


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(3)
    return [tuple(rng.integers(0, 61, n).tolist()) for n in (5, 1, 16, 9, 13, 30, 17, 2, 8)]


@pytest.fixture(scope="module")
def prefix():
    return np.random.default_rng(4).integers(0, 61, 600).tolist()  # a whole block, and a part of one


def texts(completions):
    return [list(one.tokens) for found in completions for one in found]


def asked(prompts, count=14, **options):
    return [Request(prompt, count, **options) for prompt in prompts]


def test_greedy_text_is_that_of_one_text_at_a_time(engine, model, prompts):
    expected = full_pass_texts(model, prompts, 14)
    assert len({tuple(text) for text in expected}) == len(prompts)
    assert texts(engine.generate(asked(prompts))) == expected
    assert texts(engine.generate(asked(prompts[::-1]))) == expected[::-1]


@pytest.mark.parametrize("config", [TINY, WINDOWED], ids=["plain", "windows and caps"])
def test_with_a_declared_prefix_the_text_is_that_of_prompts_that_begin_with_it(config, one_device, prompts, prefix):
    model = model_of(config, one_device)
    engine = Engine(model, NO_END, SHARED)
    expected = full_pass_texts(model, [[*prefix, *prompt] for prompt in prompts], 10)
    key = engine.add_prefix(prefix)
    found = engine.generate(asked(prompts, 10, prefix=key))
    assert texts(found) == expected
    plain = full_pass_texts(model, prompts, 10)
    assert texts(engine.generate(asked(prompts, 10))) == plain != expected


@pytest.mark.parametrize("config", [READER, EXPERTS, LONG_ROPED], ids=["encoder-decoder", "experts", "dynamic rope"])
@pytest.mark.parametrize("mesh", [MeshConfig(1, 1, 1), MeshConfig(1, 2, 2, expert=2)], ids=["one device", "eight"])
def test_every_kind_of_model_answers_alike_in_any_company(config, mesh, prompts):
    model = model_of(config, mesh.build(jax.devices()[: 8 if mesh.fsdp > 1 else 1]), rules=DECODE)
    requests = [*asked(prompts, 9), *asked(prompts[:4], 5, temperature=1.0, seed=5, samples=2)]
    together = Engine(model, NO_END, dataclasses.replace(CONFIG, prefill_rows=4)).generate(requests)
    other = dataclasses.replace(CONFIG, slots=8, block=3, prefill_rows=4, order="arrival")
    engine = Engine(model, NO_END, other)
    assert texts([engine.generate([request])[0] for request in requests]) == texts(together)
    assert len({tuple(text) for text in texts(together)[: len(prompts)]}) == len(prompts)
    if config is EXPERTS:
        assert texts(together)[: len(prompts)] == full_pass_texts(model, prompts, 9)


def test_a_long_text_of_a_rope_that_knows_its_length_is_turned_for_the_whole_of_it(one_device, prompts):
    """As the decoder alone would read it, given the length that the text may come to."""
    model = model_of(LONG_ROPED, one_device)
    engine = Engine(model, NO_END, CONFIG)
    (long,), (short,) = (engine.generate([Request(prompts[5], count)])[0] for count in (14, 6))
    assert long.tokens[:6] != short.tokens[:6] or long.log_probs[:6] != short.log_probs[:6]
    module = model.skeleton()

    def step(tokens, whole):
        ids = np.array([tokens], np.int32)
        x_RD, _, _ = module.begin(ids, np.array([len(tokens)]), np.array([whole]))
        return np.asarray(next_logits(module, x_RD))[0]

    ids = list(prompts[5])
    for token, log_prob in zip(long.tokens[:4], long.log_probs[:4], strict=True):
        table = jax.nn.log_softmax(step(ids, len(prompts[5]) + 14))
        assert (int(table.argmax()), float(table[token])) == (token, pytest.approx(log_prob, abs=1e-4))
        ids.append(token)


def test_requests_of_several_prefixes_are_each_answered_by_their_own(shared, model, prompts, prefix):
    keys = [shared.add_prefix(prefix), shared.add_prefix(prefix[:40]), ""]
    heads = {keys[0]: prefix, keys[1]: prefix[:40], "": []}
    requests = [Request(prompt, 6, prefix=keys[n % 3]) for n, prompt in enumerate(prompts)]
    expected = full_pass_texts(model, [[*heads[r.prefix], *r.tokens] for r in requests], 6)
    assert texts(shared.generate(requests)) == expected


def test_a_prefix_has_one_key_and_is_read_once(shared, prefix):
    assert shared.add_prefix(prefix) == shared.add_prefix(list(prefix)) != shared.add_prefix(prefix[1:])


def test_log_probabilities_are_those_of_the_model(engine, model, prompts):
    from fiat_jax.models.model import logits

    (found,) = engine.generate([Request(prompts[2], 12)])[0]
    whole = np.array([[*prompts[2], *found.tokens]], np.int32)
    table = np.asarray(jax.nn.log_softmax(logits(model, whole)))[0]
    expected = [table[len(prompts[2]) - 1 + t, token] for t, token in enumerate(found.tokens)]
    np.testing.assert_allclose(found.log_probs, expected, atol=1e-4)
    assert found.finish_reason == "length"


def test_seeded_samples_do_not_depend_on_order_slots_blocks_or_the_batch(engine, model, prompts):
    requests = [
        Request(prompt, 9, temperature=1.0, seed=n, samples=2, top_p=0.9, top_k=30) for n, prompt in enumerate(prompts)
    ]
    expected = texts(engine.generate(requests))
    assert expected[0] != expected[1]
    assert expected == texts(engine.generate(requests))
    other = Engine(model, NO_END, dataclasses.replace(CONFIG, slots=3, block=7, prefill_rows=3, order="arrival"))
    back = other.generate(requests[::-1])[::-1]
    assert texts(back) == expected
    assert texts(other.generate(requests[4:5])) == expected[8:10]


def test_cuts_leave_only_the_likeliest_tokens(engine, prompts):
    greedy = texts(engine.generate(asked(prompts[:3])))
    for options in ({"top_k": 1}, {"top_p": 1e-6}):
        assert texts(engine.generate(asked(prompts[:3], temperature=2.0, **options))) == greedy
    assert texts(engine.generate(asked(prompts[:3], temperature=2.0))) != greedy


def test_a_sample_follows_the_distribution(model):
    engine = Engine(model, NO_END, dataclasses.replace(CONFIG, slots=16, prefill_rows=16))
    (found,) = engine.generate([Request((7, 3), 1, samples=600, temperature=1.0)])
    from fiat_jax.models.model import logits

    probs = np.asarray(jax.nn.softmax(logits(model, np.array([[7, 3]], np.int32))[0, -1]))
    seen = np.bincount([one.tokens[0] for one in found], minlength=61) / 600
    assert np.abs(seen - probs).max() < 5 * np.sqrt(probs.max() / 600)


def test_text_ends_before_the_end_token_or_a_stop_sequence(model, engine, prompts):
    whole = texts(engine.generate(asked(prompts, 14)))
    end = whole[0][5]
    ending = Engine(model, end, CONFIG).generate(asked(prompts, 14))
    cut = [text[: text.index(end)] if end in text else text for text in whole]
    assert texts(ending) == cut
    assert [one.finish_reason for (one,) in ending] == ["stop" if end in text else "length" for text in whole]
    stop = tuple(whole[1][4:7])
    (stopped,) = engine.generate([Request(prompts[1], 14, stop=((60, 60), stop))])[0]
    first = next(n for n in range(14) if tuple(whole[1][n : n + 3]) == stop)
    assert (list(stopped.tokens), stopped.finish_reason) == (whole[1][:first], "stop")
    assert len(stopped.log_probs) == first


def test_what_is_cancelled_leaves_the_others_as_they_are(engine, prompts):
    expected = texts(engine.generate(asked(prompts, 14)))
    numbers = [engine.submit(request) for request in asked(prompts, 14)]
    found = {one.request_id: one for one in engine.step()}
    gone = [number for number in (numbers[0], numbers[4], numbers[-1]) if number not in found]
    for number in gone:
        engine.cancel(number)
    found |= {one.request_id: one for one in engine.run()}
    assert {found[number].finish_reason for number in gone} == {"cancelled"}
    for number, text in zip(numbers, expected, strict=True):
        if number not in gone:
            assert found[number].tokens == text
    assert texts(engine.generate(asked(prompts, 14))) == expected


@pytest.mark.parametrize("config", [TINY, READER], ids=["decoder", "encoder-decoder"])
def test_nothing_of_what_a_slot_held_is_read_by_its_next_sequence(config, one_device, prompts):
    engine = Engine(model_of(config, one_device), NO_END, CONFIG)
    requests = [*asked(prompts, 12), *asked(prompts, 8, temperature=1.0, seed=3)]
    expected = texts(engine.generate(requests))

    def poison():
        free = np.array([slot not in engine._scheduler.running for slot in range(CONFIG.slots)])
        kept = jax.tree.map(
            lambda x: x.at[:, free].set(np.nan) if x.ndim == 5 else x.at[free].set(CONFIG.slot_length),
            engine._slots.kept,
        )
        engine._slots = dataclasses.replace(engine._slots, kept=kept)
        return int(free.sum())

    numbers, found, poisoned = [engine.submit(request) for request in requests], {}, poison()
    while len(found) < len(requests):
        found |= {one.request_id: one.tokens for one in engine.step()}
        poisoned += poison()
    assert poisoned > CONFIG.slots
    assert [found[number] for number in numbers] == expected


def test_random_arrivals_cancellations_and_refills_change_no_text(shared, prompts, prefix):
    rng = np.random.default_rng(8)
    keys = ["", shared.add_prefix(prefix)]
    requests = [
        Request(
            prompts[rng.integers(len(prompts))],
            int(rng.integers(1, 14)),
            prefix=keys[rng.integers(2)],
            temperature=float(rng.integers(2)),
            seed=int(rng.integers(9)),
            samples=int(rng.integers(1, 3)),
        )
        for _ in range(40)
    ]
    expected = [texts(shared.generate([request])) for request in requests]
    waiting, found, dropped = dict(enumerate(requests)), {}, set()
    numbers: dict[int, int] = {}
    while len(found) < sum(request.samples for request in requests):
        for index in list(waiting)[: rng.integers(4)]:
            numbers[shared.submit(waiting.pop(index))] = index
        for number in list(numbers):
            if rng.random() < 0.02:
                shared.cancel(number)
                dropped.add(numbers[number])
        found |= {(numbers[one.request_id], one.sample): one for one in shared.step()}
    assert 0 < len(dropped) < 20
    for (index, sample), one in found.items():
        text = expected[index][sample]
        assert one.tokens == (text if one.finish_reason != "cancelled" else text[: len(one.tokens)])


def test_a_deadline_gives_a_request_up(engine, prompts):
    engine.submit(Request(prompts[0], 30, deadline=-1.0))
    (one,) = engine.run()
    assert (one.finish_reason, one.tokens) == ("deadline", [])


@pytest.mark.parametrize(
    ("mesh", "rules"),
    [(MeshConfig(2, 2, 2), TRAIN), (MeshConfig(1, 1, 8), TRAIN), (MeshConfig(2, 2, 2), DECODE)],
)
def test_every_mesh_gives_the_same_text(mesh, rules, shared, prompts, prefix):
    expected = texts(shared.generate(asked(prompts, 8, prefix=shared.add_prefix(prefix))))
    split = Engine(model_of(TINY, mesh.build(), rules=rules), NO_END, dataclasses.replace(SHARED, slots=8))
    assert texts(split.generate(asked(prompts, 8, prefix=split.add_prefix(prefix)))) == expected


def test_no_weight_is_gathered_to_decode():
    """Under the rules of training each step would read its weights from the other devices."""
    moved = {}
    for name, rules in (("TRAIN", TRAIN), ("DECODE", DECODE)):
        model = abstract_model(TINY, MeshConfig(1, 4, 2).build(), tuned=False, rules=rules)
        text = compile_programs(model, NO_END, dataclasses.replace(CONFIG, slots=8)).decode.as_text()
        shapes = re.findall(r"= f32\[([\d,]+)\]\S* all-gather\(", text)
        moved[name] = max((math.prod(map(int, shape.split(","))) for shape in shapes), default=0)
    smallest = TINY.width * TINY.head_dim * TINY.num_kv_heads  # the weights of a layer's keys
    assert moved["DECODE"] < smallest <= moved["TRAIN"]


def test_no_vocabulary_is_gathered_to_draw_from():
    """Not of a step, and not of a prompt's last token: each device looks at its part of the logits."""
    vocabulary = 1024  # no other dimension is as large
    model = abstract_model(
        dataclasses.replace(TINY, vocab_size=vocabulary), MeshConfig(1, 4, 2).build(), tuned=False, rules=DECODE
    )
    programs = compile_programs(model, NO_END, dataclasses.replace(CONFIG, slots=8, alternatives=3))
    for program in (programs.decode, *programs.admit.values()):
        exchanged = re.findall(r"= (.*) (?:all-gather|all-reduce|all-to-all|collective-permute)\(", program.as_text())
        assert exchanged
        assert not [shapes for shapes in exchanged if str(vocabulary) in re.findall(r"\d+", shapes)]


def test_adapters_are_applied_and_others_may_take_their_place(one_device, prompts):
    model = model_of(TINY, one_device, lora=LoraConfig(rank=2))
    adapted = dataclasses.replace(model, trainable=jax.tree.map(lambda x: x + 0.1, model.trainable))
    expected = full_pass_texts(adapted, prompts, 8)
    engine = Engine(model, NO_END, CONFIG)
    assert texts(engine.generate(asked(prompts, 8))) != expected
    engine.use(adapted.trainable)
    assert texts(engine.generate(asked(prompts, 8))) == expected


def test_nothing_is_compiled_once_the_engine_is_made(shared, prompts, prefix):
    key = shared.add_prefix(prefix)
    shared.generate(asked(prompts[:1], 2, prefix=key, temperature=1.0, seed=99))
    compiled = []

    def listen(event, seconds, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(about)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        shared.generate([*asked(prompts, 7, prefix=key), *asked(prompts, 5, temperature=0.5, seed=99)])
        assert not compiled
        jax.jit(lambda x: x + 17)(1)
        assert compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tokens": ()}, "without tokens of its own"),
        ({"tokens": (3, 61)}, "holds token 61, the model knows 61"),
        ({"tokens": (1,) * 40}, "a slot has 48: lower max_new_tokens"),
        ({"prefix": "f00"}, "no prefix 'f00'"),
        ({"max_new_tokens": 0}, "at least one new token"),
        ({"stop": ((1,),) * 3}, "stop has up to 2 sequences"),
        ({"top_p": 0.0}, "top_p in (0, 1]"),
        ({"seed": -1}, "seed is 0 to 2**32 - 1"),
    ],
)
def test_a_request_that_cannot_be_answered_is_one_error_and_others_go_on(engine, prompts, options, said):
    number = engine.submit(Request(prompts[0], 3))
    with pytest.raises(UserError) as error:
        engine.submit(Request(**({"tokens": prompts[0], "max_new_tokens": 14} | options)))
    assert said in str(error.value)
    assert [one.request_id for one in engine.run()] == [number]


def test_a_prefix_or_slots_that_the_model_cannot_read_are_refused(model, shared):
    with pytest.raises(UserError, match="this engine takes 1 to 700"):
        shared.add_prefix([1] * 701)
    with pytest.raises(UserError, match="come to 2049 tokens; the model reads 2048"):
        Engine(model, NO_END, dataclasses.replace(CONFIG, slot_length=2049))


def test_more_memory_than_there_is_is_refused_before_anything_is_compiled(model, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2**20)
    monkeypatch.setattr("fiat_jax.inference.engine.compile_programs", lambda *_: pytest.fail("compiled"))
    with pytest.raises(UserError) as error:
        Engine(model, NO_END, dataclasses.replace(CONFIG, slots=1024, slot_length=1024, prefix_length=1024))
    assert "1024 slots of 1024 tokens and a prefix of 1024 take" in str(error.value)
    assert "lower EngineConfig.slots or slot_length" in str(error.value)


@pytest.mark.parametrize("config", [TINY, READER], ids=["decoder", "encoder-decoder"])
@pytest.mark.parametrize("mesh", [MeshConfig(1, 1, 1), MeshConfig(2, 2, 2), MeshConfig(1, 1, 8)])
def test_the_bytes_that_are_counted_are_those_that_are_kept(config, mesh):
    model = model_of(config, mesh.build(jax.devices()[: mesh.data * mesh.fsdp * mesh.tensor]))
    prefix = 0 if config is READER else 700
    shapes = {"slots": 8, "prefill_rows": 4, "shortest_bucket": CONFIG.slot_length}
    engine = Engine(model, NO_END, dataclasses.replace(CONFIG, **shapes, prefix_length=prefix))
    kept = [x for x in jax.tree.leaves(engine._slots.kept) if x.ndim == 5]
    if prefix:
        kept += [x for x in jax.tree.leaves(engine._prefixes.get("")) if x.ndim == 4] * 2
    counted = memory.kept_bytes(model, 8, CONFIG.slot_length, prefix)
    assert counted == sum(x.addressable_shards[0].data.nbytes for x in kept)
