"""Greedy text is that of transformers; blocks end early; weights are arguments of the programs."""

import jax
import numpy as np
import pytest
from support.drawn import drawn
from support.louder import louder
from support.texts import engine_texts, full_pass_texts

from fiat_jax.inference.engine import Engine, EngineConfig
from fiat_jax.inference.requests import Request
from fiat_jax.models.config import DecoderConfig
from fiat_jax.models.decoder import Decoder
from fiat_jax.models.lora import LoraConfig
from fiat_jax.models.model import ModelConfig, load_model

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


def tiny(mesh, **options):
    """A random model whose next token depends on all that it has read."""
    return drawn(TINY, mesh, lambda model: louder(model, 20), **options)


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(3)
    return [rng.integers(0, TINY.vocab_size, length).astype(np.int32) for length in (5, 1, 16, 9, 13)]


def test_a_block_ends_when_no_slot_runs(one_device, prompts, monkeypatch):
    model, steps, extend = tiny(one_device), [], Decoder.extend

    def counted(self, *args):
        jax.debug.callback(lambda: steps.append(1))
        return extend(self, *args)

    monkeypatch.setattr(Decoder, "extend", counted)
    first = full_pass_texts(model, prompts[:1], 4)[0][0]
    assert engine_texts(model, prompts[:1], 16, end=first) == [[]]
    jax.effects_barrier()
    assert not steps
    assert len(engine_texts(model, prompts[:1], 4)[0]) == 4
    jax.effects_barrier()
    assert len(steps) == 3


def test_weights_are_arguments_of_the_programs_and_not_their_constants(one_device):
    model = tiny(one_device)
    engine = Engine(model, -1, EngineConfig(slots=2, slot_length=32, prefill_rows=2))
    weights = len(jax.tree.leaves((model.trainable, model.frozen)))
    for program in (engine._programs.decode, *engine._programs.admit.values()):
        assert len(jax.tree.leaves(program.in_avals)) > weights
        assert program.memory_analysis().generated_code_size_in_bytes < 10**6
        assert not [line for line in program.as_text().splitlines() if "constant({" in line and len(line) > 2000]


def test_the_longest_that_the_model_reads_is_generated(one_device):
    assert len(engine_texts(tiny(one_device), [np.zeros(40, np.int32)], 8)[0]) == 8


def test_no_requests_get_no_answers(one_device):
    assert Engine(tiny(one_device), -1, EngineConfig(slots=2, slot_length=32)).generate([]) == []


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2, targets=("k_proj",))], ids=["full tuning", "LoRA"])
def test_a_bfloat16_model_generates_the_same_text_in_any_company(lora, one_device, prompts):
    model = tiny(one_device, lora=lora, dtype="bfloat16")
    engine = Engine(model, -1, EngineConfig(slots=4, slot_length=32, prefill_rows=2, shortest_bucket=32))
    requests = [Request(tuple(ids.tolist()), 12) for ids in prompts]
    together = engine.generate(requests)
    assert {len(one.tokens) for (one,) in together} == {12}
    assert [engine.generate([request])[0] for request in requests] == together


def check_against_transformers(directory, mesh, prompts, count, end):
    import torch
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    options = {"max_new_tokens": count, "do_sample": False, "pad_token_id": 0, "eos_token_id": end}
    expected = []
    for ids in prompts:
        whole = reference.generate(torch.tensor(ids[None]), attention_mask=torch.ones(1, len(ids)), **options)
        expected.append([token for token in whole[0, len(ids) :].tolist() if token != end])
    assert engine_texts(load_model(ModelConfig(str(directory)), mesh), prompts, count, end) == expected


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
