"""Messages for names that are not known: the nearest one, then all of them."""

import difflib
from collections.abc import Iterable


def describe_unknown(noun: str, name: str, known: Iterable[str]) -> str:
    """Returns "unknown NOUN 'NAME'; did you mean 'X'? known: a, b, c"."""
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    hint = f"; did you mean '{near[0]}'?" if near else ";"
    return f"unknown {noun} '{name}'{hint} known: {', '.join(choices) or 'none'}"
