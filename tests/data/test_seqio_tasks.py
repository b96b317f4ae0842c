import itertools
import os
import subprocess
import sys

import numpy as np
import pytest

from fiat_jax.data.batches import TrainBatches
from fiat_jax.data.examples import Examples
from fiat_jax.data.seqio_tasks import make_seqio_task, tokenise
from fiat_jax.errors import UserError
from fiat_jax.prompts.fields import SourceRow
from fiat_jax.prompts.render import Rendered, Segment
from fiat_jax.tasks.task import Task

TASK = Task(name="to-y", fields=("text",), language_field="lang", labels=("yes", "no"))
TEXTS = ["!!a", "b", "кé?", "!", "a long text"]


def rows_of(texts: list[str]) -> list[SourceRow]:
    return [
        SourceRow(
            {"id": f"row-{i}", "lang": "ru" if "к" in text else "en", "text": text, "answer": "yes"}, f"x line {i}"
        )
        for i, text in enumerate(texts)
    ]


@pytest.fixture
def render(tokenizer):
    """Inputs of at most six tokens; a target that begins with id 0."""

    def render(row):
        if "bad" in row["text"]:
            raise UserError(f"{row.where}: this row is bad")
        ids = tokenizer.encode(row["text"])
        target = (*tokenizer.encode("!" + row["answer"]), tokenizer.eos_id)
        dropped = {"field:text": len(ids) - 6} if len(ids) > 6 else {}
        return Rendered((Segment("field:text", row["text"], tuple(ids[:6])), Segment("answer", "", target)), dropped)

    return render


def same_answers(gold, predictions) -> np.ndarray:
    return np.array([a == b for a, b in zip(gold, predictions, strict=True)])


@pytest.fixture
def seqio_task(tokenizer, render):
    rows = {"train": rows_of(TEXTS), "validation": rows_of(TEXTS[:2])}
    return make_seqio_task(TASK, rows, render, tokenizer, {"accuracy": same_answers})


def test_tokens_are_those_of_the_renderer_in_the_order_of_the_rows(seqio_task, render):
    examples = list(tokenise(seqio_task, "train"))
    rows = rows_of(TEXTS)
    assert [example.row_id for example in examples] == [row["id"] for row in rows]
    assert [example.language for example in examples] == [row["lang"] for row in rows]
    for example, row in zip(examples, rows, strict=True):
        rendered = render(row)
        assert example.inputs.tolist() == rendered.inputs.tolist()
        assert example.target.tolist() == rendered.target.tolist()
        assert example.inputs.dtype == example.target.dtype == np.int32
        assert example.dropped == rendered.dropped


def test_a_token_with_id_zero_survives_from_text_to_packed_batch(seqio_task, tokenizer):
    batch = TrainBatches(Examples.of(tokenise(seqio_task, "train")), row_length=32, batch_rows=4, seed=0).batch(0)
    read = {}
    for row, slot in np.argwhere(batch["weights"] > 0):
        segment = batch["segments"][row] == batch["segments"][row, batch["target_positions"][row, slot]]
        index = int(batch["examples"][row, slot])
        targets = read.setdefault(index, (tokenizer.decode(batch["tokens"][row][segment]), []))[1]
        targets.append(int(batch["targets"][row, slot]))
    texts = {index: text.split("!yes")[0] for index, (text, _) in read.items()}
    assert texts == dict(enumerate(text[:6] for text in TEXTS))
    assert all(targets == [*tokenizer.encode("!yes"), tokenizer.eos_id] for _, targets in read.values())


def test_truncations_are_carried_along_by_language(seqio_task):
    examples = Examples.of(tokenise(seqio_task, "train"))
    assert examples.truncations() == {"en": {"field:text": {"rows": 1, "tokens": 5}}}


def test_it_is_a_seqio_task_with_splits_features_and_metrics(seqio_task):
    from fiat_jax.data.seqio_import import seqio

    assert seqio.TaskRegistry.get(seqio_task.name) is seqio_task
    assert seqio_task.num_input_examples("validation") == 2
    assert set(seqio_task.output_features) == {"inputs", "targets"}
    (metric,) = seqio_task.metric_fns
    decoded = [seqio_task.postprocess_fn(text, example=None, is_target=False) for text in (" yes", "no")]
    assert metric(["yes", "yes"], decoded) == {"accuracy": 50.0}


def test_the_same_task_can_be_made_twice(tokenizer, render):
    made = [make_seqio_task(TASK, {"train": rows_of(TEXTS)}, render, tokenizer, {}) for _ in range(2)]
    assert made[0].name != made[1].name


def test_a_row_that_cannot_be_rendered_is_one_clear_error(tokenizer, render, capfd):
    task = make_seqio_task(TASK, {"train": rows_of(["a", "bad", "b"])}, render, tokenizer, {})
    with pytest.raises(UserError, match=r"^x line 1: this row is bad$"):
        list(tokenise(task, "train"))
    assert "Traceback" not in capfd.readouterr().err


