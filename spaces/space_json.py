"""A space as JSON values: kept in a run's folder, so that its records can be read without the model."""

from typing import Any

from ..core.errors import RunError, SpecError
from .layer import Group
from .recovery import Recovery
from .space import GraphOptions, Space
from .treatment import Treatment

_PLAIN = ("fusion", "calibration", "precision", "rounding", "equalization", "correction")


def space_to_json(space: Space) -> dict[str, Any]:
    """Returns groups, options and graph-wide choices as JSON values."""
    return {
        "groups": [[group.name, list(group.layers), group.kind] for group in space.groups],
        "options": [[option.to_json() for option in options] for options in space.options],
        "graph": {
            **{name: list(getattr(space.graph, name)) for name in _PLAIN},
            "quantized_ops": [list(ops) for ops in space.graph.quantized_ops],
            "recovery": [recovery.to_json() for recovery in space.graph.recovery],
        },
    }


def space_from_json(value: Any) -> Space:
    """Reads what `space_to_json` wrote.

    Raises:
        RunError: the value is not a space.
    """
    try:
        groups = tuple(Group(str(name), tuple(map(str, layers)), str(kind)) for name, layers, kind in value["groups"])
        options = tuple(tuple(Treatment.from_json(option) for option in offered) for offered in value["options"])
        graph = value["graph"]
        choices = GraphOptions(
            **{name: tuple(map(str, graph[name])) for name in _PLAIN},
            quantized_ops=tuple(tuple(map(str, ops)) for ops in graph["quantized_ops"]),
            recovery=tuple(Recovery.from_json(recovery) for recovery in graph["recovery"]),
        )
        if len(groups) != len(options) or not all(options) or not all(getattr(choices, name) for name in _PLAIN):
            raise ValueError("every group and every choice needs at least one option")
        return Space(groups, options, choices)
    except (KeyError, TypeError, ValueError, AttributeError, SpecError) as cause:
        raise RunError(f"not a space: {cause!r}") from cause
