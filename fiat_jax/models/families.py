"""Which Hugging Face architectures we read."""

from collections.abc import Mapping
from typing import Any

from fiat_jax.errors import UserError, did_you_mean
from fiat_jax.models.decoder_families import DECODERS
from fiat_jax.models.t5 import ENCODER_DECODERS
from fiat_jax.models.tensors import Family

FAMILIES: Mapping[str, Family] = DECODERS | ENCODER_DECODERS


def family_of(hf_config: Mapping[str, Any], where: str) -> Family:
    """Return the family that config.json names."""
    architectures = hf_config.get("architectures") or []
    for architecture in architectures:
        if architecture in FAMILIES:
            return FAMILIES[architecture]
    found = ", ".join(architectures) or "none"
    hint = did_you_mean(found, FAMILIES)
    raise UserError(f"{where} names architecture {found}; we read {', '.join(FAMILIES)}.{hint}")
