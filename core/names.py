"""Messages for names that are not known: the nearest one, then all of them."""

import difflib
from collections.abc import Iterable, Mapping

from .errors import SpecError


def describe_unknown(noun: str, name: str, known: Iterable[str]) -> str:
    """Returns "unknown NOUN 'NAME'; did you mean 'X'? known: a, b, c"."""
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    hint = f"; did you mean '{near[0]}'?" if near else ";"
    return f"unknown {noun} '{name}'{hint} known: {', '.join(choices) or 'none'}"


def check_known(noun: str, given: Mapping[str, object], known: Iterable[str]) -> None:
    """Checks the keys of an object that was read.

    Raises:
        SpecError: one of them is not known.
    """
    choices = list(known)
    for key in given:
        if key not in choices:
            raise SpecError(describe_unknown(noun, str(key), choices))
