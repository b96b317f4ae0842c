"""One step: its gradient, in parts and on meshes, and what it leaves alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.tiny_run import CONFIG, LORA, STEADY, likelihood, tiny_batches, tiny_model

from fiat_jax.sharding import MeshConfig
from fiat_jax.training.program import jit_step
from fiat_jax.training.step import TrainState, train_step

ADAPTER_MESHES = [(2, 2, 2), (1, 2, 4)]  # others: tests/models/test_meshes.py
FULL_MESHES = [(1, 8, 1), (2, 2, 2)]


def step_of(model, *, parts=1, dropout_key=None, optimizer=None):
    """Return a compiled step of plain gradient descent, and its state."""
    optimizer = optimizer or optax.sgd(1.0)
    step = functools.partial(train_step, loss_fn=model.loss, optimizer=optimizer, parts=parts, dropout_key=dropout_key)
    return jax.jit(step), TrainState(jnp.int32(0), model.trainable, optimizer.init(model.trainable))


def test_accumulated_parts_of_unequal_targets_give_the_gradient_of_one_big_batch(model):
    batch = tiny_batches().batch(0)
    per_part = [batch["weights"][part::4].sum() for part in range(4)]
    assert len(set(per_part)) > 1
    results = []
    for parts in (1, 2, 4):
        step, state = step_of(model, parts=parts)
        after, metrics = step(state, model.frozen, batch)
        results.append([metrics["loss"], metrics["grad_norm"], *jax.tree.leaves(after.trainable)])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_loss_is_the_mean_over_target_tokens(model):
    batch = tiny_batches().batch(0)
    step, state = step_of(model)
    loss = step(state, model.frozen, batch)[1]["loss"]
    log_probs = jax.jit(model.log_probs)(model.trainable, model.frozen, batch)
    real = batch["weights"] > 0
    np.testing.assert_allclose(loss, -np.asarray(log_probs)[real].mean(), rtol=1e-5)


def test_tokens_are_counted_without_padding(model):
    batch = tiny_batches().batch(0)
    step, state = step_of(model)
    counted = step(state, model.frozen, batch)[1]["tokens"]
    assert counted == (batch["segments"] > 0).sum() < batch["tokens"].size


def test_runs_that_differ_in_seed_and_weights_alone_share_one_program(model):
    optimizer, other, batch = CONFIG.optimizer.build(20), tiny_model(seed=1), tiny_batches().batch(0)
    step = jit_step(model, CONFIG, optimizer)
    assert jit_step(other, dataclasses.replace(CONFIG, seed=1), CONFIG.optimizer.build(20)) is step
    losses = []
    for one in (model, other):
        alone, state = step_of(one, optimizer=optimizer)
        wanted = alone(state, one.frozen, batch)[1]["loss"]
        losses.append(float(step(jax.tree.map(jnp.copy, state), one.frozen, batch)[1]["loss"]))
        np.testing.assert_allclose(losses[-1], wanted, rtol=1e-6)
    assert losses[0] != losses[1]
    assert step._cache_size() == 1


def test_runs_that_compute_something_else_have_programs_of_their_own(model):
    optimizer = CONFIG.optimizer.build(20)
    dropped = tiny_model(lora=dataclasses.replace(LORA, dropout=0.5))
    runs = [
        (model, CONFIG, optimizer),
        (model, CONFIG, CONFIG.optimizer.build(21)),
        (model, dataclasses.replace(CONFIG, accumulate=2), optimizer),
        (tiny_model(lora=dataclasses.replace(LORA, rank=2)), CONFIG, optimizer),
        (dropped, CONFIG, optimizer),
        (dropped, dataclasses.replace(CONFIG, seed=1), optimizer),
    ]
    steps = [jit_step(*run) for run in runs]
    assert len({id(step) for step in steps}) == len(runs)


def test_a_step_moves_the_adapter_alone(model):
    step, state = step_of(model)
    after, _ = step(state, model.frozen, tiny_batches().batch(0))
    assert jax.tree.structure(after.trainable) == jax.tree.structure(model.trainable)
    moved = [
        not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (after.trainable, state.trainable)), strict=True)
    ]
    assert any(moved)


def test_dropout_differs_by_step_and_is_the_same_again_for_the_same_step():
    model, batch = tiny_model(lora=dataclasses.replace(LORA, dropout=0.5)), tiny_batches().batch(0)
    rng = np.random.default_rng(0)
    filled = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), model.trainable)
    step, state = step_of(model, dropout_key=jax.random.key(1))
    at = lambda n: step(TrainState(jnp.int32(n), filled, state.opt_state), model.frozen, batch)[1]["loss"]  # noqa: E731
    assert at(0) == at(0)
    assert at(0) != at(1)


@pytest.mark.parametrize(
    ("lora", "meshes"), [(LORA, ADAPTER_MESHES), (None, FULL_MESHES)], ids=["adapters", "all weights"]
)
def test_losses_are_the_same_on_every_mesh(run, log_of, lora, meshes):
    config = dataclasses.replace(STEADY, epochs=1)
    one = tiny_model(lora=lora)
    run("one", config, model=one)
    want = [line["loss"] for line in log_of("one") if "loss" in line]
    assert len(want) >= 5
    for sizes in meshes:
        model = tiny_model(MeshConfig(*sizes), lora=lora)
        run(str(sizes), config, model=model, evaluate=lambda _: {"likelihood": 0.0})
        got = [line["loss"] for line in log_of(str(sizes)) if "loss" in line]
        np.testing.assert_allclose(got, want, atol=1e-5, rtol=0, err_msg=str(sizes))


def test_accumulation_on_a_mesh_gives_the_losses_of_one_device(run, log_of):
    run("one", STEADY)
    config = dataclasses.replace(STEADY, accumulate=2)
    model = tiny_model(MeshConfig(data=2, fsdp=2, tensor=2))
    run("eight", config, model=model, batches=tiny_batches(config), evaluate=likelihood(model))
    losses = [[line["loss"] for line in log_of(where) if "loss" in line] for where in ("one", "eight")]
    np.testing.assert_allclose(*losses, atol=1e-5, rtol=0)
