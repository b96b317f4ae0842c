"""What a server serves: its models by their names, who is let in, and what is counted."""

from collections.abc import Mapping
from typing import Union

from fiat_jax.errors import did_you_mean
from fiat_jax.serving.config import Serve
from fiat_jax.serving.errors import ApiError
from fiat_jax.serving.gate import Gate
from fiat_jax.serving.metrics import Metrics
from fiat_jax.serving.pair import Pair
from fiat_jax.serving.text import TextModel

Served = Union[TextModel, Pair]  # noqa: UP007  # both are known here


class Service:
    """Models by name, once they are loaded; the first is the one that requests without a name get."""

    def __init__(self, serve: Serve, gate: Gate, metrics: Metrics):
        self.serve, self.gate, self.metrics = serve, gate, metrics
        self.models: dict[str, Served] = {}

    def open(self, models: Mapping[str, Served]) -> None:
        """Serve these from now on."""
        self.models = dict(models)
        for name, model in models.items():
            if isinstance(model, TextModel):
                self.metrics.watch(name, lambda model=model: model.worker.engine.load)
        self.gate.state = "ready"

    def find(self, name: str | None) -> Served:
        """Return the model of a name.

        Raises:
            ApiError: 503 while models are loaded, 404 where there is none of this name.
        """
        if not self.models:
            raise ApiError(503, f"the server is {self.gate.state}", retry_after=5)
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            known = ", ".join(self.models)
            hint = did_you_mean(name, self.models)
            raise ApiError(404, f"there is no model {name!r}; there are {known}.{hint}", param="model")
        return self.models[name]
