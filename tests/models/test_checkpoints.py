"""Safetensors in, sharded and slice by slice, and out again; damaged directories."""

import json
import math
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file

from fiat_jax.errors import UserError
from fiat_jax.models import checkpoints
from fiat_jax.models.checkpoints import INDEX, WeightFiles, write_model
from fiat_jax.models.model import ModelConfig, load_model, logits, their_tensors
from fiat_jax.models.tensors import Tensor
from fiat_jax.sharding import MeshConfig

FSDP = ("fsdp", "expert")


@pytest.fixture
def copy(checkpoint, tmp_path):
    """A checkpoint of its own, with a tied head and in one file, for the test to damage."""
    return shutil.copytree(checkpoint, tmp_path / "copy")


@pytest.fixture
def change(copy):
    """Replace some tensors of the copy; None takes a tensor out."""

    def change(**tensors):
        path = copy / "model.safetensors"
        kept = load_file(path) | {name.replace("__", "."): array for name, array in tensors.items()}
        save_file({name: array for name, array in kept.items() if array is not None}, path)
        return copy

    return change


@pytest.fixture(scope="module")
def sharded_checkpoint(write_checkpoint):
    directory = write_checkpoint(max_shard_size="8KB", seed=1)
    assert (directory / INDEX).is_file()
    return directory


def arrays(model):
    return {".".join(map(str, path)): v.get_value() for path, v in nnx.to_flat_state(model.weights())}


def test_loaded_arrays_lie_on_the_mesh_as_the_rules_say(checkpoint, eight_devices):
    loaded = arrays(load_model(ModelConfig(str(checkpoint)), eight_devices))
    layouts = {name: array.sharding.spec for name, array in loaded.items()}
    assert layouts["embed.w"] == P("tensor", FSDP)
    assert layouts["blocks.q.w"] == P(None, FSDP, "tensor", None, None)
    assert layouts["blocks.o.w"] == P(None, "tensor", None, None, FSDP)
    assert layouts["blocks.down.w"] == P(None, "tensor", FSDP)
    assert layouts["blocks.norm_mlp.gain"] == P(None, None)
    for name in ("embed.w", "blocks.q.w", "blocks.o.w", "blocks.down.w"):
        assert {shard.data.size for shard in loaded[name].addressable_shards} == {loaded[name].size // 4}


def test_every_mesh_gets_the_same_weights(sharded_checkpoint, one_device):
    expected = arrays(load_model(ModelConfig(str(sharded_checkpoint)), one_device))
    for mesh in (MeshConfig(8, 1, 1), MeshConfig(1, 8, 1), MeshConfig(1, 4, 2), MeshConfig(2, 1, 4)):
        loaded = arrays(load_model(ModelConfig(str(sharded_checkpoint)), mesh.build()))
        jax.tree.map(np.testing.assert_array_equal, loaded, expected)


@pytest.mark.parametrize("chunk", [1, 300, 1 << 20])
def test_a_host_reads_every_tensor_once(sharded_checkpoint, monkeypatch, chunk):
    counts, read = {}, WeightFiles.read

    def recorded(self, name, start, stop):
        counts[name] = counts.get(name, 0) + stop - start
        return read(self, name, start, stop)

    monkeypatch.setattr(WeightFiles, "read", recorded)
    monkeypatch.setattr(checkpoints, "CHUNK_BYTES", chunk)
    expected = arrays(load_model(ModelConfig(str(sharded_checkpoint)), MeshConfig(8, 1, 1).build()))
    assert counts == {name: math.prod(shape) for name, shape in WeightFiles(sharded_checkpoint).shapes.items()}
    loaded = arrays(load_model(ModelConfig(str(sharded_checkpoint)), MeshConfig(1, 4, 2).build()))
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)


