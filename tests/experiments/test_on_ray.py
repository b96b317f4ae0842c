"""The shards of a run as Ray tasks, on a Ray that the test starts on this machine."""

import json
import sys

import pytest
from support.endpoint import answer

from fiat_jax.errors import UserError
from fiat_jax.experiments.on_ray import RayOptions
from fiat_jax.store import ReasoningStore


@pytest.fixture
def arguments(project, endpoint, tmp_path):
    """What `fiat reason` is told; the endpoint refuses the rows of one label."""
    endpoint.reply = lambda n, request: {"body": answer()}
    return (
        "reason", "--backend=openai", "--engine=ray", "--gin_file=weather.gin", "--gin.Reason.tokenizer=model",
        f"--gin.Endpoint.url={endpoint.url}", "--gin.Endpoint.model=big", f"--gin.Reasoning.store={tmp_path}/store",
        f"--workdir={tmp_path}/work", "--gin.Ray.shards=3",
    )  # fmt: skip


def test_without_ray_the_extra_is_named(project, arguments, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert project.main(*arguments) == 2
    assert "pip install 'fiat-jax[ray]'" in capsys.readouterr().err


def test_a_dry_run_needs_no_ray_and_asks_nothing(project, arguments, endpoint, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert project.main(*arguments, "--dry_run") == 0
    assert "120 requests of 120" in capsys.readouterr().out
    assert endpoint.requests == []


def test_ray_divides_the_rows_by_itself(project, arguments, capsys):
    assert project.main(*arguments, "--shard=0/2") == 2
    assert "leave out --shard" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [{"shards": -1}, {"cpus": 0.0}])
def test_options_that_make_no_sense_are_named(wrong):
    with pytest.raises(UserError, match=r"Ray\.shards, cpus and gpus are"):
        RayOptions(**wrong)


@pytest.mark.multihost
def test_every_row_is_asked_once_by_tasks_that_fill_one_store(project, arguments, endpoint, tmp_path):
    pytest.importorskip("ray", reason="ray is an extra of 245 MB, which `make setup` leaves out: pip install ray")
    done = project.fiat(*arguments, "--gin.Endpoint.price_in=1.0", "--gin.Endpoint.price_out=1.0")
    store = ReasoningStore(tmp_path / "store")
    assert len(store.lookup(store.resolve())) == len(endpoint.requests) == 120
    assert len({json.dumps(request.body) for request in endpoint.requests}) == 120
    assert store.verify() == []
    assert sorted(line.split(":")[0] for line in done.stdout.splitlines() if line.startswith("shard")) == [
        "shard 0 of 3", "shard 1 of 3", "shard 2 of 3",
    ]  # fmt: skip
    assert json.loads((tmp_path / "work" / "card.json").read_text())["records"] == 120
    project.fiat(*arguments)
    assert len(endpoint.requests) == 120


@pytest.mark.multihost
def test_the_mistake_that_ends_a_task_is_told_as_one_and_the_limit_of_costs_is_divided(project, arguments, endpoint):
    pytest.importorskip("ray", reason="ray is an extra of 245 MB, which `make setup` leaves out: pip install ray")
    prices = ("--gin.Endpoint.price_in=1.0", "--gin.Endpoint.price_out=1.0")
    limited = project.fiat(*arguments, *prices, "--gin.Generate.max_cost=0.003", status=75)
    assert "Generate.max_cost, 0.0010; raise it" in limited.stderr
    assert 0 < len(endpoint.requests) < 120
    endpoint.reply = lambda n, request: {"status": 401, "body": {"error": "bad key"}}
    refused = project.fiat(*arguments, status=2)
    assert "HTTP 401: bad key" in refused.stderr
    assert "Traceback" not in refused.stderr
