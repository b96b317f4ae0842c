import dataclasses
import json
import zlib

import pytest

from fiat_jax.errors import UserError
from fiat_jax.store import Provenance
from fiat_jax.store.record import decode_line, encode_line


@pytest.mark.parametrize(
    "text", ["", "two\nlines\r\n", "বাংলা \u2028 Ω 🧪", 'a "quote" \\', "half an emoji \ud83e", "\x00"]
)
def test_a_record_survives_its_line_whatever_its_text(record, text):
    line = encode_line(record(1, text=text, answer=None))
    assert line.count(b"\n") == 1
    assert decode_line(line[:-1]) == record(1, text=text, answer=None)


def test_a_line_is_plain_json(record):
    fields = json.loads(encode_line(record(7, text="ভাষা")))
    assert fields.pop("crc32")
    assert fields == dataclasses.asdict(record(7, text="ভাষা"))


def test_no_flipped_bit_goes_unnoticed(record):
    line = encode_line(record(1))[:-1]
    for position in range(len(line)):
        damaged = bytearray(line)
        damaged[position] ^= 1
        with pytest.raises(ValueError, match="checksum"):
            decode_line(bytes(damaged))


def test_a_set_is_named_by_everything_that_produced_it(provenance):
    changes = {
        "model": {"name": "big", "revision": "2"},
        "prompt_hash": "cd" * 32,
        "decoding": {"temperature": 0.7},
        "source": "imported",
        "mapping": {"rationale": "reasoning"},
        "exemplar_ids": ("train-3",),
    }
    keys = {dataclasses.replace(provenance, **{name: value}).set_key for name, value in changes.items()}
    assert len(keys | {provenance.set_key}) == len(changes) + 1


def test_the_order_of_names_does_not_name_another_set():
    one = Provenance(model={"name": "big", "revision": "1"}, exemplar_ids=("b", "a"))
    other = Provenance(model={"revision": "1", "name": "big"}, exemplar_ids=("a", "b", "a"))
    assert one.set_key == other.set_key
    assert Provenance.from_json(one.to_json()) == one


def test_the_key_of_a_set_does_not_change_between_versions(provenance):
    # stores outlive releases: if this fails, every stored set is orphaned
    assert provenance.set_key == "84c0e405ccd3d4c2"


def test_a_url_is_no_identity():
    with pytest.raises(UserError, match="not by a URL"):
        Provenance(model={"name": "http://10.0.0.3:8000/v1"})


def test_a_record_of_an_earlier_version_is_read(record):
    line = (
        b'{"set":"s","row":"r","sample":0,"row_id":"1","text":"t","rationale":"t","answer":null,"finish_reason":"stop"'
    )
    body = line + b',"prompt_tokens":1,"completion_tokens":2,"seed":null,"served_by":null}'
    read = decode_line(b'{"crc32":"%08x",' % zlib.crc32(body) + body[1:])
    assert (read.prompt_tokens, read.completion_tokens, read.cached_tokens, read.hidden_tokens) == (1, 2, None, None)
