"""What the loop does besides stepping: evaluation, choice of the best, patience, and what it refuses."""

import dataclasses

import jax
import numpy as np
import pytest
from support.tiny_run import CONFIG, tiny_batches, tiny_examples, tiny_model

from fiat_jax.data.batches import TrainBatches
from fiat_jax.errors import UserError
from fiat_jax.sharding import MeshConfig
from fiat_jax.training.config import TrainConfig
from fiat_jax.training.loop import Evaluation, History
from fiat_jax.training.optimizer import OptimizerConfig

STEPS = TrainBatches(tiny_examples(), CONFIG.row_length, CONFIG.batch_rows, CONFIG.seed).num_steps(CONFIG.epochs)


class Scripted:
    """An evaluator that gives the values of a list, and keeps the parameters that it was given."""

    def __init__(self, *values: float):
        self.values, self.seen = list(values), []

    def __call__(self, trainable):
        self.seen.append(jax.tree.map(np.asarray, trainable))
        return {"score": self.values[len(self.seen) - 1], "other": 0.0}


def test_it_evaluates_before_the_first_step_and_after_every_epoch(run, model, log_of):
    scores = Scripted(0.0, 1.0, 3.0, 2.0)
    done = run(evaluate=scores, select="score")
    batches = tiny_batches()
    ends = [batches.num_steps(epoch) for epoch in range(CONFIG.epochs + 1)]
    assert [e.step for e in done.history.evaluations] == ends
    assert ends[0] == 0
    before = [np.asarray(x) for x in jax.tree.leaves(model.trainable)]
    assert all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(scores.seen[0]), before, strict=True))
    assert [line["step"] for line in log_of() if "evaluation" in line] == ends


def test_the_parameters_of_the_best_evaluation_are_kept(run):
    scores = Scripted(0.0, 1.0, 3.0, 2.0)
    done = run(evaluate=scores, select="score")
    assert done.history.best.metrics["score"] == 3.0
    for kept, seen in zip(jax.tree.leaves(done.trainable), jax.tree.leaves(scores.seen[2]), strict=True):
        assert np.array_equal(kept, seen)


def test_it_stops_after_as_many_evaluations_without_a_better_one_as_patience_says(run):
    config = dataclasses.replace(CONFIG, evaluate_every=2, patience=3)
    done = run(config=config, evaluate=Scripted(9.0, 1.0, 4.0, 3.0, 4.0, 2.0, 8.0), select="score")
    assert [e.step for e in done.history.evaluations] == [0, 2, 4, 6, 8, 10]
    assert (done.num_steps, done.history.best.step) == (10, 4)


def test_the_untrained_model_is_chosen_only_where_nothing_was_trained():
    history = History("score", (Evaluation(0, {"score": 9.0}),))
    assert history.best.step == 0
    assert history.add(Evaluation(5, {"score": 1.0})).best.step == 5


def test_of_equal_evaluations_the_earliest_is_best():
    history = History("score", tuple(Evaluation(step, {"score": 1.0}) for step in (0, 5, 10)))
    assert history.best.step == 5


def test_a_metric_that_is_not_measured_cannot_select(run):
    with pytest.raises(UserError, match="selection by 'f1', but measured are score, other"):
        run(evaluate=Scripted(0.0), select="f1")


def test_small_sets_are_read_until_the_least_number_of_steps_is_reached(run):
    config = dataclasses.replace(CONFIG, min_steps=STEPS + 1)
    assert run(config=config).num_steps >= STEPS + 1


def test_training_lowers_the_loss(run, log_of):
    run(config=dataclasses.replace(CONFIG, epochs=8))
    losses = [line["loss"] for line in log_of() if "loss" in line]
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])


def test_a_loss_that_is_no_number_ends_the_run_and_names_the_step(run, log_of):
    wild = dataclasses.replace(CONFIG, optimizer=OptimizerConfig(learning_rate=1e30, warmup=0.0, clip_norm=0.0))
    evaluate = Scripted(*[0.0] * 9)
    with pytest.raises(UserError, match=r"(loss|norm) of step \d+ is (nan|inf).*Lower the learning rate") as error:
        run(config=wild, evaluate=evaluate, select="score")
    named = int(str(error.value).split("step ")[1].split()[0])
    finished = [line["step"] for line in log_of() if "loss" in line]
    assert finished == list(range(named))
    assert all(np.isfinite(leaf).all() for tree in evaluate.seen for leaf in jax.tree.leaves(tree))


def test_a_batch_that_the_mesh_does_not_divide_is_refused_before_anything_is_made(run, tmp_path):
    model = tiny_model(MeshConfig(data=4, fsdp=2, tensor=1))
    config = dataclasses.replace(CONFIG, batch_rows=12)
    with pytest.raises(UserError, match=r"12 rows .* splits rows 8 ways .*use a multiple of 8 rows"):
        run(config=config, model=model, batches=tiny_batches(config), evaluate=lambda _: pytest.fail("evaluated"))
    with pytest.raises(UserError, match="use a multiple of 16 rows"):
        run(config=dataclasses.replace(CONFIG, accumulate=2), model=model, evaluate=lambda _: pytest.fail("evaluated"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch_rows": 0}, {"accumulate": -1}, {"row_length": 0}], ids=str)
def test_sizes_below_one_are_refused(wrong):
    with pytest.raises(UserError, match=f"{next(iter(wrong))} is .*1 or more"):
        TrainConfig(**wrong)
