"""Meshes, the rule table, and layouts of arrays whose sizes a mesh does or does not divide."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from fiat_jax.errors import UserError
from fiat_jax.sharding import DECODE, TRAIN, MeshConfig, ShardingRules, axis_size, check_batch, constrain, named


def test_a_mesh_takes_all_devices_and_one_size_may_be_left_open():
    assert dict(MeshConfig().build().shape) == {"data": 8, "fsdp": 1, "expert": 1, "tensor": 1}
    assert dict(MeshConfig(data=2, fsdp=-1, tensor=2).build().shape) == {"data": 2, "fsdp": 2, "expert": 1, "tensor": 2}
    assert dict(MeshConfig().build(jax.devices()[:3]).shape) == {"data": 3, "fsdp": 1, "expert": 1, "tensor": 1}


def test_experts_may_have_an_axis_of_their_own():
    config = MeshConfig(expert=4, tensor=2)
    assert dict(config.build().shape) == {"data": 1, "fsdp": 1, "expert": 4, "tensor": 2}
    with pytest.raises(UserError, match="data=1 fsdp=1 expert=4 tensor=1 does not fit 8 devices"):
        MeshConfig(1, expert=4).build()


@pytest.mark.parametrize(
    "config",
    [MeshConfig(3), MeshConfig(4), MeshConfig(-1, 3), MeshConfig(-1, -1), MeshConfig(0, 8), MeshConfig(-8, -1)],
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(config):
    with pytest.raises(UserError, match=f"data={config.data} fsdp={config.fsdp} tensor=1 does not fit 8 devices"):
        config.build()


def test_data_lies_across_slices_and_the_other_axes_within():
    mesh = MeshConfig(data=4, fsdp=2, slices=2).build()
    ids = [[device.id for device in part.ravel()] for part in np.split(mesh.devices, 2)]
    assert ids == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_devices_that_say_their_slice_are_grouped_by_it():
    @dataclasses.dataclass(frozen=True)
    class Device:
        id: int
        slice_index: int
        platform: str = "cpu"
        device_kind: str = "cpu"
        process_index: int = 0

    devices = [Device(number, number % 2) for number in range(8)]
    mesh = MeshConfig(data=2, fsdp=4, slices=2).build(devices)
    assert [{device.slice_index for device in part.ravel()} for part in mesh.devices] == [{0}, {1}]
    with pytest.raises(UserError, match=r"of 2 slices: Mesh\.slices must be that, or 1; it is 4"):
        MeshConfig(data=4, fsdp=2, slices=4).build(devices)
    assert MeshConfig(data=2, fsdp=4).build(devices).devices.shape == (2, 4, 1, 1)


def test_slices_that_do_not_divide_data_are_refused():
    with pytest.raises(UserError, match="data=2 is not divided by slices=4"):
        MeshConfig(data=2, fsdp=4, slices=4).build()


def test_a_mesh_without_devices_has_the_shape_of_one_with():
    config = MeshConfig(data=2, fsdp=-1, tensor=2)
    assert dict(config.abstract(8).shape) == dict(config.build().shape)


def test_another_table_is_another_layout():
    axes = ("embed", "mlp", None)
    assert TRAIN.spec(axes) == P(("fsdp", "expert"), "tensor", None)
    assert DECODE.spec(axes) == P(None, ("fsdp", "tensor"), None)


def test_a_misspelt_axis_is_named_with_the_known_ones():
    with pytest.raises(UserError, match=r"batch, layers, vocab.*got 'embd'\. Did you mean 'embed'\?"):
        ShardingRules().spec(("embd",))


def test_arrays_are_split_as_the_rules_say():
    mesh = MeshConfig(2, 2, 2).build()
    assert axis_size(mesh, ("data", "fsdp")) == 4
    assert axis_size(mesh, None) == 1
    array = jax.device_put(jnp.zeros((8, 6)), named(mesh, TRAIN, (8, 6), ("batch", "mlp")))
    assert {shard.data.shape for shard in array.addressable_shards} == {(2, 3)}


def test_a_dimension_that_the_mesh_does_not_divide_stays_whole_and_is_logged(caplog):
    mesh = MeshConfig(2, 2, 2).build()
    with caplog.at_level(logging.WARNING):
        assert named(mesh, TRAIN, (51, 16), ("vocab", "embed")).spec == P(None, ("fsdp", "expert"))
    assert "'vocab' of size 51 is not divided by mesh axis 'tensor'" in caplog.text


@pytest.mark.parametrize(("rows", "accumulate"), [(6, 1), (8, 4), (3, 1)])
def test_a_batch_that_the_mesh_does_not_divide_is_refused(rows, accumulate):
    mesh = MeshConfig(2, 2, 2).build()
    with pytest.raises(UserError, match=rf"{rows} rows in {accumulate} .*use a multiple of {4 * accumulate} rows"):
        check_batch(mesh, TRAIN, rows, accumulate)


def test_a_batch_that_the_mesh_divides_passes():
    mesh = MeshConfig(2, 2, 2).build()
    check_batch(mesh, TRAIN, 8)
    check_batch(mesh, TRAIN, 8, accumulate=2)


def test_an_activation_is_pinned_to_the_mesh_in_context_and_left_alone_without_one():
    pin = jax.jit(lambda x: constrain(x * 2, TRAIN, "batch", None))
    x = jnp.ones((8, 4))
    assert len(pin(x).sharding.device_set) == 1
    with jax.set_mesh(MeshConfig(2, 2, 2).build()):
        y = pin(x)
        assert {shard.data.shape for shard in y.addressable_shards} == {(2, 4)}
    assert (jax.device_get(y) == 2).all()
