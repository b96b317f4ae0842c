"""Greedy texts of a model: by the engine, and by full passes over all that is there."""

import numpy as np

from fiat_jax.inference.engine import Engine, EngineConfig
from fiat_jax.inference.requests import Request
from fiat_jax.models.model import logits


def engine_texts(model, prompts, count, end=-1, alone=False, **settings):
    """The engine's new tokens of each prompt, up to the end token; alone, each is answered before the next is asked."""
    length = max(map(len, prompts)) + count
    shapes = {"slots": 4, "slot_length": length, "prefill_rows": 2, "shortest_bucket": length} | settings
    engine = Engine(model, end, EngineConfig(**shapes))
    requests = [Request(tuple(map(int, ids)), count) for ids in prompts]
    groups = [[request] for request in requests] if alone else [requests]
    return [list(one.tokens) for group in groups for (one,) in engine.generate(group)]


def full_pass_texts(model, prompts, count):
    """The likeliest tokens of each prompt, each by a pass over all tokens before it."""
    texts = [list(map(int, ids)) for ids in prompts]
    tokens_BT = np.zeros((len(texts), max(map(len, texts)) + count), np.int32)
    for _ in range(count):
        for row, ids in enumerate(texts):
            tokens_BT[row, : len(ids)] = ids
        table_BTV = np.asarray(logits(model, tokens_BT))
        for row, ids in enumerate(texts):
            ids.append(int(table_BTV[row, len(ids) - 1].argmax()))
    return [ids[-count:] for ids in texts]
