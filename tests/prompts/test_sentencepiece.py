"""Checkpoints that come with a SentencePiece file alone."""

import json
import random

import pytest
import sentencepiece

from fiat_jax.errors import UserError
from fiat_jax.prompts.tokenizer import Tokenizer

WORDS = ("the", "a", "rain", "falls", "on", "green", "hills", "and", "we", "walk", "home", "slowly", "quickly", "12")


@pytest.fixture
def checkpoint(tmp_path):
    """Write a directory with a SentencePiece file trained on a few words, and no tokenizer.json."""

    def write(kind, name, family, tokenizer_class, **config):
        rng = random.Random(0)
        text = [" ".join(rng.choices(WORDS, k=8)) for _ in range(500)]
        directory = tmp_path / kind
        directory.mkdir()
        with (directory / name).open("wb") as file:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(text),
                model_writer=file,
                model_type=kind,
                vocab_size=80,
                hard_vocab_limit=False,
                minloglevel=2,
                **({"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1} if family == "t5" else {}),
            )
        (directory / "config.json").write_text(json.dumps({"model_type": family}))
        settings = {"tokenizer_class": tokenizer_class, "eos_token": "</s>", **config}
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
        return directory, sentencepiece.SentencePieceProcessor(model_file=str(directory / name))

    return write


@pytest.mark.parametrize(
    ("kind", "name", "family", "tokenizer_class", "config"),
    [
        ("bpe", "tokenizer.model", "llama", "LlamaTokenizer", {"bos_token": "<s>", "add_bos_token": True}),
        ("unigram", "spiece.model", "t5", "T5Tokenizer", {"pad_token": "<pad>", "extra_ids": 0}),
    ],
)
def test_text_is_cut_as_the_file_cuts_it(checkpoint, kind, name, family, tokenizer_class, config):
    directory, original = checkpoint(kind, name, family, tokenizer_class, **config)
    tokenizer = Tokenizer.from_directory(directory)
    for text in ("the rain falls on green hills", "we walk slowly and quickly home 12"):
        assert tokenizer.encode(text, start=True) == original.encode(text)
        assert tokenizer.decode(original.encode(text)).strip() == text
    assert tokenizer.eos_id == original.eos_id()
    assert tokenizer.bos_id == (original.bos_id() if kind == "bpe" else None)


def test_a_conversion_that_cuts_otherwise_is_refused(checkpoint):
    directory, _ = checkpoint("unigram", "tokenizer.model", "llama", "LlamaTokenizer", bos_token="<s>")
    with pytest.raises(UserError, match=r"as LlamaTokenizer, cuts .* correct `tokenizer_class`"):
        Tokenizer.from_directory(directory)


def test_a_damaged_file_and_none_are_one_clear_error(checkpoint):
    directory, _ = checkpoint("bpe", "tokenizer.model", "llama", "LlamaTokenizer")
    (directory / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(UserError, match="cannot be read as a SentencePiece file"):
        Tokenizer.from_directory(directory)
    (directory / "tokenizer.model").unlink()
    with pytest.raises(UserError, match=r"has no tokenizer.json and no SentencePiece file"):
        Tokenizer.from_directory(directory)
