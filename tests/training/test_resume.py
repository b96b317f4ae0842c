"""A run that was ended, by whatever, is the run that was never ended."""

import dataclasses
import itertools
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from support.tiny_run import CONFIG, LORA, STEADY, TINY, likelihood, tiny_batches, tiny_model

from fiat_jax.checkpoint import Checkpoints
from fiat_jax.errors import Interrupted, UserError
from fiat_jax.sharding import MeshConfig
from fiat_jax.training.optimizer import OptimizerConfig

SIGKILLED = -signal.SIGKILL


def same_arrays(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.slow
def test_a_run_killed_at_random_steps_and_in_an_evaluation_is_the_same_run(tmp_path, spawn, log_of):
    straight = spawn(tmp_path / "straight")
    told = straight.communicate()[0]
    assert straight.returncode == 0, told
    steps = [line["step"] for line in log_of("straight") if "loss" in line]
    random = np.random.default_rng(int.from_bytes(os.urandom(4), "big"))
    first, last = sorted(random.choice(steps[1:], 2, replace=False))
    for kill in (("--kill_at", first), ("--kill_evaluation", 0), ("--kill_at", last), ()):
        process = spawn(tmp_path / "killed", *kill)
        output = process.communicate()[0]
        assert process.returncode == (SIGKILLED if kill else 0), f"killed before {first} and {last}: {output}"
    assert log_of("killed") == log_of("straight"), f"killed before {first} and {last}"
    assert output == told


@pytest.mark.parametrize("steps", [(5, 6), (0, 20)], ids=str)
def test_sigterm_saves_at_once_and_the_next_run_goes_on_from_there(run, log_of, straight, steps):
    for step in steps:
        at_step = lambda now, step=step: now == step and os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
        with pytest.raises(Interrupted, match=f"after {step + 1} of"):
            run(batches=tiny_batches(at_step=at_step))
    asked = []
    done = run(batches=tiny_batches(at_step=asked.append))
    assert asked[0] == steps[-1] + 1
    assert log_of() == straight[1]
    assert done.history == straight[0].history
    assert same_arrays(done.trainable, straight[0].trainable)


def test_an_average_of_the_parameters_is_what_is_evaluated_and_kept_and_outlives_an_interruption(run, straight):
    done = outlives_an_interruption(run, average=0.9)
    assert done.history.evaluations[0] == straight[0].history.evaluations[0]
    assert done.history.evaluations[1] != straight[0].history.evaluations[1]


def test_what_muon_keeps_outlives_an_interruption(run):
    outlives_an_interruption(run, algorithm="muon")


def outlives_an_interruption(run, **optimizer):
    """Interrupt a run with such an optimizer, let it go on, and compare it with one that ran through; return it."""
    config = dataclasses.replace(CONFIG, optimizer=dataclasses.replace(CONFIG.optimizer, **optimizer))
    whole = run("whole", config)
    with pytest.raises(Interrupted):
        run(config=config, batches=tiny_batches(at_step=lambda now: now == 7 and os.kill(os.getpid(), signal.SIGTERM)))
    done = run(config=config)
    assert done.history == whole.history
    assert same_arrays(done.trainable, whole.trainable)
    return done


@pytest.mark.parametrize("doomed", [1, 4, 6])
def test_a_crash_in_a_save_loses_neither_the_best_nor_the_latest(run, log_of, straight, monkeypatch, doomed):
    count, save = itertools.count(), Checkpoints.save

    def crash(self, *arguments):
        if next(count) == doomed:
            raise SystemError("crash")
        save(self, *arguments)

    monkeypatch.setattr(Checkpoints, "save", crash)
    with pytest.raises(SystemError):
        run()
    done = run()
    assert log_of() == straight[1]
    assert done.history == straight[0].history
    assert same_arrays(done.trainable, straight[0].trainable)


def test_a_finished_run_is_not_done_again(run):
    first = run()
    again = run(batches=tiny_batches(at_step=lambda step: pytest.fail(f"step {step} was asked for")))
    assert again.history == first.history
    assert (again.tokens, again.num_steps) == (first.tokens, first.num_steps)
    assert same_arrays(again.trainable, first.trainable)


def test_a_run_goes_on_with_another_mesh(run, log_of):
    run("one", STEADY)
    with pytest.raises(Interrupted):
        run(
            "two", STEADY, batches=tiny_batches(at_step=lambda step: step == 9 and os.kill(os.getpid(), signal.SIGTERM))
        )
    run("two", STEADY, model=tiny_model(MeshConfig(data=2, fsdp=2, tensor=2)))
    losses = [[line["loss"] for line in log_of(where) if "loss" in line] for where in ("one", "two")]
    np.testing.assert_allclose(*losses, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": "another base"}, "the base model differs"),
        ({"config": dataclasses.replace(CONFIG, seed=1)}, r"Train differs \(seed=0 there, seed=1 here\)"),
        (
            {"config": dataclasses.replace(CONFIG, optimizer=OptimizerConfig(learning_rate=0.5))},
            r"Train differs \(.*learning_rate=0.5 here\)",
        ),
        ({"facts": {"prompts": "b"}}, "prompts differs"),
    ],
    ids=["base", "seed", "learning rate", "facts"],
)
def test_a_checkpoint_of_another_run_is_refused_and_kept(run, model, log_of, change, named):
    facts = {"prompts": "a"}
    run(facts=facts)
    before = log_of()
    if "model" in change:
        change = {"model": dataclasses.replace(model, fingerprint="another")}
    with pytest.raises(UserError, match=rf"another run: {named}\. Use another working directory"):
        run(**({"facts": facts} | change))
    assert log_of() == before
    assert run(facts=facts).num_steps > 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # other reads of Orbax go on for a while
def test_a_damaged_checkpoint_is_named_and_the_run_begins_anew_without_it(run, tmp_path):
    first = run()
    checkpoints = tmp_path / "run" / "checkpoints"
    for file in (checkpoints / "latest").rglob("*/tree/d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(
        UserError, match=rf"latest/\d+ cannot be read \(.*or remove {checkpoints} to begin this run anew"
    ):
        run()
    shutil.rmtree(checkpoints)
    again = run()
    assert again.history == first.history
    assert same_arrays(again.trainable, first.trainable)


def test_an_adapter_of_another_rank_is_refused_by_its_shapes(run):
    run()
    wider = tiny_model(lora=dataclasses.replace(LORA, rank=8))
    with pytest.raises(UserError, match=r"saved by another model or optimizer: .*, 4\) there and .*, 8\) here"):
        run(model=wider)


def test_checkpoints_hold_the_adapter_and_no_weight_of_the_base(run, tmp_path):
    large = tiny_model(config=dataclasses.replace(TINY, vocab_size=20_000))
    run(model=large, batches=tiny_batches(), evaluate=likelihood(large))
    adapter, base = (sum(x.nbytes for x in jax.tree.leaves(tree)) for tree in (large.trainable, large.frozen))
    on_disk = sum(file.stat().st_size for file in (tmp_path / "run" / "checkpoints").rglob("*") if file.is_file())
    assert 0 < adapter < on_disk < base / 3
