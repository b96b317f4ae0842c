"""Greedy generation: the text of transformers, whatever shares the batch, its padding or the mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.louder import louder

from fiat_jax.errors import UserError
from fiat_jax.inference.generate import Generator
from fiat_jax.models.config import DecoderConfig
from fiat_jax.models.decoder import Decoder
from fiat_jax.models.head import logits_of
from fiat_jax.models.lora import LoraConfig
from fiat_jax.models.model import ModelConfig, load_model, random_model
from fiat_jax.sharding import MeshConfig

TINY = DecoderConfig(
    vocab_size=24,
    width=16,
    num_layers=2,
    num_kv_heads=2,
    queries_per_kv_head=2,
    head_dim=8,
    mlp_width=24,
    max_length=48,
)
NO_END = -1  # no token ends a text


def tiny(mesh, **options):
    """A random model whose next token depends on all that it has read."""
    return louder(random_model(TINY, mesh, **options), 20)


@pytest.fixture(scope="module")
def model(one_device):
    return tiny(one_device)


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(3)
    return [rng.integers(0, TINY.vocab_size, length).astype(np.int32) for length in (5, 1, 16, 9, 13)]


@pytest.fixture(scope="module")
def greedy(model):
    """The likeliest tokens by full passes over all that is there, one more at a time."""

    @jax.jit
    def next_token(tokens_BT, length):
        module = model.module(model.trainable, model.frozen)
        return jnp.argmax(logits_of(module.plain_states(tokens_BT), module.head_VD)[0, length - 1])

    def run(ids, count):
        ids = list(ids)
        for _ in range(count):
            tokens_BT = np.zeros((1, TINY.max_length), np.int32)
            tokens_BT[0, : len(ids)] = ids
            ids.append(int(next_token(tokens_BT, len(ids))))
        return ids[-count:]

    return run


@pytest.fixture(scope="module")
def free(model):
    """Generation that no token ends."""
    return Generator(model, NO_END)


def test_generated_text_is_that_of_full_passes(free, prompts, greedy):
    expected = [greedy(ids, 16) for ids in prompts]
    assert len({tuple(ids) for ids in expected}) == len(prompts)
    assert free(prompts, 16) == expected


def test_generation_ends_before_the_end_token_and_each_row_by_itself(free, model, prompts):
    texts = free(prompts, 16)
    end = texts[0][4]
    expected = [ids[: ids.index(end)] if end in ids else ids for ids in texts]
    assert len({len(ids) for ids in expected}) > 1
    assert Generator(model, end)(prompts, 16) == expected


def test_a_text_that_ends_at_once_is_empty_and_the_loop_with_it(free, model, prompts, monkeypatch):
    text = free(prompts[:1], 4)[0]
    steps, extend = [], Decoder.extend

    def counted(self, token_B, state):
        jax.debug.callback(lambda: steps.append(1))
        return extend(self, token_B, state)

    monkeypatch.setattr(Decoder, "extend", counted)
    assert Generator(model, text[0])(prompts[:1], 16) == [[]]
    jax.effects_barrier()
    assert not steps
    assert Generator(model, NO_END)(prompts[:1], 4) == [text]
    jax.effects_barrier()
    assert len(steps) == 3


def test_other_rows_of_the_batch_change_nothing(free, prompts):
    together = free(prompts, 12)
    assert [free([ids], 12)[0] for ids in prompts] == together
    assert free(prompts[::-1], 12) == together[::-1]


def test_fewer_tokens_are_the_first_of_more(free, prompts):
    assert free(prompts, 3) == [ids[:3] for ids in free(prompts, 12)]


@pytest.mark.parametrize("config", [MeshConfig(2, 2, 2), MeshConfig(1, 1, 8)])
def test_every_mesh_gives_the_same_text(config, free, prompts):
    assert Generator(tiny(config.build()), NO_END)(prompts, 12) == free(prompts, 12)


def test_like_shapes_share_a_program_and_new_adapters_need_none(one_device, prompts):
    model = tiny(one_device, lora=LoraConfig(rank=2, targets=("q_proj",)))
    generator = Generator(model, NO_END)
    before = generator(prompts, 12)
    moved = jax.tree.map(lambda x: x + 1.0, model.trainable)
    assert generator(prompts, 12, trainable=moved) != before
    assert generator(prompts[:5], 9) == [ids[:9] for ids in before]
    assert generator([ids[:3] for ids in prompts[::-1]], 12) != before
    assert generator._run._cache_size() == 1


def test_parameters_are_arguments_of_the_program_and_not_its_constants(model, prompts):
    generator = Generator(model, NO_END)
    tokens_BT, lengths_B = generator._pad(prompts)
    lowered = generator._run.lower(model.trainable, model.frozen, tokens_BT, lengths_B, 12, slots=16)
    assert len(jax.tree.leaves(lowered.in_avals)) == len(jax.tree.leaves((model.trainable, model.frozen))) + 3
    assert not [line for line in lowered.as_text().splitlines() if "dense<" in line and len(line) > 1000]


@pytest.mark.parametrize(
    ("lengths", "new", "said"),
    [
        ((3, 40), 9, "a prompt of 40 tokens and 9 new ones exceed the 48"),
        ((3, 0), 9, "prompt 1 has no tokens"),
        ((3,), 0, "at least one new token; got 0"),
    ],
)
def test_what_cannot_be_generated_is_refused_before_anything_is_compiled(lengths, new, said, model):
    generator = Generator(model, NO_END)
    with pytest.raises(UserError, match=said):
        generator([np.zeros(length, np.int32) for length in lengths], new)
    assert generator._run._cache_size() == 0


def test_the_longest_that_the_model_reads_is_generated(model):
    assert len(Generator(model, NO_END)([np.zeros(40, np.int32)], 8)[0]) == 8


def test_a_token_that_the_model_lacks_is_refused(model):
    with pytest.raises(UserError, match="prompt 0 holds token 24, the model knows 24: give the tokenizer that belongs"):
        Generator(model, NO_END)([np.array([3, 24])], 4)


def test_no_prompts_give_no_texts(model):
    assert Generator(model, NO_END)([], 4) == []


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2, targets=("k_proj",))], ids=["full tuning", "LoRA"])
def test_a_bfloat16_model_generates(lora, one_device, prompts):
    texts = Generator(tiny(one_device, lora=lora, dtype="bfloat16"), NO_END)(prompts, 12)
    assert [len(ids) for ids in texts] == [12] * len(prompts)


def check_against_transformers(directory, mesh, prompts, count, end):
    import torch
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    options = {"max_new_tokens": count, "do_sample": False, "pad_token_id": 0, "eos_token_id": end}
    expected = []
    for ids in prompts:
        whole = reference.generate(torch.tensor(ids[None]), attention_mask=torch.ones(1, len(ids)), **options)
        expected.append([token for token in whole[0, len(ids) :].tolist() if token != end])
    assert Generator(load_model(ModelConfig(str(directory)), mesh), end)(prompts, count) == expected


def test_greedy_text_is_that_of_transformers_on_a_real_checkpoint(shared_data, one_device):
    rng = np.random.default_rng(0)
    prompts = [np.append(1, rng.integers(3, 2048, length)).astype(np.int32) for length in (4, 11, 25, 60)]
    check_against_transformers(shared_data / "weights" / "tinystories-656k", one_device, prompts, 40, end=2)


def test_greedy_text_is_that_of_transformers_on_a_random_checkpoint(one_device, prompts, tmp_path):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "vocab_size": 24,
        "hidden_size": 20,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "max_position_embeddings": 48,
    }
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "tie_word_embeddings": False}
    reference = LlamaForCausalLM(LlamaConfig(**sizes, **heads))
    generator = torch.Generator().manual_seed(0)
    for parameter in reference.parameters():
        parameter.data.normal_(generator=generator, std=0.5)
    reference.save_pretrained(tmp_path)
    check_against_transformers(tmp_path, one_device, prompts, 20, end=7)
