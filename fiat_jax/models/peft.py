"""Adapters in the directory layout of peft, which vLLM reads too: out and in."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from fiat_jax.errors import UserError
from fiat_jax.models.checkpoints import host_array, read_json, readable
from fiat_jax.models.linear import EMBEDDING
from fiat_jax.models.lora import LoraConfig
from fiat_jax.models.model import Model
from fiat_jax.models.tensors import Family

PREFIX = "base_model.model."
WEIGHTS, CONFIG, PROVENANCE = "adapter_model.safetensors", "adapter_config.json", "fiat_adapter.json"
# what we follow, and what says nothing about the adapter's arithmetic once its tensors are there
FOLLOWED = {"r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "peft_type"}
HARMLESS = {
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "inference_mode", "task_type"),
    *("base_model_name_or_path", "revision", "peft_version", "auto_mapping", "megatron_core", "runtime_config"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size"),
}
NEUTRAL = (None, False, "none", [], {})  # values that switch an option off
TABLE = "embed_tokens"  # what peft wraps as an embedding, with names of its own; it may save the table beside them
TABLE_ITSELF = f"{TABLE}.base_layer.weight"
OWN_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")  # initialisations that change the base's weights too


def save_adapter(model: Model, directory: str | Path, trainable: nnx.State | None = None) -> None:
    """Write the adapter (`model.trainable` by default) with the rows and columns that its layers really use.

    Every process gathers the arrays; process 0 writes.
    """
    from safetensors.numpy import save_file

    assert model.lora is not None, "a model without adapters has none to save"
    tensors = adapter_tensors(model, model.trainable if trainable is None else trainable)
    if jax.process_index() != 0:
        return
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    save_file({PREFIX + name: array for name, array in tensors.items()}, target / WEIGHTS, metadata={"format": "pt"})
    readable(target / WEIGHTS)
    (target / CONFIG).write_text(json.dumps(_their_config(model), indent=2))
    provenance = {"base_fingerprint": model.fingerprint, "base_path": model.directory}
    (target / PROVENANCE).write_text(json.dumps(provenance, indent=2))


def adapter_tensors(model: Model, trainable: nnx.State) -> dict[str, np.ndarray]:
    """Return peft's name, without its prefix → host array: A (r, in) and B (out, r) of every layer."""
    modules, flat = model.family.modules(model.config), _flat(trainable)
    tensors = {}
    for name, slot in model.build.slots:
        a, b = (_stacked(name, host_array(flat[f"{name}.{part}"], "float32")) for part in "ab")
        for layer, (path, rank) in enumerate(zip(modules[name], slot.ranks, strict=True)):
            if rank:
                a_IR, b_RO = a[layer].reshape(-1, a.shape[-1]), b[layer].reshape(b.shape[1], -1)
                tensors[_tensor(path, "a")] = np.ascontiguousarray(a_IR[:, :rank].T)
                tensors[_tensor(path, "b")] = np.ascontiguousarray(b_RO[:rank].T)
    return tensors


def _stacked(name: str, array: np.ndarray) -> np.ndarray:
    return array[None] if name == EMBEDDING else array


def _tensor(path: str, part: str) -> str:
    return f"{path}.lora_embedding_{part.upper()}" if path.endswith(TABLE) else f"{path}.lora_{part.upper()}.weight"


def _flat(state: nnx.State) -> dict[str, Any]:
    return {".".join(map(str, path)): variable.get_value() for path, variable in nnx.to_flat_state(state)}


