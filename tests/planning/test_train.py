"""The plan of training: the loop's own step on shapes, and what is made of it."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from support.tiny_decoder import TINY

from fiat_jax.errors import UserError
from fiat_jax.models.lora import LoraConfig
from fiat_jax.models.model import ModelConfig, abstract_model, random_model
from fiat_jax.planning.compiled import Compiler
from fiat_jax.planning.plan import PlanConfig, compiler_for, read_shape
from fiat_jax.planning.search import meshes, search
from fiat_jax.planning.target import local
from fiat_jax.planning.train import TrainPlan, batches_of, expert_trips, plan_training
from fiat_jax.planning.useful import useful
from fiat_jax.sharding import MeshConfig
from fiat_jax.training.config import TrainConfig
from fiat_jax.training.loop import History, _Run
from fiat_jax.training.optimizer import OptimizerConfig
from fiat_jax.training.program import abstract_batch, abstract_state

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A directory with a config.json and nothing else."""
    path = tmp_path_factory.mktemp("shape")
    (path / "config.json").write_text(json.dumps(SHAPE))
    return path


@pytest.fixture(scope="module")
def asked(directory) -> TrainPlan:
    return TrainPlan(
        PlanConfig(input_tokens=60, target_tokens=5),
        ModelConfig(str(directory)),
        LoraConfig(rank=4),
        TrainConfig(batch_rows=8, row_length=128),
        MeshConfig(2, 2, 2),
    )


def quiet(directory) -> Compiler:
    return compiler_for(local(), directory, lambda text: None)


@pytest.fixture(scope="module")
def found(asked, tmp_path_factory):
    return plan_training(asked, local(), quiet(tmp_path_factory.mktemp("programs")))


def places(tree):
    """Return shape, dtype and layout of every array."""
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding.spec, x.sharding.mesh.shape), tree)


@pytest.mark.parametrize("lora", [LoraConfig(rank=4), None], ids=["adapter", "all weights"])
@pytest.mark.parametrize("algorithm", ["adamw", "muon"])
def test_the_planned_state_is_the_one_that_the_loop_begins_with(directory, tmp_path, lora, algorithm):
    config, family = read_shape(str(directory))
    mesh = MeshConfig(2, 2, 2).build()
    train = TrainConfig(optimizer=OptimizerConfig(algorithm=algorithm, average=0.99))
    with jax.set_mesh(mesh):
        made = random_model(config, mesh, lora=lora, family=family)
        run = _Run(made, train, 10, tmp_path, {})
        run.restore(History("none"))
        shapes = abstract_model(config, mesh, lora=lora, family=family)
        planned = abstract_state(shapes, train.optimizer.build(10))
    run.close()
    assert jax.tree.structure(planned) == jax.tree.structure(run.state)
    for real, shape in zip(jax.tree.leaves(run.state), jax.tree.leaves(planned), strict=True):
        assert (real.shape, real.dtype) == (shape.shape, shape.dtype)
        assert real.sharding.is_equivalent_to(shape.sharding, real.ndim)


def test_the_planned_batch_is_packed_as_training_packs_it(asked, directory):
    config, family = read_shape(str(directory))
    batch = batches_of(asked, config).batch(0)
    assert batch["tokens"].shape == (8, 128)
    assert np.count_nonzero(batch["segments"]) == 8 * 2 * 64  # two examples a row, whose last token is not read
    assert batch["weights"].sum() == 8 * 2 * 5
    shapes = abstract_batch(abstract_model(config, asked.mesh.build(), family=family), batch)
    assert {x.sharding.spec for x in shapes.values()} == {jax.sharding.PartitionSpec(("data", "fsdp", "expert"))}


def test_operations_are_those_of_the_formula_and_what_backward_recomputes(found, asked, directory):
    config, family = read_shape(str(directory))
    needed = useful(abstract_model(config, asked.mesh.build(), lora=asked.lora, family=family))
    layers = 3 * (4 * 64 * 16 * 2 + 2 * 64 * 16 * 2 + 3 * 64 * 128)  # q and o, k and v, the gated MLP
    adapters = 3 * 4 * (128 + 96 + 96 + 128 + 3 * 192)  # r · (in + out) of q, k, v, o and of the three of the MLP
    assert (needed.frozen, needed.tuned, needed.head) == (layers, adapters, 256 * 64)
    assert found.useful_flops == 8 * 128 * needed.training(keys=65 / 2, targets=5 / 64)
    computed = found.step.account.flops * 8
    assert 1.0 < computed / found.useful_flops < 1.8


