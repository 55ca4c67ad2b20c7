"""The one exception for what a user can put right: its text says what is wrong, where, and what to do."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Shown without a traceback. The text is one sentence (or two) that needs no knowledge of the code."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for a misspelt word: `did you mean 'poison_rate'?`, or the list of what there is."""
    if not (known := sorted(known)):
        return "there is none."
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"there is: {', '.join(known)}."
