"""Rows out of seqio Tasks and mixtures of others, as texts: their inputs and targets."""

import importlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from fiat_jax.errors import UserError, did_you_mean
from fiat_jax.prompts.fields import SourceRow

TEXTS = ("inputs", "targets")


def read_seqio(name: str, source: str) -> Iterator[SourceRow]:
    """Yield the rows of "MODULE:NAME/SPLIT", or N drawn at a mixture's rates with "MODULE:NAME/SPLIT?draws=N".

    MODULE is imported, from the working directory too, and registers NAME. A row has `inputs` and `targets`, the texts
    before tokenisation or, where the preprocessors keep none, what the vocabularies make of the ids; `task`, the name
    of its seqio Task; and `index`, its place. Without `draws` a mixture yields each of its tasks once.

    Raises:
        UserError: a module that cannot be imported, a name that it does not register, or a split that is not there.
    """
    module, found, rest = name.partition(":")
    path, asked, draws = rest.partition("?draws=")
    task, _, split = path.rpartition("/")
    if not found or not task or (asked and not draws.isdigit()):
        raise UserError(f"{source}: expected seqio://MODULE:NAME/SPLIT, or seqio://MODULE:NAME/SPLIT?draws=N")
    provider = _registered(module, task, source)
    if split not in provider.splits:
        known = ", ".join(provider.splits)
        hint = did_you_mean(split, provider.splits)
        raise UserError(f"{source}: {task} has no split {split!r}; it has {known}.{hint}")
    rows = _drawn(provider, split, int(draws)) if asked else _each_once(provider, split)
    for index, row in enumerate(rows):
        yield SourceRow({**row, "index": str(index)}, f"{source} row {index}")


def _registered(module: str, task: str, source: str) -> Any:
    from fiat_jax.data.seqio_import import seqio

    sys.path.append(os.getcwd())  # a command's path begins where it is installed
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever a user's module raises
        raise UserError(f"{source}: importing {module} failed ({type(error).__name__}: {error})") from error
    finally:
        sys.path.pop()
    known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
    if task not in known:
        raise UserError(f"{source}: {module} registers no task or mixture {task!r}.{did_you_mean(task, known)}")
    return seqio.get_mixture_or_task(task)


def _each_once(provider: Any, split: str) -> Iterator[dict[str, str]]:
    for task in getattr(provider, "tasks", [provider]):
        if split in task.splits:
            for element in task.get_dataset(None, split, shuffle=False).as_numpy_iterator():
                yield {**_texts(task, element), "task": task.name}


def _drawn(provider: Any, split: str, draws: int) -> Iterator[dict[str, str]]:
    """Draw rows at the rates of a mixture; each task's come in their order, over and over."""
    import numpy as np

    tasks = [task for task in getattr(provider, "tasks", [provider]) if split in task.splits]
    rates = np.array([provider.get_rate(task) if len(tasks) > 1 else 1.0 for task in tasks])
    streams = [task.get_dataset(None, split, shuffle=False).repeat().as_numpy_iterator() for task in tasks]
    for index in np.random.default_rng(0).choice(len(tasks), size=draws, p=rates / rates.sum()):
        yield {**_texts(tasks[index], next(streams[index])), "task": tasks[index].name}


def _texts(task: Any, element: dict[str, Any]) -> dict[str, str]:
    texts = {}
    for name in TEXTS:
        plain = element.get(f"{name}_pretokenized", element.get(name))
        if isinstance(plain, bytes):
            texts[name] = plain.decode()
        elif plain is not None:
            texts[name] = task.output_features[name].vocabulary.decode([int(i) for i in plain])
    return texts
