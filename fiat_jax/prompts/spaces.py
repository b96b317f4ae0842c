"""To which piece of a text the spaces between pieces belong: to the one where the tokenizer holds them."""

from fiat_jax.prompts.tokenizer import Tokenizer

Pieces = list[tuple[str, str]]  # (kind, text); only of literals are spaces moved


def moved(pieces: Pieces, tokenizer: Tokenizer) -> Pieces:
    """Return pieces with spaces moved to where a tokenizer holds them; white space that it folds is folded."""
    if tokenizer.folds_spaces:
        return fold_spaces(pieces)
    return move_spaces(pieces) if tokenizer.spaces_lead else move_spaces_back(pieces)


def move_spaces(pieces: Pieces) -> Pieces:
    """Return the pieces with spaces at the end of a literal leading the piece that follows."""
    moved, spaces = [], ""
    for kind, text in pieces:
        text, spaces = spaces + text, ""
        if kind == "literal":
            spaces = trailing_spaces(text)
            text = text.removesuffix(spaces)
        if text:
            moved.append((kind, text))
    return moved


def move_spaces_back(pieces: Pieces) -> Pieces:
    """Return the pieces with spaces at the beginning of a literal ending the piece before."""
    moved: Pieces = []
    for kind, text in pieces:
        if kind == "literal" and moved:
            stripped = text.lstrip(" ")
            moved[-1] = (moved[-1][0], moved[-1][1] + text[: len(text) - len(stripped)])
            text = stripped
        if text:
            moved.append((kind, text))
    return moved


def fold_spaces(pieces: Pieces) -> Pieces:
    """Return the pieces with white space between them as one space that leads a piece, and none at the end."""
    moved, space = [], ""
    for kind, text in pieces:
        words = text.strip()
        space = " " if space or text[:1].isspace() else ""
        if words:
            moved.append((kind, space + words))
            space = " " if text[-1].isspace() else ""
    return moved


def trailing_spaces(text: str) -> str:
    """Return the spaces at the end of a text."""
    return text[len(text.rstrip(" ")) :]
