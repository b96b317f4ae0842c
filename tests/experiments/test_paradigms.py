"""What each paradigm learns and reads, the rows and the start that they share, and those of the user's own."""

import jax
import numpy as np
import pytest

from fiat_jax.data.batches import TrainBatches
from fiat_jax.errors import UserError
from fiat_jax.experiments.bench import Cell
from fiat_jax.experiments.feed import Reasons
from fiat_jax.experiments.large import rank_by_large
from fiat_jax.experiments.paradigms import GROUPS, PARADIGMS, find_paradigm, find_paradigms
from fiat_jax.models.model import load_model
from fiat_jax.reasoning.native import Native

ROOMY = ("--gin.Prompts.max_length=200", "--gin.Prompts.max_reasoning_tokens=80", "--gin.Train.row_length=256")


@pytest.fixture
def made(bench, project, monkeypatch):
    """A function from a paradigm's name to its bench, cell and feed."""
    monkeypatch.chdir(project.root)

    def made(name, *settings, size=96):
        found = bench(name, settings=[*ROOMY, *settings])
        cell = Cell(find_paradigm(name, found.run.own), size, 0)
        return found, cell, found.feed(cell)

    return made


def examples_of(found, cell, feed, tmp_path):
    kept, _ = found.split(cell)
    return kept, found.examples(feed, cell, kept, tmp_path / "cache")


def texts(feed, ids):
    return [feed.tokenizer.decode(one) for one in ids]


def test_fine_tune_cot_learns_the_rationale_and_then_the_right_answer_of_rows_where_both_agree(made, tmp_path):
    found, cell, feed = made("finetune-cot")
    kept, examples = examples_of(found, cell, feed, tmp_path)
    assert len(kept) == len(examples) > 20
    for row, text in zip(kept, texts(feed, examples.targets), strict=True):
        assert row["large_answer"] == row["answer"]
        assert text == f" {row['reasoning']} So the answer is {row['answer']}."
    for row, text in zip(kept, texts(feed, examples.inputs), strict=True):
        assert text.endswith(f"Report: {row['report']}\nReasoning:")
    assert all(ids[-1] == feed.renderer.end_id for ids in examples.targets)


def test_what_is_scored_by_fine_tune_cot_is_what_it_was_trained_to_go_on_from(made, tmp_path):
    found, cell, feed = made("finetune-cot")
    kept, examples = examples_of(found, cell, feed, tmp_path)
    asked = feed.inputs(kept, found.reasons_for(cell, kept))
    assert [ids.tolist() for ids in asked.inputs] == [ids.tolist() for ids in examples.inputs]
    assert asked.targets.lengths.sum() == 0
    for row, ids in zip(kept, examples.targets, strict=True):
        assert feed.answer_in(feed.tokenizer.decode(ids)) == row["answer"]
    assert feed.answer_in("It rains, and that is all.") == ""


def test_a_rationale_longer_than_its_room_is_cut_and_counted_and_the_answer_never(made, tmp_path):
    found, cell, feed = made("finetune-cot", "--gin.Prompts.max_reasoning_tokens=3")
    kept, examples = examples_of(found, cell, feed, tmp_path)
    for row, text in zip(kept, texts(feed, examples.targets), strict=True):
        assert text.endswith(f" So the answer is {row['answer']}.")
        assert row["reasoning"] not in text
    assert len(examples.dropped) == len(kept)


def test_distilled_cot_learns_the_answer_and_apart_from_it_the_rationale_which_together_weigh_the_same(made, tmp_path):
    found, cell, feed = made("distilled")
    kept, examples = examples_of(found, cell, feed, tmp_path)
    plain = examples_of(*made("finetune-lora"), tmp_path)[1]
    count = len(kept)
    assert len(examples) == 2 * count == 2 * len(plain)
    assert examples.row_ids[:count] == examples.row_ids[count:] == plain.row_ids
    for n, row in enumerate(kept):
        assert examples.inputs[n].tolist() == plain.inputs[n].tolist()
        assert examples.targets[n].tolist() == plain.targets[n].tolist()
        assert feed.tokenizer.decode(examples.targets[count + n]) == f" {row['reasoning']}"
        assert feed.tokenizer.decode(examples.inputs[count + n]).endswith("\nReasoning:")
    batch = TrainBatches(examples, 256, 64, 0).batch(0)
    told = batch["examples"] >= count
    assert batch["weights"][told].sum() == pytest.approx(batch["weights"][~told].sum(), rel=1e-5)
    assert (batch["weights"] > 0).sum() == examples.targets.lengths.sum()


def test_dropout_reads_half_of_the_rows_without_their_reasoning_and_others_in_every_epoch(made, tmp_path):
    found, cell, feed = made("fiat-dropout")
    kept, examples = examples_of(found, cell, feed, tmp_path)
    bare = found.bare_examples(feed, cell, kept, tmp_path / "cache")
    assert "Reasoning:" not in "".join(texts(feed, bare.inputs))
    batches = TrainBatches(examples, 256, 8, 0, bare=bare, bare_share=0.5)
    longer = {row_id: len(ids) for row_id, ids in zip(examples.row_ids, examples.inputs, strict=True)}
    seen = []
    for epoch in range(6):
        without = set()
        read = []
        for index in range(batches.num_batches(epoch)):
            batch = batches.batch(batches.num_steps(epoch) + index)
            for example in np.unique(batch["examples"][batch["examples"] >= 0]):
                row_id = examples.row_ids[example % len(examples)]
                read.append(row_id)
                if example >= len(examples):
                    without.add(row_id)
        assert sorted(read) == sorted(longer)
        assert len(without) == round(len(examples) / 2)
        seen.append(without)
    assert len({frozenset(one) for one in seen}) == len(seen)
    assert len(set.union(*seen)) > 0.9 * len(examples)


