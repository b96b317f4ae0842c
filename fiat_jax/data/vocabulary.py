"""seqio's vocabulary interface over a tokenizer file. Importing this module imports seqio."""

from collections.abc import Iterable

import numpy as np

from fiat_jax.data.seqio_import import seqio, tf
from fiat_jax.prompts.tokenizer import Tokenizer


class TokenizerVocabulary(seqio.Vocabulary):
    """What seqio asks of a vocabulary, answered by `prompts.Tokenizer`: equal tokenizers are equal vocabularies.

    seqio's feature converters take id 0 for padding, where it may be a real token here; use `data.batches` instead.
    """

    def __init__(self, tokenizer: Tokenizer):
        super().__init__(extra_ids=0)
        self.tokenizer = tokenizer

    @property
    def bos_id(self) -> int | None:
        return self.tokenizer.bos_id

    @property
    def eos_id(self) -> int:
        return self.tokenizer.eos_id

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad_id

    @property
    def unk_id(self) -> None:
        """None: seqio would put it in the place of ids that it does not know, and hide them."""
        return None

    @property
    def _base_vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def _encode(self, s: "str | bytes | np.ndarray | tf.Tensor") -> list[int]:
        text = np.asarray(s).item()
        return self.tokenizer.encode(text.decode() if isinstance(text, bytes) else text)

    def _decode(self, ids: Iterable[int]) -> str:
        return self.tokenizer.decode(ids)

    def _encode_tf(self, s: "tf.Tensor") -> "tf.Tensor":
        ids = tf.numpy_function(lambda text: np.array(self._encode(text), np.int32), [s], tf.int32, stateful=False)
        return tf.ensure_shape(ids, [None])

    def decode_tf(self, ids: "tf.Tensor") -> "tf.Tensor":
        """Decode int32 [..., T] to strings [...], each up to its end token; what follows it is not read."""
        return self._decode_tf(ids)

    def _decode_tf(self, ids: "tf.Tensor") -> "tf.Tensor":
        def decode(rows: np.ndarray) -> np.ndarray:
            texts = [self.decode(row.tolist()).encode() for row in rows.reshape(-1, rows.shape[-1])]
            return np.array(texts, object).reshape(rows.shape[:-1])

        return tf.ensure_shape(tf.numpy_function(decode, [ids], tf.string, stateful=False), ids.shape[:-1])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenizerVocabulary) and self.tokenizer.fingerprint == other.tokenizer.fingerprint

    def __hash__(self) -> int:
        return hash(self.tokenizer.fingerprint)

    def __str__(self) -> str:
        return f"TokenizerVocabulary({self.tokenizer.fingerprint[:16]}, size={self.vocab_size})"
