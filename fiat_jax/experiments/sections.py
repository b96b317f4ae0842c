"""The sections of a gin file, by the name they have there."""

from fiat_jax.experiments.prompt import PromptLook
from fiat_jax.experiments.reason import Import, Reason
from fiat_jax.experiments.spec import Data, Experiment, Prompts, Reasoning, Run
from fiat_jax.models.lora import LoraConfig
from fiat_jax.models.model import ModelConfig
from fiat_jax.reasoning.drive import GenerateOptions
from fiat_jax.reasoning.openai import Endpoint
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
    "Import": Import,
    "Reason": Reason,
    "Endpoint": Endpoint,
    "Generate": GenerateOptions,
    "PromptLook": PromptLook,
}

__all__ = [
    "SECTIONS",
    "Endpoint",
    "Experiment",
    "Import",
    "MeshConfig",
    "PromptLook",
    "Prompts",
    "Reason",
    "Reasoning",
    "Run",
]