def _their_config(model: Model) -> dict[str, Any]:
    lora = model.lora
    assert lora is not None
    modules = model.family.modules(model.config)
    adapted = {path for name, slot in model.build.slots for path, r in zip(modules[name], slot.ranks, strict=True) if r}
    ends = {path.rsplit(".", 1)[-1] for path in adapted}
    every = {path for stack in modules.values() for path in stack if path.rsplit(".", 1)[-1] in ends}
    return {
        "peft_type": "LORA",
        "task_type": model.family.task_type,
        "base_model_name_or_path": model.directory,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rslora,
        "target_modules": sorted(ends if every == adapted else adapted),
        "rank_pattern": dict(lora.rank_pattern),
        "alpha_pattern": dict(lora.alpha_pattern),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def read_lora_config(directory: str | Path, family: Family, config) -> LoraConfig:
    """Return the configuration of an adapter directory, its targets spelled out from the tensors it holds."""
    path = Path(directory) / CONFIG
    if not path.exists():
        raise UserError(f"{directory} has no {CONFIG}; an adapter is a directory as peft writes it")
    theirs = read_json(path)
    if theirs.get("peft_type") != "LORA":
        raise UserError(f"{path} is of type {theirs.get('peft_type')!r}; we read LORA adapters")
    _refuse_options(theirs, path)
    known = {path for stack in family.modules(config).values() for path in stack}
    adapted = _adapted(directory, known)
    return LoraConfig(
        rank=theirs["r"],
        alpha=theirs["lora_alpha"],
        targets=adapted,
        dropout=theirs.get("lora_dropout", 0.0),
        rslora=theirs.get("use_rslora", False),
        rank_pattern=theirs.get("rank_pattern") or {},
        alpha_pattern=theirs.get("alpha_pattern") or {},
    )


def _refuse_options(theirs: Mapping[str, Any], path: Path) -> None:
    for key, value in theirs.items():
        changes_base = key == "init_lora_weights" and isinstance(value, str) and value.startswith(OWN_BASE)
        known = key in FOLLOWED or key in HARMLESS or value in NEUTRAL or key == "init_lora_weights"
        if changes_base or not known:
            raise UserError(f"{path} has {key} = {value!r}, which we do not read; merge it with peft first")


def _adapted(directory: str | Path, known: set[str]) -> tuple[str, ...]:
    """Return the layers that an adapter's tensors belong to, each of which has its two."""
    names = [name.removeprefix(PREFIX) for name in _tensors(directory) if not name.endswith(TABLE_ITSELF)]
    adapted = tuple(dict.fromkeys(name.rsplit(".lora_", 1)[0] for name in names))
    foreign = [name for name in adapted if name not in known]
    if foreign:
        more = f" (and {len(foreign) - 1} more)" if len(foreign) > 1 else ""
        ends = sorted({path.rsplit(".", 1)[-1] for path in known})
        raise UserError(f"{directory} adapts {foreign[0]}{more}, which this model lacks; it has {', '.join(ends)}")
    wanted = {_tensor(path, part) for path in adapted for part in "ab"}
    problems = [f"missing {name}" for name in sorted(wanted - set(names))]
    problems += [f"extra {name}" for name in sorted(set(names) - wanted)]
    if problems:
        raise UserError(f"{directory}: the tensors are not those of a LoRA adapter: {', '.join(problems)}")
    return adapted


def _tensors(directory: str | Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = Path(directory) / WEIGHTS
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{directory} has no {WEIGHTS}; an adapter is a directory as peft writes it") from None
    except SafetensorError as error:
        raise UserError(f"{path} is cut short or damaged: {error}") from None


def load_adapter(model: Model, directory: str | Path) -> nnx.State:
    """Return the trainable state of a model that an adapter directory holds.

    The model must have been built with `read_lora_config` of the same directory (or an equal configuration).

    Raises:
        UserError: an adapter of another base (by fingerprint or by shape), or damaged files.
    """
    _check_base(model, Path(directory))
    tensors = {name.removeprefix(PREFIX): array for name, array in _tensors(directory).items()}
    _check_table(model, directory, tensors)
    modules, loaded = model.family.modules(model.config), []
    slots = dict(model.build.slots)
    wanted = {path for name, slot in slots.items() for path, r in zip(modules[name], slot.ranks, strict=True) if r}
    found = {name.rsplit(".lora_", 1)[0] for name in tensors}
    if wanted != found:
        differ = ", ".join(sorted(wanted ^ found))
        raise UserError(f"{directory} and this model do not adapt the same layers; they differ in {differ}")
    for path, variable in nnx.to_flat_state(model.trainable):
        name, part = ".".join(map(str, path[:-1])), str(path[-1])
        value, slot = variable.get_value(), slots[name]
        array = np.zeros(value.shape, np.float32)
        stack = _stacked(name, array)
        for layer, (module, rank) in enumerate(zip(modules[name], slot.ranks, strict=True)):
            if rank == 0:
                continue
            theirs = tensors[_tensor(module, part)]
            rows, columns = (-1, stack.shape[-1]) if part == "a" else (stack.shape[1], -1)
            ours = stack[layer].reshape(rows, columns)
            want = (rank, ours.shape[0]) if part == "a" else (ours.shape[1], rank)
            if theirs.shape != want:
                raise UserError(
                    f"{directory}: {_tensor(module, part)} is {theirs.shape}, this model needs {want}: "
                    "the adapter was made for another base or with another rank"
                )
            if part == "a":
                ours[:, :rank] = theirs.T
            else:
                ours[:rank] = theirs.T
        loaded.append((path, variable.replace(jax.device_put(array, value.sharding))))
    return nnx.from_flat_state(loaded)


def _check_table(model: Model, directory: str | Path, tensors: dict[str, np.ndarray]) -> None:
    """Take the embedding that peft saved beside its adapter out of the tensors; it must be the base's own."""
    for name in [name for name in tensors if name.endswith(TABLE_ITSELF)]:
        ours, theirs = _flat(model.frozen)["embed.w"], tensors.pop(name)
        if theirs.shape != ours.shape or not np.allclose(theirs, host_array(ours, "float32"), rtol=2**-8, atol=1e-6):
            raise UserError(f"{directory} holds an embedding {theirs.shape} that is not the base's {ours.shape}")


def _check_base(model: Model, directory: Path) -> None:
    path = directory / PROVENANCE
    known: Mapping[str, str] = read_json(path) if path.exists() else {}
    made_for = known.get("base_fingerprint", "")
    if made_for and model.fingerprint and made_for != model.fingerprint:
        raise UserError(
            f"{directory} was trained on {known.get('base_path')!r} (fingerprint {made_for[:12]}), not on "
            f"{model.directory!r} ({model.fingerprint[:12]}); give its own base"
        )


def adapter_fingerprint(directory: str | Path) -> str:
    """Return sha256 of an adapter's weights file."""
    return hashlib.sha256((Path(directory) / WEIGHTS).read_bytes()).hexdigest()
