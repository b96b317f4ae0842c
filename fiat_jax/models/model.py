"""A model on a mesh: what is trained, what is frozen, and the pure functions of both."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from fiat_jax.errors import UserError, did_you_mean
from fiat_jax.models.attention import Prefix
from fiat_jax.models.checkpoints import host_array, load_array, open_checkpoint
from fiat_jax.models.config import Build, Config, EncoderDecoderConfig
from fiat_jax.models.decoder import Decoder
from fiat_jax.models.decoder_families import LLAMA
from fiat_jax.models.encoder_decoder import EncoderDecoder
from fiat_jax.models.head import cross_entropy, logits_of, target_and_best_log_probs, target_log_probs
from fiat_jax.models.kernels import ASKED, PLAIN, Kernel, choose
from fiat_jax.models.linear import EMBED_AXES, EMBEDDING, LoraScale, Weight
from fiat_jax.models.lora import LoraConfig, resolve
from fiat_jax.models.stack import REMAT_POLICIES
from fiat_jax.models.tensors import Family
from fiat_jax.sharding import TRAIN, ShardingRules, constrain, named

DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which checkpoint, and how it is held.

    Args:
        path: a directory in Hugging Face layout.
        dtype: of frozen weights and of activations; what is trained is float32.
        remat: what backward recomputes: "products" (all but matrix products), "full" (least memory) or "none".
        attention: its kernel: "plain" products, "splash" (TPU), "cudnn" (GPU), or "auto", what the devices have.
    """

    path: str = ""
    dtype: str = "float32"
    remat: str = "products"
    attention: str = "auto"

    def __post_init__(self):
        for name, known in (("dtype", DTYPES), ("remat", tuple(REMAT_POLICIES)), ("attention", ASKED)):
            value = getattr(self, name)
            if value not in known:
                raise UserError(f"model {name} is {value!r}; known are {', '.join(known)}.{did_you_mean(value, known)}")


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A decoder or an encoder-decoder on a mesh.

    `trainable` and `frozen` are pytrees of arrays (NNX states) that `graphdef` puts together: adapters and base under
    LoRA; everything and nothing when all weights are tuned; nothing and everything in a model that only answers. Both
    are arguments of every compiled function.
    """

    config: Config
    family: Family
    mesh: Mesh
    build: Build
    graphdef: Any
    trainable: nnx.State
    frozen: nnx.State
    lora: LoraConfig | None = None
    directory: str = ""
    hf_config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fingerprint: str = ""

    def module(self, trainable, frozen) -> Decoder | EncoderDecoder:
        """Return the module of these arrays, computing in the build's dtype."""
        dtype = jnp.dtype(self.build.dtype)
        if (
            self.lora is None and dtype != jnp.float32
        ):  # all weights are trained: float32 copies are kept, these compute
            trainable = jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, trainable)
        return nnx.merge(self.graphdef, trainable, frozen)

    def shared(self) -> "Model":
        """Return one model for all of this structure, without arrays: what is jitted of it serves every one of them."""
        key = (self.config, self.mesh, self.build, self.graphdef, self.lora is None)
        bare = dataclasses.replace(self, trainable=None, frozen=None, directory="", hf_config={}, fingerprint="")
        return _STRUCTURES.setdefault(key, bare)

    def skeleton(self) -> Decoder | EncoderDecoder:
        """Return the module, for what needs its configuration alone: its arrays may be mere shapes."""
        return nnx.merge(self.graphdef, self.trainable, self.frozen)

    def loss(self, trainable, frozen, batch, dropout_key=None) -> jax.Array:
        """Return the weighted sum of the targets' negative log-probabilities, a float32 scalar (a pure function)."""
        module = self.module(trainable, frozen)
        x_BMD, cap = module.target_states(batch, dropout_key), self.config.logit_cap
        head_VD = module.head_VD if self.lora is None else self._gathered_head(module)
        return cross_entropy(x_BMD, head_VD, batch["targets"], batch["weights"], cap)

    def _gathered_head(self, module) -> jax.Array:
        """Return the output matrix gathered along its width, once: the loop over chunks would do it for each of them.

        A head that is trained is left as it lies: its gradient is kept as it is, and would be gathered too.
        """
        return constrain(module.head_VD, self.build.rules, "vocab", None)

    def log_probs(self, trainable, frozen, batch, prefix: Prefix | None = None) -> jax.Array:
        """Return the float32 log-probability (B, M) of every target, whatever its weight (a pure function).

        All texts of the batch stand behind the prefix, if there is one; only a decoder's can.
        """
        module = self.module(trainable, frozen)
        behind = {} if prefix is None else {"prefix": prefix}
        x_BMD = module.target_states(batch, **behind)  # pyright: ignore
        return target_log_probs(x_BMD, self._gathered_head(module), batch["targets"], self.config.logit_cap)

    def text_log_probs(self, trainable, frozen, tokens_BT, lengths_B, alternatives: int) -> tuple[jax.Array, ...]:
        """Return log P of every token of texts (B, T) after their first, and the likeliest in each place.

        Entry t of the arrays (B, T), (B, T, alternatives) and (B, T, alternatives) is about token t + 1, the last one
        about nothing: the head is computed in equal chunks, into which T is divided and T - 1 may not be. Of a decoder
        alone.
        """
        module = self.module(trainable, frozen)
        assert isinstance(module, Decoder)
        x_BTD, cap = module.plain_states(tokens_BT, lengths_B), self.config.logit_cap
        head_VD = self._gathered_head(module)
        return target_and_best_log_probs(x_BTD, head_VD, jnp.roll(tokens_BT, -1, axis=1), alternatives, cap)

    def answer_log_probs(self, trainable, frozen, read_BS, lengths_B, answers_BT) -> jax.Array:
        """Return log P of every token of answers (B, T) to texts of these lengths. Of an encoder-decoder alone."""
        module = self.module(trainable, frozen)
        assert isinstance(module, EncoderDecoder)
        x_BTD = module.written_states(read_BS, lengths_B, answers_BT)
        return target_log_probs(x_BTD, self._gathered_head(module), answers_BT, self.config.logit_cap)

    def num_parameters(self) -> tuple[int, int]:
        """Return how many parameters are trained and how many are frozen."""
        count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
        return count(self.trainable), count(nnx.filter_state(self.frozen, Weight))

    def weights(self, trainable=None) -> nnx.State:
        """Return the base's weights (all parameters but adapters)."""
        trainable = self.trainable if trainable is None else trainable
        tuned = self.lora is None and len(trainable) > 0
        return trainable if tuned else nnx.filter_state(self.frozen, Weight)


