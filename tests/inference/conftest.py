import jax
import pytest

from fiat_jax.sharding import MeshConfig


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Programs that run once compile in half the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def one_device():
    return MeshConfig(1, 1, 1).build(jax.devices()[:1])