def test_paradigms_of_a_seed_that_read_the_same_are_given_the_same_batches(made, tmp_path):
    batches = {}
    for name in ("fiat", "fiat-full"):
        found, cell, feed = made(name)
        _, examples = examples_of(found, cell, feed, tmp_path)
        batches[name] = TrainBatches(examples, 256, 8, 0)
    steps = batches["fiat"].num_steps(3)
    assert steps == batches["fiat-full"].num_steps(3) > 6
    for step in range(steps):
        one, other = (batches[name].batch(step) for name in batches)
        assert all((one[key] == other[key]).all() for key in one)


def test_adapters_of_one_seed_begin_alike_in_all_paradigms_and_another_seed_s_otherwise(made):
    found, _, _ = made("fiat")
    mesh = found.run.mesh.build()
    with jax.set_mesh(mesh):
        starts = [load_model(found.run.model, mesh, lora=found.run.lora, seed=seed).trainable for seed in (0, 0, 1)]
    same, other = (jax.tree.map(lambda a, b: bool((a == b).all()), starts[0], one) for one in starts[1:])
    assert all(jax.tree.leaves(same))
    assert not all(jax.tree.leaves(other))


def test_the_ladder_takes_one_part_more_at_each_rung_and_leave_one_out_one_part_each():
    ladder = [PARADIGMS[name].removed for name in GROUPS["ladder"]]
    assert ladder == [(), ("reasoning",), ("reasoning", "instructions"), ("reasoning", "instructions", "lora")]
    left_out = [PARADIGMS[name].removed for name in GROUPS["leave-one-out"]]
    assert left_out == [(), ("tuning",), ("reasoning",), ("instructions",), ("lora",)]


def test_a_group_stands_for_its_paradigms_each_once():
    named = [one.name for one in find_paradigms(("icl", "ladder", "controls"))]
    assert named == ["icl", *GROUPS["ladder"], "fiat-answer-only", "fiat-rationale-only", "fiat-shuffled"]


def test_a_paradigm_of_the_user_s_own_is_a_known_one_with_fields_changed(made):
    own = "--gin.Run.own={'mine': {'like': 'fiat-full', 'reasoning_use': 'answer', 'dropout': 0.25}}"
    found, cell, feed = made("mine", own)
    assert (cell.paradigm.lora, cell.paradigm.reasoning_use, cell.paradigm.dropout) == (False, "answer", 0.25)
    row = found.train_rows[0]
    kinds = {segment.kind for segment in feed.render(row, found.reasons, with_target=False).segments}
    assert "large_answer" in kinds
    assert "reasoning" not in kinds


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"like": "fait"}, "is like 'fait', which is unknown. Did you mean 'fiat'"),
        ({"lorra": False}, "has no field 'lorra'.*Did you mean 'lora'"),
        ({"lora": "no"}, "lora of 'mine' is 'no'; it must be of type bool"),
        ({"reasoning_use": "half"}, "reasoning_use of 'mine' is 'half'; known are full, answer, rationale, none"),
        ({"writes": "cot"}, "reads none; say 'reasoning_use': 'none'"),
        ({"dropout": 1.5}, "'dropout' is 1.5; it is a share"),
        ({"like": "icl", "trained": True}, "θ_β answers it, and is never trained"),
    ],
)
def test_an_own_paradigm_that_makes_no_sense_is_refused(fields, told):
    with pytest.raises(UserError, match=told):
        find_paradigm("mine", {"mine": fields})


def test_nothing_is_voted_on_where_rows_have_one_sample(made):
    with pytest.raises(UserError, match=r"icl-vote votes over samples of each row, and set \w+ has one: make more"):
        made("icl-vote")


def test_many_shot_prompting_needs_a_set_of_its_own(made):
    with pytest.raises(UserError, match=r"icl-many-shot reads another set of reasoning, and Reasoning\.sets does not"):
        made("icl-many-shot")


def test_labels_are_ranked_by_the_large_model_s_own_weights_alone(made):
    with pytest.raises(UserError, match=r"give its weights, --gin.Native.path=DIRECTORY"):
        made("icl-scores")


def test_without_its_reasoning_a_row_reads_as_fiat_without_reasoning_does(made):
    found, _, feed = made("fiat-dropout")
    _, _, other = made("fiat-no-reasoning")
    row = found.train_rows[3]
    bare = feed.render(row, Reasons({}), with_target=True)
    assert bare.segments == other.render(row, found.reasons, with_target=True).segments


def test_the_large_model_s_scores_are_its_log_likelihoods_after_its_own_rationale(bench, project, monkeypatch):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.chdir(project.root)
    found = bench("icl-scores", native=Native("model", dtype="float32"))
    tokenizer = AutoTokenizer.from_pretrained(project.model)
    model = AutoModelForCausalLM.from_pretrained(project.model)
    told = rank_by_large(found)
    for one, row in list(zip(told, found.report_rows, strict=True))[:3]:
        head = "Reason step by step, then answer with one of: bad, good.\n\n"
        text = f"{head}Report: {row['report']}\nReasoning: {row['reasoning']} So the answer is"
        before = tokenizer(text, add_special_tokens=False)["input_ids"]
        for label, score in one.scores.items():
            whole = [*before, *tokenizer(f" {label}.", add_special_tokens=False)["input_ids"]]
            with torch.no_grad():
                logits = model(torch.tensor([whole])).logits[0].log_softmax(-1)
            wanted = sum(float(logits[n - 1, whole[n]]) for n in range(len(before), len(whole)))
            assert score == pytest.approx(wanted, abs=1e-3)
        assert one.prediction == max(one.scores, key=one.scores.get)
