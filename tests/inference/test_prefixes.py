"""Prefixes: kept by a key, saved and reloaded, shared by texts that are scored."""

import dataclasses

import jax
import numpy as np
import pytest
from support.drawn import drawn
from support.louder import louder
from support.tiny_decoder import TINY

from fiat_jax.data.batches import ScoringBatches
from fiat_jax.data.examples import Example, Examples
from fiat_jax.errors import UserError
from fiat_jax.inference.prefixes import Prefixes
from fiat_jax.inference.scoring import TargetScorer
from fiat_jax.models.config import EncoderDecoderConfig, Reach
from fiat_jax.models.lora import LoraConfig
from fiat_jax.models.model import random_model
from fiat_jax.models.rope import Rope
from fiat_jax.sharding import MeshConfig

WINDOWED = dataclasses.replace(
    TINY, reaches=(Reach(7, Rope()), Reach(None, Rope())), layer_reaches=(0, 1, 0), attention_cap=5.0
)


@pytest.fixture(scope="module")
def ids():
    return np.random.default_rng(0).integers(0, 61, 600).tolist()


def named(model, name="a model"):
    return dataclasses.replace(model, fingerprint=name)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_a_saved_prefix_is_read_from_its_file_and_equals_the_computed_one(one_device, ids, tmp_path, monkeypatch):
    model = named(louder(random_model(TINY, one_device), 8))
    first = Prefixes.of(model, 600)
    key = first.add(ids, tokenizer="t", directory=tmp_path)
    again = Prefixes.of(model, 1100)  # with room for more
    monkeypatch.setattr(again, "_compute", lambda *_: pytest.fail("computed again"))
    assert again.add(ids, tokenizer="t", directory=tmp_path) == key
    a, b = first.get(key), again.get(key)
    assert int(a.length) == int(b.length) == 600
    assert np.array_equal(a.k_LHKP[..., :600], b.k_LHKP[..., :600])
    assert np.array_equal(a.v_LHPK[:, :, :600], b.v_LHPK[:, :, :600])
    assert np.abs(a.k_LHKP[..., :600]).max() > 0


def test_a_prefix_saved_on_one_mesh_is_reloaded_on_another(one_device, ids, tmp_path):
    key = Prefixes.of(named(louder(random_model(TINY, one_device), 8)), 600).add(ids, directory=tmp_path)
    mesh = MeshConfig(2, 2, 2).build()
    split = Prefixes.of(named(drawn(TINY, mesh, lambda model: louder(model, 8))), 600)
    assert split.add(ids, directory=tmp_path) == key
    computed = Prefixes.of(named(drawn(TINY, mesh, lambda model: louder(model, 8))), 600)
    computed.add(ids)
    np.testing.assert_allclose(split.get(key).k_LHKP, computed.get(key).k_LHKP, atol=1e-4)
    assert split.get(key).k_LHKP.sharding == computed.get(key).k_LHKP.sharding


def test_the_key_tells_models_tokenizers_and_tokens_apart(one_device, ids):
    model = random_model(TINY, one_device)
    one, other = (Prefixes.of(named(model, name), 600) for name in ("one", "other"))
    keys = [one.add(ids), one.add(ids, tokenizer="t"), one.add(ids[1:]), other.add(ids)]
    assert len(set(keys)) == 4
    assert one.add(list(ids)) == keys[0]


def test_adapters_have_saved_prefixes_of_their_own(one_device, ids, tmp_path):
    model = named(louder(random_model(TINY, one_device, lora=LoraConfig(rank=2)), 8))
    prefixes = Prefixes.of(model, 600)
    key = prefixes.add(ids, directory=tmp_path)
    base = prefixes.get(key)
    prefixes.use(jax.tree.map(lambda x: x + 0.1, model.trainable))
    assert not prefixes.fits(key)
    assert prefixes.add(ids, directory=tmp_path) == key
    assert not same(prefixes.get(key), base)
    assert len(list(tmp_path.iterdir())) == 2
    prefixes.use(model.trainable)
    prefixes.add(ids, directory=tmp_path)
    assert same(prefixes.get(key).k_LHKP[..., :600], base.k_LHKP[..., :600])


