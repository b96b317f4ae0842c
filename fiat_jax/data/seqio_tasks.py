"""Tasks as seqio Tasks, and the token ids of any seqio Task or mixture."""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fiat_jax.data.examples import Example
from fiat_jax.errors import UserError, did_you_mean
from fiat_jax.prompts.fields import Row, SourceRow, place
from fiat_jax.prompts.render import Rendered
from fiat_jax.prompts.tokenizer import Tokenizer
from fiat_jax.tasks.task import NO_LANGUAGE, Task

if TYPE_CHECKING:
    import seqio
    import tensorflow as tf

# (gold answers, predictions) → a value in 0..1 for each row, or for all
Metric = Callable[[Sequence[str], Sequence[str]], np.ndarray | float]

_SIDE_FEATURES = ("row_id", "language", "dropped")
# One by one, this thread and TensorFlow's wait for the interpreter's lock in turn, and take several times as long.
_READ_AT_ONCE = 256

_serial = itertools.count()


def make_seqio_task(
    task: Task,
    rows: Mapping[str, Sequence[Row]],
    render: Callable[[Row], Rendered],
    tokenizer: Tokenizer,
    metrics: Mapping[str, Metric],
) -> "seqio.Task":
    """Register a task as a seqio Task under a name of its own, `NAME.N`.

    Its source holds `rows` by split, in their order; its one preprocessor is `render`; its output features are `inputs`
    and `targets` (int32, whole: the end token is in them and nothing is padded); `row_id`, `language` and `dropped`
    come along. Metrics compare texts without the spaces around them, and report per cent.
    """
    from fiat_jax.data.seqio_import import seqio, tf
    from fiat_jax.data.vocabulary import TokenizerVocabulary

    def dataset_of(split: str, shuffle_files: bool, seed: int | None = None) -> "tf.data.Dataset":
        del shuffle_files, seed  # rows keep their order: `data.batches` shuffles
        columns = {
            "row_id": [str(row[task.id_field]) for row in rows[split]],
            "language": [task.language(row) for row in rows[split]],
            "place": [place(row) for row in rows[split]],
            "row": [json.dumps(row, ensure_ascii=False) for row in rows[split]],
        }
        return tf.data.Dataset.from_tensor_slices(
            {name: tf.constant(texts, tf.string) for name, texts in columns.items()}
        )

    name = f"{re.sub('[^a-zA-Z0-9_.:]', '_', task.name)}.{next(_serial)}"
    sizes = {split: len(rows[split]) for split in rows}
    feature: Any = seqio.Feature(TokenizerVocabulary(tokenizer), add_eos=False, dtype=tf.int32)
    source: Any = seqio.FunctionDataSource(dataset_of, splits=list(rows), num_input_examples=sizes)
    return seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[RenderRows(render)],
        output_features={"inputs": feature, "targets": feature},
        postprocess_fn=_strip,
        metric_fns=[_seqio_metric(name, metric) for name, metric in metrics.items()],
    )


def make_seqio_mixture(rates: Mapping["seqio.Task", float]) -> "seqio.Mixture":
    """Register a mixture of tasks, each drawn at its rate against the others, under a name of its own."""
    from fiat_jax.data.seqio_import import seqio

    name = f"mixture.{next(_serial)}"
    return seqio.MixtureRegistry.add(name, [(task.name, rate) for task, rate in rates.items()])


