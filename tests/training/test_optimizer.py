"""Schedules, clipping, decay and LoRA+, by value."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.tiny_run import TINY, tiny_model

from fiat_jax.errors import UserError
from fiat_jax.training.optimizer import OptimizerConfig, averaged


def rates(num_steps: int = 10, **options) -> list[float]:
    schedule = OptimizerConfig(learning_rate=2.0, **options).learning_rates(num_steps)
    return [float(schedule(step)) for step in range(num_steps)]


def updates(config: OptimizerConfig, params, grads, steps: int = 1):
    optimizer = config.build(10)
    state = optimizer.init(params)
    for _ in range(steps):
        found, state = optimizer.update(grads, state, params)
    return found


def named(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_warm_up_rises_evenly_to_the_peak_and_constant_stays_there():
    np.testing.assert_allclose(rates(warmup=0.4, schedule="constant"), [0.5, 1.0, 1.5, 2.0, *[2.0] * 6], rtol=1e-6)


def test_linear_falls_evenly_towards_zero():
    np.testing.assert_allclose(rates(warmup=0.0, schedule="linear"), np.linspace(2.0, 0.0, 11)[:10], rtol=1e-6)
    np.testing.assert_allclose(rates(warmup=0.2, schedule="linear")[2:], np.linspace(2.0, 0.0, 9)[:8], rtol=1e-6)


def test_cosine_falls_as_half_a_wave():
    want = [1 + np.cos(np.pi * step / 8) for step in range(8)]
    np.testing.assert_allclose(rates(warmup=0.2, schedule="cosine"), [1.0, 2.0, *want], rtol=1e-5)


def test_every_step_of_a_run_learns():
    for schedule in ("cosine", "linear", "constant"):
        assert all(rate > 0 for rate in rates(schedule=schedule))
    assert rates(num_steps=1, warmup=0.5) == [2.0]


def test_gradients_are_clipped_by_their_global_norm():
    params, grads = {"w": jnp.ones(4)}, {"w": jnp.full(4, 50.0)}
    clipped = OptimizerConfig(clip_norm=2.0).build(10).init(params)
    optimizer = OptimizerConfig(clip_norm=2.0).build(10)
    _, state = optimizer.update(grads, clipped, params)
    first_moment = next(leaf for name, leaf in named(state).items() if "mu" in name)
    np.testing.assert_allclose(jnp.linalg.norm(first_moment), 0.1 * 2.0, rtol=1e-5)  # 1 - b1 of a gradient of norm 2
    _, state = OptimizerConfig(clip_norm=0.0).build(10).update(grads, clipped, params)
    first_moment = next(leaf for name, leaf in named(state).items() if "mu" in name)
    np.testing.assert_allclose(first_moment, 5.0, rtol=1e-5)


def test_weight_decay_shrinks_matrices_and_leaves_the_gains_of_norms_alone():
    model = tiny_model(lora=None)
    params = jax.tree.map(jnp.ones_like, model.trainable)
    config = OptimizerConfig(learning_rate=0.5, weight_decay=0.1, warmup=0.0)
    found = named(updates(config, params, jax.tree.map(jnp.zeros_like, params)))
    gains = {name for name in found if "gain" in name}
    assert len(gains) == 3
    for name, update in found.items():
        np.testing.assert_allclose(update, 0.0 if name in gains else -0.05, atol=1e-7, err_msg=name)


def test_weight_decay_leaves_biases_alone():
    model = tiny_model(lora=None, config=dataclasses.replace(TINY, biased=frozenset("qkv")))
    params = jax.tree.map(jnp.ones_like, model.trainable)
    found = named(updates(OptimizerConfig(weight_decay=0.1, warmup=0.0), params, jax.tree.map(jnp.zeros_like, params)))
    biases = [update for name, update in found.items() if "bias" in name]
    assert len(biases) == 3
    assert not any(np.asarray(update).any() for update in biases)


def test_lora_plus_multiplies_the_update_of_b_alone():
    model = tiny_model()
    params = jax.tree.map(jnp.ones_like, model.trainable)
    plain, faster = (named(updates(OptimizerConfig(lora_plus_ratio=r), params, params)) for r in (1.0, 16.0))
    ratios = {name: float(jnp.mean(faster[name] / plain[name])) for name in plain}
    b = {name: ratio for name, ratio in ratios.items() if ".b" in name}
    assert len(b) == len(ratios) / 2
    np.testing.assert_allclose(list(b.values()), 16.0, rtol=1e-5)
    np.testing.assert_allclose([ratio for name, ratio in ratios.items() if name not in b], 1.0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"schedule": "cosin"}, "schedule is 'cosin'.*Did you mean 'cosine'"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be above 0"),
        ({"warmup": 1.0}, "warmup is a share"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        OptimizerConfig(**wrong)


def test_the_average_follows_the_parameters_and_forgets_where_they_began():
    params = {"w": jnp.ones(3)}
    optimizer = OptimizerConfig(learning_rate=0.5, schedule="constant", warmup=0.0, average=0.7).build(10)
    state, want = optimizer.init(params), np.ones(3)
    for step in range(1, 6):
        found, state = optimizer.update({"w": jnp.ones(3)}, state, params)
        params = optax.apply_updates(params, found)
        kept = min(0.7, (1 + step) / (10 + step))
        want = kept * want + (1 - kept) * np.asarray(params["w"])
        np.testing.assert_allclose(averaged(state, params)["w"], want, rtol=1e-6)


def test_without_an_average_the_parameters_themselves_are_evaluated():
    params = {"w": jnp.ones(3)}
    assert averaged(OptimizerConfig().build(10).init(params), params) is params


def test_an_average_that_never_forgets_is_refused():
    with pytest.raises(UserError, match="average is the decay"):
        OptimizerConfig(average=1.0)


def test_muon_moves_the_layers_matrices_along_orthogonal_ones_and_all_else_as_adamw_does():
    trainable, key = tiny_model(lora=None).trainable, jax.random.key(0)
    leaves, tree = jax.tree.flatten(trainable)
    grads = tree.unflatten([jax.random.normal(key, leaf.shape) for leaf in leaves])
    options = {"learning_rate": 0.1, "schedule": "constant", "warmup": 0.0, "clip_norm": 0.0}
    by_muon = named(updates(OptimizerConfig(algorithm="muon", weight_decay=0.5, **options), trainable, grads))
    nadam = optax.adamw(0.1, weight_decay=0.0, nesterov=True)
    by_adamw = named(nadam.update(grads, nadam.init(trainable), trainable)[0])
    inputs = {"q": 1, "k": 1, "v": 1, "o": 3, "gate": 1, "up": 1, "down": 1}
    for name, update in by_muon.items():
        parts = name.split(".")
        if "blocks" in parts and "w" in parts:
            rows = int(np.prod(update.shape[1 : 1 + inputs[parts[parts.index("w") - 1]]]))
            undecayed = update + 0.1 * 0.5 * named(trainable)[name]
            for layer in undecayed.reshape(len(update), rows, -1):
                values = np.linalg.svd(layer, compute_uv=False)
                assert values.max() < 2.5 * values.min(), name  # Newton-Schulz leaves 0.5 to 1.5
                np.testing.assert_allclose(np.sqrt(np.mean(layer**2)), 0.1 * 0.2, rtol=0.4)  # as large as by AdamW
        else:
            np.testing.assert_allclose(update, by_adamw[name], rtol=1e-5, err_msg=name)


def test_an_unknown_algorithm_is_named():
    with pytest.raises(UserError, match=r"algorithm is 'moun'; known are adamw, muon"):
        OptimizerConfig(algorithm="moun")