def test_a_host_reads_no_more_than_the_rows_it_holds(sharded_checkpoint, monkeypatch):
    """One of two hosts, as its devices are told apart by what they hold of a tensor."""
    files, picked = WeightFiles(sharded_checkpoint), []
    read, mapped = WeightFiles.read, WeightFiles.mapped
    monkeypatch.setattr(WeightFiles, "read", lambda *args: picked.append(("read", *args[2:])) or read(*args))
    monkeypatch.setattr(WeightFiles, "mapped", lambda *args: picked.append(("mapped", *args[2:])) or mapped(*args))
    tensor = Tensor("embed.w", "model.embed_tokens.weight", "V D", "V D")
    whole, size = files.view(tensor.name), {"V": 40, "D": 16}
    for rows, columns, how in ((slice(10, 20), slice(0, 16), "read"), (slice(0, 40), slice(4, 8), "mapped")):
        out = np.empty((rows.stop - rows.start, columns.stop - columns.start), np.float32)
        monkeypatch.setattr(checkpoints, "CHUNK_BYTES", 16 * 4 * 10)
        checkpoints._fill(files, tensor, tensor.name, [(out, {"V": rows, "D": columns})], size)
        np.testing.assert_array_equal(out, whole[rows, columns])
        assert {kind for kind, *_ in picked} == {how}
        assert sum(stop - start for _, start, stop in picked) == (rows.stop - rows.start) * 16
        picked.clear()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_any_order_of_dimensions_is_copied(order, dtype):
    source = np.random.default_rng(0).normal(size=(5, 300, 140)).astype(np.float32)
    view = source.astype(dtype).transpose(order)
    out = np.empty(view.shape, np.float32)
    checkpoints.copy_into(out, view)
    np.testing.assert_array_equal(out, view)


def test_a_quantised_file_is_refused(change, one_device):
    directory = change(model__norm__weight=np.zeros(16, np.int8))
    with pytest.raises(UserError, match=r"holds model.norm.weight in I8, a quantised or unusual type"):
        load_model(ModelConfig(str(directory)), one_device)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_frozen_weights_are_held_in_the_dtype_asked_for(dtype, checkpoint, one_device):
    from fiat_jax.models.lora import LoraConfig

    loaded = arrays(load_model(ModelConfig(str(checkpoint), dtype=dtype), one_device, lora=LoraConfig()))
    assert {str(array.dtype) for array in loaded.values()} == {dtype}


def test_one_error_lists_all_tensors_that_are_missing_extra_or_misshapen(change, one_device):
    directory = change(
        model__norm__weight=None,
        model__layers__2__mlp__up_proj__weight=None,
        model__layers__0__self_attn__q_proj__bias=np.zeros(32, np.float32),
        model__layers__1__self_attn__k_proj__weight=np.zeros((16, 17), np.float32),
        model__embed_tokens__weight=np.zeros((39, 16), np.float32),
    )
    with pytest.raises(UserError) as error:
        load_model(ModelConfig(str(directory)), one_device)
    lines = str(error.value).splitlines()
    assert str(directory) in lines[0]
    assert sorted(line.strip() for line in lines[1:]) == [
        "extra model.layers.0.self_attn.q_proj.bias (32,)",
        "missing model.layers.2.mlp.up_proj.weight (24, 16)",
        "missing model.norm.weight (16,)",
        "model.embed_tokens.weight is (39, 16), config.json says (40, 16)",
        "model.layers.1.self_attn.k_proj.weight is (16, 17), config.json says (8, 16)",
    ]


def test_a_layer_more_than_the_config_says_is_extra(change, one_device):
    directory = change(model__layers__3__mlp__up_proj__weight=np.zeros((24, 16), np.float32))
    with pytest.raises(UserError, match=r"extra model\.layers\.3\.mlp\.up_proj\.weight"):
        load_model(ModelConfig(str(directory)), one_device)


