"""The reasoning store: what θ_β wrote, addressed by what it was asked, kept through crashes."""

from fiat_jax.store.record import Provenance, Record, sampling_seed
from fiat_jax.store.store import Contents, Inspected, Problem, ReasoningStore, SetWriter

__all__ = ["Contents", "Inspected", "Problem", "Provenance", "ReasoningStore", "Record", "SetWriter", "sampling_seed"]
