from functools import partial

import numpy as np
import pytest

from fiat_jax.data.batches import ScoringBatches, TrainBatches
from fiat_jax.data.examples import Example, Examples
from fiat_jax.data.layout import EncoderDecoderLayout
from fiat_jax.errors import UserError

T = 24


def some_examples(count: int = 40, seed: int = 0) -> Examples:
    """Random rows; ids start at 0, so that padding and a real token look alike."""
    rng = np.random.default_rng(seed)
    return Examples.of(
        Example(f"row-{i}", "en", rng.integers(0, 4, rng.integers(1, 12)), rng.integers(0, 4, rng.integers(1, 4)))
        for i in range(count)
    )


def some_candidates(count: int, seed: int = 1) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [[rng.integers(0, 4, rng.integers(1, 4)) for _ in range(rng.integers(1, 4))] for _ in range(count)]


def visible_keys(batch: dict, row: int, place: int) -> np.ndarray:
    """The keys that the query at `place` sees, by the attention rule of the layout."""
    segments = batch["segments"][row]
    branches = batch["branches"][row] if "branches" in batch else np.zeros_like(segments)
    own = (branches == 0) | (branches == branches[place])
    return np.flatnonzero((np.arange(len(segments)) <= place) & (segments == segments[place]) & own)


def read_back(batch: dict) -> dict[tuple[int, int], list[tuple[list[int], int]]]:
    """(example, candidate) → for each target, the tokens its prediction rests on by position, and the target."""
    found: dict[tuple[int, int], list[tuple[list[int], int]]] = {}
    for row, slot in np.argwhere(batch["weights"] > 0):
        keys = visible_keys(batch, row, batch["target_positions"][row, slot])
        assert batch["positions"][row, keys].tolist() == list(range(len(keys)))
        owner = (int(batch["examples"][row, slot]), int(batch["candidates"][row, slot]))
        read = batch["tokens"][row, keys].tolist()
        found.setdefault(owner, []).append((read, int(batch["targets"][row, slot])))
    return found


def read_back_apart(batch: dict) -> dict[tuple[int, int], list[tuple[list[int], list[int], int]]]:
    """(example, candidate) → for each target, what the encoder read, what was written before it, and the target."""
    written = {name.removeprefix("decoder_"): array for name, array in batch.items() if name != "segments"}
    found: dict = {}
    for row, slot in np.argwhere(batch["weights"] > 0):
        place = batch["target_positions"][row, slot]
        keys = visible_keys(written, row, place)
        assert written["positions"][row, keys].tolist() == list(range(len(keys)))
        read = batch["tokens"][row, batch["segments"][row] == written["segments"][row, place]]
        owner = (int(batch["examples"][row, slot]), int(batch["candidates"][row, slot]))
        before = written["tokens"][row, keys].tolist()
        found.setdefault(owner, []).append((read.tolist(), before, int(batch["targets"][row, slot])))
    return found


def expected_apart(inputs: np.ndarray, answer: np.ndarray) -> list[tuple[list[int], list[int], int]]:
    return [(inputs.tolist(), [3, *answer[:step].tolist()], int(token)) for step, token in enumerate(answer)]


def expected(inputs: np.ndarray, answer: np.ndarray) -> list[tuple[list[int], int]]:
    return [([*inputs.tolist(), *answer[:step].tolist()], int(token)) for step, token in enumerate(answer)]


def test_each_target_is_predicted_from_its_own_example_alone_and_once_an_epoch():
    examples = some_examples()
    batches = TrainBatches(examples, T, batch_rows=4, seed=0)
    seen: dict = {}
    for step in range(batches.num_batches(0)):
        for owner, targets in read_back(batches.batch(step)).items():
            assert owner not in seen
            seen[owner] = targets
    assert seen == {(i, 0): expected(example.inputs, example.target) for i, example in enumerate(examples)}


