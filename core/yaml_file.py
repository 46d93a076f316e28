"""YAML files that a user named: read without code, without aliases, without keys that are given twice."""

from pathlib import Path
from typing import Any

import yaml

from .errors import SpecError
from .files import read_text


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases (they can blow up) and without keys that are given twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not accepted")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.YAMLError(f"the key '{twice[0]}' is given twice (line {node.start_mark.line + 1})")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, *, noun: str, error: type[SpecError] = SpecError) -> Any:
    """Reads YAML that a user named.

    Raises:
        SpecError: (or ``error``) the file cannot be read, or is not plain YAML.
    """
    try:
        return yaml.load(read_text(path, noun=noun, error=error), Loader=_PlainLoader)  # noqa: S506 - a safe loader
    except (yaml.YAMLError, ValueError, RecursionError) as cause:  # ValueError: a day or a number that cannot be
        raise error(f"{noun} {path} is not YAML that can be read: {' '.join(str(cause).split())}") from cause
