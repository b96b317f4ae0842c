import json

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from fiat_jax.errors import UserError
from fiat_jax.prompts.tokenizer import Tokenizer


def save(path, backend, **config):
    path.mkdir(exist_ok=True)
    (path / "tokenizer.json").write_text(backend.to_str())
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def characters(special=("</s>",), first=()):
    words = dict.fromkeys([*first, *"▁abcdefghijklmnopqrstuvwxyz</s>|\n", *special])
    vocab = {word: i for i, word in enumerate(words)}
    backend = tokenizers.Tokenizer(models.BPE(vocab, []))
    backend.add_special_tokens(list(special))
    return backend


def metaspace():
    backend = characters(special=("<s>", "</s>"), first=("<unk>",))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    begin = [("<s>", backend.token_to_id("<s>"))]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=begin)
    return backend


@pytest.fixture
def zero_is_real(tmp_path):
    """A tokenizer whose id 0 is the letter a, and which names no padding."""
    backend = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate("abcdefghij ")}, []))
    backend.add_special_tokens(["</s>"])
    backend.decoder = decoders.Fuse()
    return Tokenizer.from_directory(save(tmp_path / "zero", backend, eos_token="</s>"))


def test_id_zero_may_be_a_real_token(zero_is_real):
    assert zero_is_real.encode("aab") == [0, 0, 1]
    assert zero_is_real.decode([0, 0, 1, zero_is_real.eos_id]) == "aab"
    assert zero_is_real.pad_id == 0
    assert zero_is_real.bos_id is None
    assert zero_is_real.vocab_size == 12


def test_pieces_joined_are_the_whole_text(tmp_path):
    tokenizer = Tokenizer.from_directory(save(tmp_path, metaspace(), bos_token="<s>", eos_token="</s>"))
    pieces = ["one two", " three", "\nfour ", "five"]
    joined = [i for n, piece in enumerate(pieces) for i in tokenizer.encode(piece, start=n == 0)]
    assert joined == tokenizer.encode("".join(pieces), start=True)
    assert tokenizer.decode(tokenizer.encode(" three")) == " three"
    assert tokenizer.decode(tokenizer.encode("four")) == "four"


def test_pieces_cut_before_their_spaces_are_the_whole_text_for_byte_level_vocabularies(tmp_path):
    backend = tokenizers.ByteLevelBPETokenizer()
    text = "the cat sat.\nthe cat 坐 on the mat, the mat sat on the cat"
    backend.train_from_iterator([text] * 3, vocab_size=290, special_tokens=["<end>"], show_progress=False)
    tokenizer = Tokenizer.from_directory(save(tmp_path, backend, eos_token="<end>"))
    pieces = ["the cat sat.", "\nthe", " cat 坐", " on the mat", ", the mat sat on", " the cat"]
    assert [i for piece in pieces for i in tokenizer.encode(piece)] == backend.encode(text).ids
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.spaces_lead


def test_a_whole_text_is_encoded_as_the_tokenizer_would(tmp_path):
    backend = metaspace()
    tokenizer = Tokenizer.from_directory(save(tmp_path, backend, bos_token="<s>", eos_token="</s>"))
    assert [tokenizer.bos_id, *tokenizer.encode("one two", start=True)] == backend.encode("one two").ids


def test_the_text_is_never_cut_or_padded(tmp_path):
    backend = metaspace()
    backend.enable_truncation(3)
    backend.enable_padding(length=40)
    tokenizer = Tokenizer.from_directory(save(tmp_path, backend, bos_token="<s>", eos_token="</s>"))
    assert tokenizer.decode(tokenizer.encode("a longer text")) == "a longer text"


def test_add_bos_token_in_the_configuration_wins_over_the_post_processor(tmp_path):
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False}
    assert Tokenizer.from_directory(save(tmp_path, metaspace(), **config)).bos_id is None


@pytest.mark.parametrize("kind", ["bpe", "unigram", "word_level"])
def test_special_tokens_spelled_in_a_text_stay_text(tmp_path, kind):
    if kind == "bpe":
        backend = characters()
    elif kind == "unigram":  # lists </s> as a piece with the best score, as T5 does
        pieces = [("<unk>", 0.0), ("</s>", 0.0), *((c, -3.0) for c in "abcd</s>")]
        backend = tokenizers.Tokenizer(models.Unigram(list(dict(pieces).items()), unk_id=0))
        backend.add_special_tokens(["</s>"])
    else:
        words = {w: i for i, w in enumerate(["<unk>", "</s>", "ab", *"</s>"])}
        backend = tokenizers.Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        backend.add_special_tokens(["</s>"])
    tokenizer = Tokenizer.from_directory(save(tmp_path, backend, eos_token="</s>"))
    ids = tokenizer.encode("ab </s> ab" if kind == "word_level" else "ab</s>cd")
    assert tokenizer.eos_id not in ids
    assert len(ids) >= 6


def test_words_apart_stay_apart_where_white_space_splits_first(tmp_path):
    backend = characters(special=("</s>",))
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer = Tokenizer.from_directory(save(tmp_path, backend, eos_token="</s>"))
    assert tokenizer.encode(" a b") == backend.encode("a b", add_special_tokens=False).ids


def test_the_fingerprint_follows_the_ids_and_not_the_layout_of_the_file(tmp_path):
    first = Tokenizer.from_directory(save(tmp_path / "a", metaspace(), bos_token="<s>", eos_token="</s>"))
    second = save(tmp_path / "b", metaspace(), bos_token="<s>", eos_token="</s>")
    spec = json.loads((second / "tokenizer.json").read_text())
    (second / "tokenizer.json").write_text(json.dumps(dict(reversed(spec.items())), indent=3))
    assert Tokenizer.from_directory(second).fingerprint == first.fingerprint
    lower = metaspace()
    lower.normalizer = normalizers.Lowercase()
    third = save(tmp_path / "c", lower, bos_token="<s>", eos_token="</s>")
    assert Tokenizer.from_directory(third).fingerprint != first.fingerprint


def test_a_directory_without_a_tokenizer_says_how_to_get_one(tmp_path):
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        Tokenizer.from_directory(tmp_path)


def test_the_end_token_may_come_from_the_model_s_configuration(tmp_path):
    path = save(tmp_path, characters())
    with pytest.raises(UserError, match="names no end token"):
        Tokenizer.from_directory(path)
    (path / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    assert Tokenizer.from_directory(path).eos_id == 7


def test_an_end_token_outside_the_vocabulary_is_refused(tmp_path):
    with pytest.raises(UserError, match="eos_token '<end>'"):
        Tokenizer.from_directory(save(tmp_path, characters(), eos_token="<end>"))


def test_the_real_tokenizer_agrees_with_transformers(shared_data):
    from transformers import AutoTokenizer

    path = shared_data / "weights/tinystories-656k"
    tokenizer, reference = Tokenizer.from_directory(path), AutoTokenizer.from_pretrained(path)
    text = "Once upon a time, there was a girl.\nShe said: hi  there!"
    assert [tokenizer.bos_id, *tokenizer.encode(text, start=True)] == reference(text).input_ids
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (1, 2, 0, 2048)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert not tokenizer.spaces_lead
    assert tokenizer.encode("a <|end_story|> b").count(tokenizer.eos_id) == 0