def test_each_candidate_reads_the_input_and_itself_but_no_other_candidate():
    examples, candidates = some_examples(), some_candidates(40)
    seen: dict = {}
    for batch in ScoringBatches(examples, candidates, T, batch_rows=4):
        for owner, targets in read_back(batch).items():
            assert owner not in seen
            seen[owner] = targets
    assert seen == {
        (i, c): expected(examples[i].inputs, answer)
        for i, answers in enumerate(candidates)
        for c, answer in enumerate(answers)
    }


def test_an_input_is_stored_once_for_all_its_candidates():
    examples = Examples.of([Example("a", "en", np.array([1, 2, 3]), np.array([], int))])
    (batch,) = ScoringBatches(
        examples, [[np.array([4]), np.array([5, 6]), np.array([7, 8])]], row_length=8, batch_rows=1
    )
    assert batch["tokens"].tolist() == [[1, 2, 3, 5, 7, 0, 0, 0]]
    assert batch["positions"].tolist() == [[0, 1, 2, 3, 3, 0, 0, 0]]
    assert batch["segments"].tolist() == [[1, 1, 1, 1, 1, 0, 0, 0]]
    assert batch["branches"].tolist() == [[0, 0, 0, 2, 3, 0, 0, 0]]
    assert batch["targets"].tolist() == [[4, 5, 6, 7, 8, 0, 0, 0]]
    assert batch["target_positions"].tolist() == [[2, 2, 3, 2, 4, 0, 0, 0]]
    assert batch["candidates"].tolist() == [[0, 1, 1, 2, 2, -1, -1, -1]]
    assert batch["weights"].dtype == np.float32


def test_training_needs_no_branches():
    batch = TrainBatches(some_examples(), T, batch_rows=8, seed=0).batch(0)
    assert "branches" not in batch


def test_scores_are_gathered_by_example_and_candidate():
    examples, candidates = some_examples(), some_candidates(40)
    batches = ScoringBatches(examples, candidates, T, batch_rows=4)
    scores = batches.gather(np.where(batch["weights"] > 0, batch["targets"] + 1, np.nan) for batch in batches)
    assert [one.tolist() for one in scores] == [[float(sum(a + 1)) for a in answers] for answers in candidates]


APART = partial(EncoderDecoderLayout, start_id=3)


def test_an_encoder_reads_each_input_once_and_its_decoder_writes_each_answer_apart():
    examples, candidates = some_examples(), some_candidates(40)
    batches = ScoringBatches(examples, candidates, T, 4, APART)
    assert {array.shape[0] for array in batches.batch(0).values()} == {4}
    seen: dict = {}
    for index in range(len(batches)):
        seen |= read_back_apart(batches.batch(index))
    assert seen == {
        (i, c): expected_apart(examples[i].inputs, answer)
        for i, answers in enumerate(candidates)
        for c, answer in enumerate(answers)
    }
    read = sum(int((batches.batch(index)["segments"] > 0).sum()) for index in range(len(batches)))
    assert read == examples.inputs.lengths.sum()


def test_training_an_encoder_decoder_reads_every_example_once_an_epoch_in_batches_of_one_shape():
    examples = some_examples()
    batches, seen = TrainBatches(examples, T, 4, 0, APART), {}
    steps = [batches.batch(step) for step in range(batches.num_steps(2))]
    assert len({tuple((name, array.shape) for name, array in batch.items()) for batch in steps}) == 1
    for batch in steps[: batches.num_steps(1)]:
        seen |= read_back_apart(batch)
    assert seen == {(i, 0): expected_apart(example.inputs, example.target) for i, example in enumerate(examples)}


@pytest.mark.parametrize("count", [2, 37, 40])
def test_every_candidate_is_scored_once_whatever_the_number_of_rows(count):
    examples, candidates = some_examples(count), some_candidates(count)
    batches = ScoringBatches(examples, candidates, T, batch_rows=4)
    if count == 2:
        assert not batches.batch(0)["segments"][-1].any()  # a row without anything to read
    scored = [owner for batch in batches for owner in read_back(batch)]
    assert sorted(scored) == [(i, c) for i, answers in enumerate(candidates) for c in range(len(answers))]


