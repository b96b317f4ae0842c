"""SentencePiece files of checkpoints without a tokenizer.json: converted by transformers and compared."""

import json
from pathlib import Path
from typing import Any

from fiat_jax.errors import UserError

FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model")
PROBED_PIECES, PIECES_A_PROBE = 2000, 20
SPACE = "▁"


def read_sentencepiece(root: Path) -> tuple[dict[str, Any], dict[str, str | None]]:
    """Return what a directory's SentencePiece file is as a tokenizer.json, and its bos, eos and pad tokens.

    Raises:
        UserError: no such file, one that transformers cannot convert, or whose conversion cuts text in another way.
    """
    file = next((root / name for name in FILES if (root / name).is_file()), None)
    if file is None:
        raise UserError(f"{root} has no tokenizer.json and no SentencePiece file ({', '.join(FILES)}); fetch it again")
    # only such a checkpoint needs them
    import sentencepiece
    from transformers import AutoTokenizer

    try:
        original = sentencepiece.SentencePieceProcessor(model_file=str(file))
        converted = AutoTokenizer.from_pretrained(root)
        spec = json.loads(converted.backend_tokenizer.to_str())
    except Exception as error:
        raise UserError(f"{file} cannot be read as a SentencePiece file ({error}); fetch it again") from None
    texts = _probes(original)
    for text in texts:
        theirs, ours = original.encode(text, out_type=str), converted.tokenize(text)
        if theirs != ours:
            raise UserError(
                f"{file}: transformers, as {type(converted).__name__}, cuts {text[:30]!r} into {ours[:5]}, the file "
                f"into {theirs[:5]}; correct `tokenizer_class` in {root / 'tokenizer_config.json'}"
            )
    return spec, {f"{name}_token": getattr(converted, f"{name}_token") for name in ("bos", "eos", "pad")}


def _probes(original: Any) -> list[str]:
    """Return texts of the vocabulary's own pieces."""
    step = max(1, original.get_piece_size() // PROBED_PIECES)
    plain = [
        original.id_to_piece(i)
        for i in range(0, original.get_piece_size(), step)
        if not (original.is_control(i) or original.is_unknown(i) or original.is_byte(i) or original.is_unused(i))
    ]
    groups = ("".join(plain[i : i + PIECES_A_PROBE]) for i in range(0, len(plain), PIECES_A_PROBE))
    return [" ".join(group.replace(SPACE, " ").split()) for group in groups]
