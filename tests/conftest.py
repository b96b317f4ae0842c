"""Eight fake CPU devices, JAX at its strictest, and the data that lies beside the checkout."""

import os
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real tasks and a real checkpoint (FIAT_SHARED, or ../shared beside the checkout): no part of the project."""
    shared = Path(os.environ.get("FIAT_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    if not (shared / "data" / "esnli" / "train.jsonl").is_file():
        pytest.skip(f"no shared data at {shared / 'data'}; set FIAT_SHARED to the folder that holds data/")
    return shared / "data"
