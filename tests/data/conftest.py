import json

import pytest
import tokenizers
from tokenizers import decoders, models

from fiat_jax.prompts.tokenizer import Tokenizer

LETTERS = "!abcdefghijklmnopqrstuvwxyz ?éк"


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> Tokenizer:
    """One token a letter; id 0 is the exclamation mark, and no padding token is named."""
    backend = tokenizers.Tokenizer(models.BPE({letter: id for id, letter in enumerate(LETTERS)}, []))
    backend.add_special_tokens(["</s>"])
    backend.decoder = decoders.Fuse()
    path = tmp_path_factory.mktemp("tokenizer")
    (path / "tokenizer.json").write_text(backend.to_str())
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    return Tokenizer.from_directory(path)