def test_either_name_of_a_tied_matrix_will_do_and_old_buffers_are_passed_over(change, checkpoint, one_device, tokens):
    expected = logits(load_model(ModelConfig(str(checkpoint)), one_device), tokens)
    table = load_file(checkpoint / "model.safetensors")["model.embed_tokens.weight"]
    buffer = np.zeros(4, np.float32)
    both = change(lm_head__weight=table, model__layers__0__self_attn__rotary_emb__inv_freq=buffer)
    np.testing.assert_array_equal(logits(load_model(ModelConfig(str(both)), one_device), tokens), expected)
    other = change(model__embed_tokens__weight=None)
    np.testing.assert_array_equal(logits(load_model(ModelConfig(str(other)), one_device), tokens), expected)


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_a_file_cut_short_is_named(share, copy, one_device):
    path = copy / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match=r"model.safetensors \(\d+ bytes\) is cut short or damaged.*fetch it again"):
        load_model(ModelConfig(str(copy)), one_device)


def test_a_shard_that_is_not_there_is_named(sharded_checkpoint, tmp_path, one_device):
    copy = shutil.copytree(sharded_checkpoint, tmp_path / "copy")
    lost = sorted(copy.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(UserError, match=f"{lost.name} is named by {INDEX} and is not there"):
        load_model(ModelConfig(str(copy)), one_device)


def test_a_damaged_index_is_named(sharded_checkpoint, tmp_path, one_device):
    copy = shutil.copytree(sharded_checkpoint, tmp_path / "copy")
    for content in (b'{"weight_map": {', b"{}", b"\xff"):
        (copy / INDEX).write_bytes(content)
        with pytest.raises(UserError, match=f"{INDEX} .*fetch it again"):
            load_model(ModelConfig(str(copy)), one_device)


def test_a_directory_that_is_no_checkpoint_is_named(copy, tmp_path, one_device):
    with pytest.raises(UserError, match=r"nowhere has no config\.json"):
        load_model(ModelConfig(str(tmp_path / "nowhere")), one_device)
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"has no \.safetensors file"):
        load_model(ModelConfig(str(copy)), one_device)
    for content in (b"{", b"\xff\xfe", b"[]"):
        (copy / "config.json").write_bytes(content)
        with pytest.raises(UserError, match=r"config\.json is not.*fetch it again"):
            load_model(ModelConfig(str(copy)), one_device)


def test_a_fingerprint_is_of_the_weights_and_not_of_their_files(write_checkpoint, one_device):
    whole, sharded = write_checkpoint(seed=2), write_checkpoint(seed=2, max_shard_size="8KB")
    half, other = write_checkpoint(seed=2, dtype="bfloat16"), write_checkpoint(seed=3)
    fingerprints = [WeightFiles(directory).fingerprint() for directory in (whole, sharded, half, other)]
    assert fingerprints[0] == fingerprints[1]
    assert len(set(fingerprints)) == 3


@pytest.mark.parametrize("shard_bytes", [1 << 30, 8000])
def test_what_we_write_transformers_reads(
    shard_bytes, sharded_checkpoint, reference, one_device, tokens, tmp_path, monkeypatch
):
    monkeypatch.setattr(checkpoints, "SHARD_BYTES", shard_bytes)
    model = load_model(ModelConfig(str(sharded_checkpoint)), one_device)
    source = shutil.copytree(sharded_checkpoint, tmp_path / "source")
    (source / "tokenizer.json").write_text("{}")
    write_model(tmp_path / "out", their_tensors(model, model.weights()), model.hf_config, source)
    assert (len(list((tmp_path / "out").glob("*.safetensors"))) > 1) == (shard_bytes == 8000)
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    written = reference(tmp_path / "out", tokens)
    np.testing.assert_array_equal(written, reference(sharded_checkpoint, tokens))


def test_weights_can_be_written_in_another_dtype(checkpoint, one_device, tmp_path, tokens, reference):
    model = load_model(ModelConfig(str(checkpoint)), one_device)
    write_model(tmp_path / "out", their_tensors(model, model.weights(), "bfloat16"), model.hf_config, checkpoint)
    assert {str(array.dtype) for array in load_file(tmp_path / "out" / "model.safetensors").values()} == {"bfloat16"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    ours = logits(load_model(ModelConfig(str(tmp_path / "out")), one_device), tokens)
    np.testing.assert_allclose(ours, reference(tmp_path / "out", tokens), atol=1e-4)
