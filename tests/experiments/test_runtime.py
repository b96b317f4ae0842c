"""The settings beside what was done with them."""

import pytest

from fiat_jax.errors import UserError
from fiat_jax.experiments.runtime import recorded


def test_what_is_refused_leaves_nothing_behind(tmp_path):
    with pytest.raises(UserError), recorded(tmp_path / "run", "a = 1\n"):
        raise UserError("no")
    assert not (tmp_path / "run").exists()


def test_what_is_refused_leaves_the_settings_of_what_was_done_before(tmp_path):
    with recorded(tmp_path, "a = 1\n"):
        pass
    with pytest.raises(UserError), recorded(tmp_path, "a = 2\n"):
        raise UserError("no")
    assert (tmp_path / "config.gin").read_text() == "a = 1\n"


def test_what_was_computed_before_a_refusal_keeps_its_settings(tmp_path):
    def fail():
        (tmp_path / "checkpoint").touch()
        raise UserError("no")

    with pytest.raises(UserError), recorded(tmp_path, "a = 1\n"):
        fail()
    assert (tmp_path / "config.gin").read_text() == "a = 1\n"
