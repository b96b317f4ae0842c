"""What the user did wrong, said once and clearly."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake that the user can mend: the message says what, where and the remedy; `fiat` exits with status 2."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest known name, or "" when none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
