"""seqio Tasks and mixtures of others as sources of rows."""

from collections import Counter

import pytest

from fiat_jax.errors import UserError
from fiat_jax.tasks.readers import read_source
from fiat_jax.tasks.task import Task, read_rows

MODULE = """
import seqio
import tensorflow as tf

def source(texts):
    def dataset_of(split, shuffle_files, seed=None):
        return tf.data.Dataset.from_tensor_slices({"inputs": texts, "targets": [t[0] for t in texts]})
    return seqio.FunctionDataSource(dataset_of, splits=["train", "test"])

feature = seqio.Feature(seqio.ByteVocabulary())
steps = [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos]
bare = [lambda data: data.map(lambda e: {k: v for k, v in e.items() if not k.endswith("_pretokenized")})]
for name, texts, more in (("upper", ["A b", "C d", "\u00c9"], []), ("lower", ["e f", "g"], bare)):
    seqio.TaskRegistry.add(
        name + "_NUMBER", source=source(texts), preprocessors=steps + more,
        output_features={"inputs": feature, "targets": feature},
    )
seqio.MixtureRegistry.add("both_NUMBER", [("upper_NUMBER", 3.0), ("lower_NUMBER", 1.0)])
"""
UPPER, LOWER = ["A b", "C d", "É"], ["e f", "g"]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A module in the working directory that registers two tasks, one of which keeps ids alone, and their mixture."""
    root = tmp_path_factory.mktemp("theirs")
    (root / "their_tasks.py").write_text(MODULE.replace("NUMBER", "of_theirs"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield "seqio://their_tasks:"


def test_rows_are_the_texts_of_a_task_in_its_order(theirs):
    for name, texts in (("upper_of_theirs", UPPER), ("lower_of_theirs", LOWER)):
        rows = list(read_source(f"{theirs}{name}/train"))
        assert [row["inputs"] for row in rows] == texts
        assert [row["targets"] for row in rows] == [text[0] for text in texts]
        assert [row["index"] for row in rows] == [str(n) for n in range(len(texts))]
        assert {row["task"] for row in rows} == {name}
    assert rows[1].where == f"{theirs}lower_of_theirs/train row 1"


def test_a_mixture_gives_each_of_its_tasks_once_and_draws_at_its_rates(theirs):
    rows = list(read_source(f"{theirs}both_of_theirs/train"))
    assert sorted(row["inputs"] for row in rows) == sorted([*UPPER, *LOWER])
    drawn = [list(read_source(f"{theirs}both_of_theirs/train?draws=400")) for _ in range(2)]
    assert drawn[0] == drawn[1]
    share = Counter(row["task"] for row in drawn[0])["upper_of_theirs"] / 400
    assert 0.68 < share < 0.82
    assert set(Counter(row["inputs"] for row in drawn[0] if row["task"] == "lower_of_theirs")) == set(LOWER)


def test_they_are_the_rows_of_a_task_with_its_metrics_apart(theirs):
    task = Task(
        name="theirs", splits={"test": f"{theirs}both_of_theirs/test"}, id_field="index", language_field="task",
        fields=("inputs",), answer_field="targets", kind="text", metrics=("exact_match",),
    )  # fmt: skip
    rows = read_rows(task, "test")
    assert [task.language(row) for row in rows].count("lower_of_theirs") == 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("upper_of_thiers/train", "registers no task or mixture 'upper_of_thiers'. Did you mean 'upper_of_theirs'"),
        ("upper_of_theirs/trian", "no split 'trian'; it has train, test. Did you mean 'train'"),
        ("upper_of_theirs", "expected seqio://MODULE:NAME/SPLIT"),
        ("upper_of_theirs/train?draws=some", "expected seqio://MODULE:NAME/SPLIT"),
    ],
)
def test_a_name_that_is_not_there_is_one_error(theirs, name, said):
    with pytest.raises(UserError) as error:
        next(iter(read_source(theirs + name)))
    assert said in str(error.value)


def test_a_module_that_cannot_be_imported_says_why(theirs):
    with pytest.raises(UserError, match="importing no_such_tasks failed"):
        next(iter(read_source("seqio://no_such_tasks:any/train")))
