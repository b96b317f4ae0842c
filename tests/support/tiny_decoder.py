"""A decoder of random weights that a test of the engine compiles in a second or two."""

from fiat_jax.models.config import DecoderConfig

TINY = DecoderConfig(
    vocab_size=61,
    width=32,
    num_layers=3,
    num_kv_heads=2,
    queries_per_kv_head=2,
    head_dim=8,
    mlp_width=48,
    max_length=2048,
)