_STRUCTURES: dict[Any, Model] = {}


def _module(config: Config, build: Build, rngs: nnx.Rngs) -> Decoder | EncoderDecoder:
    kind = EncoderDecoder if isinstance(config, EncoderDecoderConfig) else Decoder
    return kind(config, build, rngs)  # pyright: ignore  # each takes its own configuration


@functools.cache
def abstract_state(config: Config, build: Build, mesh: Mesh) -> tuple[Any, nnx.State]:
    """Return the graph definition and the shapes, dtypes and shardings of all variables, allocating nothing."""
    model = nnx.eval_shape(lambda: _module(config, build, nnx.Rngs(0)))
    graphdef, state = nnx.split(model)

    def with_sharding(variable):
        value = variable.get_value()
        sharding = named(mesh, build.rules, value.shape, variable.axes)
        return variable.replace(jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding))

    return graphdef, jax.tree.map(with_sharding, state, is_leaf=lambda x: isinstance(x, nnx.Variable))


@functools.cache
def _initialiser(config: Config, build: Build, mesh: Mesh, kind):
    """Return a compiled function from a seed to variables of one kind, made sharded; no others are computed."""
    _, abstract = abstract_state(config, build, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, nnx.filter_state(abstract, kind))
    # it runs once, and random bits at LLVM's usual level take seconds to compile
    options = {"xla_backend_optimization_level": 1} if mesh.devices.flat[0].platform == "cpu" else None
    make = lambda seed: nnx.state(_module(config, build, nnx.Rngs(jax.random.key(seed))), kind)  # noqa: E731
    return jax.jit(make, out_shardings=shardings, compiler_options=options)