def test_an_old_failure_does_not_hide_a_new_one(tokenizer):
    def render(row):
        raise UserError(f"failure {next(count)}")

    count = itertools.count()
    task = make_seqio_task(TASK, {"train": rows_of(["a"])}, render, tokenizer, {})
    for number in range(2):
        with pytest.raises(UserError, match=f"failure {number}"):
            list(tokenise(task, "train"))


def test_an_unknown_split_is_named_with_the_known_ones(seqio_task):
    with pytest.raises(UserError, match=r"no split 'trian'; it has train, validation\. Did you mean 'train'"):
        next(tokenise(seqio_task, "trian"))


def test_tasks_of_others_and_mixtures_come_in_the_same_way(seqio_task, tokenizer):
    from fiat_jax.data.seqio_import import seqio, tf
    from fiat_jax.data.vocabulary import TokenizerVocabulary

    def dataset_of(split, shuffle_files):
        return tf.data.Dataset.from_tensor_slices({"inputs": ["ab", "!"], "targets": ["!", "yes"]})

    feature = seqio.Feature(TokenizerVocabulary(tokenizer))
    seqio.TaskRegistry.add(
        "of_others",
        source=seqio.FunctionDataSource(dataset_of, splits=["train"]),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features={"inputs": feature, "targets": feature},
    )
    examples = list(tokenise(seqio.TaskRegistry.get("of_others"), "train"))
    assert [example.row_id for example in examples] == ["train:0", "train:1"]
    assert [tokenizer.decode(example.inputs) for example in examples] == ["ab", "!"]
    assert [example.target[-1] for example in examples] == [tokenizer.eos_id] * 2

    mixture = seqio.MixtureRegistry.add("of_both", [(seqio_task.name, 1.0), ("of_others", 1.0)])
    mixed = {tokenizer.decode(example.inputs) for example in tokenise(mixture, "train", draws=60)}
    assert mixed == {*(text[:6] for text in TEXTS), "ab", "!"}


def test_a_mixture_of_rendered_tasks_keeps_row_ids_and_draws_the_same_again(seqio_task):
    from fiat_jax.data.seqio_import import seqio

    mixture = seqio.Mixture("of_one", [(seqio_task, 1.0)])
    drawn = [[example.row_id for example in tokenise(mixture, "train", draws=12)] for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert set(drawn[0]) == {f"row-{i}" for i in range(len(TEXTS))}


def test_a_mixture_is_not_read_without_an_end(seqio_task):
    from fiat_jax.data.seqio_import import seqio

    with pytest.raises(UserError, match="say how many examples to draw"):
        next(tokenise(seqio.Mixture("endless", [(seqio_task, 1.0)]), "train"))
    with pytest.raises(UserError, match="and of no task"):
        next(tokenise(seqio_task, "train", draws=3))


def test_neither_tensorflow_nor_seqio_is_loaded_before_it_is_needed():
    code = (
        "import sys, fiat_jax.data.seqio_tasks, fiat_jax.data.batches, fiat_jax.data.examples;"
        "assert not {'tensorflow', 'seqio', 'jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_seqio_prints_nothing():
    quiet = subprocess.run([sys.executable, "-c", "import fiat_jax.data.seqio_import"], capture_output=True, check=True)
    assert (quiet.stdout, quiet.stderr) == (b"", b"")


def test_keras_is_loaded_only_by_whoever_asks_for_it(tokenizer):
    code = """if True:
        import sys
        from test_seqio_tasks import TASK, Rendered, Segment, make_seqio_task, rows_of, tokenise
        from fiat_jax.prompts.tokenizer import Tokenizer
        tokenizer, rows = Tokenizer.from_directory(sys.argv[1]), {"train": rows_of(["a", "b"])}
        rendered = Rendered((Segment("answer", "", (1, 2)),), {})
        task = make_seqio_task(TASK, rows, lambda _: rendered, tokenizer, {})
        assert len(list(tokenise(task, "train"))) == 2
        assert "keras" not in sys.modules
        import keras, tensorflow as tf, tensorflow_text as text
        assert issubclass(text.keras.layers.ToDense, tf.keras.layers.Layer)
        assert tf.keras.Model is keras.Model
    """
    path = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", code, str(tokenizer.source)]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, check=True)


def test_what_was_written_during_an_import_is_shown_only_if_it_fails(capfd):
    from fiat_jax.data.seqio_import import stderr_kept_for_failures

    with stderr_kept_for_failures():
        os.write(2, b"a start-up line")
    assert capfd.readouterr().err == ""

    def fail():
        os.write(2, b"libx.so is missing")
        raise ImportError

    with pytest.raises(ImportError), stderr_kept_for_failures():
        fail()
    assert capfd.readouterr().err == "libx.so is missing"
