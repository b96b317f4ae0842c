"""The sections of a gin file, by the name they have there, and their values written as such a file."""

import dataclasses
import pprint
from collections.abc import Iterator, Mapping
from typing import Any

from fiat_jax.experiments.on_ray import RayOptions
from fiat_jax.experiments.prompt import PromptLook
from fiat_jax.experiments.reason import Import, Reason
from fiat_jax.experiments.spec import Data, Experiment, Mixture, Prompts, Reasoning, Run
from fiat_jax.models.lora import LoraConfig
from fiat_jax.models.model import ModelConfig
from fiat_jax.reasoning.drive import GenerateOptions
from fiat_jax.reasoning.native import Native
from fiat_jax.reasoning.openai import Endpoint
from fiat_jax.serving.config import Serve
from fiat_jax.sharding import MeshConfig
from fiat_jax.tasks.task import Task
from fiat_jax.training.config import TrainConfig
from fiat_jax.training.optimizer import OptimizerConfig

SECTIONS: dict[str, type] = {
    "Task": Task,
    "Prompts": Prompts,
    "Reasoning": Reasoning,
    "Data": Data,
    "Model": ModelConfig,
    "Lora": LoraConfig,
    "Train": TrainConfig,
    "Optimizer": OptimizerConfig,
    "Mesh": MeshConfig,
    "Run": Run,
    "Experiment": Experiment,
    "Mixture": Mixture,
    "Import": Import,
    "Reason": Reason,
    "Endpoint": Endpoint,
    "Native": Native,
    "Generate": GenerateOptions,
    "Ray": RayOptions,
    "PromptLook": PromptLook,
    "Serve": Serve,
}

TEXT_WIDTH = 110
OF_A_PART = (Task, Prompts, Reasoning, Data)  # what each part of a mixture has for itself


def as_gin(*built: Any, scope: str = "", known: Mapping[str, type] = SECTIONS) -> str:
    """Return every field of sections, and of the sections within, as a file that --gin_file reads back.

    `known` are all sections by name, where there are more than these.
    """
    prefix = f"{scope}/" if scope else ""
    return "\n\n".join(_block(section, prefix, known) for one in built for section in _within(one)) + "\n"


def mixture_as_gin(mixture: Mixture, parts: Mapping[str, Run]) -> str:
    """Return the same of a mixture: its parts' own sections under their names, and once those that they share."""
    blocks = [_block(dataclasses.replace(mixture, files={}))]  # what they said follows
    shared = next(iter(parts.values()))
    for part, run in parts.items():
        blocks += [_block(section, f"{part}/") for section in _within(run) if isinstance(section, OF_A_PART)]
        blocks += [_binding(f"{part}/Run.paradigm", run.paradigm)] if run.paradigm != shared.paradigm else []
    blocks += [_block(section) for section in _within(shared) if not isinstance(section, OF_A_PART)]
    return "\n\n".join(blocks) + "\n"


def _within(section: Any) -> Iterator[Any]:
    yield section
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if type(value) in SECTIONS.values():
            yield from _within(value)


def _block(section: Any, scope: str = "", known: Mapping[str, type] = SECTIONS) -> str:
    name = next(name for name, kind in known.items() if kind is type(section))
    values = {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}
    lines = [_binding(f"{scope}{name}.{k}", v) for k, v in values.items() if type(v) not in SECTIONS.values()]
    return "\n".join([f"# {scope}{name}", *lines])


def _binding(name: str, value: Any) -> str:
    text = pprint.pformat(value, width=TEXT_WIDTH, sort_dicts=False, compact=True)
    return f"{name} = {text}" if "\n" not in text else f"{name} = \\\n    " + text.replace("\n", "\n    ")


__all__ = [
    "SECTIONS",
    "Endpoint",
    "Experiment",
    "Import",
    "MeshConfig",
    "Mixture",
    "Native",
    "PromptLook",
    "Prompts",
    "RayOptions",
    "Reason",
    "Reasoning",
    "Run",
    "Serve",
    "as_gin",
    "mixture_as_gin",
]