def _builds(
    config: Config,
    family: Family,
    lora: LoraConfig | None,
    tuned: bool,
    dtype: str,
    remat: str,
    rules: ShardingRules,
    kernel: Kernel,
) -> tuple[Build, Build]:
    """Return how weights are held, and how the model computes: where all are tuned they are held in float32."""
    slots = () if lora is None else resolve(lora, family.modules(config))
    held = "float32" if lora is None and tuned else dtype
    return Build(slots, held, remat, rules, kernel), Build(slots, dtype, remat, rules, kernel)


def kernel_of(config: Config, model: ModelConfig, mesh: Mesh) -> Kernel:
    """Return the kernel that computes a model's attention on a mesh.

    Raises:
        UserError: it is asked for by name, and cannot.
    """
    if isinstance(config, EncoderDecoderConfig):
        options: dict[str, Any] = {"biased": True}
    else:
        options = {"cap": config.attention_cap}
    return choose(model.attention, mesh.devices.flat[0], dtype=model.dtype, head_dim=config.head_dim, **options)


def random_model(
    config: Config,
    mesh: Mesh,
    *,
    lora: LoraConfig | None = None,
    tuned: bool = True,
    dtype: str = "float32",
    remat: str = "products",
    rules: ShardingRules = TRAIN,
    seed: int = 0,
    family: Family = LLAMA,
    kernel: Kernel = PLAIN,
) -> Model:
    """Return a model of random weights, created sharded, never whole on one device."""
    held, computing = _builds(config, family, lora, tuned, dtype, remat, rules, kernel)
    state = _initialiser(config, held, mesh, nnx.Variable)(seed)
    return _assemble(config, family, mesh, computing, state, lora, tuned)


def abstract_model(
    config: Config,
    mesh: Mesh,
    *,
    lora: LoraConfig | None = None,
    tuned: bool = True,
    dtype: str = "float32",
    remat: str = "products",
    rules: ShardingRules = TRAIN,
    family: Family = LLAMA,
    kernel: Kernel = PLAIN,
) -> Model:
    """Return a model of `jax.ShapeDtypeStruct`s with shardings: enough to compile for a mesh that is not there."""
    held, computing = _builds(config, family, lora, tuned, dtype, remat, rules, kernel)
    return _assemble(config, family, mesh, computing, abstract_state(config, held, mesh)[1], lora, tuned)


def load_model(
    model: ModelConfig,
    mesh: Mesh,
    *,
    lora: LoraConfig | None = None,
    tuned: bool = True,
    rules: ShardingRules = TRAIN,
    seed: int = 0,
) -> Model:
    """Read a Hugging Face directory onto a mesh; `seed` initialises the adapter.

    Without `lora` all weights are tuned, and held in float32; not `tuned`, they are frozen, and held in the model's
    dtype.

    Raises:
        UserError: what is wrong with the directory: architecture, options, and all missing, extra or misshapen tensors.
    """
    checkpoint = open_checkpoint(model.path)
    family, config, files = checkpoint.family, checkpoint.config, checkpoint.files
    kernel = kernel_of(config, model, mesh)
    held, computing = _builds(config, family, lora, tuned, model.dtype, model.remat, rules, kernel)
    _, abstract = abstract_state(config, held, mesh)
    tensors = {tensor.path: tensor for tensor in family.present(config)}

    loaded = []
    for path, variable in nnx.to_flat_state(nnx.filter_state(abstract, Weight)):
        value = variable.get_value()
        tensor = tensors[".".join(map(str, path))]
        array = load_array(files, tensor, config, value.sharding, value.dtype)
        loaded.append((path, variable.replace(array)))
    state = nnx.from_flat_state(loaded)
    if lora is not None:
        fresh = _initialiser(config, held, mesh, (nnx.LoRAParam, LoraScale))
        state = nnx.merge_state(state, fresh(seed))
    built = _assemble(config, family, mesh, computing, state, lora, tuned)
    known = {"directory": model.path, "hf_config": checkpoint.hf_config, "fingerprint": files.fingerprint()}
    return dataclasses.replace(built, **known)


