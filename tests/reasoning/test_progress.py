import io
import logging

from rich.console import Console

from fiat_jax.reasoning import progress
from fiat_jax.reasoning.progress import Meter


def test_away_from_a_terminal_progress_is_plain_log_lines(caplog, monkeypatch):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    out = io.StringIO()
    with caplog.at_level(logging.INFO), Meter(10, Console(file=out)) as meter:
        meter.advance(4, tokens=40)
        meter.spend(0.5)
        meter.advance(1, failed=1)
    assert out.getvalue() == ""
    assert [record.message.split(",")[0] for record in caplog.records] == [
        "reason: 4 of 10", "reason: 5 of 10", "reason: 5 of 10",
    ]  # fmt: skip
    assert "tokens/s, 1 failed, 0.5000 spent" in caplog.text


def test_on_a_terminal_progress_is_a_bar_with_its_rate(caplog):
    out = io.StringIO()
    with caplog.at_level(logging.INFO), Meter(10, Console(file=out, force_terminal=True, width=120)) as meter:
        meter.advance(4, tokens=40)
    assert "4/10" in out.getvalue()
    assert "rows/s" in out.getvalue()
    assert caplog.records == []
