"""Reads mappings from files that nobody vouches for: every key known, every value of the stated type."""

import math
import re
from collections.abc import Mapping
from typing import Any

from ...core.errors import SpecError
from ...core.names import describe_unknown


class StrictMapping:
    """A mapping whose values are taken by type; the messages of errors say where.

    >>> StrictMapping({"share": 0.2}, ("share",), "board").number("share", default=1.0, maximum=1.0)
    0.2
    """

    def __init__(self, content: Any, known: tuple[str, ...], where: str) -> None:
        """Checks the keys.

        Raises:
            SpecError: the content is no mapping, or has a key that is not known.
        """
        if not isinstance(content, Mapping):
            raise SpecError(f"{where} must be a mapping of {', '.join(known)}; got {content!r:.80}")
        for key in content:
            if key not in known:
                raise SpecError(f"{where}: {describe_unknown('key', str(key)[:80], known)}")
        self._content, self._where = content, where

    def _get(self, key: str, default: Any) -> Any:
        """A key without a value (``key:``) counts as left out."""
        value = self._content.get(key)
        return default if value is None else value

    def text(self, key: str, *, maximum: int = 200) -> str:
        """Returns a required text."""
        value = self._content.get(key)
        if value is None:
            raise SpecError(f"{self._where}: key '{key}' is missing; add it")
        if not isinstance(value, str) or not 0 < len(value.strip()) <= maximum or not value.isprintable():
            raise SpecError(f"{self._where}.{key} must be 1 to {maximum} printable characters, got {value!r:.80}")
        return value

    def choice(self, key: str, choices: tuple[str, ...], *, default: str) -> str:
        """Returns one of some words."""
        value = self._get(key, default)
        if value not in choices:
            raise SpecError(f"{self._where}.{key} must be one of {', '.join(choices)}; got {value!r:.80}")
        return str(value)

    def boolean(self, key: str, *, default: bool) -> bool:
        """Returns true or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise SpecError(f"{self._where}.{key} must be true or false, got {value!r:.80}")
        return value

    def number(self, key: str, *, default: float, maximum: float) -> float:
        """Returns a number from 0 to ``maximum``."""
        value = self._get(key, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or not 0 <= value <= maximum:
            raise SpecError(f"{self._where}.{key} must be a number from 0 to {maximum:g}, got {value!r:.80}")
        return float(value)

    def sequence(self, key: str, *, maximum: int = 1000) -> list[Any]:
        """Returns a list; empty where the key is missing."""
        value = self._get(key, [])
        if not isinstance(value, list) or len(value) > maximum:
            raise SpecError(f"{self._where}.{key} must be a list of at most {maximum} entries, got {value!r:.80}")
        return value

    def names(self, key: str, form: "re.Pattern[str]") -> list[str]:
        """Returns a list of names that have a form."""
        names = self.sequence(key)
        for i, name in enumerate(names):
            if not isinstance(name, str) or not form.fullmatch(name):
                raise SpecError(f"{self._where}.{key}[{i}]: {name!r:.80} is not a name that can stand here")
        return names

    def mapping(self, key: str) -> dict[Any, Any]:
        """Returns a mapping; empty where the key is missing."""
        value = self._get(key, {})
        if not isinstance(value, Mapping) or len(value) > 1000:
            raise SpecError(f"{self._where}.{key} must be a mapping, got {value!r:.80}")
        return dict(value)