def test_weights_are_gathered_along_fsdp_and_sums_added_up_over_tensor(found):
    moved = {}
    for one in found.step.account.collectives:
        moved[one.kind, one.axes] = moved.get((one.kind, one.axes), 0) + one.bytes
    assert moved["all-gather", ("fsdp",)] > 0
    assert moved["all-reduce", ("tensor",)] > 0
    assert found.step.account.unknown == ()


def test_what_a_step_takes_is_what_lies_on_a_device(found, asked, directory):
    config, family = read_shape(str(directory))
    mesh = asked.mesh.build()
    with jax.set_mesh(mesh):
        model = abstract_model(config, mesh, lora=asked.lora, family=family)
        state = abstract_state(model, asked.train.optimizer.build(1000))
        batch = abstract_batch(model, batches_of(asked, config).batch(0))
    held = sum(
        int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
        for x in jax.tree.leaves((state, model.frozen, batch))
    )
    # batches have arrays that the step does not read
    assert 0.97 * held < found.step.facts.memory.arguments <= held
    assert found.step.facts.memory.aliased > 0


def test_the_head_is_gathered_once_however_many_chunks_the_loss_has(asked, tmp_path, monkeypatch):
    from fiat_jax.models import head

    monkeypatch.setattr(head, "LOGITS_PER_CHUNK", 1 << 8)
    step = plan_training(asked, local(), quiet(tmp_path)).step
    of_head = [
        one for one in step.account.collectives if one.array.startswith("f32[128,32]") and one.kind == "all-gather"
    ]
    assert sum(one.count for one in of_head) <= 2  # of the embedding, and of the head
    assert not any("vocabulary" in line for line in step.cautions)


def test_a_second_plan_compiles_nothing(asked, tmp_path):
    told = []
    for _ in range(2):
        plan_training(asked, local(), compiler_for(local(), tmp_path, told.append))
    assert told == ["compiling step"]


def test_what_does_not_fit_says_so_with_its_figures(asked, found):
    small = dataclasses.replace(found, target={**found.target, "memory": 1000})
    assert small.as_json()["fits"] is False
    assert small.as_json()["programs"]["step"]["of_memory"] > 1
    assert found.as_json()["fits"] is True


def test_a_search_ranks_what_fits_and_says_why_others_have_no_plan(asked, tmp_path):
    made = {str(mesh): mesh for mesh in meshes(8, 1)}
    assert len(made) == 10
    assert all(mesh.data % 2 == 0 for mesh in meshes(8, 2))
    planned = []

    def run(one):
        planned.append(one.mesh)
        share = 9.0 if one.mesh.tensor == 2 else 1.0
        memory = {"total": share}
        return {"fits": share < 5, "programs": {"step": {"memory": memory}}, "tokens_per_second": float(one.mesh.fsdp)}

    config, _ = read_shape(asked.model.path)
    found = search(asked, local(), config, run)
    assert len(found) == len(made)
    fitting = [one for one in found if one.found and one.found["fits"]]
    assert found[: len(fitting)] == fitting
    assert [one.mesh.fsdp for one in fitting] == sorted((one.mesh.fsdp for one in fitting), reverse=True)
    assert {one.mesh.tensor for one in found if one.why_not} == {4, 8}
    assert all("does not divide 2 heads" in one.why_not for one in found if one.why_not)


def test_loops_over_experts_run_as_often_as_blocks_can_be():
    def trips(config, rows, mesh=None):
        return expert_trips(abstract_model(config, (mesh or MeshConfig()).build()), rows)

    mixture = dataclasses.replace(TINY, num_experts=16, experts_per_token=2)
    assert trips(TINY, 10) == {}
    few, many = trips(mixture, 4), trips(mixture, 1000)
    assert few["experts_in_use/while"] == 8  # as many as there are assignments
    assert few["blocks_of_one/while"] == 1
    assert many["experts_in_use/while"] == 16
    assert many["runs_of_one/while"] == 0
    assert many["blocks_of_one/while"] == (2000 // 128 + 16) / 16
    plenty = trips(mixture, 10_000)
    assert plenty["runs_of_one/while"] == 2
    assert 4 * plenty["runs_of_one/while"] + plenty["blocks_of_one/while"] == (20_000 // 128 + 16) / 16
    spread = trips(mixture, 250, MeshConfig(data=2, expert=4))  # a device has 4 experts, and reads the rows of four
    assert spread["experts_in_use/while"] == 4
    assert 4 * spread["runs_of_one/while"] + spread["blocks_of_one/while"] == (2000 // 128 + 4) / 4


def test_an_example_longer_than_a_row_is_refused(asked):
    config, _ = read_shape(asked.model.path)
    long = dataclasses.replace(asked, plan=PlanConfig(input_tokens=200))
    with pytest.raises(UserError, match="does not fit a row"):
        batches_of(long, config)