def test_rows_are_longer_where_an_example_takes_more_with_all_its_answers():
    candidates = [[np.arange(1, 4, dtype=np.int32), np.arange(5, 9, dtype=np.int32)]] * 2
    for inputs, length in ((T - 5, T), (T - 4, 128)):
        batches = list(ScoringBatches(one(inputs, 1), candidates, T, batch_rows=1))
        assert {batch["tokens"].shape for batch in batches} == {(1, length)}
        owners = [owner for batch in batches for owner in read_back(batch)]
        assert sorted(owners) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_gathering_too_few_batches_is_refused():
    batches = ScoringBatches(some_examples(), some_candidates(40), T, batch_rows=4)
    with pytest.raises(ValueError, match="shorter"):
        batches.gather([np.zeros_like(batches.batch(0)["weights"])])


def test_a_batch_depends_on_its_step_alone():
    examples = some_examples()
    walked, jumped = (TrainBatches(examples, T, batch_rows=4, seed=3) for _ in range(2))
    steps = range(walked.num_steps(3))
    in_order = [walked.batch(step) for step in steps]
    for step in reversed(steps):
        late = jumped.batch(step)
        assert all(np.array_equal(late[name], array) for name, array in in_order[step].items())


def test_all_batches_of_all_epochs_have_one_shape():
    batches = TrainBatches(some_examples(), T, batch_rows=4, seed=0)
    shapes = {tuple((name, a.shape) for name, a in batches.batch(s).items()) for s in range(batches.num_steps(4))}
    assert len(shapes) == 1
    num_targets = batches.batch(0)["targets"].shape[1]
    assert num_targets % 8 == 0


def test_every_epoch_reads_every_example_in_another_order():
    batches = TrainBatches(some_examples(), T, batch_rows=4, seed=0)
    epochs = []
    for epoch in range(2):
        start = batches.num_steps(epoch)
        read = [batches.batch(start + index)["examples"] for index in range(batches.num_batches(epoch))]
        epochs.append(np.concatenate(read).ravel())
    assert [sorted(set(read) - {-1}) for read in epochs] == [list(range(40))] * 2
    assert epochs[0].tolist() != epochs[1].tolist()


def test_no_batch_is_left_with_a_handful_of_rows():
    examples = Examples.of(Example(str(i), "en", np.arange(T), np.array([1])) for i in range(33))
    batches = TrainBatches(examples, T, batch_rows=16, seed=0)
    rows = [int((batches.batch(step)["weights"].sum(axis=1) > 0).sum()) for step in range(batches.num_batches(0))]
    assert rows == [11, 11, 11]


def test_other_seeds_give_other_batches():
    first, second = (TrainBatches(some_examples(), T, batch_rows=4, seed=seed).batch(0) for seed in range(2))
    assert first["tokens"].tolist() != second["tokens"].tolist()


def one(inputs: int, target: int) -> Examples:
    rows = [
        Example("good", "en", np.ones(2, int), np.ones(1, int)),
        Example("bad", "en", np.ones(inputs, int), np.ones(target, int)),
    ]
    return Examples.of(rows)


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        (one(3, 0), "row 'bad' has no target tokens"),
        (one(0, 2), "row 'bad' has no input tokens"),
        (one(T, 2), f"row 'bad' does not fit a packed row of {T} tokens; raise row_length to the longest, {T + 1}"),
        (Examples.of([]), "there are no examples"),
    ],
)
def test_examples_that_cannot_be_trained_on_are_named(examples, message):
    with pytest.raises(UserError, match=message):
        TrainBatches(examples, T, batch_rows=1, seed=0)


def test_an_example_without_candidates_is_named():
    with pytest.raises(UserError, match="row 'bad' has no candidates"):
        ScoringBatches(one(3, 1), [[np.array([1])], []], T, batch_rows=1)


def test_an_empty_candidate_is_named():
    with pytest.raises(UserError, match="row 'bad' has no target tokens"):
        ScoringBatches(one(3, 1), [[np.array([1])], [np.array([1]), np.array([], int)]], T, batch_rows=1)
