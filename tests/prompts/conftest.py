"""A small instruction file, its rows, and two tokenizers of characters that differ in all the ways that matter."""

import json

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from fiat_jax.prompts.tokenizer import Tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,:?()\n0123456789"

FILE = """\
version: 1
name: weather
fields: {report: text, options: letters}
labels: {good: yes, bad: no}
reasoning:
  instructions: |
    Is the weather good?
  example: |
    Report: {report}
    Reasoning: {rationale} So: {answer}.
  exemplars: {split: train, rationale: why, ids: [w1, w2]}
  stop: ["\\n\\n"]
  decoding: {max_tokens: 32}
  extract: {kind: after, text: "So:"}
answer:
  instructions: |
    Say yes or no.
  template: |
    Report: {report}
    {reasoning}
    Good? {answer}
  reasoning:
    full: "Hint: {rationale} So {answer}."
    rationale: "Hint: {rationale}"
    answer: "Hint: {answer}."
  truncate: [reasoning, report]
"""

ROWS = {
    "w1": {"id": "w1", "report": "sun all day", "answer": "good", "why": "sun is good.", "options": ["a", "b"]},
    "w2": {"id": "w2", "report": "hail", "answer": "bad", "why": "hail hurts.", "options": ["a", "b"]},
    "w3": {"id": "w3", "report": "light rain at noon", "answer": "bad", "options": ["a", "b"]},
}


@pytest.fixture
def rows():
    return {row_id: dict(row) for row_id, row in ROWS.items()}


@pytest.fixture
def write(tmp_path):
    """Write an instruction file: the one above, with pieces of its text replaced."""

    def write(*replacements):
        text = FILE
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "weather.yaml"
        path.write_text(text)
        return path

    return write


def save(path, backend, **config):
    path.mkdir()
    backend.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.from_directory(path)


@pytest.fixture
def plain(tmp_path):
    """Id 0 is the letter a; no start token, no unknown token; a space is a character of its own."""
    backend = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(LETTERS + " ")}, []))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(["<end>"])
    return save(tmp_path / "plain", backend, eos_token="<end>")


@pytest.fixture
def joined(tmp_path):
    """Like Llama's: a start token, a dummy leading space, and words that begin with their space."""
    words = ["<s>", "</s>", "▁", *LETTERS, *(f"▁{c}" for c in LETTERS)]
    merges = [("▁", c) for c in LETTERS]
    backend = tokenizers.Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    backend.add_special_tokens(["<s>", "</s>"])
    return save(tmp_path / "joined", backend, bos_token="<s>", eos_token="</s>")


@pytest.fixture
def apart(joined, tmp_path):
    """The same letters for an encoder-decoder, which writes behind token 7; words are found as T5 finds them."""
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "joined" / "tokenizer.json"))
    splits = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    backend.pre_tokenizer = pre_tokenizers.Sequence(splits)
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    path = tmp_path / "apart"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"is_encoder_decoder": True, "decoder_start_token_id": 7}))
    backend.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    return Tokenizer.from_directory(path)
