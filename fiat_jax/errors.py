"""What the user did wrong, said once and clearly."""

import difflib
from collections.abc import Iterable

EXIT_USER = 2  # the exit status of a mistake that the user can mend
EXIT_RESTARTABLE = 75  # of a run that was stopped and goes on from what is saved (EX_TEMPFAIL of sysexits.h)
LOST = 69  # the exit status of a process whose run has lost another one (EX_UNAVAILABLE of sysexits.h)


class UserError(ValueError):
    """A mistake that the user can mend: the message says what, where and the remedy; `fiat` exits with status 2."""


class Interrupted(Exception):
    """A run was asked to stop and has saved all; the same command goes on from there. `fiat` exits with status 75."""

    def __init__(self, done: int, of: int, why: str = ""):
        because = f": {why}" if why else ""
        super().__init__(f"interrupted after {done} of {of}{because}; all is saved: run the same command to go on")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest known name, or "" when none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def both_ends(text: str, most: int = 300) -> str:
    """Return a text on one line, of a long one its beginning and its end, where the cause often stands."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most // 3]} [...] {line[-(most - most // 3) :]}"
