"""Text from tokens as they come: however they are cut, it is the text of all of them, up to what ends it."""

import json
from itertools import pairwise

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.world import byte_level
from tokenizers import decoders, models, normalizers, pre_tokenizers

from fiat_jax.prompts.detokenize import TextStream
from fiat_jax.prompts.tokenizer import Tokenizer

TEXTS = [
    "It is sunny on hill 3! 🌦️🇩🇪 Ünïcödé.",
    "  two spaces\n\n\tand 日本語 – done  ",
    "🙂🙃🙂",
    "a\ufffdb \ufffd",
    "",
    "Once upon a time, there was a little girl named Lily.\n\n\n",
]
KINDS = ("byte level", "byte fallback", "whole words", "tinystories")


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request, tmp_path_factory):
    """Bytes as in GPT-2's vocabularies; as in Llama 2's, with bytes for rare characters; words with a dummy space."""
    directory = tmp_path_factory.mktemp("tokenizer")
    if request.param == "tinystories":
        return Tokenizer.from_directory(request.getfixturevalue("shared_data") / "weights" / "tinystories-656k")
    backend = {"byte level": _byte_level, "byte fallback": _byte_fallback, "whole words": _words}[request.param]()
    backend.save(str(directory / "tokenizer.json"))
    about = {"bos_token": "<s>", "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(about))
    return Tokenizer.from_directory(directory)


def _byte_level():
    return byte_level(TEXTS, 300)


def _byte_fallback():
    letters = sorted(set("It is sunny on hill 3!") - {" "})
    words = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), "▁", *letters, "▁i", "▁is"]
    merges = [("▁", "i"), ("▁i", "s")]
    backend = tokenizers.Tokenizer(
        models.BPE({word: n for n, word in enumerate(words)}, merges, byte_fallback=True, unk_token="<unk>")
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(parts)
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return backend


def _words():
    pieces = ["<s>", "</s>", "▁", *sorted(set("".join(TEXTS)) - {" "}), "▁is", "▁on", "🙂🙃"]
    backend = tokenizers.Tokenizer(models.Unigram([(piece, -float(len(piece) == 1)) for piece in pieces], 2, False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    backend.add_special_tokens(["<s>", "</s>"])
    return backend


def told(tokenizer, ids, cuts, stop=()):
    """Return what a stream tells of tokens that come cut at these places, piece by piece."""
    stream = TextStream(tokenizer, stop)
    places = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    pieces = [stream.push(ids[start:end]) for start, end in pairwise(places)]
    assert stream.length >= sum(map(len, pieces))
    pieces.append(stream.finish())
    assert stream.length == sum(map(len, pieces))
    return stream, pieces


def before_first(text, stop):
    """Return what stands before the string in `stop` that is the first to be whole."""
    ends = [(text.find(one) + len(one), text.find(one)) for one in stop if one and one in text]
    return text[: min(ends)[1]] if ends else text


anything = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
CUTS = st.lists(st.integers(0, 200), max_size=12)


@anything
@given(data=st.data())
def test_however_tokens_are_cut_their_text_is_that_of_all(tokenizer, data):
    text = data.draw(st.sampled_from(TEXTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
    ids = tokenizer.encode(text)
    stream, pieces = told(tokenizer, ids, data.draw(CUTS))
    assert "".join(pieces) == tokenizer.decode(ids)
    assert not stream.stopped


@anything
@given(data=st.data())
def test_whatever_a_model_writes_nothing_is_lost_or_taken_back(tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    if any(tokenizer.token(n).startswith("<0x") for n in ids):
        return  # of a run of such bytes, one wrong one makes all of them unreadable, also those told before
    _, pieces = told(tokenizer, ids, data.draw(CUTS))
    assert "".join(pieces) == tokenizer.decode(ids)


@anything
@given(data=st.data())
def test_text_ends_before_the_first_string_that_is_whole_however_tokens_are_cut(tokenizer, data):
    ids = tokenizer.encode(data.draw(st.sampled_from(TEXTS)) + data.draw(st.sampled_from(TEXTS)))
    text = tokenizer.decode(ids)
    places = st.tuples(st.integers(0, 60), st.integers(0, 9)).map(lambda at: text[at[0] : at[0] + at[1]])
    stop = data.draw(st.lists(places | st.text("ab it\n🙂", max_size=4), max_size=4))
    stream, pieces = told(tokenizer, ids, data.draw(CUTS), stop)
    assert "".join(pieces) == before_first(text, stop)
    assert stream.stopped == any(one and one in text for one in stop)


def test_a_character_is_told_once_all_its_bytes_have_come(tokenizer):
    ids = tokenizer.encode("hi 🙂🙃, nö!")
    stream = TextStream(tokenizer)
    pieces = [stream.push([token]) for token in ids] + [stream.finish()]
    assert "".join(pieces) == tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)


def test_nothing_is_told_that_may_begin_what_ends_the_text_and_all_of_it_when_it_does_not(tokenizer):
    stream = TextStream(tokenizer, ["sunny on", "hill 4"])
    pieces = [stream.push([token]) for token in tokenizer.encode("It is sunny, on hill 3!")]
    for n in range(len(pieces)):
        assert not "".join(pieces[: n + 1]).endswith(("s", "sunny", "hill", "hill "))
    pieces.append(stream.finish())
    assert "".join(pieces) == "It is sunny, on hill 3!"
    stream = TextStream(tokenizer, ["sunny on"])
    assert (stream.push(tokenizer.encode("It is sun")), stream.finish()) == ("It is ", "sun")


def test_of_strings_within_each_other_the_first_that_is_whole_counts_however_tokens_are_cut(tokenizer):
    ids = tokenizer.encode("It is sunny on hill 3")
    for stop in (["is sunny on", "sun"], ["sun", "is sunny on"]):
        for cuts in ([], range(len(ids))):
            assert "".join(told(tokenizer, ids, cuts, stop)[1]) == "It is "


def test_after_what_ended_the_text_nothing_follows(tokenizer):
    stream = TextStream(tokenizer, ["on"])
    assert stream.push(tokenizer.encode("It is on hill 3")) == "It is "
    assert (stream.push(tokenizer.encode("sunny")), stream.finish()) == ("", "")
    assert stream.stopped


def test_tokens_without_text_and_pushes_without_tokens_change_nothing(tokenizer):
    stream, ids, pieces = TextStream(tokenizer), tokenizer.encode("It is 🙂 sunny"), []
    for token in ids:
        pieces += [stream.push([]), stream.push([token]), stream.push([tokenizer.eos_id])]
    assert "".join([*pieces, stream.finish()]) == tokenizer.decode(ids)
