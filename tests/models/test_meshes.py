"""One model on every mesh: the same loss, the same gradients, and a saved adapter that is the gathered one."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from support.drawn import drawn
from support.kinds import KINDS, Kind
from support.louder import louder
from support.tiny_run import LORA

from fiat_jax.data.batches import TrainBatches
from fiat_jax.data.examples import Example, Examples
from fiat_jax.models.families import FAMILIES
from fiat_jax.models.lora import LoraConfig
from fiat_jax.models.model import Model
from fiat_jax.models.peft import save_adapter
from fiat_jax.sharding import MeshConfig

SLICES = "2 slices of 2x2"
EXPERTS = "2x2x2 of expert, fsdp and tensor"
MESHES = {
    "2x4": MeshConfig(2, 4, 1),
    "4x2": MeshConfig(4, 2, 1),
    "8x1": MeshConfig(8, 1, 1),
    "2x2x2": MeshConfig(2, 2, 2),
    SLICES: MeshConfig(4, 2, 1, slices=2),
    EXPERTS: MeshConfig(1, 2, 2, expert=2),
}
PLAIN = [mesh for mesh in MESHES if mesh not in (SLICES, EXPERTS)]
TUNINGS = {"LoRA": LORA, "all weights": None}


def model_on(kind: Kind, mesh: MeshConfig, lora: LoraConfig | None) -> Model:
    """A random model whose adapters do something."""
    built = mesh.build(jax.devices()[: mesh.data * mesh.fsdp * mesh.tensor * mesh.expert])
    rng = np.random.default_rng(3)
    adapters = lambda x: jax.device_put(rng.normal(size=x.shape).astype(np.float32) * 0.1, x.sharding)  # noqa: E731

    def changed(model: Model) -> Model:
        filled = (
            model if lora is None else dataclasses.replace(model, trainable=jax.tree.map(adapters, model.trainable))
        )
        return louder(filled, kind.loud)

    return drawn(kind.config, built, changed, lora=lora, family=FAMILIES[kind.architecture])


def batch_of(kind: Kind):
    rng = np.random.default_rng(0)
    ids = lambda low, high: rng.integers(1, 48, rng.integers(low, high)).astype(np.int32)  # noqa: E731
    examples = Examples.of(Example(f"row {n}", "und", ids(3, 12), ids(1, 6)) for n in range(24))
    return TrainBatches(examples, 24, 8, 0, kind.layout).batch(0)


def measured(kind: Kind, mesh: MeshConfig, lora: LoraConfig | None):
    """Return the loss a target and its gradients."""
    model, batch = model_on(kind, mesh, lora), batch_of(kind)
    count = batch["weights"].sum()
    with jax.set_mesh(model.mesh):
        loss = lambda trainable: model.loss(trainable, model.frozen, batch) / count  # noqa: E731
        found = jax.jit(jax.value_and_grad(loss))(model.trainable)
    return jax.tree.map(np.asarray, found)


@pytest.fixture(scope="module")
def on_one_device():
    return functools.cache(lambda kind, lora: measured(KINDS[kind], MeshConfig(1, 1, 1), TUNINGS[lora]))


def cases():
    """Every kind with every layout; `make test` has all of the decoder's, and those that divide most of the others."""
    for kind in KINDS:
        for lora, mesh in (*(("LoRA", mesh) for mesh in PLAIN), ("all weights", "2x2x2")):
            quick = kind == "decoder" or mesh == "2x2x2"
            yield pytest.param(kind, lora, mesh, marks=[] if quick else [pytest.mark.slow])


@pytest.mark.parametrize(("kind", "lora", "mesh"), list(cases()))
def test_loss_and_gradients_are_those_of_one_device(kind, lora, mesh, on_one_device):
    same_as_on_one_device(kind, lora, mesh, on_one_device)


def test_so_are_those_of_slices_that_a_slow_network_joins(on_one_device):
    same_as_on_one_device("decoder", "LoRA", SLICES, on_one_device)


@pytest.mark.parametrize("lora", TUNINGS)
def test_so_are_those_of_experts_on_devices_of_their_own(lora, on_one_device):
    same_as_on_one_device("experts", lora, EXPERTS, on_one_device)


def same_as_on_one_device(kind, lora, mesh, on_one_device):
    wanted, found = on_one_device(kind, lora), measured(KINDS[kind], MESHES[mesh], TUNINGS[lora])
    assert sum(np.abs(grad).max() > 1e-3 for grad in jax.tree.leaves(wanted[1])) > 5
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), found, wanted)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_an_adapter_saved_from_any_mesh_is_the_gathered_one(kind, mesh, tmp_path):
    from safetensors.numpy import load_file

    saved = []
    for name, layout in (("one", MeshConfig(1, 1, 1)), ("many", MESHES[mesh])):
        save_adapter(model_on(KINDS[kind], layout, LORA), tmp_path / name)
        saved.append(load_file(tmp_path / name / "adapter_model.safetensors"))
    assert saved[0].keys() == saved[1].keys()
    assert all(np.array_equal(saved[0][name], saved[1][name]) for name in saved[0])