def tokenise(provider: "seqio.Task | seqio.Mixture", split: str, draws: int | None = None) -> Iterator[Example]:
    """Yield the examples of a split: of a task each one once and in order, of a mixture as many as `draws` says.

    Takes tasks of others too: their features are `inputs` and `targets`, and examples without `row_id` are numbered.
    """
    from fiat_jax.data.seqio_import import seqio, tf

    if split not in provider.splits:
        known = ", ".join(provider.splits)
        hint = did_you_mean(split, provider.splits)
        raise UserError(f"{provider.name} has no split {split!r}; it has {known}.{hint}")
    tasks = provider.tasks if isinstance(provider, seqio.Mixture) else [provider]
    if isinstance(provider, seqio.Mixture) != (draws is not None):
        raise UserError(
            f"{provider.name}: say how many examples to draw of a mixture, which never ends, and of no task"
        )
    rendered = all(any(isinstance(step, RenderRows) for step in task.preprocessors) for task in tasks)
    # whoever has TensorFlow rewrite functions has it look into every module, which loads Keras: 2 s
    make = tf.autograph.experimental.do_not_convert(_dataset) if rendered else _dataset
    dataset = cast(Any, make)(provider, split, draws, _SIDE_FEATURES if rendered else ())
    count = itertools.count()
    try:
        for batch in cast(Any, dataset.ragged_batch(_READ_AT_ONCE)):
            columns = [column.numpy() for column in batch.values()]
            for values in zip(*columns, strict=True):
                yield _example(dict(zip(batch, values, strict=True)), f"{split}:{next(count)}")
    except tf.errors.OpError:
        for failure in _failures(tasks):
            raise failure from None
        raise


def _dataset(provider: Any, split: str, draws: int | None, side: Sequence[str]) -> "tf.data.Dataset":
    """The unbatched dataset, with the features that become an example."""
    if draws is None:
        dataset = provider.get_dataset(None, split, shuffle=False, try_in_mem_cache=False)
    else:
        dataset = provider.get_dataset(None, split, shuffle=False, passthrough_features=side).take(draws)
    wanted = [name for name in ("inputs", "targets", *_SIDE_FEATURES) if name in dataset.element_spec]
    return dataset.map(lambda element: {name: element[name] for name in wanted})


def _example(element: dict[str, Any], number: str) -> Example:
    return Example(
        row_id=element.get("row_id", number.encode()).decode(),
        language=element.get("language", NO_LANGUAGE.encode()).decode(),
        inputs=element["inputs"],
        target=element["targets"],
        dropped=json.loads(element.get("dropped", b"{}")),
    )


class RenderRows:
    """A seqio preprocessor that renders rows; it keeps the first exception, which TensorFlow would hand on as text."""

    def __init__(self, render: Callable[[Row], Rendered]):
        self._render = render
        self.failure: Exception | None = None

    def __call__(self, dataset: "tf.data.Dataset") -> "tf.data.Dataset":
        from fiat_jax.data.seqio_import import tf

        def render(element: dict[str, Any]) -> dict[str, Any]:
            types = [tf.int32, tf.int32, tf.string]
            arrays = tf.numpy_function(self._arrays, [element["row"], element["place"]], types, stateful=False)
            inputs, targets, dropped = cast(Any, arrays)
            return {
                "row_id": element["row_id"],
                "language": element["language"],
                "inputs": tf.ensure_shape(inputs, [None]),
                "targets": tf.ensure_shape(targets, [None]),
                "dropped": tf.ensure_shape(dropped, []),
            }

        self.failure = None
        return dataset.map(render)

    def _arrays(self, row: bytes, where: bytes) -> tuple[np.ndarray, np.ndarray, bytes]:
        try:
            rendered = self._render(SourceRow(json.loads(row), where.decode()))
        except Exception as error:
            self.failure = self.failure or error
            raise
        return rendered.inputs, rendered.target, json.dumps(dict(rendered.dropped)).encode()


def _failures(tasks: Sequence["seqio.Task"]) -> list[Exception]:
    steps = [step for task in tasks for step in task.preprocessors if isinstance(step, RenderRows)]
    return [step.failure for step in steps if step.failure is not None]


def _seqio_metric(name: str, metric: Metric) -> Callable[[Sequence[str], Sequence[str]], dict[str, float]]:
    def metric_fn(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
        return {name: 100 * float(np.mean(metric(targets, predictions)))}

    return metric_fn


def _strip(text: str, **_: Any) -> str:
    return text.strip()