def _assemble(config, family, mesh, build, state, lora, tuned=True) -> Model:
    trained = Weight if lora is None and tuned else nnx.LoRAParam
    skeleton = nnx.eval_shape(lambda: _module(config, build, nnx.Rngs(0)))
    graphdef, _, _ = nnx.split(skeleton, trained, ...)
    trainable, frozen = nnx.split_state(state, trained, ...)
    return Model(config, family, mesh, build, graphdef, trainable, frozen, lora)


def merge(model: Model, sign: int = 1) -> nnx.State:
    """Return the base weights with the adapters added (or subtracted: sign = -1), in the base's dtype.

    A head that was tied to an adapted embedding is then a weight of its own, as it was: it never read the adapter.
    """

    @jax.jit
    def added(trainable, frozen):
        module = nnx.merge(model.graphdef, trainable, frozen)
        untied = {}
        for name, _ in model.build.slots:
            layer = functools.reduce(getattr, name.split("."), module)
            w = layer.w[...]
            if name == EMBEDDING and model.config.tied_head:
                untied = {"head": nnx.Param(w, axes=EMBED_AXES)}
            layer.w[...] = (w.astype(jnp.float32) + sign * layer.delta()).astype(w.dtype)
        return nnx.merge_state(nnx.state(module, Weight), nnx.State(untied))

    return added(model.trainable, model.frozen)


def with_weights(model: Model, weights: nnx.State) -> Model:
    """Return the model of these base weights, without adapters."""
    build = dataclasses.replace(model.build, slots=())
    config, hf_config = model.config, model.hf_config
    if config.tied_head and "head" in weights:
        config, hf_config = dataclasses.replace(config, tied_head=False), {**hf_config, "tie_word_embeddings": False}
    merged = _assemble(config, model.family, model.mesh, build, nnx.merge_state(weights), None)
    return dataclasses.replace(merged, directory=model.directory, hf_config=hf_config)


@functools.partial(jax.jit, static_argnums=0)
def _logits(model: Model, trainable, frozen, tokens_BT):
    module = model.module(trainable, frozen)
    x_BTD = module.plain_states(tokens_BT)
    return logits_of(x_BTD, module.head_VD, module.config.logit_cap)


def logits(model: Model, tokens_BT: np.ndarray) -> jax.Array:
    """Return float32 logits (B, T, V) of plain causal token rows: for tests and for comparing models."""
    return _logits(model.shared(), model.trainable, model.frozen, tokens_BT)


def largest_logit_difference(a: Model, b: Model, tokens_BT: np.ndarray) -> float:
    """Return max |logits(a) - logits(b)| over plain causal token rows."""
    return float(jnp.max(jnp.abs(logits(a, tokens_BT) - logits(b, tokens_BT))))


def their_tensors(model: Model, weights: nnx.State, dtype: str | None = None):
    """Yield (name, host array) of every tensor in the Hugging Face layout, one layer at a time."""
    flat = {".".join(map(str, path)): variable.get_value() for path, variable in nnx.to_flat_state(weights)}
    for tensor in model.family.present(model.config):
        array = flat[tensor.path]
        if not tensor.stacked:
            yield tensor.name, tensor.to_theirs(host_array(array, dtype))
            continue
        for layer in range(array.shape[0]):
            names = tensor.names(layer, model.config)
            for e, name in enumerate(names):
                part = array[layer, e] if tensor.of_experts else array[layer]
                yield name, tensor.to_theirs(host_array(part, dtype))
