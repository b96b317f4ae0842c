"""The layout of a family's files: one table of tensors, read in both directions."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fiat_jax.models.config import Config


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One weight, ours and theirs. Dimensions are single letters; a group in brackets is one dimension in their file.

    Args:
        path: ours, dotted from the model ("blocks.q.w").
        name: theirs, with {layer} where our tensor stacks one of theirs a layer, and {expert} where one an expert.
        theirs: the dimensions of their tensor, "(H G K) D".
        ours: the dimensions of one layer of ours, "D H G K"; experts come first.
        when: which configurations of the model have it; all by default.
    """

    path: str
    name: str
    theirs: str
    ours: str
    when: Callable[[Any], bool] = lambda config: True

    @property
    def stacked(self) -> bool:
        """Whether ours has a leading dimension of layers."""
        return "{layer}" in self.name

    @property
    def dims(self) -> list[str]:
        """The dimensions of what is one tensor of theirs, in our order."""
        return [dim for dim in self.ours.split() if not (dim == "E" and self.of_experts)]

    @property
    def of_experts(self) -> bool:
        """Whether ours has a dimension of experts that theirs lacks."""
        return "{expert}" in self.name

    def depth(self, config: Config) -> int:
        """How many layers ours stacks; 1 where it stacks none."""
        return config.depths[self.path.split(".")[0]] if self.stacked else 1

    def names(self, layer: int, config: Config) -> list[str]:
        """Return their names of what one layer of ours holds: one, or one an expert."""
        experts = config.sizes["E"] if self.of_experts else 1
        return [self.name.format(layer=layer, expert=e) for e in range(experts)]

    def their_shape(self, size: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape of one of their tensors."""
        return tuple(math.prod(size[dim] for dim in group) for group in groups(self.theirs))

    def our_shape(self, size: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape of one layer of ours."""
        return tuple(size[dim] for dim in self.ours.split())

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        """Return a layer of ours, or an expert of it, in their order and shape of dimensions."""
        array = ours.transpose([self.dims.index(dim) for group in groups(self.theirs) for dim in group])
        size = dict(zip(self.dims, ours.shape, strict=True))
        return np.ascontiguousarray(array.reshape(self.their_shape(size)))


@dataclasses.dataclass(frozen=True)
class Family:
    """One architecture: how its config.json reads, and which tensors it has.

    Args:
        read_config: config.json and its path → our configuration.
        table: their name of the embedding; `copies`: the names under which a file may repeat it.
        head_by_files: whether the head is tied to the table shows in the files alone, whatever config.json says.
        task_type: what peft calls such a model.
    """

    name: str
    read_config: Callable[[Mapping[str, Any], str], Config]
    tensors: tuple[Tensor, ...]
    table: str = "model.embed_tokens.weight"
    copies: tuple[str, ...] = ()
    head_by_files: bool = False
    task_type: str = "CAUSAL_LM"

    def present(self, config: Config) -> tuple[Tensor, ...]:
        """Return the tensors that a checkpoint of this configuration has."""
        return tuple(t for t in self.tensors if t.when(config))

    def modules(self, config: Config) -> dict[str, tuple[str, ...]]:
        """Return all that can be adapted: our path of a module ("blocks.q", "embed") → theirs of its layers."""
        return {
            t.path.removesuffix(".w"): tuple(
                t.name.format(layer=layer).removesuffix(".weight") for layer in range(t.depth(config))
            )
            for t in self.present(config)
            if t.path.endswith(".w")
        }


def groups(dims: str) -> list[str]:
    """Split "(H G K) D" into ["HGK", "D"]."""
    found, inside = [], False
    for token in dims.replace("(", " ( ").replace(")", " ) ").split():
        if token in "()":
            inside = token == "("
            if inside:
                found.append("")
        elif inside:
            found[-1] += token
        else:
            found.append(token)
    return found
