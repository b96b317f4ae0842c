import threading

import numpy as np
import pytest

from fiat_jax.data.examples import Example, ExampleCache, Examples, content_key
from fiat_jax.errors import UserError


def three() -> list[Example]:
    return [
        Example("a", "en", np.array([5, 0, 7]), np.array([0])),
        Example("b", "bn", np.array([0]), np.array([2, 3]), {"reasoning": 4, "field:premise": 0}),
        Example("c", "bn", np.array([9, 9]), np.array([], int), {"reasoning": 1}),
    ]


def same(left: Example, right: Example) -> bool:
    return (left.row_id, left.language, left.inputs.tolist(), left.target.tolist()) == (
        right.row_id,
        right.language,
        right.inputs.tolist(),
        right.target.tolist(),
    )


def test_what_is_cached_comes_back_memory_mapped_and_is_built_once(tmp_path):
    cache = ExampleCache(tmp_path / "cache")
    builds = []

    def build():
        builds.append(1)
        return three()

    for _ in range(2):
        examples = cache.get("key", build)
        assert all(same(left, right) for left, right in zip(examples, three(), strict=True))
    assert len(builds) == 1
    assert isinstance(examples.inputs.values, np.memmap)
    assert examples.inputs.values.dtype == np.int32
    assert examples.truncations() == Examples.of(three()).truncations()


def test_truncations_are_counted_by_language_and_kind():
    assert Examples.of(three()).truncations() == {
        "bn": {"reasoning": {"rows": 2, "tokens": 5}, "field:premise": {"rows": 0, "tokens": 0}}
    }


def test_a_subset_keeps_tokens_and_truncations_of_its_own_rows():
    subset = Examples.of(three()).take([2, 0])
    assert [example.row_id for example in subset] == ["c", "a"]
    assert subset[0].inputs.tolist() == [9, 9]
    assert subset[1].inputs.tolist() == [5, 0, 7]
    assert subset.truncations() == {"bn": {"reasoning": {"rows": 1, "tokens": 1}}}


def test_a_build_that_fails_leaves_nothing_behind(tmp_path):
    def build():
        yield three()[0]
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError):
        ExampleCache(tmp_path).get("key", build)
    assert list(tmp_path.iterdir()) == []


def test_processes_that_build_the_same_entry_at_once_both_get_it(tmp_path):
    meet = threading.Barrier(2)

    def build():
        meet.wait()
        return three()

    results = []
    threads = [
        threading.Thread(target=lambda: results.append(ExampleCache(tmp_path).get("key", build))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(examples) for examples in results] == [3, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_damaged_entry_is_named(tmp_path):
    ExampleCache(tmp_path).get("key", three)
    (tmp_path / "key" / "inputs.npy").write_bytes(b"\x93NUMPY\x01")
    with pytest.raises(UserError, match=r"key are damaged.*delete"):
        ExampleCache(tmp_path).get("key", three)


def test_an_empty_collection_can_be_cached(tmp_path):
    assert len(ExampleCache(tmp_path).get("key", list)) == 0


def test_a_bucket_is_no_place_for_a_memory_map():
    with pytest.raises(UserError, match="local directory"):
        ExampleCache("gs://bucket/cache")


def test_the_content_key_tells_parts_apart():
    keys = [content_key("ab", "c"), content_key("a", "bc"), content_key(["ab", "c"]), content_key({"x": 1}, 256)]
    assert len(set(keys)) == len(keys)
    assert content_key({"x": 1, "y": 2}) == content_key({"y": 2, "x": 1})
