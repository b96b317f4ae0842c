import pytest

from fiat_jax.errors import UserError
from fiat_jax.prompts.inline import inlined
from fiat_jax.prompts.instructions import load_instructions

BY_LANGUAGE = "{by: lang, split: dev, rationale: why, sets: {en: [w1], default: [w2, w1]}}"


@pytest.fixture
def of_ids(write):
    """Write a file whose exemplars are named by row id, in one list or in sets."""
    return lambda exemplars: write(("{split: train, rationale: why, ids: [w1, w2]}", exemplars))


@pytest.mark.parametrize("exemplars", ["{rationale: why, ids: [w2, w1]}", BY_LANGUAGE])
def test_a_file_with_its_exemplars_written_out_is_the_same_file_without_rows(of_ids, rows, tmp_path, exemplars):
    path = of_ids(exemplars)
    alone = tmp_path / "alone.yaml"
    alone.write_text(inlined(path, rows))
    before, after = load_instructions(path, rows), load_instructions(alone)
    assert after.reasoning_hash == before.reasoning_hash
    assert after.answer_hash == before.answer_hash
    assert after.exemplar_ids == before.exemplar_ids
    assert [after.exemplars_for({"lang": lang}) for lang in ("en", "xx")] != [(), ()]


def test_a_file_that_names_no_rows_stays_as_it_is(write, rows):
    path = write()
    resolved = path.parent / "resolved.yaml"
    resolved.write_text(inlined(path, rows))
    assert inlined(resolved, {}) == resolved.read_text()


def test_a_row_that_is_gone_is_named(of_ids):
    with pytest.raises(UserError, match="there is no row with id 'w2'"):
        inlined(of_ids("{rationale: why, ids: [w2]}"), {})
