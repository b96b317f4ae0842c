"""What a server counts, in Prometheus' format."""

from collections.abc import Callable

import prometheus_client as prometheus

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self):
        self.registry = prometheus.CollectorRegistry()
        options = {"namespace": "fiat", "registry": self.registry}
        self.requests = prometheus.Counter("requests", "Requests answered", ["path", "model", "status"], **options)
        self.tokens = prometheus.Counter(
            "tokens", "Tokens read, read before, and written", ["model", "kind"], **options
        )
        self.seconds = prometheus.Histogram(
            "request_seconds", "From a request to its last byte", ["path"], buckets=SECONDS, **options
        )
        self.first = prometheus.Histogram(
            "first_token_seconds", "From a request to its first token", ["model"], buckets=SECONDS, **options
        )
        self.without_reasoning = prometheus.Counter(
            "without_reasoning", "Answers of a fused pair for which no reasoning could be had", ["model"], **options
        )
        self._sequences = prometheus.Gauge("sequences", "Sequences in slots, or waiting", ["model", "state"], **options)

    def watch(self, model: str, load: Callable[[], tuple[int, int]]) -> None:
        """Tell with each reading how many sequences of an engine run and wait."""
        self._sequences.labels(model, "running").set_function(lambda: load()[0])
        self._sequences.labels(model, "waiting").set_function(lambda: load()[1])

    def text(self) -> bytes:
        """The counters as they are read."""
        return prometheus.generate_latest(self.registry)