def test_a_prefix_of_weights_without_a_name_is_not_saved(one_device, ids, tmp_path):
    prefixes = Prefixes.of(random_model(TINY, one_device), 600)
    with pytest.raises(UserError, match="saved under the name of its model's weights, and these have none"):
        prefixes.add(ids, directory=tmp_path)


def test_a_prefix_that_two_processes_save_at_once_is_whole_and_held_by_both(one_device, ids, tmp_path, monkeypatch):
    model = named(random_model(TINY, one_device))
    first, second, third = (Prefixes.of(model, 600) for _ in range(3))
    compute = second._compute

    def meanwhile(*given):
        first.add(ids, directory=tmp_path)
        return compute(*given)

    monkeypatch.setattr(second, "_compute", meanwhile)
    key = second.add(ids, directory=tmp_path)
    assert np.array_equal(first.get(key).k_LHKP, second.get(key).k_LHKP)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(third, "_compute", lambda *_: pytest.fail("computed again"))
    third.add(ids, directory=tmp_path)
    assert np.array_equal(first.get(key).k_LHKP, third.get(key).k_LHKP)


def test_a_prefix_that_cannot_be_saved_is_used_all_the_same(one_device, ids, tmp_path, monkeypatch, caplog):
    prefixes = Prefixes.of(named(random_model(TINY, one_device)), 600)

    def full(*_):
        raise UserError("no checkpoint can be written: the disk is full")

    monkeypatch.setattr("fiat_jax.checkpoint.Checkpoints.save", full)
    assert prefixes.get(prefixes.add(ids, directory=tmp_path)).length == 600
    assert "the prefix is not saved" in caplog.text
    assert "the disk is full" in caplog.text


def test_a_damaged_file_says_so(one_device, ids, tmp_path):
    model = named(random_model(TINY, one_device))
    Prefixes.of(model, 600).add(ids, directory=tmp_path)
    for file in tmp_path.rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read"):
        Prefixes.of(model, 600).add(ids, directory=tmp_path)


def test_an_encoder_decoder_shares_no_prefix(one_device):
    config = EncoderDecoderConfig(
        vocab_size=40, width=16, num_layers=1, num_decoder_layers=1, num_heads=2, head_dim=8, mlp_width=24
    )
    with pytest.raises(UserError, match="an encoder reads each text whole"):
        Prefixes.of(random_model(config, one_device), 8)


@pytest.mark.parametrize("config", [TINY, WINDOWED], ids=["plain", "windows and caps"])
@pytest.mark.parametrize("mesh", [MeshConfig(1, 1, 1), MeshConfig(2, 2, 2)], ids=["one device", "eight"])
def test_targets_behind_a_prefix_score_as_whole_texts(config, mesh, ids):
    mesh = mesh.build(jax.devices()[: mesh.data * mesh.fsdp * mesh.tensor])
    model = drawn(config, mesh, lambda model: louder(model, 8))
    rng = np.random.default_rng(1)
    own = [rng.integers(0, 61, n).astype(np.int32) for n in (5, 11, 2, 30, 7)]
    answers = [[rng.integers(0, 61, n).astype(np.int32) for n in (1, 3)] for _ in own]

    def scores(head, row_length, prefix):
        texts = (
            Example(str(i), "en", np.concatenate([head, ids]).astype(np.int32), ids[:0]) for i, ids in enumerate(own)
        )
        batches = ScoringBatches(Examples.of(texts), answers, row_length, 4)
        scorer = TargetScorer(model)
        return batches.gather(np.asarray(scorer(batch, prefix)) for batch in batches)

    prefixes = Prefixes.of(model, 600)
    prefix = prefixes.get(prefixes.add(ids))
    behind, whole, without = scores([], 64, prefix), scores(ids, 700, None), scores([], 64, None)
    np.testing.assert_allclose(np.concatenate(behind), np.concatenate(whole), atol=1e-4)
    assert np.abs(np.concatenate(without) - np.concatenate(whole)).max() > 1e-2
