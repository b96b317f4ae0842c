"""What rows begin with in common is read once, and nothing is predicted otherwise for it."""

import numpy as np
import pytest
from support.louder import louder

from fiat_jax.experiments import scorer as scorers
from fiat_jax.experiments.feed import Reasons
from fiat_jax.experiments.paradigms import find_paradigm
from fiat_jax.experiments.scorer import Scorer
from fiat_jax.models.lora import LoraConfig
from fiat_jax.models.model import load_model
from fiat_jax.sharding import MeshConfig
from fiat_jax.tasks.task import read_rows


@pytest.fixture(scope="module")
def mesh():
    import jax

    return MeshConfig(1, 1, 1).build(jax.devices()[:1])


def test_rows_that_begin_alike_are_predicted_as_when_each_is_read_whole(bench, mesh, monkeypatch, project):
    made = bench("fiat-no-reasoning")
    (cell,) = made.cells([find_paradigm("fiat-no-reasoning")], (0,), (0,))
    monkeypatch.chdir(project.root)
    rows = read_rows(made.task, "train")[:30]
    model = louder(load_model(made.run.model, mesh, lora=LoraConfig(rank=2)), 6)
    found = {}
    for shortest in (3, 10**6):
        monkeypatch.setattr(scorers, "SHORTEST_PREFIX", shortest)
        scorer = Scorer(model, made.feed(cell), 128, 8)
        prepared = scorer.prepare(rows, Reasons({}))
        assert (len(prepared._prefix) >= 3) == (shortest == 3)
        scores = [list(one.scores.values()) for one in prepared.predict(model.trainable)]
        found[shortest] = np.array(scores), prepared._generate(model.trainable, 6)
    np.testing.assert_allclose(found[3][0], found[10**6][0], atol=1e-4)
    assert found[3][1] == found[10**6][1]
    assert len(set(found[3][1])) > 5
    assert np.ptp(found[3][0]) > 1e-2


def test_other_trained_parameters_read_the_common_beginning_anew(bench, mesh, monkeypatch, project):
    import jax

    made = bench("fiat-no-reasoning")
    (cell,) = made.cells([find_paradigm("fiat-no-reasoning")], (0,), (0,))
    monkeypatch.chdir(project.root)
    monkeypatch.setattr(scorers, "SHORTEST_PREFIX", 3)
    rows = read_rows(made.task, "train")[:6]
    model = louder(load_model(made.run.model, mesh, lora=LoraConfig(rank=2)), 6)
    moved = jax.tree.map(lambda x: x + 0.05, model.trainable)

    def scores(prepared, trainable):
        return np.array([list(one.scores.values()) for one in prepared.predict(trainable)])

    feed = made.feed(cell)
    prepared, fresh = (Scorer(model, feed, 128, 8).prepare(rows, Reasons({})) for _ in range(2))
    before = scores(prepared, model.trainable)
    after = scores(prepared, moved)
    assert np.abs(after - before).max() > 1e-2
    np.testing.assert_allclose(after, scores(fresh, moved), atol=1e-6)
