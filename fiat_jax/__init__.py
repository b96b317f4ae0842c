"""FIAT in JAX: a frozen large model reasons, a small one is tuned on (input, reasoning) → answer (arXiv 2309.04663)."""

__version__ = "0.1.0"
