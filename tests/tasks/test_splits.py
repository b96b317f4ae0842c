import json
from collections import Counter

import pytest

from fiat_jax.errors import UserError
from fiat_jax.tasks.splits import divide, folds, holdout, nested_subsets, write_splits

LANGUAGES = ["en"] * 6 + ["fi"] * 3 + ["te"]
STRATA = ("lang", "answer")


def make_rows(count=600):
    return [
        {"id": str(i), "lang": LANGUAGES[i % 10], "answer": "yes" if i % 7 < 2 else "no", "passage": f"p{i // 3}"}
        for i in range(count)
    ]


def shares(rows):
    return {key: n / len(rows) for key, n in Counter((row["lang"], row["answer"]) for row in rows).items()}


def ids(rows):
    return [row["id"] for row in rows]


def test_a_holdout_has_its_size_and_the_languages_and_labels_of_the_whole():
    rows = make_rows()
    kept, held = holdout(rows, 0.1, seed=3, stratify=STRATA)
    assert abs(len(held) - 60) <= 6
    assert sorted(ids(kept) + ids(held)) == sorted(ids(rows))
    for stratum, share in shares(rows).items():
        assert shares(held)[stratum] == pytest.approx(share, abs=0.02)


def test_rows_of_a_group_stay_together():
    kept, held = holdout(make_rows(), 0.25, seed=0, stratify=STRATA, group_field="passage")
    assert not {row["passage"] for row in kept} & {row["passage"] for row in held}
    assert len(held) == pytest.approx(150, abs=9)
    assert shares(held)["en", "no"] == pytest.approx(shares(make_rows())["en", "no"], abs=0.03)


def test_one_very_large_group_does_not_upset_the_shares_of_the_others():
    rows = [row | {"passage": "p0"} if i < 100 else row for i, row in enumerate(make_rows())]
    parts = divide(rows, {"train": 2, "test": 1}, seed=1, group_field="passage")
    assert len(parts["test"]) == pytest.approx(200, abs=6)


def test_a_split_is_a_function_of_rows_and_seed():
    rows = make_rows(60)
    assert holdout(rows, 0.2, seed=5) == holdout(rows, 0.2, seed=5)
    assert ids(holdout(rows, 0.2, seed=5)[1]) != ids(holdout(rows, 0.2, seed=6)[1])


def test_every_row_is_held_out_in_exactly_one_fold():
    rows = make_rows(100)
    pairs = folds(rows, 5, seed=0, stratify=("lang",), group_field="passage")
    assert sorted(i for _, held in pairs for i in ids(held)) == sorted(ids(rows))
    for kept, held in pairs:
        assert sorted(ids(kept) + ids(held)) == sorted(ids(rows))
        assert len(held) == pytest.approx(20, abs=3)


def test_small_training_subsets_are_part_of_larger_ones_and_stratified():
    rows = make_rows()
    subsets = nested_subsets(rows, [600, 20, 200], seed=4, stratify=STRATA)
    assert [len(subsets[size]) for size in (20, 200, 600)] == [20, 200, 600]
    assert set(ids(subsets[20])) < set(ids(subsets[200])) < set(ids(subsets[600]))
    for stratum, share in shares(rows).items():
        assert shares(subsets[200])[stratum] == pytest.approx(share, abs=0.01)
    assert subsets[200] == nested_subsets(rows, [200], seed=4, stratify=STRATA)[200]


def test_what_cannot_be_split_is_refused():
    rows = make_rows(10)
    with pytest.raises(UserError, match="601 rows cannot be taken"):
        nested_subsets(make_rows(), [601], seed=0)
    with pytest.raises(UserError, match=r"field 'lnag' is missing.*Did you mean 'lang'"):
        holdout(rows, 0.5, seed=0, stratify=("lnag",))
    with pytest.raises(UserError, match="gets no rows"):
        holdout([row | {"passage": "p"} for row in rows], 0.5, seed=0, group_field="passage")
    with pytest.raises(UserError, match="between 0 and 1"):
        holdout(rows, 1.0, seed=0)


def test_written_splits_are_read_back_and_never_overwritten_with_others(tmp_path):
    rows = make_rows(4)
    paths = write_splits({"train": rows[:3], "test": rows[3:]}, tmp_path / "split")
    assert [json.loads(line) for line in paths["train"].read_text().splitlines()] == rows[:3]
    assert write_splits({"test": rows[3:]}, tmp_path / "split")["test"] == paths["test"]
    with pytest.raises(UserError, match="holds other rows"):
        write_splits({"dev": rows[:1], "test": rows[:1]}, tmp_path / "split")
    assert sorted(path.name for path in (tmp_path / "split").iterdir()) == ["test.jsonl", "train.jsonl"]
