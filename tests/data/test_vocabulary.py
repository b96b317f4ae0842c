import numpy as np
import pytest

TEXT = "a é!!"


@pytest.fixture(scope="module")
def tf():
    from fiat_jax.data.seqio_import import tf

    return tf


@pytest.fixture(scope="module")
def vocabulary(tokenizer):
    from fiat_jax.data.vocabulary import TokenizerVocabulary

    return TokenizerVocabulary(tokenizer)


def test_text_comes_in_every_form_that_seqio_gives_it(vocabulary, tf, tokenizer):
    expected = tokenizer.encode(TEXT)
    for form in (TEXT, TEXT.encode(), np.array(TEXT), np.array(TEXT.encode()), tf.constant(TEXT)):
        assert vocabulary.encode(form) == expected
    encoded = vocabulary.encode_tf(tf.constant(TEXT))
    assert encoded.numpy().tolist() == expected
    assert encoded.dtype == tf.int32


def test_decoding_stops_at_the_end_token_and_keeps_id_zero(vocabulary, tf):
    ids = vocabulary.encode("!a!")
    assert ids[0] == ids[2] == 0
    assert vocabulary.decode([*ids, vocabulary.eos_id, 5, 5]) == "!a!"
    rows = tf.constant([[*ids, vocabulary.eos_id, 0], [*ids, 0, 0]])
    assert [text.decode() for text in vocabulary.decode_tf(rows).numpy()] == ["!a!", "!a!!!"]
    assert vocabulary.decode_tf(rows[0]).numpy().decode() == "!a!"


def test_encoding_works_inside_a_dataset(vocabulary, tf, tokenizer):
    dataset = tf.data.Dataset.from_tensor_slices(["ab", "", "!"]).map(vocabulary.encode_tf)
    assert [ids.tolist() for ids in dataset.as_numpy_iterator()] == [tokenizer.encode(t) for t in ("ab", "", "!")]


def test_vocabularies_are_equal_where_their_tokenizers_are(vocabulary, tokenizer):
    from fiat_jax.data.vocabulary import TokenizerVocabulary

    class Other:
        fingerprint = "another"
        vocab_size = 3

    other = TokenizerVocabulary(Other())
    assert vocabulary == TokenizerVocabulary(tokenizer)
    assert hash(vocabulary) == hash(TokenizerVocabulary(tokenizer))
    assert vocabulary != other
    assert vocabulary != "another"
    assert str(vocabulary) != str(other)


def test_ids_are_those_of_the_tokenizer(vocabulary, tokenizer):
    assert vocabulary.vocab_size == tokenizer.vocab_size
    assert (vocabulary.bos_id, vocabulary.eos_id, vocabulary.pad_id) == (None, tokenizer.eos_id, 0)
