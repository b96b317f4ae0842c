"""Who this process is among those of its run: what is given, what a scheduler says, what is missing."""

import jax
import pytest

from fiat_jax.distributed import HEARTBEAT, initialize
from fiat_jax.errors import UserError

NAMES = ("FIAT_COORDINATOR", "FIAT_NUM_PROCESSES", "FIAT_PROCESS_ID", "FIAT_DISTRIBUTED", "JOB_COMPLETION_INDEX")
NAMES += ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "FIAT_JOIN_SECONDS")


@pytest.fixture
def joined(monkeypatch):
    """Set the environment and return with what JAX is asked to join, None for not at all."""
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *names, **options: asked.append((names, options)))
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)

    def joined(*arguments, **env):
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        initialize(*arguments)
        return asked[0] if asked else None

    return joined


GIVEN = (("host:9",), {"num_processes": 4, "process_id": 2, "heartbeat_timeout_seconds": HEARTBEAT})
FOUND_OUT = ((), {"heartbeat_timeout_seconds": HEARTBEAT})
ADDRESS = {"FIAT_COORDINATOR": "host:9", "FIAT_NUM_PROCESSES": "4"}


@pytest.mark.parametrize(
    ("env", "wanted"),
    [
        ({}, None),
        (ADDRESS | {"FIAT_PROCESS_ID": "2"}, GIVEN),
        (ADDRESS | {"JOB_COMPLETION_INDEX": "2"}, GIVEN),
        (ADDRESS | {"FIAT_PROCESS_ID": "2", "JOB_COMPLETION_INDEX": "3"}, GIVEN),
        ({"SLURM_STEP_NUM_TASKS": "2"}, FOUND_OUT),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, FOUND_OUT),
        ({"FIAT_DISTRIBUTED": "auto"}, FOUND_OUT),
        ({"SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_STEP_NUM_TASKS": "2", "FIAT_DISTRIBUTED": "off"}, None),
        (ADDRESS | {"FIAT_PROCESS_ID": "2", "SLURM_STEP_NUM_TASKS": "9"}, GIVEN),
    ],
    ids=str,
)
def test_a_process_joins_by_what_its_environment_says(joined, env, wanted):
    assert joined(**env) == wanted


def test_arguments_come_before_the_environment(joined):
    assert joined("host:9", 4, 2, FIAT_COORDINATOR="other:1", FIAT_NUM_PROCESSES="7", FIAT_PROCESS_ID="6") == GIVEN


def test_who_comes_late_is_waited_for_as_long_as_is_said(joined):
    _, options = joined(**ADDRESS, FIAT_PROCESS_ID="2", FIAT_JOIN_SECONDS="1800")
    assert options == {**GIVEN[1], "initialization_timeout": 1800}


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({"FIAT_COORDINATOR": "host:9"}, "FIAT_NUM_PROCESSES"),
        (ADDRESS, "JOB_COMPLETION_INDEX"),
        (ADDRESS | {"FIAT_PROCESS_ID": "two"}, "two"),
        (ADDRESS | {"FIAT_PROCESS_ID": "4"}, "process 4 of 4"),
        ({"FIAT_DISTRIBUTED": "yes"}, "it is auto or off"),
        (ADDRESS | {"FIAT_PROCESS_ID": "2", "FIAT_JOIN_SECONDS": "long"}, "whole number of seconds"),
    ],
    ids=str,
)
def test_what_is_missing_or_wrong_is_named(joined, env, named):
    with pytest.raises(UserError, match=named):
        joined(**env)


def test_processes_that_do_not_find_each_other_are_a_clear_error(monkeypatch, joined):
    def fail(*names, **options):
        raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: barrier timed out")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(UserError, match=r"cannot join the others of its run \(coordinator host:9\): DEADLINE"):
        joined(**ADDRESS, FIAT_PROCESS_ID="2")
