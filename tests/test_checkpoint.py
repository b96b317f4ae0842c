"""Checkpoints give back what was saved, onto any mesh, and what is not whole is not there."""

import shutil

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fiat_jax.checkpoint import Checkpoints, StoredCheckpoints
from fiat_jax.errors import UserError, both_ends
from fiat_jax.sharding import MeshConfig


def tree(seed: int = 0, width: int = 16):
    """A nested tree with two dtypes and a scalar, on one device."""
    rng = np.random.default_rng(seed)
    halves = jnp.asarray(rng.normal(size=width), jnp.bfloat16)
    return {"step": jnp.int32(seed), "adapter": {"a": jnp.asarray(rng.normal(size=(8, width))), "b": (halves,)}}


def same(found, wanted) -> bool:
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    return all(x.dtype == y.dtype and np.array_equal(np.asarray(x), np.asarray(y)) for x, y in pairs)


@pytest.fixture(params=["directory", "object store"])
def place(request, tmp_path):
    """Open checkpoints, again and again the same ones, that lie in a directory or in an object store."""
    url = f"memory://{tmp_path.name}"
    yield lambda keep=1: Checkpoints(tmp_path, keep) if request.param == "directory" else StoredCheckpoints(url, keep)
    if request.param == "object store" and fsspec.filesystem("memory").exists(url):
        fsspec.filesystem("memory").rm(url, recursive=True)


def save_third(checkpoints):
    checkpoints.save(3, tree(), {"facts": [1, {"of": "it"}]})
    checkpoints.close()


@pytest.fixture
def saved(tmp_path):
    """A directory in which step 3 is saved, and its tree."""
    save_third(Checkpoints(tmp_path / "saved"))
    return tmp_path / "saved", tree()


@pytest.mark.parametrize("mesh", [MeshConfig(data=8), MeshConfig(data=2, fsdp=4)], ids=["data", "data and fsdp"])
def test_what_one_device_saved_lies_on_a_mesh_as_asked(place, mesh):
    save_third(place())
    checkpoints, built, wanted = place(), mesh.build(), tree()
    spec = {2: PartitionSpec("data", "fsdp"), 1: PartitionSpec("fsdp"), 0: PartitionSpec()}
    layout = jax.tree.map(lambda x: NamedSharding(built, spec[x.ndim]), wanted)
    like = jax.tree.map(lambda x, lies: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lies), wanted, layout)
    found = checkpoints.restore(checkpoints.latest(), like)
    assert same(found, wanted)
    assert jax.tree.map(lambda x: x.sharding, found) == layout
    assert checkpoints.facts(3) == {"facts": [1, {"of": "it"}]}
    checkpoints.save(5, found, {})
    assert same(checkpoints.restore(5, tree(seed=1)), wanted)


def test_buffers_may_be_given_away_while_they_are_saved(place):
    checkpoints, given = place(), tree()
    checkpoints.save(1, given, {})
    jax.tree.map(lambda x: x.delete(), given)
    assert same(checkpoints.restore(1, tree(seed=1)), tree())


def test_the_newest_are_kept(place):
    checkpoints = place(keep=2)
    for step in (1, 5, 9):
        checkpoints.save(step, tree(step), {})
    checkpoints.close()
    again = place(keep=2)
    assert same(again.restore(again.latest(), tree()), tree(9))
    assert same(again.restore(5, tree()), tree(5))
    with pytest.raises(UserError, match="cannot be read"):
        again.restore(1, tree())


def test_a_save_that_was_cut_off_is_not_there_and_can_be_made_again(saved):
    directory, wanted = saved
    shutil.copytree(directory / "3", directory / "7.orbax-checkpoint-tmp")  # the name until all is written
    checkpoints = Checkpoints(directory)
    assert checkpoints.latest() == 3
    assert same(checkpoints.restore(3, tree(seed=1)), wanted)
    checkpoints.save(7, tree(seed=7), {})
    checkpoints.wait()
    assert checkpoints.latest() == 7


def test_what_a_store_has_without_its_facts_is_not_there():
    checkpoints = StoredCheckpoints("memory://cut-short")
    save_third(checkpoints)
    files = fsspec.filesystem("memory")
    files.pipe_file("memory://cut-short/7/tree.safetensors", b"not all of it")
    assert checkpoints.latest() == 3
    assert same(checkpoints.restore(3, tree(seed=1)), tree())
    files.rm("memory://cut-short", recursive=True)


def test_a_store_that_takes_nothing_is_named_with_the_next_save(monkeypatch):
    checkpoints = StoredCheckpoints("memory://full")
    monkeypatch.setattr(checkpoints._files, "pipe_file", lambda *_: (_ for _ in ()).throw(OSError("no rights")))
    checkpoints.save(1, tree(), {})
    with pytest.raises(UserError, match=r"written in memory://full \(no rights\); one that was whole before still is"):
        checkpoints.save(2, tree(), {})
    assert checkpoints.latest() is None


def test_newer_ones_can_be_deleted(place):
    checkpoints = place(keep=3)
    for step in (1, 5, 9):
        checkpoints.save(step, tree(step), {})
    checkpoints.wait()
    checkpoints.delete_after(1)
    assert checkpoints.latest() == 1


def test_arrays_of_another_model_are_refused_by_name_and_shape(place):
    save_third(place())
    with pytest.raises(UserError, match=r"adapter.a is \(8, 16\) there and \(8, 4\) here \(2 arrays differ\)"):
        place().restore(3, tree(width=4))
    with pytest.raises(UserError, match=r"other is None there and \(\) here \(1 arrays differ\)"):
        place().restore(3, tree() | {"other": jnp.int32(0)})


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # other reads of Orbax go on for a while
@pytest.mark.parametrize("file", ["facts/metadata", "tree/_METADATA", "tree/manifest.ocdbt", "tree/d/*"])
@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_a_file_cut_short_is_damage_and_nothing_else(saved, file, kept):
    directory, _ = saved
    for path in (directory / "3").glob(file):
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    checkpoints = Checkpoints(directory)
    with pytest.raises(
        UserError, match=rf"{directory}/3 cannot be read \(.+\); if it is damaged, restore it from a copy, or remove"
    ):
        checkpoints.restore(3, checkpoints.facts(3) and tree())


def test_of_a_long_reason_both_ends_are_told():
    told = both_ends("RESOURCE_EXHAUSTED: " + 100 * "a long\npath/" + " No space left on device")
    assert told.startswith("RESOURCE_EXHAUSTED: a long path/")
    assert told.endswith("No space left on device")
    assert len(told) < 320
    assert both_ends("short\n and plain") == "short and plain"
