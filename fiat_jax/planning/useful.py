"""The operations that a model needs for a token, whatever a program does besides: what MFU is a share of."""

import dataclasses
import math

import jax
from flax import nnx

from fiat_jax.models.config import DecoderConfig
from fiat_jax.models.linear import Weight
from fiat_jax.models.model import Model

TRAIN_FORMULA = (
    "MFU = tokens/s · (4 N + 6 A + 4 h V D + 12 L k W) / (chips · peak); N frozen weights of the layers that a token "
    "passes, A adapters, h the share of tokens that predict a target, V D the head, L layers, k keys that a query "
    "sees on average, W width of all queries. Tuned weights count 6, frozen ones 4 (no gradient of their own); what "
    "backward recomputes does not count"
)
DECODE_FORMULA = "operations of a token: 2 N + 2 V D + 4 L k W, with k the keys of prefix and own text"


@dataclasses.dataclass(frozen=True)
class Useful:
    """Weights that a token passes: of the layers, frozen or tuned, of adapters, and of the head."""

    frozen: float
    tuned: float
    head: float
    attention: float  # operations of the scores and sums of one query with one key, over all layers

    def training(self, keys: float, targets: float) -> float:
        """Return the operations that training on one token takes: `targets` of all tokens predict one."""
        head = (6 if self.tuned and not self.frozen else 4) * targets * self.head
        return 4 * self.frozen + 6 * self.tuned + head + 3 * self.attention * keys

    def reading(self, keys: float) -> float:
        """Return the operations of reading one token, without the head."""
        return 2 * self.frozen + 2 * self.tuned + self.attention * keys

    def writing(self, keys: float) -> float:
        """Return the operations of writing one token."""
        return self.reading(keys) + 2 * self.head


def useful(model: Model) -> Useful | None:
    """Return what a token needs of a decoder; of an encoder-decoder, whose two sides read other tokens, None."""
    c = model.config
    if not isinstance(c, DecoderConfig):
        return None
    share = c.experts_per_token / c.num_experts if c.num_experts else 1.0

    def size(state: nnx.State) -> float:
        flat = jax.tree_util.tree_flatten_with_path(state)[0]
        names = [(jax.tree_util.keystr(path), x) for path, x in flat]
        of_layers = [(name, x) for name, x in names if "blocks" in name and len(x.shape) > 2]
        routed = lambda name: "experts" in name and "router" not in name  # noqa: E731
        return sum(math.prod(x.shape) * (share if routed(name) else 1.0) for name, x in of_layers)

    wide = c.num_kv_heads * c.queries_per_kv_head * c.head_dim
    return Useful(
        frozen=size(nnx.filter_state(model.frozen, Weight)),
        tuned=size(model.trainable),
        head=c.vocab_size * c.width,
        attention=4 * wide * c.num_layers,
    )
